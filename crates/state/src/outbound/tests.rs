use std::collections::BTreeMap;

use isobar_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    at, bytes, gateway, host, ip, mesh, of_service, of_workload, pod, serves, service, waypoint,
    waypoint_objects,
};

const CLIENT: &str = "10.0.0.9";

/// The mesh of `addresses` and a client pod `default/client`.
fn with_client(addresses: Vec<wire::Address>) -> Snapshot {
    let mut all = addresses;
    all.push(of_workload(pod("default", "client", CLIENT)));
    mesh(&all)
}

fn call(snapshot: &Snapshot, to: &str, dice: u64) -> Result<NextHop, Refusal> {
    call_from(snapshot, "default", "client", CLIENT, to, dice)
}

fn call_from(
    snapshot: &Snapshot,
    namespace: &str,
    name: &str,
    source_ip: &str,
    to: &str,
    dice: u64,
) -> Result<NextHop, Refusal> {
    let source = snapshot
        .local_workload("node-1", namespace, name, name)
        .unwrap();
    let call = OutboundCall {
        source,
        source_ip: ip(source_ip),
        destination: at(to),
        network: "",
    };
    route(snapshot, &call, dice)
}

fn said(result: Result<NextHop, Refusal>) -> String {
    result.unwrap().to_string()
}

fn refused(result: Result<NextHop, Refusal>) -> (Reason, String) {
    let refusal = result.unwrap_err();
    (refusal.reason, refusal.detail)
}

fn web(ports: &[(u32, u32)]) -> wire::Service {
    service("default", "web", "10.96.0.1", ports)
}

fn web_pod() -> wire::Workload {
    serves(
        pod("default", "web-1", "10.0.0.1"),
        "default",
        "web",
        &[(80, 8080)],
    )
}

#[test]
fn a_service_call_goes_to_an_endpoint_through_hbone() {
    let snapshot = with_client(vec![of_service(web(&[(80, 8080)])), of_workload(web_pod())]);
    let hop = call(&snapshot, "10.96.0.1:80", 1).unwrap();
    let NextHop::Tunnel {
        to,
        authority,
        expect,
        via_waypoint,
        service,
        ..
    } = hop
    else {
        panic!("{hop}");
    };
    assert_eq!(to, at("10.0.0.1:15008"));
    assert_eq!(authority, "10.0.0.1:8080");
    assert_eq!(expect, [Identity::new("cluster.local", "default", "web-1")]);
    assert!(!via_waypoint);
    assert_eq!(&*service.unwrap().name, "web");
}

#[test]
fn listed_names_widen_what_is_accepted() {
    let listed = "spiffe://other.org/ns/a/sa/b";
    let web = wire::Service {
        subject_alt_names: vec![listed.to_owned()],
        ..web(&[(80, 8080)])
    };
    let snapshot = with_client(vec![of_service(web), of_workload(web_pod())]);
    let Ok(NextHop::Tunnel { expect, .. }) = call(&snapshot, "10.96.0.1:80", 1) else {
        panic!("no tunnel");
    };
    let names: Vec<_> = expect.iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        [listed, "spiffe://cluster.local/ns/default/sa/web-1"]
    );
}

#[test]
fn what_the_mesh_does_not_know_passes_through() {
    let snapshot = with_client(vec![]);
    assert_eq!(
        said(call(&snapshot, "1.2.3.4:443", 1)),
        "passthrough to 1.2.3.4:443"
    );
    let standing_for_itself = wire::Service {
        load_balancing: Some(wire::LoadBalancing {
            mode: wire::load_balancing::Mode::Passthrough.into(),
            ..Default::default()
        }),
        ..web(&[(443, 443)])
    };
    let snapshot = with_client(vec![of_service(standing_for_itself)]);
    assert_eq!(
        said(call(&snapshot, "10.96.0.1:443", 1)),
        "passthrough to 10.96.0.1:443"
    );
}

#[test]
fn a_known_service_never_passes_through() {
    let snapshot = with_client(vec![of_service(web(&[(80, 8080)]))]);
    assert_eq!(
        refused(call(&snapshot, "10.96.0.1:80", 1)).0,
        Reason::NoHealthyUpstream
    );
    assert_eq!(
        refused(call(&snapshot, "10.96.0.1:81", 1)).0,
        Reason::NoSuchPort
    );
}

#[test]
fn a_workload_outside_the_mesh_gets_plain_tcp() {
    let plain = wire::Workload {
        tunnel_protocol: 0,
        ..web_pod()
    };
    let snapshot = with_client(vec![of_service(web(&[(80, 8080)])), of_workload(plain)]);
    assert_eq!(
        said(call(&snapshot, "10.96.0.1:80", 1)),
        "plain TCP to default/web-1 at 10.0.0.1:8080"
    );
    assert_eq!(
        said(call(&snapshot, "10.0.0.1:9999", 1)),
        "plain TCP to default/web-1 at 10.0.0.1:9999"
    );
}

#[test]
fn a_workload_without_address_is_resolved_by_name() {
    let external = wire::Workload {
        tunnel_protocol: 0,
        addresses: vec![],
        hostname: "api.example.com".to_owned(),
        ..web_pod()
    };
    let snapshot = with_client(vec![of_service(web(&[(80, 443)])), of_workload(external)]);
    let hop = call(&snapshot, "10.96.0.1:80", 1);
    // The endpoint's own mapping counts, not the service's.
    assert_eq!(said(hop), "plain TCP to api.example.com:8080");
}

#[test]
fn calls_to_the_mesh_itself_are_refused() {
    let snapshot = with_client(vec![]);
    for port in [15001, 15006, 15008] {
        let refusal = refused(call(&snapshot, &format!("127.0.0.1:{port}"), 1));
        assert_eq!(refusal.0, Reason::ReservedPort);
    }
    assert!(call(&snapshot, "127.0.0.1:80", 1).is_ok());
}

#[test]
fn a_service_with_a_waypoint_goes_there_with_its_own_authority() {
    let mut objects = waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
    objects.push(of_service(wire::Service {
        waypoint: waypoint("default", "wp"),
        ..web(&[(80, 8080)])
    }));
    let snapshot = with_client(objects);
    let hop = call(&snapshot, "10.96.0.1:80", 1).unwrap();
    assert_eq!(
        hop.to_string(),
        "HBONE to waypoint default/wp at 10.0.0.50:15008 for 10.96.0.1:80"
    );
    let NextHop::Tunnel {
        expect, service, ..
    } = hop
    else {
        panic!("no tunnel");
    };
    assert_eq!(expect, [Identity::new("cluster.local", "default", "wp")]);
    assert_eq!(&*service.unwrap().name, "web");
}

#[test]
fn a_waypoint_that_cannot_be_used_is_never_passed_by() {
    let bound = |hostname: &str| {
        of_service(wire::Service {
            waypoint: gateway("default", hostname),
            ..web(&[(80, 8080)])
        })
    };
    let wp = host("default", "wp");
    let web = of_workload(web_pod());
    let unready = |mut objects: Vec<wire::Address>| {
        for object in &mut objects {
            if let Some(wire::address::Type::Workload(w)) = &mut object.r#type {
                w.status = 1;
            }
        }
        objects
    };
    let objects = || waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
    let cases = [
        (
            vec![bound(&wp), web.clone()],
            Reason::WaypointMissing,
            "service default/web uses waypoint default/wp, which does not exist",
        ),
        (
            [vec![bound(&wp), web.clone()], unready(objects())].concat(),
            Reason::WaypointNotReady,
            "service default/web uses waypoint default/wp, which is not ready",
        ),
        (
            vec![bound(&wp), web.clone(), objects().remove(0)],
            Reason::WaypointNotReady,
            "service default/web uses waypoint default/wp, which is not ready",
        ),
        (
            vec![bound("denied.waypoint.isobar.invalid"), web],
            Reason::WaypointNotAllowed,
            "service default/web names a waypoint that it may not use",
        ),
    ];
    for (objects, reason, detail) in cases {
        let refusal = refused(call(&with_client(objects), "10.96.0.1:80", 1));
        assert_eq!(refusal.0, reason);
        assert!(refusal.1.starts_with(detail), "{}", refusal.1);
    }
}

#[test]
fn weighted_waypoints_share_the_calls() {
    let mut objects = waypoint_objects("default", "a", "10.96.0.9", "10.0.0.50");
    objects.extend(waypoint_objects("default", "b", "10.96.0.10", "10.0.0.51"));
    let share = |name, weight| wire::WeightedWaypoint {
        destination: waypoint("default", name),
        weight,
    };
    objects.push(of_service(wire::Service {
        waypoint: waypoint("default", "missing"),
        weighted_waypoints: vec![share("a", 90), share("b", 10)],
        ..web(&[(80, 8080)])
    }));
    let snapshot = with_client(objects);
    let mut counts = BTreeMap::new();
    for dice in 0..1000 {
        let Ok(NextHop::Tunnel { workload, .. }) = call(&snapshot, "10.96.0.1:80", dice) else {
            panic!("no tunnel");
        };
        *counts.entry(workload.name.to_string()).or_insert(0) += 1;
    }
    assert_eq!(
        counts,
        BTreeMap::from([("a".to_owned(), 900), ("b".to_owned(), 100)])
    );
}

#[test]
fn weights_of_zero_leave_the_single_waypoint() {
    let mut objects = waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
    objects.push(of_service(wire::Service {
        waypoint: waypoint("default", "wp"),
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: waypoint("default", "missing"),
            weight: 0,
        }],
        ..web(&[(80, 8080)])
    }));
    let hop = said(call(&with_client(objects), "10.96.0.1:80", 5));
    assert!(hop.contains("default/wp"), "{hop}");
}

#[test]
fn a_pods_waypoint_takes_calls_to_the_pod_but_not_the_waypoints_own() {
    let mut objects = waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
    objects.push(of_workload(wire::Workload {
        waypoint: waypoint("default", "wp"),
        ..web_pod()
    }));
    objects.push(of_service(web(&[(80, 8080)])));
    let snapshot = with_client(objects);
    assert_eq!(
        said(call(&snapshot, "10.0.0.1:8080", 1)),
        "HBONE to waypoint default/wp at 10.0.0.50:15008 for 10.0.0.1:8080"
    );
    assert_eq!(
        said(call(&snapshot, "10.96.0.1:80", 1)),
        "HBONE to default/web-1 at 10.0.0.1:15008 for 10.0.0.1:8080",
        "a service without a waypoint goes straight to its pods"
    );
    let direct = "HBONE to default/web-1 at 10.0.0.1:15008 for 10.0.0.1:8080";
    let from = |source_ip| call_from(&snapshot, "default", "wp", source_ip, "10.0.0.1:8080", 1);
    assert_eq!(said(from("10.0.0.50")), direct);
    assert!(
        said(from("10.0.0.51")).contains("waypoint"),
        "the account alone does not make a waypoint"
    );
}

#[test]
fn a_shared_address_belongs_to_the_clients_namespace_then_to_the_canonical_one() {
    let other = |namespace: &str, canonical| {
        let pod = serves(
            pod(namespace, "p", "10.0.1.1"),
            namespace,
            "web",
            &[(80, 1)],
        );
        let service = wire::Service {
            canonical,
            ..service(namespace, "web", "10.96.0.1", &[(80, 1)])
        };
        vec![
            of_service(service),
            of_workload(wire::Workload {
                tunnel_protocol: 0,
                ..pod
            }),
        ]
    };
    let both = [other("a", false), other("z", true)].concat();
    assert!(said(call(&with_client(both.clone()), "10.96.0.1:80", 1)).contains("z/p"));
    let home = [
        both,
        vec![of_service(web(&[(80, 8080)])), of_workload(web_pod())],
    ]
    .concat();
    assert!(said(call(&with_client(home), "10.96.0.1:80", 1)).contains("default/web-1"));
}

#[test]
fn an_invisible_service_is_not_there() {
    let hidden = wire::Service {
        visibility: wire::service::Visibility::Namespace.into(),
        ..service("other", "web", "10.96.0.1", &[(80, 8080)])
    };
    let range = |namespace: &str, length| wire::Service {
        addresses: vec![wire::NetworkAddress {
            address: bytes("10.96.0.0"),
            length: Some(length),
            ..Default::default()
        }],
        ..service(namespace, "range", "10.96.0.1", &[(80, 8080)])
    };
    let snapshot = with_client(vec![of_service(hidden.clone())]);
    assert!(said(call(&snapshot, "10.96.0.1:80", 1)).starts_with("passthrough"));
    let snapshot = with_client(vec![
        of_service(hidden),
        of_service(range("far", 24)),
        of_service(range("default", 16)),
    ]);
    let refusal = refused(call(&snapshot, "10.96.0.1:80", 1));
    assert!(
        refusal.1.contains("default/range"),
        "a short prefix at home beats a long one elsewhere: {}",
        refusal.1
    );
}

#[test]
fn families_are_those_the_service_allows() {
    let dual = wire::Workload {
        addresses: vec![bytes("10.0.0.1"), bytes("fd00::1")],
        ..web_pod()
    };
    let v6_vip = wire::NetworkAddress {
        address: bytes("fd96::1"),
        ..Default::default()
    };
    let of_family = |families: wire::IpFamilies, to: &str| {
        let mut web = web(&[(80, 8080)]);
        web.addresses.push(v6_vip.clone());
        web.ip_families = families.into();
        let snapshot = with_client(vec![of_service(web), of_workload(dual.clone())]);
        said(call(&snapshot, to, 1))
    };
    use wire::IpFamilies::{Automatic, Ipv4Only, Ipv6Only};
    let v4 = "HBONE to default/web-1 at 10.0.0.1:15008 for 10.0.0.1:8080";
    let v6 = "HBONE to default/web-1 at [fd00::1]:15008 for [fd00::1]:8080";
    assert_eq!(of_family(Automatic, "10.96.0.1:80"), v4);
    assert_eq!(of_family(Automatic, "[fd96::1]:80"), v6);
    assert_eq!(of_family(Ipv4Only, "[fd96::1]:80"), v4);
    assert_eq!(of_family(Ipv6Only, "10.96.0.1:80"), v6);
    assert_eq!(of_family(Automatic, "[::ffff:10.96.0.1]:80"), v4);
}

#[test]
fn other_networks_are_refused_by_name_unless_there_is_an_endpoint_here() {
    let remote = wire::Workload {
        uid: "remote".to_owned(),
        network: "far".to_owned(),
        addresses: vec![],
        network_gateway: waypoint("default", "east-west"),
        ..web_pod()
    };
    let web = of_service(web(&[(80, 8080)]));
    let only_remote = with_client(vec![web.clone(), of_workload(remote.clone())]);
    let refusal = refused(call(&only_remote, "10.96.0.1:80", 1));
    assert_eq!(refusal.0, Reason::NoHealthyUpstream);
    assert!(refusal.1.contains("across networks"), "{}", refusal.1);
    let both = with_client(vec![web, of_workload(remote), of_workload(web_pod())]);
    for dice in 0..20 {
        assert!(said(call(&both, "10.96.0.1:80", dice)).contains("10.0.0.1"));
    }
}

#[test]
fn host_network_workloads_are_found_through_services_only() {
    let on_host = wire::Workload {
        network_mode: wire::NetworkMode::HostNetwork.into(),
        tunnel_protocol: 0,
        ..web_pod()
    };
    let snapshot = with_client(vec![of_service(web(&[(80, 8080)])), of_workload(on_host)]);
    assert!(said(call(&snapshot, "10.0.0.1:8080", 1)).starts_with("passthrough"));
    assert!(said(call(&snapshot, "10.96.0.1:80", 1)).contains("10.0.0.1:8080"));
}

#[test]
fn a_waypoint_may_be_named_by_address() {
    use wire::gateway_address::Destination;
    let by = |address: &str| {
        Some(wire::GatewayAddress {
            destination: Some(Destination::Address(wire::NetworkAddress {
                address: bytes(address),
                ..Default::default()
            })),
            hbone_mtls_port: 15008,
        })
    };
    for address in ["10.96.0.9", "10.0.0.50"] {
        let mut objects = waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
        objects.push(of_service(wire::Service {
            waypoint: by(address),
            ..web(&[(80, 8080)])
        }));
        let hop = said(call(&with_client(objects), "10.96.0.1:80", 1));
        assert!(hop.contains("10.0.0.50:15008"), "{hop}");
    }
}

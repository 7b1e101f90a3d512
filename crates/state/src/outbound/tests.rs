use isobar_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    at, bytes, ip, mesh, of_service, of_workload, pod, serves, service, waypoint, waypoint_objects,
};

const CLIENT: &str = "10.0.0.9";

/// The mesh of `addresses` and a client pod `default/client`.
fn with_client(addresses: Vec<wire::Address>) -> Snapshot {
    let mut all = addresses;
    all.push(of_workload(pod("default", "client", CLIENT)));
    mesh(&all)
}

/// A call of the pod that [`with_client`] adds.
fn of_client<'a>(snapshot: &'a Snapshot, to: &str) -> OutboundCall<'a> {
    OutboundCall {
        source: snapshot
            .local_workload("node-1", "default", "client", "client")
            .unwrap(),
        source_ip: ip(CLIENT),
        destination: at(to),
        network: "",
        crosses_networks: false,
        ejections: None,
    }
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
        crosses_networks: false,
        ejections: None,
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
    assert_eq!(
        said(call(&snapshot, "[::ffff:1.2.3.4]:443", 1)),
        "passthrough to 1.2.3.4:443",
        "an address has one form"
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
    let hop = hop.unwrap();
    assert_eq!(hop.to_string(), "resolve api.example.com for port 8080");
    assert_eq!(
        hop.resolved(ip("192.0.2.1")).to_string(),
        "plain TCP to default/web-1 at 192.0.2.1:8080"
    );
}

#[test]
fn a_workload_of_the_mesh_known_by_name_is_tunnelled_to_where_the_name_is() {
    let by_name = wire::Workload {
        addresses: vec![],
        hostname: "db.example.com".to_owned(),
        ..web_pod()
    };
    let snapshot = with_client(vec![of_service(web(&[(80, 443)])), of_workload(by_name)]);
    let hop = call(&snapshot, "10.96.0.1:80", 1).unwrap();
    let tunnel = "HBONE to default/web-1 at [2001:db8::1]:15008 for [2001:db8::1]:8080";
    assert_eq!(hop.resolved(ip("2001:db8::1")).to_string(), tunnel);
    let direct = hop.resolved(ip("2001:db8::1"));
    assert_eq!(direct.resolved(ip("192.0.2.1")), direct, "once is enough");
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

#[test]
fn a_waypoint_is_told_the_one_form_of_an_address() {
    let mut objects = waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
    objects.push(of_service(wire::Service {
        waypoint: waypoint("default", "wp"),
        ..web(&[(80, 8080)])
    }));
    let hop = said(call(&with_client(objects), "[::ffff:10.96.0.1]:80", 1));
    let tunnel = "HBONE to waypoint default/wp at 10.0.0.50:15008 for 10.96.0.1:80";
    assert_eq!(hop, tunnel);
}

/// A call of a client whose own network is not the node's, which is called `far`.
fn from_far(mut web: wire::Service, vip_network: &str) -> Result<NextHop, Refusal> {
    web.addresses[0].network = vip_network.to_owned();
    let snapshot = with_client(vec![of_service(web), of_workload(web_pod())]);
    let call = OutboundCall {
        network: "far",
        ..of_client(&snapshot, "10.96.0.1:80")
    };
    route(&snapshot, &call, 1)
}

#[test]
fn an_address_means_what_it_is_on_the_callers_network() {
    let own = said(from_far(web(&[(80, 8080)]), ""));
    let tunnel = "HBONE to default/web-1 at 10.0.0.1:15008 for 10.0.0.1:8080";
    assert_eq!(own, tunnel);
    let (reason, why) = refused(from_far(web(&[(80, 8080)]), "far"));
    assert_eq!(reason, Reason::NoHealthyUpstream);
    assert_eq!(why, "service default/web is not on the caller's network");
    let itself = wire::Service {
        load_balancing: Some(wire::LoadBalancing {
            mode: wire::load_balancing::Mode::Passthrough.into(),
            ..Default::default()
        }),
        ..web(&[(80, 8080)])
    };
    let passed = said(from_far(itself, "far"));
    assert_eq!(passed, "passthrough to 10.96.0.1:80");
}

#[test]
fn an_endpoint_without_an_address_of_the_services_family_is_named() {
    let v4 = wire::Service {
        ip_families: wire::IpFamilies::Ipv4Only.into(),
        ..web(&[(80, 8080)])
    };
    let pod = wire::Workload {
        addresses: vec![bytes("fd00::1")],
        ..web_pod()
    };
    let snapshot = with_client(vec![of_service(v4), of_workload(pod)]);
    let (reason, why) = refused(call(&snapshot, "10.96.0.1:80", 1));
    assert_eq!(reason, Reason::NoHealthyUpstream);
    assert_eq!(why, "workload default/web-1 has no address");
}

#[test]
fn who_has_chosen_the_endpoint_is_told() {
    let told = |objects: Vec<wire::Address>, to: &str| {
        let hop = call(&with_client(objects), to, 1).unwrap();
        let service = hop.service().map(|s| s.name.to_string());
        let chosen = hop.chosen();
        let chosen = chosen.map(|(s, w)| format!("{} of {}", w.display_name(), s.name));
        (service, chosen)
    };
    let objects = || vec![of_service(web(&[(80, 8080)])), of_workload(web_pod())];
    let of_web = Some("default/web-1 of web".to_owned());
    let balanced = (Some("web".to_owned()), of_web);
    assert_eq!(told(objects(), "10.96.0.1:80"), balanced);
    assert_eq!(told(objects(), "10.0.0.1:8080"), (None, None));
    assert_eq!(told(vec![], "1.2.3.4:443"), (None, None));
    let mut through = waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50");
    through.push(of_service(wire::Service {
        waypoint: waypoint("default", "wp"),
        ..web(&[(80, 8080)])
    }));
    assert_eq!(told(through, "10.96.0.1:80"), (None, None));
}

#[test]
fn who_could_not_be_reached_is_made_up_for_by_another() {
    let port = [(80, 8080)];
    let second = serves(pod("default", "web-2", "10.0.0.2"), "default", "web", &port);
    let all = vec![
        of_service(web(&port)),
        of_workload(web_pod()),
        of_workload(second),
    ];
    let snapshot = with_client(all);
    let to = |destination: &str| of_client(&snapshot, destination);
    let call = to("10.96.0.1:80");
    for dice in 0..8 {
        let first = route(&snapshot, &call, dice).unwrap();
        let first = Place::from(&**first.endpoint().unwrap());
        let tried = [first];
        let second = route_again(&snapshot, &call, &tried, dice).unwrap();
        let second = Place::from(&**second.endpoint().unwrap());
        assert!(!tried.contains(&second));
        let [first] = tried;
        let none = route_again(&snapshot, &call, &[first, second], dice);
        assert_eq!(none.unwrap_err().reason, Reason::NoHealthyUpstream);
    }
    // A pod that is called by its own address is no endpoint among others.
    let call = to("10.0.0.1:8080");
    assert!(route(&snapshot, &call, 1).unwrap().endpoint().is_none());
    assert!(route_again(&snapshot, &call, &[], 1).is_err());
}

#[test]
fn another_pod_of_the_waypoint_makes_up_for_one_never_the_direct_way() {
    let bound = wire::Service {
        waypoint: waypoint("default", "way"),
        ..web(&[(80, 8080)])
    };
    let mut all = waypoint_objects("default", "way", "10.96.0.9", "10.0.0.20");
    all.push(of_service(bound));
    all.push(of_workload(web_pod()));
    let second = pod("default", "way-2", "10.0.0.21");
    let second = serves(second, "default", "way", &[(15008, 15008)]);
    let snapshot = with_client([all.clone(), vec![of_workload(second)]].concat());
    let alone = with_client(all);
    let again = |snapshot: &Snapshot| {
        let call = of_client(snapshot, "10.96.0.1:80");
        let first = route(snapshot, &call, 1).unwrap();
        let tried = [Place::from(&**first.endpoint().unwrap())];
        route_again(snapshot, &call, &tried, 1)
    };
    let Ok(NextHop::Tunnel {
        via_waypoint, to, ..
    }) = again(&snapshot)
    else {
        panic!("no tunnel");
    };
    assert!(via_waypoint);
    assert!([at("10.0.0.20:15008"), at("10.0.0.21:15008")].contains(&to));
    assert_eq!(again(&alone).unwrap_err().reason, Reason::WaypointNotReady);
}

//! Calls that leave the network.

use isobar_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    at, bytes, ip, mesh, of_service, of_workload, pod, serves, service, waypoint, waypoint_objects,
};

const FAR_ACCOUNT: &str = "spiffe://cluster.local/ns/default/sa/far-web";

/// `default/web` with what istiod sends for its endpoints on network `far`: an aggregate without
/// addresses, behind the gateway `istio-system/east-west`.
fn split_horizon(
    change: impl FnOnce(&mut wire::Service, &mut wire::Workload),
) -> Vec<wire::Address> {
    let mut web = wire::Service {
        subject_alt_names: vec![FAR_ACCOUNT.to_owned()],
        ..service("default", "web", "10.96.0.1", &[(80, 8080)])
    };
    let mut aggregate = wire::Workload {
        uid: "far/SplitHorizonWorkload/east-west/default/web".to_owned(),
        network: "far".to_owned(),
        addresses: vec![],
        network_gateway: waypoint("istio-system", "east-west"),
        capacity: Some(3),
        ..serves(
            pod("default", "far", "10.0.0.1"),
            "default",
            "web",
            &[(80, 8080)],
        )
    };
    change(&mut web, &mut aggregate);
    let gateway = serves(
        pod("istio-system", "east-west", "10.9.0.1"),
        "istio-system",
        "east-west",
        &[(15008, 15008)],
    );
    let gateway_service = service("istio-system", "east-west", "10.96.9.9", &[(15008, 15008)]);
    vec![
        of_service(web),
        of_workload(aggregate),
        of_service(gateway_service),
        of_workload(gateway),
        of_workload(pod("default", "client", "10.0.0.9")),
    ]
}

fn call(objects: &[wire::Address], crosses_networks: bool, dice: u64) -> Result<NextHop, Refusal> {
    let snapshot = mesh(objects);
    route(&snapshot, &asked(&snapshot, crosses_networks), dice)
}

fn asked(snapshot: &Snapshot, crosses_networks: bool) -> OutboundCall<'_> {
    let source = snapshot.local_workload("node-1", "default", "client", "client");
    OutboundCall {
        source: source.unwrap(),
        source_ip: ip("10.0.0.9"),
        destination: at("10.96.0.1:80"),
        network: "",
        crosses_networks,
        ejections: None,
    }
}

fn names(list: &[Identity]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn another_network_is_reached_by_a_tunnel_in_a_tunnel() {
    let hop = call(&split_horizon(|_, _| {}), true, 1).unwrap();
    assert_eq!(
        hop.to_string(),
        "double HBONE through gateway istio-system/east-west at 10.9.0.1:15008 for \
         web.default.svc.cluster.local:80"
    );
    let NextHop::DoubleTunnel {
        expect_gateway,
        expect,
        service,
        ..
    } = hop
    else {
        panic!("one tunnel only");
    };
    let gateway = "spiffe://cluster.local/ns/istio-system/sa/east-west";
    assert_eq!(names(&expect_gateway), [gateway]);
    assert_eq!(names(&expect), [FAR_ACCOUNT], "and nobody else");
    assert_eq!(&*service.name, "web");
}

#[test]
fn near_and_far_endpoints_share_by_capacity() {
    let mut objects = split_horizon(|_, _| {});
    let near = pod("default", "web-1", "10.0.0.1");
    objects.push(of_workload(serves(near, "default", "web", &[(80, 8080)])));
    let far = (0..400)
        .filter(|dice| {
            let hop = call(&objects, true, *dice).unwrap();
            matches!(hop, NextHop::DoubleTunnel { .. })
        })
        .count();
    assert!(
        (250..350).contains(&far),
        "about three of four, not {far} of 400"
    );
    for dice in 0..50 {
        let hop = call(&objects, false, dice).unwrap().to_string();
        assert!(
            hop.contains("10.0.0.1"),
            "who cannot cross stays here: {hop}"
        );
    }
}

#[test]
fn another_pod_of_a_gateway_is_tried_and_then_who_is_near() {
    let mut objects = split_horizon(|_, _| {});
    let other = pod("istio-system", "east-west-2", "10.9.0.2");
    let ports = &[(15008, 15008)];
    objects.push(of_workload(serves(
        other,
        "istio-system",
        "east-west",
        ports,
    )));
    let near = serves(
        pod("default", "web-1", "10.0.0.1"),
        "default",
        "web",
        &[(80, 8080)],
    );
    for (near, last) in [(None, None), (Some(near), Some("10.0.0.1"))] {
        objects.extend(near.map(of_workload));
        let snapshot = mesh(&objects);
        let call = asked(&snapshot, true);
        for dice in 0..50 {
            let mut tried = Vec::new();
            let mut hop = route(&snapshot, &call, dice);
            let mut ways = Vec::new();
            while let Ok(way) = hop {
                tried.push(Place::from(&**way.endpoint().unwrap()));
                ways.push(way.to_string());
                hop = route_again(&snapshot, &call, &tried, dice);
            }
            let through = |at| ways.iter().filter(|way| way.contains(at)).count();
            assert_eq!(through("10.9.0.1"), 1, "{ways:?}");
            assert_eq!(through("10.9.0.2"), 1, "{ways:?}");
            if let Some(last) = last {
                assert_eq!(through(last), 1, "{ways:?}");
            }
            assert_eq!(ways.len(), 2 + usize::from(last.is_some()), "{ways:?}");
        }
    }
}

#[test]
fn a_way_that_is_not_there_is_named() {
    let refusals = [
        (
            call(&split_horizon(|_, _| {}), false, 1),
            "calls across networks are not supported here",
        ),
        (
            call(
                &split_horizon(|web, _| web.subject_alt_names.clear()),
                true,
                1,
            ),
            "no identity is known for the far end",
        ),
        (
            call(
                &split_horizon(|_, far| far.network_gateway = waypoint("istio-system", "gone")),
                true,
                1,
            ),
            "neither a service nor a workload is at istio-system/gone",
        ),
        (
            call(
                &split_horizon(|_, far| far.network_gateway = bare("192.0.2.1")),
                true,
                1,
            ),
            "neither a service nor a workload is at 192.0.2.1",
        ),
        (
            call(&split_horizon(|_, far| far.network_gateway = None), true, 1),
            "1 not reachable from here",
        ),
    ];
    for (result, why) in refusals {
        let refusal = result.unwrap_err();
        assert_eq!(
            refusal.reason,
            Reason::NoHealthyUpstream,
            "{}",
            refusal.detail
        );
        assert!(refusal.detail.contains(why), "{}", refusal.detail);
    }
}

fn bare(address: &str) -> Option<wire::GatewayAddress> {
    use wire::gateway_address::Destination;
    Some(wire::GatewayAddress {
        destination: Some(Destination::Address(wire::NetworkAddress {
            address: bytes(address),
            ..Default::default()
        })),
        hbone_mtls_port: 15008,
    })
}

#[test]
fn a_gateway_may_be_named_by_a_known_address() {
    for address in ["10.9.0.1", "10.96.9.9"] {
        let objects = split_horizon(|_, far| far.network_gateway = bare(address));
        let hop = call(&objects, true, 1).unwrap().to_string();
        assert!(hop.contains("at 10.9.0.1:15008"), "{hop}");
    }
}

#[test]
fn a_waypoint_on_another_network_is_proved_by_its_own_names() {
    let mut objects = split_horizon(|web, _| web.waypoint = waypoint("default", "wp"));
    let proof = "spiffe://cluster.local/ns/default/sa/far-wp";
    for mut object in waypoint_objects("default", "wp", "10.96.0.9", "10.0.0.50") {
        match &mut object.r#type {
            Some(wire::address::Type::Workload(w)) => {
                w.network = "far".to_owned();
                w.addresses.clear();
                w.network_gateway = waypoint("istio-system", "east-west");
            }
            Some(wire::address::Type::Service(s)) => s.subject_alt_names.push(proof.to_owned()),
            None => {}
        }
        objects.push(object);
    }
    let NextHop::DoubleTunnel {
        expect, authority, ..
    } = call(&objects, true, 1).unwrap()
    else {
        panic!("one tunnel only");
    };
    assert_eq!(names(&expect), [proof], "not the pods behind it");
    assert_eq!(authority, "web.default.svc.cluster.local:80");
    assert!(call(&objects, false, 1).is_err());
}

#[test]
fn who_cannot_be_reached_on_either_network_is_refused_not_passed_through() {
    // This node serves network "here", the caller belongs to the default one.
    let web = wire::Service {
        addresses: vec![wire::NetworkAddress {
            network: "here".to_owned(),
            address: bytes("10.96.0.1"),
            ..Default::default()
        }],
        ..service("default", "web", "10.96.0.1", &[(80, 8080)])
    };
    let client = of_workload(pod("default", "client", "10.0.0.9"));
    let snapshot = mesh(&[of_service(web), client]);
    let source = snapshot.local_workload("node-1", "default", "client", "client");
    let call = OutboundCall {
        source: source.unwrap(),
        source_ip: ip("10.0.0.9"),
        destination: at("10.96.0.1:80"),
        network: "here",
        crosses_networks: true,
        ejections: None,
    };
    let refusal = route(&snapshot, &call, 1).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoHealthyUpstream);
}

use isobar_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    at, host, ip, of_service, of_workload, pod, serves, service, uid, waypoint, waypoint_objects,
};

const CART: &str = "10.96.0.1:80";

fn world(objects: Vec<wire::Address>) -> Snapshot {
    let mut draft = Snapshot::default().draft();
    let front = of_workload(pod("web", "front", "10.0.0.9"));
    for address in std::iter::once(front).chain(objects) {
        draft.upsert_address(&address).unwrap();
    }
    draft.finish()
}

fn route(snapshot: &Snapshot, to: &str) -> Vec<String> {
    let call = OutboundCall {
        source: snapshot.workload_by_uid(&uid("web", "front")).unwrap(),
        source_ip: ip("10.0.0.9"),
        destination: at(to),
        network: "",
        crosses_networks: true,
        ejections: None,
    };
    before_route(snapshot, &call).into_iter().collect()
}

fn inbound(snapshot: &Snapshot, authority: &str) -> Vec<String> {
    let workload = snapshot.workload_by_uid(&uid("web", "front")).unwrap();
    let call = InboundCall {
        workload,
        local_ip: ip("10.0.0.9"),
        authority: &Authority::parse(authority).unwrap(),
        network: "",
    };
    before_inbound(snapshot, &call).into_iter().collect()
}

fn cart(bound: bool) -> wire::Service {
    let waypoint = bound.then(|| waypoint("shop", "wp")).flatten();
    wire::Service {
        waypoint,
        ..service("shop", "cart", "10.96.0.1", &[(80, 8080)])
    }
}

fn names(all: &[(&str, &str)]) -> Vec<String> {
    all.iter()
        .map(|(namespace, name)| format!("{namespace}/{}", host(namespace, name)))
        .collect()
}

#[test]
fn a_destination_is_asked_for_once_it_is_not_known() {
    let nothing = world(vec![]);
    assert_eq!(route(&nothing, CART), ["/10.96.0.1"]);
    assert_eq!(route(&nothing, "[::ffff:10.96.0.1]:80"), ["/10.96.0.1"]);
    for none in ["127.0.0.1:80", "0.0.0.0:80", "224.0.0.1:80", "[::1]:80"] {
        assert_eq!(route(&nothing, none), [""; 0], "{none}");
    }
    assert!(route(&world(vec![of_service(cart(false))]), CART).is_empty());
    let known = world(vec![of_workload(pod("shop", "a", "10.0.0.1"))]);
    assert!(route(&known, "10.0.0.1:80").is_empty());
}

#[test]
fn a_range_does_not_hide_what_is_inside_it() {
    let mut wide = cart(false);
    wide.addresses[0].length = Some(16);
    let snapshot = world(vec![of_service(wide)]);
    assert_eq!(route(&snapshot, CART), ["/10.96.0.1"]);
}

#[test]
fn waypoints_are_asked_for_wherever_they_are_named() {
    let by_service = world(vec![of_service(cart(true))]);
    assert_eq!(route(&by_service, CART), names(&[("shop", "wp")]));
    let bound = wire::Workload {
        waypoint: waypoint("shop", "wp"),
        ..pod("shop", "a", "10.0.0.1")
    };
    let by_workload = world(vec![of_workload(bound.clone())]);
    assert_eq!(route(&by_workload, "10.0.0.1:80"), names(&[("shop", "wp")]));
    let endpoint = serves(bound, "shop", "cart", &[(80, 8080)]);
    let mut weighted = cart(false);
    weighted.weighted_waypoints = vec![wire::WeightedWaypoint {
        destination: waypoint("shop", "other"),
        weight: 1,
    }];
    let mut objects = vec![of_service(weighted), of_workload(endpoint)];
    let expect = names(&[("shop", "other"), ("shop", "wp")]);
    assert_eq!(route(&world(objects.clone()), CART), expect);
    objects.extend(waypoint_objects("shop", "wp", "10.96.0.8", "10.0.0.8"));
    objects.extend(waypoint_objects("shop", "other", "10.96.0.7", "10.0.0.7"));
    assert!(route(&world(objects), CART).is_empty());
    // One that never exists is not asked for.
    let mut denied = cart(true);
    denied.waypoint = crate::testing::gateway("shop", "denied.waypoint.isobar.invalid");
    assert!(route(&world(vec![of_service(denied)]), CART).is_empty());
}

#[test]
fn gateways_of_other_networks_are_asked_for() {
    let mut far = serves(pod("shop", "a", "10.0.0.1"), "shop", "cart", &[(80, 8080)]);
    far.network = "far".to_owned();
    far.network_gateway = crate::testing::gateway("istio-system", "gw.example");
    let direct = vec![of_service(cart(false)), of_workload(far.clone())];
    assert_eq!(route(&world(direct), CART), ["istio-system/gw.example"]);
    // Also that of a waypoint.
    let mut objects = waypoint_objects("shop", "wp", "10.96.0.8", "10.0.0.8");
    if let Some(wire::address::Type::Workload(pod)) = &mut objects[1].r#type {
        pod.network = far.network.clone();
        pod.network_gateway = far.network_gateway;
    }
    objects.push(of_service(cart(true)));
    assert_eq!(route(&world(objects), CART), ["istio-system/gw.example"]);
}

#[test]
fn before_anything_is_let_in_its_services_and_waypoints_are_known() {
    let plain = world(vec![]);
    assert!(inbound(&plain, "10.0.0.9:80").is_empty());
    assert_eq!(inbound(&plain, "10.96.0.1:80"), ["/10.96.0.1"]);
    let front = serves(pod("web", "front", "10.0.0.9"), "shop", "cart", &[(80, 80)]);
    let front = wire::Workload {
        waypoint: waypoint("web", "mine"),
        ..front
    };
    let member = world(vec![of_workload(front.clone())]);
    let expect = names(&[("shop", "cart"), ("web", "mine")]);
    assert_eq!(inbound(&member, "10.0.0.9:80"), expect);
    let known = world(vec![of_workload(front), of_service(cart(true))]);
    let expect = names(&[("shop", "wp"), ("web", "mine")]);
    assert_eq!(inbound(&known, "10.0.0.9:80"), expect);
}

//! The numbered checks of the wire specification about calls that leave a pod, each in both
//! address families.

use std::collections::BTreeMap;

use isobar_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    bytes, gateway, host, ip, mesh, of_service, of_workload, pod, serves, service, waypoint,
    waypoint_objects,
};

/// The same small mesh in one address family.
#[derive(Clone, Copy)]
struct Family {
    client: &'static str,
    pod: &'static str,
    vip: &'static str,
    waypoint: &'static str,
    waypoint_vip: &'static str,
    other: &'static str,
    other_vip: &'static str,
    range: &'static str,
    lengths: [u32; 2],
}

const V4: Family = Family {
    client: "10.0.0.9",
    pod: "10.0.0.1",
    vip: "10.96.0.1",
    waypoint: "10.0.0.50",
    waypoint_vip: "10.96.0.9",
    other: "10.0.0.51",
    other_vip: "10.96.0.10",
    range: "10.96.0.0",
    lengths: [16, 24],
};
const V6: Family = Family {
    client: "fd00::9",
    pod: "fd00::1",
    vip: "fd96::1",
    waypoint: "fd00::50",
    waypoint_vip: "fd96::9",
    other: "fd00::51",
    other_vip: "fd96::10",
    range: "fd96::",
    lengths: [32, 64],
};

impl Family {
    fn to(self, address: &str, port: u16) -> String {
        SocketAddr::new(ip(address), port).to_string()
    }

    fn web(self) -> wire::Service {
        service("default", "web", self.vip, &[(80, 8080)])
    }

    fn web_pod(self) -> wire::Workload {
        let web = pod("default", "web-1", self.pod);
        serves(web, "default", "web", &[(80, 8080)])
    }

    fn waypoint(self) -> Vec<wire::Address> {
        waypoint_objects("default", "wp", self.waypoint_vip, self.waypoint)
    }

    fn with_client(self, mut objects: Vec<wire::Address>) -> Snapshot {
        objects.push(of_workload(pod("default", "client", self.client)));
        mesh(&objects)
    }

    fn call(self, snapshot: &Snapshot, dice: u64) -> Result<NextHop, Refusal> {
        self.call_to(snapshot, &self.to(self.vip, 80), dice)
    }

    fn call_to(self, snapshot: &Snapshot, to: &str, dice: u64) -> Result<NextHop, Refusal> {
        call_as(snapshot, "client", self.client, to, dice)
    }

    fn said(self, objects: Vec<wire::Address>) -> String {
        let hop = self.call(&self.with_client(objects), 1);
        hop.unwrap().to_string()
    }

    fn direct(self) -> String {
        let (to, authority) = (self.to(self.pod, 15008), self.to(self.pod, 8080));
        format!("HBONE to default/web-1 at {to} for {authority}")
    }

    fn through_waypoint(self, authority: &str) -> String {
        let to = self.to(self.waypoint, 15008);
        format!("HBONE to waypoint default/wp at {to} for {authority}")
    }
}

fn call_as(
    snapshot: &Snapshot,
    name: &str,
    source_ip: &str,
    to: &str,
    dice: u64,
) -> Result<NextHop, Refusal> {
    let source = snapshot.local_workload("node-1", "default", name, name);
    let call = OutboundCall {
        source: source.unwrap(),
        source_ip: ip(source_ip),
        destination: to.parse().unwrap(),
        network: "",
        crosses_networks: true,
        ejections: None,
    };
    route(snapshot, &call, dice)
}

fn refused(result: Result<NextHop, Refusal>) -> (Reason, String) {
    let refusal = result.unwrap_err();
    (refusal.reason, refusal.detail)
}

#[test]
fn check_12_a_vip_of_two_namespaces_is_the_clients_own_else_the_canonical_one() {
    for f in [V4, V6] {
        let owned_by = |namespace: &str, canonical| {
            let pod = pod(namespace, "p", f.other);
            let pod = serves(pod, namespace, "web", &[(80, 1)]);
            let service = wire::Service {
                canonical,
                ..service(namespace, "web", f.vip, &[(80, 1)])
            };
            vec![
                of_service(service),
                of_workload(wire::Workload {
                    tunnel_protocol: 0,
                    ..pod
                }),
            ]
        };
        let foreign = [owned_by("a", false), owned_by("z", true)].concat();
        assert!(f.said(foreign.clone()).contains("z/p"), "the canonical one");
        let neither = [owned_by("z", false), owned_by("a", false)].concat();
        assert!(f.said(neither).contains("a/p"), "the first of equals");
        let home = wire::Service {
            canonical: false,
            ..f.web()
        };
        let home = vec![of_service(home), of_workload(f.web_pod())];
        assert_eq!(f.said([foreign, home].concat()), f.direct());
    }
}

#[test]
fn check_13_an_invisible_service_is_not_there() {
    for f in [V4, V6] {
        let hidden = || {
            of_service(wire::Service {
                visibility: wire::service::Visibility::Namespace.into(),
                ..service("other", "web", f.vip, &[(80, 8080)])
            })
        };
        let range = |namespace: &str, name: &str, length| {
            of_service(wire::Service {
                addresses: vec![wire::NetworkAddress {
                    address: bytes(f.range),
                    length: Some(length),
                    ..Default::default()
                }],
                ..service(namespace, name, f.vip, &[(80, 8080)])
            })
        };
        let [short, long] = f.lengths;
        let to = f.to(f.vip, 80);
        assert_eq!(f.said(vec![hidden()]), format!("passthrough to {to}"));
        // A workload that owns the address is next …
        let owner = of_workload(pod("default", "owner", f.vip));
        let hop = f.said(vec![hidden(), owner.clone()]);
        assert!(hop.contains("default/owner"), "{hop}");
        // … but after the ranges, of which the nearest wins: home, then the longest prefix.
        let far = vec![
            hidden(),
            owner,
            range("far", "wide", short),
            range("far", "narrow", long),
        ];
        let answer = |objects| refused(f.call(&f.with_client(objects), 1)).1;
        let text = answer(far.clone());
        assert!(text.contains("far/narrow"), "{text}");
        let home = vec![range("default", "home", short)];
        let text = answer([far, home].concat());
        assert!(text.contains("default/home"), "{text}");
        // At home it is there.
        let home = wire::Service {
            visibility: wire::service::Visibility::Namespace.into(),
            ..f.web()
        };
        let objects = vec![of_service(home), of_workload(f.web_pod())];
        assert_eq!(f.said(objects), f.direct());
    }
}

#[test]
fn check_14_a_waypoint_that_cannot_be_used_is_never_passed_by() {
    for f in [V4, V6] {
        let bound = |hostname: &str| {
            of_service(wire::Service {
                waypoint: gateway("default", hostname),
                ..f.web()
            })
        };
        let wp = host("default", "wp");
        let web = of_workload(f.web_pod());
        let changed = |change: &dyn Fn(&mut wire::Workload)| {
            let mut objects = f.waypoint();
            for object in &mut objects {
                if let Some(wire::address::Type::Workload(w)) = &mut object.r#type {
                    change(w);
                }
            }
            [vec![bound(&wp), web.clone()], objects].concat()
        };
        let unready = "service default/web uses waypoint default/wp, which is not ready";
        let cases = [
            (
                vec![bound(&wp), web.clone()],
                Reason::WaypointMissing,
                "service default/web uses waypoint default/wp, which does not exist",
            ),
            (
                changed(&|w| w.status = 1),
                Reason::WaypointNotReady,
                unready,
            ),
            (
                changed(&|w| w.capacity = Some(0)),
                Reason::WaypointNotReady,
                unready,
            ),
            (
                changed(&|w| w.addresses.clear()),
                Reason::WaypointNotReady,
                unready,
            ),
            (
                vec![bound(&wp), web.clone(), f.waypoint().remove(0)],
                Reason::WaypointNotReady,
                unready,
            ),
            (
                vec![bound("denied.waypoint.isobar.invalid"), web.clone()],
                Reason::WaypointNotAllowed,
                "service default/web names a waypoint that it may not use",
            ),
        ];
        for (objects, reason, detail) in cases {
            let refusal = refused(f.call(&f.with_client(objects), 1));
            assert_eq!(refusal.0, reason, "{}", refusal.1);
            assert!(refusal.1.starts_with(detail), "{}", refusal.1);
        }
    }
}

#[test]
fn check_15_a_pods_waypoint_takes_calls_to_the_pod_but_not_the_waypoints_own() {
    for f in [V4, V6] {
        let mut objects = f.waypoint();
        objects.push(of_workload(wire::Workload {
            waypoint: waypoint("default", "wp"),
            ..f.web_pod()
        }));
        let snapshot = f.with_client(objects);
        let to = f.to(f.pod, 8080);
        let through = f.through_waypoint(&to);
        assert_eq!(f.call_to(&snapshot, &to, 1).unwrap().to_string(), through);
        let from = |ip| call_as(&snapshot, "wp", ip, &to, 1).unwrap().to_string();
        assert_eq!(from(f.waypoint), f.direct());
        assert_eq!(from(f.other), through, "the account alone is no waypoint");
        // Its address under another account is none either.
        let source = call_as(&snapshot, "client", f.waypoint, &to, 1);
        assert_eq!(source.unwrap().to_string(), through);
        // A pod whose waypoint is not there is not called directly.
        let orphan = wire::Workload {
            waypoint: waypoint("default", "wp"),
            ..f.web_pod()
        };
        let alone = f.with_client(vec![of_workload(orphan)]);
        let refusal = refused(f.call_to(&alone, &to, 1));
        assert_eq!(refusal.0, Reason::WaypointMissing);
    }
}

#[test]
fn check_16_a_service_without_a_waypoint_goes_straight_to_pods_that_have_one() {
    for f in [V4, V6] {
        let bound = wire::Workload {
            waypoint: waypoint("default", "wp"),
            ..f.web_pod()
        };
        let mut objects = f.waypoint();
        objects.extend([of_service(f.web()), of_workload(bound)]);
        assert_eq!(f.said(objects.clone()), f.direct());
        // The look-up that asks "is this a service?" finds workloads first: an address that is
        // both counts as the pod's there, and the chosen pod's waypoint is honoured.
        objects.push(of_workload(pod("default", "owner", f.vip)));
        let through = f.through_waypoint(&f.to(f.vip, 80));
        assert_eq!(f.said(objects), through);
    }
}

#[test]
fn check_17_weighted_waypoints_share_the_calls() {
    for f in [V4, V6] {
        let mut objects = f.waypoint();
        objects.extend(waypoint_objects("default", "b", f.other_vip, f.other));
        let share = |name, weight| wire::WeightedWaypoint {
            destination: waypoint("default", name),
            weight,
        };
        objects.push(of_service(wire::Service {
            waypoint: waypoint("default", "missing"),
            weighted_waypoints: vec![share("wp", 90), share("b", 10), share("missing", 0)],
            ..f.web()
        }));
        let snapshot = f.with_client(objects);
        let mut counts = BTreeMap::new();
        for dice in 0..1000 {
            let Ok(NextHop::Tunnel { workload, .. }) = f.call(&snapshot, dice) else {
                panic!("no tunnel");
            };
            *counts.entry(workload.name.to_string()).or_insert(0) += 1;
        }
        let want = BTreeMap::from([("wp".to_owned(), 900), ("b".to_owned(), 100)]);
        assert_eq!(counts, want);
    }
}

#[test]
fn check_18_a_service_that_stands_for_itself_keeps_the_original_destination() {
    for f in [V4, V6] {
        let passthrough = wire::Service {
            load_balancing: Some(wire::LoadBalancing {
                mode: wire::load_balancing::Mode::Passthrough.into(),
                ..Default::default()
            }),
            ..f.web()
        };
        let to = f.to(f.vip, 80);
        let objects = vec![of_service(passthrough.clone()), of_workload(f.web_pod())];
        assert_eq!(f.said(objects), format!("passthrough to {to}"));
        // Its waypoint comes first all the same.
        let mut objects = f.waypoint();
        objects.push(of_service(wire::Service {
            waypoint: waypoint("default", "wp"),
            ..passthrough
        }));
        assert_eq!(f.said(objects), f.through_waypoint(&to));
    }
}

#[test]
fn check_19_a_known_service_never_passes_through() {
    for f in [V4, V6] {
        let empty = f.with_client(vec![of_service(f.web())]);
        let no_endpoint = refused(f.call(&empty, 1));
        assert_eq!(no_endpoint.0, Reason::NoHealthyUpstream);
        let no_port = refused(f.call_to(&empty, &f.to(f.vip, 81), 1));
        assert_eq!(no_port.0, Reason::NoSuchPort);
        // Endpoints that want no traffic are none.
        let idle = wire::Workload {
            capacity: Some(0),
            ..f.web_pod()
        };
        let objects = vec![of_service(f.web()), of_workload(idle)];
        let refusal = refused(f.call(&f.with_client(objects), 1));
        assert_eq!(refusal.0, Reason::NoHealthyUpstream);
        assert!(refusal.1.contains("1 of capacity 0"), "{}", refusal.1);
    }
}

#[test]
fn check_22_families_are_those_the_service_allows() {
    use wire::IpFamilies::{Automatic, Dual, Ipv4Only, Ipv6Only};
    let both = wire::Workload {
        addresses: vec![bytes(V4.pod), bytes(V6.pod)],
        ..V4.web_pod()
    };
    let of_family = |families: wire::IpFamilies, to: &str| {
        let mut web = V4.web();
        web.addresses.extend(V6.web().addresses);
        web.ip_families = families.into();
        let snapshot = V4.with_client(vec![of_service(web), of_workload(both.clone())]);
        V4.call_to(&snapshot, to, 1).unwrap().to_string()
    };
    let (v4, v6) = (V4.direct(), V6.direct());
    let (to_v4, to_v6) = ("10.96.0.1:80", "[fd96::1]:80");
    for families in [Automatic, Dual] {
        assert_eq!(of_family(families, to_v4), v4);
        assert_eq!(of_family(families, to_v6), v6);
        assert_eq!(of_family(families, "[::ffff:10.96.0.1]:80"), v4);
    }
    assert_eq!(of_family(Ipv4Only, to_v6), v4);
    assert_eq!(of_family(Ipv4Only, to_v4), v4);
    assert_eq!(of_family(Ipv6Only, to_v4), v6);
    assert_eq!(of_family(Ipv6Only, to_v6), v6);
}

use isobar_proto::istio::security as sec;
use proptest::prelude::*;
use std::time::Duration;

use super::*;
use crate::convert::{self, Address, Interner};
use crate::testing::{
    bytes as ip_bytes, exact, gateway, of_service, of_workload, pod, presence, service,
};

fn converted(address: &wire::Address) -> Address {
    convert::address(address, &mut Interner::default(), &mut Vec::new()).unwrap()
}

/// Converts, writes and converts again.
fn assert_kept(address: &wire::Address) {
    let first = converted(address);
    let again = match &first {
        Address::Workload(w) => address_of_workload(w),
        Address::Service(s) => address_of_service(s),
    };
    assert_eq!(converted(&again), first);
}

fn by_address(address: &str) -> Option<wire::GatewayAddress> {
    use wire::gateway_address::Destination;
    Some(wire::GatewayAddress {
        destination: Some(Destination::Address(wire::NetworkAddress {
            network: "far".to_owned(),
            address: ip_bytes(address),
            length: None,
        })),
        hbone_mtls_port: 15009,
    })
}

fn full_workload(numbers: &[i32], flags: u8, capacity: u32) -> wire::Workload {
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let mut w = wire::Workload {
        trust_domain: "td".to_owned(),
        node: "n1".to_owned(),
        addresses: vec![ip_bytes("10.0.0.1"), ip_bytes("fd00::1")],
        hostname: "db.example.com".to_owned(),
        network: "net".to_owned(),
        network_mode: numbers[0] % 2,
        cluster_id: "east".to_owned(),
        tunnel_protocol: numbers[1] % 2,
        native_tunnel: flag(0),
        waypoint: flag(1).then(|| gateway("a", "wp")).flatten(),
        also_waypoints: gateway("a", "was").into_iter().collect(),
        also_direct: flag(2),
        network_gateway: flag(2).then(|| by_address("fd00::99")).flatten(),
        canonical_name: "app".to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_type: numbers[2] % 4,
        workload_name: "owner".to_owned(),
        authorization_policies: vec!["a/p".to_owned(), "b/q".to_owned()],
        status: numbers[3] % 2,
        capacity: flag(3).then_some(capacity),
        locality: flag(4).then(|| wire::Locality {
            region: "r".to_owned(),
            zone: "z".to_owned(),
            subzone: "s".to_owned(),
        }),
        application_tunnel: flag(5).then(|| wire::ApplicationTunnel {
            protocol: numbers[0] % 2,
            port: capacity % 65536,
        }),
        ..pod("shop", "cart", "10.0.0.1")
    };
    let ports = vec![wire::Port {
        service_port: 80,
        target_port: capacity % 65536,
        app_protocol: 0,
    }];
    w.services
        .insert("shop/cart.example".to_owned(), wire::PortList { ports });
    w
}

fn full_service(numbers: &[i32], flags: u8) -> wire::Service {
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let address = |text: &str, length| wire::NetworkAddress {
        network: "net".to_owned(),
        address: ip_bytes(text),
        length,
    };
    let port = |n: u32, protocol| wire::Port {
        service_port: n,
        target_port: n % 3,
        app_protocol: protocol,
    };
    wire::Service {
        addresses: vec![
            address("10.96.0.1", None),
            address("fd96::1", Some(128)),
            address("10.97.0.0", Some(16)),
            address("::ffff:10.98.0.0", Some(112)),
            address("fd97::", Some(64)),
        ],
        ports: (0..6).map(|p| port(80 + p as u32, p)).collect(),
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".to_owned()],
        waypoint: flag(0).then(|| by_address("10.0.0.5")).flatten(),
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: gateway("a", "wp"),
            weight: 7,
        }],
        also_waypoints: gateway("a", "was").into_iter().collect(),
        load_balancing: flag(1).then(|| wire::LoadBalancing {
            routing_preference: (1..7).collect(),
            mode: numbers[0] % 4,
            health_policy: numbers[1] % 2,
        }),
        ip_families: numbers[2] % 4,
        canonical: flag(2),
        visibility: numbers[3] % 2,
        ..service("shop", "cart", "10.96.0.1", &[])
    }
}

fn full_policy(scope: i32, action: i32, dry_run: bool, which: u8) -> sec::Authorization {
    use sec::string_match::MatchType::{Prefix, Suffix};
    let some = |kind| sec::StringMatch {
        match_type: Some(kind),
    };
    let texts = vec![
        exact("a"),
        presence(),
        some(Prefix("b".to_owned())),
        some(Suffix(String::new())),
    ];
    let range = |text: &str, length| sec::Address {
        address: ip_bytes(text),
        length,
    };
    let ranges = vec![range("10.0.0.0", 8), range("fd00::1", 128), range("::", 0)];
    let accounts = vec![sec::ServiceAccountMatch {
        namespace: "a".to_owned(),
        service_account: "b".to_owned(),
    }];
    let on = |bit: u8| which >> bit & 1 == 1;
    let m = sec::Match {
        namespaces: if on(0) { texts.clone() } else { vec![] },
        not_namespaces: if on(1) { texts.clone() } else { vec![] },
        principals: if on(2) { texts.clone() } else { vec![] },
        not_principals: if on(3) { texts } else { vec![] },
        source_ips: if on(4) { ranges.clone() } else { vec![] },
        not_source_ips: if on(5) { ranges.clone() } else { vec![] },
        destination_ips: if on(6) { ranges.clone() } else { vec![] },
        not_destination_ips: if on(7) { ranges } else { vec![] },
        destination_ports: vec![u32::from(which); usize::from(on(0))],
        not_destination_ports: vec![80; usize::from(on(1))],
        service_accounts: if on(2) { accounts.clone() } else { vec![] },
        not_service_accounts: if on(3) { accounts } else { vec![] },
        ..Default::default()
    };
    sec::Authorization {
        name: "p".to_owned(),
        namespace: "shop".to_owned(),
        scope,
        action,
        dry_run,
        rules: vec![
            sec::Rule { clauses: vec![] },
            sec::Rule {
                clauses: vec![
                    sec::Clause { matches: vec![] },
                    sec::Clause {
                        matches: vec![m, sec::Match::default()],
                    },
                ],
            },
        ],
        ..Default::default()
    }
}

proptest! {
    #[test]
    fn a_workload_is_the_same_after_the_wire(
        numbers in prop::collection::vec(0..4i32, 4),
        flags in any::<u8>(),
        capacity in any::<u32>(),
    ) {
        assert_kept(&of_workload(full_workload(&numbers, flags, capacity)));
    }

    #[test]
    fn a_service_is_the_same_after_the_wire(
        numbers in prop::collection::vec(0..4i32, 4),
        flags in any::<u8>(),
    ) {
        assert_kept(&of_service(full_service(&numbers, flags)));
    }

    #[test]
    fn a_policy_is_the_same_after_the_wire(
        scope in 0..3i32, action in 0..2i32, dry_run in any::<bool>(), which in any::<u8>(),
    ) {
        let message = full_policy(scope, action, dry_run, which);
        let mut interner = Interner::default();
        let first = convert::authorization(&message, &mut interner).unwrap();
        let again = convert::authorization(&authorization(&first), &mut interner).unwrap();
        prop_assert_eq!(again, first);
    }
}

#[test]
fn what_is_empty_stays_so() {
    let bare = wire::Workload {
        uid: "u".to_owned(),
        ..Default::default()
    };
    assert_kept(&of_workload(bare));
    let bare = wire::Service {
        namespace: "a".to_owned(),
        hostname: "b".to_owned(),
        ..Default::default()
    };
    assert_kept(&of_service(bare));
}

#[test]
fn outbound_policies_are_the_same_after_the_wire() {
    let policy = |kind| isobar::OutboundPolicy { kind: Some(kind) };
    let egress = |namespace: &str, registry_only| {
        policy(Kind::Egress(isobar::Egress {
            namespace: namespace.to_owned(),
            registry_only,
        }))
    };
    let limits = policy(Kind::Limits(isobar::ConnectionLimits {
        namespace: "shop".to_owned(),
        hostname: "cart.example".to_owned(),
        max_connections: 7,
        connect_timeout: Some(prost_types::Duration {
            seconds: 3,
            nanos: 5,
        }),
        outliers: Some(isobar::connection_limits::Outliers {
            failures: 4,
            interval: Some(Duration::from_secs(2).try_into().unwrap()),
            base_ejection: Some(Duration::from_millis(1500).try_into().unwrap()),
            max_ejected_percent: 50,
            min_healthy_percent: 30,
        }),
    }));
    let domains = vec!["cluster.local".to_owned(), "old.example".to_owned()];
    let trust = policy(Kind::Trust(isobar::Trust { domains }));
    let all = vec![egress("", true), egress("shop", false), limits, trust];
    let mut draft = Snapshot::default().draft();
    for message in &all {
        draft.upsert_outbound_policy(message).unwrap();
    }
    assert_eq!(outbound_policies(&draft.finish()), all);
}

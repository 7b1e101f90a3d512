use isobar_proto::istio::security as sec;
use isobar_proto::istio::workload as wire;
use proptest::prelude::*;

use super::*;
use crate::testing::{bytes, gateway, host, ip, pod, service as web};

fn workload_error(change: impl FnOnce(&mut wire::Workload)) -> String {
    let mut w = pod("default", "a", "10.0.0.1");
    change(&mut w);
    workload(&w, &mut Interner::default())
        .unwrap_err()
        .to_string()
}

fn service_error(change: impl FnOnce(&mut wire::Service)) -> String {
    let mut s = web("default", "a", "10.96.0.1", &[(80, 8080)]);
    change(&mut s);
    service(&s, &mut Interner::default(), &mut Vec::new())
        .unwrap_err()
        .to_string()
}

fn policy_error(change: impl FnOnce(&mut sec::Match)) -> String {
    let mut m = sec::Match::default();
    change(&mut m);
    let policy = crate::testing::policy(
        "default",
        "p",
        sec::Scope::Namespace,
        sec::Action::Deny,
        vec![m],
    );
    authorization(&policy, &mut Interner::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn workload_errors_name_the_field() {
    let port_list = |service_port| wire::PortList {
        ports: vec![wire::Port {
            service_port,
            ..Default::default()
        }],
    };
    let cases = [
        (workload_error(|w| w.uid.clear()), "uid is not set"),
        (
            workload_error(|w| w.addresses.push(vec![1, 2, 3])),
            "addresses[1] has 3 bytes; an address has 4 or 16",
        ),
        (
            workload_error(|w| w.tunnel_protocol = 2),
            "tunnel_protocol has the value LEGACY_ISTIO_MTLS, which is not supported",
        ),
        (
            workload_error(|w| w.tunnel_protocol = 9),
            "tunnel_protocol has the unknown value 9",
        ),
        (
            workload_error(|w| w.status = 5),
            "status has the unknown value 5",
        ),
        (
            workload_error(|w| w.network_mode = -1),
            "network_mode has the unknown value -1",
        ),
        (
            workload_error(|w| w.waypoint = Some(wire::GatewayAddress::default())),
            "waypoint.destination is not set",
        ),
        (
            workload_error(|w| w.network_gateway = gateway("default", "")),
            "network_gateway.hostname.hostname is not set",
        ),
        (
            workload_error(|w| {
                w.services.insert("web".to_owned(), port_list(1));
            }),
            "services is \"web\"; expected NAMESPACE/NAME",
        ),
        (
            workload_error(|w| {
                w.services.insert("d/web".to_owned(), port_list(70000));
            }),
            "services[\"d/web\"].ports[0].service_port is 70000; a port is at most 65535",
        ),
        (
            workload_error(|w| w.authorization_policies.push("p".to_owned())),
            "authorization_policies[0] is \"p\"; expected NAMESPACE/NAME",
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
}

#[test]
fn service_errors_name_the_field() {
    let cases = [
        (service_error(|s| s.hostname.clear()), "hostname is not set"),
        (
            service_error(|s| s.namespace.clear()),
            "namespace is not set",
        ),
        (
            service_error(|s| s.namespace = "a/b".into()),
            "namespace is \"a/b\"; a namespace has no slash",
        ),
        (
            service_error(|s| s.addresses[0].length = Some(33)),
            "addresses[0] has prefix length 33, more than the address has bits",
        ),
        (
            service_error(|s| s.ip_families = 4),
            "ip_families has the unknown value 4",
        ),
        (
            service_error(|s| s.weighted_waypoints.push(wire::WeightedWaypoint::default())),
            "weighted_waypoints[0].destination is not set",
        ),
        (
            service_error(|s| {
                s.load_balancing = Some(wire::LoadBalancing {
                    routing_preference: vec![1, 0],
                    ..Default::default()
                });
            }),
            "load_balancing.routing_preference[1] has the value UNSPECIFIED_SCOPE, which is not \
             supported",
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
}

#[test]
fn a_policy_is_never_loosened_by_dropping_what_is_not_understood() {
    let path = "rules[0].clauses[0].matches[0]";
    let cases = [
        (
            policy_error(|m| {
                m.source_ips.push(sec::Address {
                    address: vec![10, 0, 0, 0],
                    length: 40,
                });
            }),
            format!("{path}.source_ips[0] has prefix length 40, more than the address has bits"),
        ),
        (
            policy_error(|m| m.principals.push(sec::StringMatch::default())),
            format!("{path}.principals[0].match_type is not set"),
        ),
        (
            policy_error(|m| m.destination_ports.push(65536)),
            format!("{path}.destination_ports[0] is 65536; a port is at most 65535"),
        ),
        (
            policy_error(|m| {
                m.service_accounts.push(sec::ServiceAccountMatch {
                    namespace: "a".to_owned(),
                    service_account: String::new(),
                });
            }),
            format!("{path}.service_accounts[0].serviceAccount is not set"),
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
}

#[test]
fn empty_fields_have_the_meaning_of_the_wire() {
    let w = wire::Workload {
        uid: "u".to_owned(),
        workload_type: 99,
        ..Default::default()
    };
    let w = workload(&w, &mut Interner::default()).unwrap();
    assert_eq!(&*w.trust_domain, "cluster.local");
    assert_eq!(&*w.service_account, "default");
    assert_eq!(&*w.cluster_id, "Kubernetes");
    assert_eq!(w.capacity, 1);
    assert!(w.healthy);
    assert_eq!(w.workload_type.as_str(), "deployment");

    let s = wire::Service {
        visibility: 77,
        subject_alt_names: vec!["nonsense".to_owned(), "spiffe://td/ns/a/sa/b".to_owned()],
        ..web("default", "a", "10.96.0.1", &[(80, 0)])
    };
    let mut warnings = Vec::new();
    let s = service(&s, &mut Interner::default(), &mut warnings).unwrap();
    assert_eq!(s.visibility, crate::Visibility::Public);
    assert_eq!(s.subject_alt_names.len(), 1);
    assert_eq!(warnings.len(), 1);
    assert_eq!(s.ports.target(80), Some(0));
}

#[test]
fn prefixes_of_full_length_are_addresses_and_others_ranges() {
    let address = |text: &str, length| wire::NetworkAddress {
        network: "n".to_owned(),
        address: bytes(text),
        length,
    };
    let s = wire::Service {
        addresses: vec![
            address("10.0.0.1", None),
            address("10.0.0.1", Some(32)),
            address("fd00::1", Some(128)),
            address("10.1.2.3", Some(16)),
        ],
        ..web("default", "a", "10.96.0.1", &[])
    };
    let s = service(&s, &mut Interner::default(), &mut Vec::new()).unwrap();
    let vips: Vec<_> = s.vips.iter().map(|v| v.ip).collect();
    assert_eq!(vips, [ip("10.0.0.1"), ip("fd00::1")]);
    assert_eq!(s.cidr_vips[0].1.to_string(), "10.1.0.0/16");
    assert_eq!(&*s.key.hostname, host("default", "a"));
}

#[test]
fn a_mapped_range_is_the_range_it_stands_for() {
    let m = |length| sec::Match {
        source_ips: vec![sec::Address {
            address: bytes("::ffff:10.1.0.0"),
            length,
        }],
        ..Default::default()
    };
    let convert = |m| {
        let p = crate::testing::policy("d", "p", sec::Scope::Global, sec::Action::Deny, vec![m]);
        let p = authorization(&p, &mut Interner::default()).unwrap();
        p.rules[0].clauses[0].matches[0].source_ips[0].to_string()
    };
    assert_eq!(convert(m(112)), "10.1.0.0/16");
    assert_eq!(convert(m(8)), "::/8");
}

#[test]
fn equal_strings_are_stored_once() {
    let mut interner = Interner::default();
    let a = workload(&pod("shop", "a", "10.0.0.1"), &mut interner).unwrap();
    let b = workload(&pod("shop", "b", "10.0.0.2"), &mut interner).unwrap();
    assert!(Arc::ptr_eq(&a.namespace, &b.namespace));
    assert!(Arc::ptr_eq(&a.trust_domain, &b.trust_domain));
}

prop_compose! {
    fn any_gateway()(
        kind in 0..3u8,
        text in "[a-z/.]{0,6}",
        address in prop::collection::vec(any::<u8>(), 0..18),
        port in any::<u32>(),
    ) -> wire::GatewayAddress {
        use wire::gateway_address::Destination;
        wire::GatewayAddress {
            destination: match kind {
                0 => None,
                1 => Some(Destination::Hostname(wire::NamespacedHostname {
                    namespace: text.clone(),
                    hostname: text,
                })),
                _ => Some(Destination::Address(wire::NetworkAddress {
                    network: text,
                    address,
                    length: Some(port),
                })),
            },
            hbone_mtls_port: port,
        }
    }
}

prop_compose! {
    fn any_ports()(ports in prop::collection::vec(any::<(u32, u32, i32)>(), 0..4)) -> Vec<wire::Port> {
        ports.into_iter().map(|(service_port, target_port, app_protocol)| wire::Port {
            service_port, target_port, app_protocol,
        }).collect()
    }
}

prop_compose! {
    fn any_workload()(
        texts in prop::collection::vec("[a-z/]{0,4}", 6),
        addresses in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..18), 0..3),
        numbers in prop::collection::vec(-1..4i32, 5),
        waypoint in prop::option::of(any_gateway()),
        network_gateway in prop::option::of(any_gateway()),
        services in prop::collection::btree_map("[a-z/]{0,5}", any_ports(), 0..3),
        tunnel in any::<u32>(),
    ) -> wire::Workload {
        wire::Workload {
            uid: texts[0].clone(),
            name: texts[1].clone(),
            namespace: texts[2].clone(),
            service_account: texts[3].clone(),
            authorization_policies: vec![texts[4].clone()],
            hostname: texts[5].clone(),
            addresses,
            tunnel_protocol: numbers[0],
            workload_type: numbers[1],
            status: numbers[2],
            network_mode: numbers[3],
            waypoint,
            network_gateway,
            services: services.into_iter().map(|(k, ports)| (k, wire::PortList { ports })).collect(),
            application_tunnel: Some(wire::ApplicationTunnel { protocol: numbers[4], port: tunnel }),
            ..Default::default()
        }
    }
}

/// Rules in the extension are evaluated and never enforced; nobody else sees any.
#[test]
fn audited_rules_come_in_an_extension() {
    use prost::Message;
    let open = sec::Match {
        destination_ports: vec![80],
        ..Default::default()
    };
    let mut p = crate::testing::policy("d", "p", sec::Scope::Global, sec::Action::Deny, vec![open]);
    let rules = std::mem::take(&mut p.rules);
    let config = |value: Vec<u8>| prost_types::Any {
        type_url: isobar_proto::type_url::AUDITED_RULES.to_owned(),
        value,
    };
    let audited = isobar_proto::isobar::v1::AuditedRules { rules };
    let mut with = |config| {
        p.extensions = vec![wire::Extension {
            name: "any".to_owned(),
            config: Some(config),
        }];
        authorization(&p, &mut Interner::default())
    };
    let policy = with(config(audited.encode_to_vec())).unwrap();
    assert!(policy.dry_run);
    assert_eq!(
        policy.rules[0].clauses[0].matches[0].destination_ports,
        [80]
    );
    let broken = with(config(vec![0xff])).unwrap_err();
    assert_eq!(
        broken.to_string(),
        "extensions holds a message that cannot be read"
    );
    let foreign = with(prost_types::Any {
        type_url: "type.googleapis.com/elsewhere".to_owned(),
        value: vec![0xff],
    });
    assert!(foreign.unwrap().rules.is_empty());
}

proptest! {
    #[test]
    fn converting_a_workload_never_panics(w in any_workload()) {
        let mut draft = crate::Snapshot::default().draft();
        let _ = draft.upsert_address(&crate::testing::of_workload(w.clone()));
        let _ = draft.upsert_address(&crate::testing::of_workload(w));
        let _ = draft.finish();
    }

    #[test]
    fn converting_a_policy_never_panics(
        address in prop::collection::vec(any::<u8>(), 0..18),
        length in any::<u32>(),
        port in any::<u32>(),
        scope in -1..4i32,
    ) {
        let ranges = vec![sec::Address { address, length }];
        let m = sec::Match {
            not_source_ips: ranges,
            destination_ports: vec![port],
            principals: vec![crate::testing::presence()],
            ..Default::default()
        };
        let mut p = crate::testing::policy("d", "p", sec::Scope::Global, sec::Action::Deny, vec![m]);
        p.scope = scope;
        let _ = authorization(&p, &mut Interner::default());
    }

    #[test]
    fn bytes_from_the_wire_never_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
        use prost::Message;
        if let Ok(message) = wire::Address::decode(&data[..]) {
            let _ = address(&message, &mut Interner::default(), &mut Vec::new());
        }
        if let Ok(message) = sec::Authorization::decode(&data[..]) {
            let _ = authorization(&message, &mut Interner::default());
        }
    }
}

use std::collections::BTreeMap;

use isobar_proto::istio::security as sec;
use isobar_proto::istio::workload as wire;
use isobar_types::NetworkAddress;
use proptest::prelude::*;

use super::*;
use crate::testing::{
    bytes, host, ip, mesh, of_service, of_workload, pod, policy, serves, service, uid,
};

#[test]
fn one_draft_is_one_version_and_the_old_one_stays() {
    let old = mesh(&[of_workload(pod("default", "a", "10.0.0.1"))]);
    let mut draft = old.draft();
    draft
        .upsert_address(&of_workload(pod("default", "b", "10.0.0.2")))
        .unwrap();
    assert!(draft.remove_address(&uid("default", "a")));
    let new = draft.finish();
    assert_eq!((old.version(), new.version()), (1, 2));
    assert!(old.workload_by_uid(&uid("default", "a")).is_some());
    assert!(new.workload_by_uid(&uid("default", "a")).is_none());
    let at = |snapshot: &Snapshot, text| {
        let address = NetworkAddress::new("".into(), ip(text));
        let found = snapshot.workload_by_address(&address);
        found.map(|w| w.name.to_string())
    };
    assert_eq!(at(&old, "10.0.0.1").as_deref(), Some("a"));
    assert_eq!(at(&new, "10.0.0.1"), None);
    assert_eq!(at(&new, "::ffff:10.0.0.2").as_deref(), Some("b"));
}

#[test]
fn addresses_of_hosts_and_of_services_that_few_see_are_the_meshs_own() {
    let on_host = |name: &str| {
        of_workload(wire::Workload {
            network_mode: wire::NetworkMode::HostNetwork.into(),
            ..pod("default", name, "192.0.2.7")
        })
    };
    let hidden = wire::Service {
        visibility: wire::service::Visibility::Namespace.into(),
        ..service("default", "hidden", "10.96.0.9", &[(80, 8080)])
    };
    let all = mesh(&[on_host("a"), on_host("b"), of_service(hidden)]);
    let has =
        |snapshot: &Snapshot, text| snapshot.has_address(&NetworkAddress::new("".into(), ip(text)));
    assert!(has(&all, "192.0.2.7") && has(&all, "10.96.0.9"));
    assert!(!has(&all, "192.0.2.8"));
    let mut draft = all.draft();
    assert!(draft.remove_address(&uid("default", "a")));
    let one = draft.finish();
    assert!(has(&one, "192.0.2.7"));
    let mut draft = one.draft();
    assert!(draft.remove_address(&uid("default", "b")));
    assert!(!has(&draft.finish(), "192.0.2.7"));
}

#[test]
fn a_bad_resource_leaves_the_previous_one() {
    let old = mesh(&[of_workload(pod("default", "a", "10.0.0.1"))]);
    let mut draft = old.draft();
    let mut bad = pod("default", "a", "10.0.0.2");
    bad.tunnel_protocol = 7;
    assert!(draft.upsert_address(&of_workload(bad)).is_err());
    let new = draft.finish();
    let kept = new.workload_by_uid(&uid("default", "a")).unwrap();
    assert_eq!(kept.addresses[..], [ip("10.0.0.1")]);
}

#[test]
fn the_preferred_workload_of_an_address_is_a_pod_in_the_mesh() {
    let named = |uid: &str, hbone: bool| {
        of_workload(wire::Workload {
            uid: uid.to_owned(),
            tunnel_protocol: i32::from(hbone),
            ..pod("default", uid, "10.0.0.1")
        })
    };
    let order = ["c//Pod/d/z", "c//Pod/d/plain", "entry-hbone", "entry"];
    let mut objects = vec![
        named("entry", false),
        named("c//Pod/d/plain", false),
        named("entry-hbone", true),
        named("c//Pod/d/z", true),
    ];
    for _ in 0..objects.len() {
        objects.rotate_left(1);
        let snapshot = mesh(&objects);
        let address = NetworkAddress::new("".into(), ip("10.0.0.1"));
        let uids: Vec<_> = snapshot
            .workloads_at(&address)
            .iter()
            .map(|w| &*w.uid)
            .collect();
        assert_eq!(uids, order);
    }
}

#[test]
fn check_10_endpoints_do_not_depend_on_what_comes_first() {
    let web = || of_service(service("default", "web", "10.96.0.1", &[(80, 8080)]));
    let a = || {
        of_workload(serves(
            pod("default", "a", "10.0.0.1"),
            "default",
            "web",
            &[(80, 1)],
        ))
    };
    let key = NamespacedHostname::parse(&format!("default/{}", host("default", "web"))).unwrap();
    let first = format!(
        "{:?}",
        mesh(&[web(), a()]).endpoints(&key).collect::<Vec<_>>()
    );
    for objects in [[web(), a()], [a(), web()]] {
        let snapshot = mesh(&objects);
        let endpoints: Vec<_> = snapshot.endpoints(&key).collect();
        assert_eq!(endpoints.len(), 1);
        assert_eq!(format!("{endpoints:?}"), first);
        let mut draft = snapshot.draft();
        assert!(draft.remove_address(&key.to_string()));
        assert!(!draft.remove_address(&key.to_string()));
        let without = draft.finish();
        assert_eq!(without.service(&key), None);
        assert_eq!(
            without.endpoints(&key).count(),
            1,
            "kept for when it comes back"
        );
    }
}

#[test]
fn a_workload_that_leaves_a_service_is_no_endpoint_any_more() {
    let served = serves(
        pod("default", "a", "10.0.0.1"),
        "default",
        "web",
        &[(80, 1)],
    );
    let key = served.services.keys().next().unwrap().clone();
    let key = NamespacedHostname::parse(&key).unwrap();
    let old = mesh(&[of_workload(served)]);
    let mut draft = old.draft();
    draft
        .upsert_address(&of_workload(pod("default", "a", "10.0.0.1")))
        .unwrap();
    let new = draft.finish();
    assert_eq!(
        (old.endpoints(&key).count(), new.endpoints(&key).count()),
        (1, 0)
    );
}

#[test]
fn local_workloads_are_found_by_node_name_and_account() {
    let on = |node: &str, name: &str, account: &str| {
        of_workload(wire::Workload {
            uid: format!("{node}/{name}/{account}"),
            node: node.to_owned(),
            service_account: account.to_owned(),
            ..pod("default", name, "10.0.0.1")
        })
    };
    let snapshot = mesh(&[
        on("node-1", "a", "x"),
        on("node-2", "a", "x"),
        on("node-1", "a", "y"),
        on("node-1", "b", "x"),
    ]);
    let find = |node, account| {
        let found = snapshot.local_workload(node, "default", "a", account);
        found.map(|w| w.uid.to_string())
    };
    assert_eq!(find("node-1", "x").as_deref(), Some("node-1/a/x"));
    assert_eq!(find("node-1", "y").as_deref(), Some("node-1/a/y"));
    assert_eq!(find("node-2", "x").as_deref(), Some("node-2/a/x"));
    assert_eq!(find("node-2", "y"), None);
    assert_eq!(find("node-3", "x"), None);
    assert!(find("", "y").is_some());
    assert_eq!(snapshot.workloads_on_node("node-1").count(), 3);
}

#[test]
fn decisions_are_looked_at_again_only_when_they_may_differ() {
    let base = mesh(&[of_workload(pod("default", "a", "10.0.0.1"))]);
    let change = |address: wire::Address| {
        let mut draft = base.draft();
        draft.upsert_address(&address).unwrap();
        let next = draft.finish();
        next.policy_version() == next.version()
    };
    let a = pod("default", "a", "10.0.0.1");
    assert!(!change(of_workload(a.clone())));
    assert!(!change(of_workload(pod("default", "b", "10.0.0.2"))));
    assert!(!change(of_workload(wire::Workload {
        status: 1,
        ..a.clone()
    })));
    assert!(change(of_workload(wire::Workload {
        authorization_policies: vec!["default/p".to_owned()],
        ..a
    })));
    let mut draft = base.draft();
    let deny = policy(
        "default",
        "p",
        sec::Scope::Namespace,
        sec::Action::Deny,
        vec![],
    );
    draft.upsert_authorization(&deny).unwrap();
    let next = draft.finish();
    assert_eq!(next.policy_version(), next.version());
}

/// One change: the name it is about, and what becomes of it.
#[derive(Debug, Clone)]
enum Change {
    Workload(u8, u8, bool),
    Service(u8, u8, u8),
    Policy(u8, i32),
    Remove(u8, u8),
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0..6u8, 0..4u8, any::<bool>()).prop_map(|(n, ip, s)| Change::Workload(n, ip, s)),
        (0..3u8, 0..3u8, 0..3u8).prop_map(|(n, ip, len)| Change::Service(n, ip, len)),
        (0..3u8, 0..3i32).prop_map(|(n, scope)| Change::Policy(n, scope)),
        (0..3u8, 0..6u8).prop_map(|(kind, n)| Change::Remove(kind, n)),
    ]
}

fn name_of(n: u8) -> String {
    format!("x{n}")
}

fn service_key(n: u8) -> String {
    format!("default/{}", host("default", &name_of(n)))
}

fn apply(draft: &mut Draft, change: &Change) {
    match change {
        Change::Workload(n, address, member) => {
            let mut w = pod("default", &name_of(*n), &format!("10.0.0.{address}"));
            if *member {
                w = serves(w, "default", &name_of(n % 3), &[(80, 8080)]);
                w.hostname = format!("h{}", n % 2);
            }
            w.node = format!("node-{}", n % 2);
            draft.upsert_address(&of_workload(w)).unwrap();
        }
        Change::Service(n, address, range) => {
            let mut s = service(
                "default",
                &name_of(*n),
                &format!("10.96.0.{address}"),
                &[(80, 0)],
            );
            if *range > 0 {
                s.addresses.push(wire::NetworkAddress {
                    address: bytes("10.97.0.0"),
                    length: Some(16 + u32::from(*range)),
                    ..Default::default()
                });
            }
            draft.upsert_address(&of_service(s)).unwrap();
        }
        Change::Policy(n, scope) => {
            let mut p = policy(
                "default",
                &name_of(*n),
                sec::Scope::Global,
                sec::Action::Deny,
                vec![],
            );
            p.scope = *scope;
            draft.upsert_authorization(&p).unwrap();
        }
        Change::Remove(0, n) => {
            let _ = draft.remove_address(&uid("default", &name_of(*n)));
        }
        Change::Remove(1, n) => {
            let _ = draft.remove_address(&service_key(*n));
        }
        Change::Remove(_, n) => {
            let _ = draft.remove_authorization(&format!("default/{}", name_of(*n)));
        }
    }
}

/// Everything look-ups can give, as text.
fn view(s: &Snapshot) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut put = |key: String, value: String| {
        assert!(all.insert(key, value).is_none());
    };
    for w in s.workloads() {
        put(format!("workload {}", w.uid), format!("{w:?}"));
    }
    for at in s.by_address.iter() {
        put(
            format!("address {:?}", at.address()),
            format!("{:?}", at.group()),
        );
    }
    for (key, count) in s.on_hosts.iter() {
        put(format!("host {key}"), count.to_string());
    }
    for (key, map) in s.by_node.iter() {
        put(format!("node {key}"), format!("{map:?}"));
    }
    for (key, group) in s.by_workload_hostname.iter() {
        put(format!("hostname {key}"), format!("{group:?}"));
    }
    for service in s.services.iter() {
        put(format!("service {}", service.key), format!("{service:?}"));
    }
    for at in s.by_vip.iter() {
        put(
            format!("vip {:?}", at.address()),
            format!("{:?}", at.group()),
        );
    }
    for of_host in s.by_hostname.iter() {
        put(
            format!("service host {}", of_host.hostname()),
            format!("{:?}", of_host.0),
        );
    }
    for (key, map) in s.endpoints.iter() {
        put(format!("endpoints {key}"), format!("{map:?}"));
    }
    for p in s.policies.iter() {
        put(format!("policy {}", p.key), format!("{p:?}"));
    }
    for (key, group) in s.namespace_policies.iter() {
        put(format!("namespace policies {key}"), format!("{group:?}"));
    }
    for ((network, range), group) in s.ranges.services.iter() {
        put(format!("range {network}/{range}"), format!("{group:?}"));
    }
    put("global".to_owned(), format!("{:?}", s.global_policies));
    all
}

fn key_of(change: &Change) -> (u8, u8) {
    match change {
        Change::Workload(n, ..) | Change::Remove(0, n) => (0, *n),
        Change::Service(n, ..) | Change::Remove(1, n) => (1, *n),
        Change::Policy(n, _) | Change::Remove(_, n) => (2, *n),
    }
}

proptest! {
    /// Only the last word on each name counts, whatever came before, in whatever order and in
    /// however many drafts.
    #[test]
    fn check_10_drafts_do_not_remember_the_way(
        changes in prop::collection::vec(any_change(), 0..40),
        cuts in prop::collection::vec(any::<bool>(), 40),
        rotate in any::<usize>(),
    ) {
        let mut snapshot = Snapshot::default();
        let mut draft = snapshot.draft();
        for (change, cut) in changes.iter().zip(cuts) {
            apply(&mut draft, change);
            if cut {
                snapshot = draft.finish();
                draft = snapshot.draft();
            }
        }
        let way = draft.finish();

        let last: BTreeMap<_, _> = changes.iter().map(|c| (key_of(c), c)).collect();
        let mut last: Vec<_> = last.into_values().collect();
        if !last.is_empty() {
            let by = rotate % last.len();
            last.rotate_left(by);
        }
        let mut draft = Snapshot::default().draft();
        for change in last {
            apply(&mut draft, change);
        }
        prop_assert_eq!(view(&way), view(&draft.finish()));
    }
}

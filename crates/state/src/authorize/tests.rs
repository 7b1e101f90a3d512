use isobar_proto::istio::security::{self as sec, Action::*, Scope};
use isobar_proto::istio::workload as wire;

use super::*;
use crate::testing::{
    at, bytes, exact, mesh, of_service, of_workload, peer, pod, policy, presence, serves, service,
    uid, waypoint, waypoint_objects, with_policies,
};

mod index;
mod reasons;
mod through;

const POD: &str = "10.0.0.1";

fn target() -> wire::Workload {
    pod("shop", "cart", POD)
}

/// What a peer gets at port `port` of `shop/cart` under `policies`: `Ok(policy)` or the refusal.
fn verdict(
    policies: &[sec::Authorization],
    who: Option<(&str, &str)>,
    port: u16,
) -> Result<Option<String>, String> {
    let mut cart = target();
    for p in policies {
        if p.scope() == Scope::WorkloadSelector {
            let key = format!("{}/{}", p.namespace, p.name);
            cart.authorization_policies.push(key);
        }
    }
    let snapshot = with_policies(&[of_workload(cart)], policies);
    let workload = snapshot.workloads().next().unwrap();
    let dst = at(&format!("{POD}:{port}"));
    authorize(&snapshot, &peer(who, "10.0.9.9"), workload, dst)
        .map(|permit| permit.allowed_by().map(ToString::to_string))
        .map_err(|denied| denied.to_string())
}

const FRONT: Option<(&str, &str)> = Some(("web", "front"));
const OTHER: Option<(&str, &str)> = Some(("web", "other"));
const FRONT_PRINCIPAL: &str = "cluster.local/ns/web/sa/front";

fn ports(ports: &[u32]) -> sec::Match {
    sec::Match {
        destination_ports: ports.to_vec(),
        ..Default::default()
    }
}

fn principal(text: &str) -> sec::Match {
    sec::Match {
        principals: vec![exact(text)],
        ..Default::default()
    }
}

fn no_principal() -> sec::Match {
    sec::Match {
        not_principals: vec![presence()],
        ..Default::default()
    }
}

fn p1() -> sec::Authorization {
    let clauses = vec![ports(&[8080]), principal(FRONT_PRINCIPAL)];
    policy("shop", "p1", Scope::Namespace, Allow, clauses)
}

fn strict() -> sec::Authorization {
    let name = "istio_converted_static_strict";
    let scope = Scope::WorkloadSelector;
    policy("istio-system", name, scope, Deny, vec![no_principal()])
}

const NONE_ALLOWED: &str = "allow policies exist, but none allowed";

#[test]
fn check_38_the_worked_example_of_the_reference() {
    let policies = [p1(), strict()];
    let allowed = Ok(Some("shop/p1".to_owned()));
    assert_eq!(verdict(&policies, FRONT, 8080), allowed);
    let none = Err(NONE_ALLOWED.to_owned());
    assert_eq!(verdict(&policies, FRONT, 9090), none);
    assert_eq!(verdict(&policies, OTHER, 8080), none);
    let denied = "explicitly denied by: istio-system/istio_converted_static_strict";
    assert_eq!(verdict(&policies, None, 8080), Err(denied.to_owned()));
    assert_eq!(verdict(&[], None, 8080), Ok(None));
}

#[test]
fn check_38_deny_comes_before_allow_and_scopes_hold() {
    let deny_front = |namespace, scope| {
        let clauses = vec![principal(FRONT_PRINCIPAL)];
        policy(namespace, "no-front", scope, Deny, clauses)
    };
    for (namespace, scope, applies) in [
        ("shop", Scope::Namespace, true),
        ("elsewhere", Scope::Namespace, false),
        ("istio-system", Scope::Global, true),
        ("shop", Scope::WorkloadSelector, true),
    ] {
        let got = verdict(&[p1(), deny_front(namespace, scope)], FRONT, 8080);
        assert_eq!(got.is_err(), applies, "{namespace} {scope:?}");
    }
}

#[test]
fn a_selector_policy_applies_to_those_that_list_it_only() {
    let deny = policy(
        "shop",
        "d",
        Scope::WorkloadSelector,
        Deny,
        vec![ports(&[80])],
    );
    let snapshot = with_policies(&[of_workload(target())], &[deny]);
    let workload = snapshot.workloads().next().unwrap();
    let permit = authorize(&snapshot, &peer(FRONT, POD), workload, at("10.0.0.1:80"));
    assert!(permit.is_ok());
}

#[test]
fn a_listed_policy_that_is_not_there_is_skipped_and_told() {
    let mut cart = target();
    cart.authorization_policies.push("shop/late".to_owned());
    let snapshot = mesh(&[of_workload(cart)]);
    let workload = snapshot.workloads().next().unwrap();
    let permit = authorize(&snapshot, &peer(None, POD), workload, at("10.0.0.1:80")).unwrap();
    assert_eq!(permit.missing()[0].to_string(), "shop/late");
    assert_eq!(permit.version(), snapshot.version());
}

#[test]
fn check_38_empty_rules_clauses_and_matches() {
    let with_rules = |action, rules| sec::Authorization {
        rules,
        ..policy("shop", "p", Scope::Namespace, action, vec![])
    };
    let rule = |clauses: Vec<Vec<sec::Match>>| {
        let clauses = clauses.into_iter().map(|matches| sec::Clause { matches });
        sec::Rule {
            clauses: clauses.collect(),
        }
    };
    let empty = sec::Match::default;
    // (rules, whether the policy matches)
    let cases = [
        (vec![], false),
        (vec![rule(vec![])], true),
        (vec![rule(vec![vec![]])], true),
        (vec![rule(vec![vec![empty()]])], false),
        (vec![rule(vec![vec![empty(), ports(&[80])]])], true),
        (vec![rule(vec![vec![empty()], vec![ports(&[80])]])], false),
        (vec![rule(vec![vec![ports(&[81])]]), rule(vec![])], true),
    ];
    for (rules, matches) in cases {
        let denied = verdict(&[with_rules(Deny, rules.clone())], FRONT, 80).is_err();
        assert_eq!(denied, matches, "DENY {rules:?}");
        let allowed = verdict(&[with_rules(Allow, rules.clone())], FRONT, 80).is_ok();
        assert_eq!(allowed, matches, "ALLOW {rules:?}");
    }
}

fn text(kind: sec::string_match::MatchType) -> Vec<sec::StringMatch> {
    vec![sec::StringMatch {
        match_type: Some(kind),
    }]
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn check_38_every_matcher_with_and_without_an_identity() {
    use sec::string_match::MatchType::{Exact, Prefix, Presence, Suffix};
    let range = |text: &str, length| {
        vec![sec::Address {
            address: bytes(text),
            length,
        }]
    };
    let account = |ns: &str, sa: &str| {
        vec![sec::ServiceAccountMatch {
            namespace: ns.to_owned(),
            service_account: sa.to_owned(),
        }]
    };
    macro_rules! m {
        ($field:ident, $value:expr) => {
            sec::Match {
                $field: $value,
                ..Default::default()
            }
        };
    }
    // (match, hits front, hits plaintext)
    let cases = [
        (
            m!(principals, text(Exact(FRONT_PRINCIPAL.into()))),
            true,
            false,
        ),
        (
            m!(principals, text(Prefix("cluster.local/ns/web".into()))),
            true,
            false,
        ),
        (
            m!(principals, text(Suffix("/sa/front".into()))),
            true,
            false,
        ),
        (m!(principals, text(Presence(()))), true, false),
        (
            m!(
                principals,
                text(Exact(format!("spiffe://{FRONT_PRINCIPAL}")))
            ),
            false,
            false,
        ),
        (m!(not_principals, text(Presence(()))), false, true),
        (m!(not_principals, text(Suffix("/sa/x".into()))), true, true),
        (m!(namespaces, text(Exact("web".into()))), true, false),
        (m!(namespaces, text(Prefix(String::new()))), true, true),
        (m!(namespaces, text(Presence(()))), true, false),
        (m!(not_namespaces, text(Exact("web".into()))), false, true),
        (m!(service_accounts, account("web", "front")), true, false),
        (m!(service_accounts, account("web", "back")), false, false),
        (
            m!(not_service_accounts, account("web", "front")),
            false,
            true,
        ),
        (m!(source_ips, range("10.0.9.0", 24)), true, true),
        (m!(source_ips, range("10.0.8.0", 24)), false, false),
        (m!(source_ips, range("::", 0)), false, false),
        (m!(not_source_ips, range("10.0.9.0", 24)), false, false),
        (m!(destination_ips, range(POD, 32)), true, true),
        (m!(not_destination_ips, range(POD, 32)), false, false),
        (m!(destination_ports, vec![80]), true, true),
        (m!(destination_ports, vec![81]), false, false),
        (m!(not_destination_ports, vec![80]), false, false),
        (m!(not_destination_ports, vec![81]), true, true),
    ];
    for (m, front, plaintext) in cases {
        let deny = policy("shop", "d", Scope::Namespace, Deny, vec![m.clone()]);
        let denied = |who| verdict(std::slice::from_ref(&deny), who, 80).is_err();
        assert_eq!(denied(FRONT), front, "{m:?} with an identity");
        assert_eq!(denied(None), plaintext, "{m:?} without");
    }
}

#[test]
fn check_38_all_groups_of_a_match_must_hold() {
    let both = sec::Match {
        destination_ports: vec![80],
        ..principal(FRONT_PRINCIPAL)
    };
    let deny = [policy("shop", "d", Scope::Namespace, Deny, vec![both])];
    assert!(verdict(&deny, FRONT, 80).is_err());
    assert!(verdict(&deny, FRONT, 81).is_ok());
    assert!(verdict(&deny, OTHER, 80).is_ok());
}

#[test]
fn dry_runs_tell_and_do_nothing() {
    let dry = |action, m| sec::Authorization {
        dry_run: true,
        ..policy("shop", "dry", Scope::Namespace, action, vec![m])
    };
    let run = |p| {
        let snapshot = with_policies(&[of_workload(target())], &[p]);
        let workload = snapshot.workloads().next().unwrap();
        let permit = authorize(&snapshot, &peer(FRONT, POD), workload, at("10.0.0.1:80")).unwrap();
        let run = permit.dry_runs().first().cloned();
        run.map(|run| (run.policy.map(|p| p.to_string()), run.action))
    };
    let key = Some("shop/dry".to_owned());
    assert_eq!(
        run(dry(Deny, ports(&[80]))),
        Some((key.clone(), Action::Deny))
    );
    assert_eq!(run(dry(Deny, ports(&[81]))), None);
    assert_eq!(run(dry(Allow, ports(&[80]))), Some((key, Action::Allow)));
    assert_eq!(run(dry(Allow, ports(&[81]))), Some((None, Action::Allow)));
}

#[test]
fn check_38_addresses_of_one_family_are_not_in_ranges_of_the_other() {
    let hits = |range: &str, length, source: &str, dst: &str| {
        let m = sec::Match {
            source_ips: vec![sec::Address {
                address: bytes(range),
                length,
            }],
            ..Default::default()
        };
        let deny = policy("shop", "d", Scope::Namespace, Deny, vec![m]);
        let snapshot = with_policies(&[of_workload(target())], &[deny]);
        let workload = snapshot.workloads().next().unwrap();
        authorize(&snapshot, &peer(FRONT, source), workload, at(dst)).is_err()
    };
    let (v4, v6) = ("10.0.0.1:80", "[fd00::1]:80");
    assert!(hits("fd00::", 16, "fd00::7", v6));
    assert!(!hits("fd01::", 16, "fd00::7", v6));
    assert!(!hits("0.0.0.0", 0, "fd00::7", v6));
    assert!(!hits("::", 0, "10.0.0.7", v4));
    assert!(
        hits("10.0.0.0", 24, "::ffff:10.0.0.7", v4),
        "one address, one form"
    );
    assert!(hits("::ffff:10.0.0.0", 120, "10.0.0.7", v4));
}

#[test]
fn check_38_a_policy_that_cannot_be_read_lets_nothing_more_through() {
    let bad_range = || sec::Match {
        source_ips: vec![sec::Address {
            address: bytes("10.0.0.0"),
            length: 40,
        }],
        ..Default::default()
    };
    let ask = |snapshot: &Snapshot| {
        let cart = snapshot.workload_by_uid(&uid("shop", "cart")).unwrap();
        let dst = at("10.0.0.1:8080");
        authorize(snapshot, &peer(FRONT, "10.0.9.9"), cart, dst).is_ok()
    };
    for action in [Allow, Deny] {
        let bad = policy("shop", "p", Scope::Namespace, action, vec![bad_range()]);
        // Nothing known before: whatever it meant, it meant to refuse somebody.
        let mut draft = mesh(&[of_workload(target())]).draft();
        assert!(draft.upsert_authorization(&bad).is_err());
        assert_eq!(draft.take_warnings().len(), 1);
        let snapshot = draft.finish();
        assert!(!ask(&snapshot), "{action:?}");
        // A correction ends that, and from then on the last good version stays.
        let good = policy("shop", "p", Scope::Namespace, Allow, vec![ports(&[8080])]);
        let mut draft = snapshot.draft();
        draft.upsert_authorization(&good).unwrap();
        assert!(draft.upsert_authorization(&bad).is_err());
        assert_eq!(draft.take_warnings(), [""; 0]);
        assert!(ask(&draft.finish()));
        // A dry run refuses nobody, readable or not.
        let mut draft = mesh(&[of_workload(target())]).draft();
        let dry = sec::Authorization {
            dry_run: true,
            ..bad
        };
        assert!(draft.upsert_authorization(&dry).is_err());
        assert!(ask(&draft.finish()));
    }
}

#[test]
fn check_39_who_shows_no_identity_is_denied_by_a_deny_of_no_principal() {
    for address in ["10.0.9.9", "fd00::9"] {
        let deny = policy("shop", "d", Scope::Namespace, Deny, vec![no_principal()]);
        let snapshot = with_policies(&[of_workload(target())], &[deny]);
        let workload = snapshot.workloads().next().unwrap();
        let ask = |who| authorize(&snapshot, &peer(who, address), workload, at("10.0.0.1:80"));
        let denied = ask(None).unwrap_err();
        assert_eq!(denied.to_string(), "explicitly denied by: shop/d");
        assert_eq!(denied.reason, Reason::PlaintextRefused);
        assert!(ask(FRONT).is_ok());
    }
}

/// The pure part: a snapshot says that it may decide differently, and does.
#[test]
fn check_37_a_pushed_policy_denies_what_was_allowed() {
    let old = mesh(&[of_workload(target())]);
    let dst = at("10.0.0.1:8080");
    let ask = |snapshot: &Snapshot| {
        let cart = snapshot.workload_by_uid(&uid("shop", "cart")).unwrap();
        authorize(snapshot, &peer(FRONT, "10.0.9.9"), cart, dst).map(|_| ())
    };
    assert_eq!(ask(&old), Ok(()));
    // (what is pushed, whether the decision must be looked at again)
    let clauses = || vec![principal(FRONT_PRINCIPAL)];
    let in_namespace = policy("shop", "d", Scope::Namespace, Deny, clauses());
    let everywhere = policy("istio-system", "d", Scope::Global, Deny, clauses());
    let others_only = policy("shop", "a", Scope::Namespace, Allow, vec![principal("x")]);
    for pushed in [in_namespace, everywhere, others_only] {
        let mut draft = old.draft();
        draft.upsert_authorization(&pushed).unwrap();
        let new = draft.finish();
        assert_eq!(new.policy_version(), new.version(), "{}", pushed.name);
        assert_eq!(ask(&new).unwrap_err().reason, Reason::PolicyDenied);
        let mut draft = new.draft();
        assert!(draft.remove_authorization(&format!("{}/{}", pushed.namespace, pushed.name)));
        let back = draft.finish();
        assert_eq!(back.policy_version(), back.version());
        assert_eq!(ask(&back), Ok(()));
    }
    // A selector policy does nothing until the workload lists it; then the workload's push counts.
    let selected = policy("shop", "d", Scope::WorkloadSelector, Deny, clauses());
    let with_it = with_policies(&[of_workload(target())], &[selected]);
    assert_eq!(ask(&with_it), Ok(()));
    let mut listing = target();
    listing.authorization_policies.push("shop/d".to_owned());
    let mut draft = with_it.draft();
    draft.upsert_address(&of_workload(listing)).unwrap();
    let new = draft.finish();
    assert_eq!(new.policy_version(), new.version());
    assert!(ask(&new).is_err());
}

#[test]
fn reasons_tell_plaintext_from_policy() {
    let snapshot = with_policies(
        &[of_workload(wire::Workload {
            authorization_policies: vec!["istio-system/istio_converted_static_strict".to_owned()],
            ..target()
        })],
        &[
            strict(),
            policy("shop", "d", Scope::Namespace, Deny, vec![ports(&[80])]),
        ],
    );
    let workload = snapshot.workloads().next().unwrap();
    let reason = |who, dst| {
        authorize(&snapshot, &peer(who, POD), workload, at(dst))
            .unwrap_err()
            .reason
    };
    assert_eq!(reason(None, "10.0.0.1:81"), Reason::PlaintextRefused);
    assert_eq!(reason(FRONT, "10.0.0.1:80"), Reason::PolicyDenied);
}

fn bound(traversal: Traversal, objects: &[wire::Address]) -> Snapshot {
    let mut draft = Snapshot::empty(traversal).draft();
    let cart = wire::Workload {
        waypoint: waypoint("shop", "wp"),
        ..serves(target(), "shop", "cart", &[(80, 8080)])
    };
    draft.upsert_address(&of_workload(cart)).unwrap();
    for object in objects {
        draft.upsert_address(object).unwrap();
    }
    draft.finish()
}

fn at_cart(snapshot: &Snapshot, who: Option<(&str, &str)>) -> Result<(), (Reason, String)> {
    let cart = snapshot.workload_by_uid(&uid("shop", "cart")).unwrap();
    authorize(snapshot, &peer(who, "10.0.9.9"), cart, at("10.0.0.1:8080"))
        .map(|_| ())
        .map_err(|denied| (denied.reason, denied.detail))
}

#[test]
fn a_bound_workload_takes_traffic_from_its_waypoints_only() {
    let mut objects = waypoint_objects("shop", "wp", "10.96.0.9", "10.0.0.50");
    objects.extend(waypoint_objects("shop", "wp2", "10.96.0.8", "10.0.0.51"));
    objects.push(of_service(wire::Service {
        waypoint: waypoint("shop", "wp2"),
        ..service("shop", "cart", "10.96.0.1", &[(80, 8080)])
    }));
    let snapshot = bound(Traversal::Required, &objects);
    assert_eq!(at_cart(&snapshot, Some(("shop", "wp"))), Ok(()));
    assert_eq!(at_cart(&snapshot, Some(("shop", "wp2"))), Ok(()));
    let (reason, detail) = at_cart(&snapshot, FRONT).unwrap_err();
    assert_eq!(reason, Reason::WaypointBypassed);
    assert_eq!(
        detail,
        "workload shop/cart is bound to waypoint shop/wp and takes traffic from it only; this came \
         directly from spiffe://cluster.local/ns/web/sa/front at 10.0.9.9"
    );
    assert!(at_cart(&snapshot, None).is_err());
    assert!(at_cart(&snapshot, Some(("elsewhere", "wp"))).is_err());
    assert_eq!(at_cart(&bound(Traversal::Trusted, &objects), FRONT), Ok(()));
}

#[test]
fn while_a_binding_changes_the_other_way_is_open_too() {
    let mut objects = waypoint_objects("shop", "wp", "10.96.0.9", "10.0.0.50");
    objects.extend(waypoint_objects("shop", "wp2", "10.96.0.8", "10.0.0.51"));
    let verdicts = |also: Option<wire::GatewayAddress>, also_direct| {
        let cart = wire::Workload {
            waypoint: waypoint("shop", "wp"),
            also_waypoints: also.into_iter().collect(),
            also_direct,
            ..serves(target(), "shop", "cart", &[(80, 8080)])
        };
        let mut objects = objects.clone();
        objects.push(of_workload(cart));
        let snapshot = bound(Traversal::Required, &objects);
        let all = [Some(("shop", "wp")), Some(("shop", "wp2")), FRONT];
        all.map(|who| at_cart(&snapshot, who).is_ok())
    };
    assert_eq!(verdicts(None, false), [true, false, false]);
    assert_eq!(
        verdicts(waypoint("shop", "wp2"), false),
        [true, true, false]
    );
    assert_eq!(verdicts(None, true), [true, true, true]);
}

#[test]
fn without_its_waypoint_a_bound_workload_takes_nothing() {
    let snapshot = bound(Traversal::Required, &[]);
    assert!(at_cart(&snapshot, Some(("shop", "wp"))).is_err());
}

#[test]
fn an_unready_waypoint_is_still_who_it_is() {
    let mut objects = waypoint_objects("shop", "wp", "10.96.0.9", "10.0.0.50");
    if let Some(wire::address::Type::Workload(w)) = &mut objects[1].r#type {
        w.status = wire::WorkloadStatus::Unhealthy.into();
    }
    let snapshot = bound(Traversal::Required, &objects);
    assert_eq!(at_cart(&snapshot, Some(("shop", "wp"))), Ok(()));
}

#[test]
fn a_waypoint_is_not_bound_to_itself() {
    let mut objects = waypoint_objects("shop", "wp", "10.96.0.9", "10.0.0.50");
    if let Some(wire::address::Type::Workload(w)) = &mut objects[1].r#type {
        w.waypoint = waypoint("shop", "wp");
    }
    let snapshot = mesh(&objects);
    let wp = snapshot.workload_by_uid(&uid("shop", "wp")).unwrap();
    let result = authorize(&snapshot, &peer(FRONT, "10.0.9.9"), wp, at("10.0.0.50:80"));
    assert!(result.is_ok());
}

/// The same rule as other node proxies get it: our own refuses for the reason it knows better.
#[test]
fn a_policy_that_stands_for_a_waypoint_keeps_the_waypoints_reason() {
    let name = "converted_waypoint_shop.wp";
    let strangers = sec::Match {
        not_principals: vec![exact("cluster.local/ns/shop/sa/wp")],
        ..Default::default()
    };
    let deny = policy("shop", name, Scope::WorkloadSelector, Deny, vec![strangers]);
    let cart = |bound: bool| wire::Workload {
        waypoint: waypoint("shop", "wp").filter(|_| bound),
        authorization_policies: vec![format!("shop/{name}")],
        ..target()
    };
    for bound in [true, false] {
        let mut objects = waypoint_objects("shop", "wp", "10.96.0.9", "10.0.0.50");
        objects.push(of_workload(cart(bound)));
        let snapshot = with_policies(&objects, std::slice::from_ref(&deny));
        for who in [FRONT, None] {
            let (reason, detail) = at_cart(&snapshot, who).unwrap_err();
            assert_eq!(reason, Reason::WaypointBypassed);
            let expect = if bound {
                "workload shop/cart is bound to waypoint shop/wp"
            } else {
                "explicitly denied by: shop/converted_waypoint_shop.wp"
            };
            assert!(detail.starts_with(expect), "{detail}");
        }
        assert_eq!(at_cart(&snapshot, Some(("shop", "wp"))), Ok(()));
    }
}

use super::*;

const WP: &str = "cluster.local/ns/shop/sa/wp";

/// What `who` gets at port `port` of `shop/cart` from the waypoint `shop/wp`, whose node proxy would
/// see the waypoint.
fn at_the_waypoint(
    policy: &sec::Authorization,
    who: Option<(&str, &str)>,
    port: u16,
) -> Result<(), Denied> {
    let mut cart = target();
    if policy.scope() == Scope::WorkloadSelector {
        let key = format!("{}/{}", policy.namespace, policy.name);
        cart.authorization_policies.push(key);
    }
    let snapshot = with_policies(&[of_workload(cart)], std::slice::from_ref(policy));
    let cart = snapshot.workload_by_uid(&uid("shop", "cart")).unwrap();
    let wp = Identity::new("cluster.local", "shop", "wp");
    let to = at(&format!("{POD}:{port}"));
    authorize_through(&snapshot, &wp, &peer(who, "10.0.9.9"), cart, to)
}

fn refused(policy: &sec::Authorization) -> bool {
    at_the_waypoint(policy, FRONT, 80).is_err()
}

fn but(names: &[&str]) -> sec::Match {
    sec::Match {
        not_principals: names.iter().map(|name| exact(name)).collect(),
        ..Default::default()
    }
}

fn from(ns: &str) -> sec::Match {
    sec::Match {
        namespaces: vec![exact(ns)],
        ..Default::default()
    }
}

fn from_ip(address: &str, length: u32) -> sec::Match {
    sec::Match {
        source_ips: vec![sec::Address {
            address: bytes(address),
            length,
        }],
        ..Default::default()
    }
}

fn not_account(namespace: &str, account: &str) -> sec::Match {
    sec::Match {
        not_service_accounts: vec![sec::ServiceAccountMatch {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
        }],
        ..Default::default()
    }
}

#[test]
fn a_waypoint_asks_denies_about_its_caller() {
    let front = || principal(FRONT_PRINCIPAL);
    let other = || principal("cluster.local/ns/web/sa/other");
    for (clauses, expect) in [
        (vec![front()], true),
        (vec![other()], false),
        (vec![from("web")], true),
        (vec![from("shop")], false),
        (vec![front(), ports(&[80])], true),
        (vec![front(), ports(&[81])], false),
        (vec![from_ip("10.0.9.0", 24)], true),
        (vec![from_ip("10.0.8.0", 24)], false),
        (vec![but(&[FRONT_PRINCIPAL])], false),
        (vec![but(&["cluster.local/ns/a/sa/b"])], true),
        (vec![not_account("a", "b")], true),
        (vec![no_principal()], false),
        // The node proxy refuses the waypoint by these, not the waypoint its callers.
        (vec![principal(WP)], false),
        // About the way to the workload: the node proxy's.
        (vec![but(&[WP])], false),
        (vec![but(&[WP, "cluster.local/ns/a/sa/b"])], false),
        (vec![but(&[WP]), ports(&[80])], false),
        (vec![not_account("shop", "wp")], false),
    ] {
        for (scope, ns) in [
            (Scope::WorkloadSelector, "shop"),
            (Scope::WorkloadSelector, "istio-system"),
            (Scope::Namespace, "shop"),
            (Scope::Global, "istio-system"),
        ] {
            let mut policy = policy(ns, "p", scope, Deny, clauses.clone());
            assert_eq!(refused(&policy), expect, "{policy:?}");
            policy.dry_run = true;
            assert!(!refused(&policy), "{policy:?}");
        }
    }
}

#[test]
fn sparing_the_waypoint_spares_only_the_match_that_says_so() {
    let mut policy = policy("shop", "p", Scope::WorkloadSelector, Deny, vec![but(&[WP])]);
    assert!(!refused(&policy));
    let matches = &mut policy.rules[0].clauses[0].matches;
    matches.push(principal(FRONT_PRINCIPAL));
    assert!(refused(&policy));
}

#[test]
fn allow_policies_and_those_of_other_namespaces_are_not_asked() {
    let front = principal(FRONT_PRINCIPAL);
    for who in [&front, &principal("cluster.local/ns/web/sa/other")] {
        let allow = policy("shop", "p", Scope::Namespace, Allow, vec![who.clone()]);
        assert!(!refused(&allow));
    }
    let deny = policy("web", "p", Scope::Namespace, Deny, vec![front]);
    assert!(!refused(&deny));
}

#[test]
fn a_policy_that_stands_for_a_waypoint_is_the_node_proxys() {
    let name = "converted_waypoint_shop.wp";
    let scope = Scope::WorkloadSelector;
    assert!(!refused(&policy(
        "shop",
        name,
        scope,
        Deny,
        vec![but(&[WP])]
    )));
}

/// NetworkPolicies spare the waypoint because it asks them itself.
#[test]
fn a_waypoint_asks_network_policies_about_its_caller() {
    let name = "converted_network_policy_p@shop.wp";
    let others = sec::Match {
        principals: vec![presence()],
        ..but(&[WP])
    };
    let elsewhere = sec::Match {
        not_destination_ports: vec![8080],
        ..Default::default()
    };
    let scope = Scope::WorkloadSelector;
    let mut deny = policy("shop", name, scope, Deny, vec![others, elsewhere]);
    assert_eq!(at_the_waypoint(&deny, FRONT, 8080), Ok(()));
    let denied = at_the_waypoint(&deny, FRONT, 80).unwrap_err();
    assert_eq!(denied.reason, Reason::PolicyDenied);
    assert_eq!(denied.detail, format!("explicitly denied by: shop/{name}"));
    assert_eq!(at_the_waypoint(&deny, Some(("shop", "wp")), 80), Ok(()));
    // Who has no identity came by this waypoint too, and a network plugin sees only that.
    assert_eq!(at_the_waypoint(&deny, None, 8080), Ok(()));
    let denied = at_the_waypoint(&deny, None, 80).unwrap_err();
    assert_eq!(denied.reason, Reason::PolicyDenied);
    deny.dry_run = true;
    assert_eq!(at_the_waypoint(&deny, FRONT, 80), Ok(()));
    assert_eq!(at_the_waypoint(&deny, None, 80), Ok(()));
}

/// What stands at the edge is no waypoint of the pods: its policies are about the edge itself, whoever is
/// behind it, and nobody else's "has an identity" holds for who has none.
#[test]
fn callers_without_an_identity_are_somebody_only_to_policies_that_spare_the_way() {
    let scope = Scope::WorkloadSelector;
    let somebody = |spared: &[&str]| sec::Match {
        principals: vec![presence()],
        ..but(spared)
    };
    let name = "converted_network_policy_p";
    for (name, spared) in [
        (name, &[][..]),
        (name, &["cluster.local/ns/shop/sa/other"][..]),
        ("mine", &[WP][..]),
    ] {
        let deny = policy("shop", name, scope, Deny, vec![somebody(spared)]);
        assert_eq!(
            at_the_waypoint(&deny, None, 80),
            Ok(()),
            "{name} {spared:?}"
        );
    }
}

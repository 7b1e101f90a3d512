use super::golden_tests::{gateway, namespace, planned, pod, policy, reasons, waypoint_pod};

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn peer_authentication_levels() {
    let object = |name: &str, ns: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: {ns}}}\nspec: {{{spec}}}\n"
        )
    };
    let base = format!(
        "{}{}",
        namespace(""),
        pod("cart-1", "cart", "app: cart", true)
    );
    let strict = "istio-system/istio_converted_static_strict";
    let own = "shop/converted_peer_authentication_own";
    let mesh = object("mesh", "istio-system", "mtls: {mode: STRICT}");
    let select = "selector: {matchLabels: {app: cart}}";
    for (objects, expect) in [
        (String::new(), vec![]),
        (mesh.clone(), vec![strict]),
        (
            format!("{mesh}{}", object("ns", "shop", "mtls: {mode: PERMISSIVE}")),
            vec![],
        ),
        (
            format!("{mesh}{}", object("ns", "shop", "mtls: {mode: DISABLE}")),
            vec![],
        ),
        (
            format!("{mesh}{}", object("ns", "shop", "mtls: {mode: UNSET}")),
            vec![strict],
        ),
        (
            format!(
                "{mesh}{}",
                object(
                    "own",
                    "shop",
                    &format!("{select}, portLevelMtls: {{9000: {{mode: PERMISSIVE}}}}")
                )
            ),
            vec![own],
        ),
        (
            object(
                "own",
                "shop",
                &format!(
                    "{select}, mtls: {{mode: PERMISSIVE}}, portLevelMtls: {{9000: {{mode: STRICT}}}}"
                ),
            ),
            vec![own],
        ),
        (
            object(
                "own",
                "shop",
                &format!(
                    "{select}, mtls: {{mode: STRICT}}, portLevelMtls: {{9000: {{mode: STRICT}}}}"
                ),
            ),
            vec![strict],
        ),
    ] {
        let plan = planned(&format!("{base}{objects}"));
        let wire = &plan.workloads[0].wire;
        assert_eq!(wire.authorization_policies, expect, "{objects}");
        for key in &wire.authorization_policies {
            let exists = |p: &isobar_proto::istio::security::Authorization| {
                format!("{}/{}", p.namespace, p.name) == *key
            };
            assert!(
                plan.authorizations.iter().any(exists),
                "{key} is not published"
            );
        }
    }
}

#[test]
fn l4_policies_are_never_looser_than_written() {
    let base = format!(
        "{}{}",
        namespace("istio.io/dataplane-mode: ambient"),
        pod("cart-1", "cart", "app: cart", true)
    );
    let rules = |spec: &str| {
        let plan = planned(&format!("{base}{}", policy("shop", spec)));
        let found = plan.authorizations.first().cloned();
        let reason = reasons(&plan, "AuthorizationPolicy shop/p");
        (found, reason)
    };
    let (plain, reason) = rules(
        "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]",
    );
    assert_eq!((plain.unwrap().rules.len(), reason), (1, vec!["Accepted"]));
    // An ALLOW that node proxies cannot see allows nothing.
    let (blind, reason) = rules("action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]");
    assert_eq!(
        (blind.unwrap().rules.len(), reason),
        (0, vec!["UnsupportedValue"])
    );
    // A DENY that they cannot see denies everything it might mean.
    let (blind, reason) = rules("action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]");
    let blind = blind.unwrap();
    assert_eq!(blind.rules[0].clauses[0].matches[0].source_ips.len(), 2);
    assert_eq!(reason, ["UnsupportedValue"]);
    // One entry of a list that matches everything makes the list match everything.
    let (mixed, _) = rules(
        "action: DENY, rules: [{from: [{source: {namespaces: [a]}}], \
         to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]}]",
    );
    assert_eq!(mixed.unwrap().rules[0].clauses.len(), 1);
    // CUSTOM cannot be enforced: refuse.
    let (custom, _) = rules("action: CUSTOM, provider: {name: x}, rules: [{}]");
    assert_eq!(custom.unwrap().action, 1);
    // No rules: an ALLOW that matches nothing.
    let (none, _) = rules("action: ALLOW");
    assert!(none.unwrap().rules.is_empty());
}

#[test]
fn selectors_reach_their_namespace_and_from_the_root_everywhere() {
    let base = format!(
        "{}{}",
        namespace(""),
        pod("cart-1", "cart", "app: cart", true)
    );
    for (ns, labels, expect) in [
        ("shop", "app: cart", vec!["shop/p"]),
        ("istio-system", "app: cart", vec!["istio-system/p"]),
        ("other", "app: cart", vec![]),
        ("shop", "app: other", vec![]),
    ] {
        let spec = format!("selector: {{matchLabels: {{{labels}}}}}, action: DENY, rules: [{{}}]");
        let plan = planned(&format!("{base}{}", policy(ns, &spec)));
        assert_eq!(
            plan.workloads[0].wire.authorization_policies, expect,
            "{ns} {labels}"
        );
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn what_waypoints_make_of_a_policy_of_node_proxies_is_told() {
    const WP: &str = "cluster.local/ns/shop/sa/wp";
    let objects = |labels: &str, spec: &str| {
        format!(
            "{}{}{}{}{}",
            namespace("istio.io/dataplane-mode: ambient"),
            pod("cart-1", "cart", &format!("app: cart{labels}"), true),
            gateway("wp", ", labels: {istio.io/waypoint-for: all}"),
            waypoint_pod("wp", true),
            policy("shop", spec)
        )
    };
    let bound = ", istio.io/use-waypoint: wp";
    let cart = "selector: {matchLabels: {app: cart}}";
    let from = |who: &str| format!("rules: [{{from: [{{source: {{principals: [{who}]}}}}]}}]");
    let front = from("cluster.local/ns/web/sa/front");
    let wp = from(WP);
    let not = |who: &str| format!("rules: [{{from: [{{source: {{notPrincipals: [{who}]}}}}]}}]");
    let shop = "rules: [{from: [{source: {namespaces: [shop]}}]}]";
    for (labels, action, rules, reason, message) in [
        ("", "DENY", &*front, "Accepted", ""),
        (
            bound,
            "DENY",
            &front,
            "Accepted",
            "on its own callers (shop/wp)",
        ),
        ("", "ALLOW", &front, "Accepted", ""),
        (
            bound,
            "ALLOW",
            &front,
            "WaypointRefused",
            "and allow cluster.local/ns/shop/sa/wp",
        ),
        (
            bound,
            "ALLOW",
            &wp,
            "Accepted",
            "taken as the waypoint's (shop/wp)",
        ),
        (
            bound,
            "ALLOW",
            shop,
            "Accepted",
            "taken as the waypoint's (shop/wp)",
        ),
        (
            bound,
            "DENY",
            shop,
            "WaypointRefused",
            "its rules hit the waypoint shop/wp",
        ),
        (
            bound,
            "DENY",
            &not(WP),
            "Accepted",
            "spare the waypoint shop/wp",
        ),
        (
            bound,
            "DENY",
            &not("cluster.local/ns/web/sa/front"),
            "WaypointRefused",
            "and spare (notPrincipals) cluster.local/ns/shop/sa/wp here",
        ),
        (
            bound,
            "DENY",
            "rules: [{to: [{operation: {ports: ['80']}}]}]",
            "Accepted",
            "on its own callers (shop/wp)",
        ),
    ] {
        for scope in [format!("{cart}, "), String::new()] {
            let plan = planned(&objects(
                labels,
                &format!("{scope}action: {action}, {rules}"),
            ));
            let told = plan
                .verdicts
                .iter()
                .find(|v| v.object.to_string() == "AuthorizationPolicy shop/p")
                .unwrap();
            assert_eq!(told.reason, reason, "{labels} {scope} {action} {rules}");
            let text = &told.message;
            let plain = text == "enforced by node proxies";
            assert_eq!(plain, message.is_empty(), "{text}");
            assert!(text.contains(message), "{text}");
        }
    }
}

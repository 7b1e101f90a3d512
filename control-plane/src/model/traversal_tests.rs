use isobar_proto::istio::security as wire;
use isobar_proto::istio::security::string_match::MatchType;

use super::Plan;
use super::golden_tests::{account, gateway, namespace, planned, pod, waypoint_pod};

const ALL: &str = ", labels: {istio.io/waypoint-for: all}";
const FOR_CART: &str =
    ", labels: {istio.io/waypoint-for: all}, annotations: {istio.io/for-service-account: cart}";

fn service(labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: cart, namespace: shop, labels: {{{labels}}}}}\n\
         spec: {{selector: {{app: cart}}, ports: [{{port: 80}}]}}\n"
    )
}

fn ready(name: &str, extra: &str) -> String {
    format!("{}{}", gateway(name, extra), waypoint_pod(name, true))
}

/// What other node proxies are told about `cart-1`: nothing, everybody is refused (`nobody`), or
/// who alone may come.
fn told(plan: &Plan) -> Option<String> {
    let cart = plan.workloads.iter().find(|w| w.wire.name == "cart-1");
    let keys = &cart.unwrap().wire.authorization_policies;
    let key = keys
        .iter()
        .find(|key| key.contains("/converted_waypoint_"))?;
    let policy = plan
        .authorizations
        .iter()
        .find(|policy| format!("{}/{}", policy.namespace, policy.name) == *key)
        .unwrap();
    assert_eq!(policy.action(), wire::Action::Deny);
    assert_eq!(policy.scope(), wire::Scope::WorkloadSelector);
    let only = &policy.rules[0].clauses[0].matches[0];
    assert_eq!((policy.rules.len(), policy.rules[0].clauses.len()), (1, 1));
    if only.not_principals.is_empty() {
        assert_eq!(only.source_ips.len(), 2, "an empty match never matches");
        return Some("nobody".to_owned());
    }
    let names = only
        .not_principals
        .iter()
        .map(|name| match &name.match_type {
            Some(MatchType::Exact(text)) => text.replace("cluster.local/ns/shop/sa/", ""),
            other => panic!("{other:?}"),
        });
    Some(names.collect::<Vec<_>>().join(","))
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn other_receivers_are_told_where_a_waypoint_is_binding() {
    const MINE: &str = "app: cart, istio.io/use-waypoint: wp";
    const LATCHED: &str = "isobar.dev/waypoint-latched: wp";
    const REQUIRED: &str = "isobar.dev/require-waypoint: \"true\"";
    let uses = "istio.io/use-waypoint: wp";
    let (here, for_cart) = (ready("wp", ALL), ready("wp", FOR_CART));
    let bound = account("cart", uses, LATCHED);
    for (what, ns, labels, rest, expect) in [
        ("not bound", "", "app: cart", here.clone(), None),
        ("bound by itself", "", MINE, here.clone(), Some("wp")),
        (
            "bound by its account",
            "",
            "app: cart",
            format!("{bound}{for_cart}"),
            Some("wp"),
        ),
        (
            "its account's waypoint is gone",
            "",
            "app: cart",
            bound,
            Some("nobody"),
        ),
        (
            "its waypoint does not exist",
            "",
            MINE,
            String::new(),
            Some("nobody"),
        ),
        (
            "not ready, but known",
            "",
            MINE,
            gateway("wp", ALL),
            Some("wp"),
        ),
        (
            "asks to pass while it is away",
            "",
            "app: cart, istio.io/use-waypoint: wp, isobar.dev/waypoint-failure: fail-open",
            String::new(),
            None,
        ),
        (
            "bound by its namespace only",
            uses,
            "app: cart",
            here.clone(),
            None,
        ),
        (
            "by its namespace, which asks",
            "istio.io/use-waypoint: wp, isobar.dev/require-waypoint: \"true\"",
            "app: cart",
            here.clone(),
            Some("wp"),
        ),
        (
            "its service's waypoint may come too",
            "",
            MINE,
            format!(
                "{here}{}{}",
                ready("wp2", ""),
                service("istio.io/use-waypoint: wp2")
            ),
            Some("wp,wp2"),
        ),
        (
            "only its service is bound",
            "",
            "app: cart",
            format!("{here}{}", service(uses)),
            None,
        ),
        (
            "only its service is bound, and asks",
            "",
            "app: cart",
            format!("{here}{}", service(&format!("{uses}, {REQUIRED}"))),
            Some("wp"),
        ),
        (
            "its service asks, but names no waypoint",
            "",
            "app: cart",
            format!("{here}{}", service(REQUIRED)),
            None,
        ),
        (
            "its waypoint does not take pods, its service's does",
            "",
            MINE,
            format!("{}{}", ready("wp", ""), service(uses)),
            Some("wp"),
        ),
    ] {
        let one = pod("cart-1", "cart", labels, true);
        let plan = planned(&format!("{}{one}{rest}", namespace(ns)));
        assert_eq!(told(&plan).as_deref(), expect, "{what}");
        // The waypoint's own pods are reached by everybody.
        for workload in plan.workloads.iter().filter(|w| w.instance_of.is_some()) {
            assert!(workload.wire.authorization_policies.is_empty(), "{what}");
        }
    }
}

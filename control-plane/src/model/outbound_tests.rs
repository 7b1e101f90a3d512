use isobar_proto::isobar::v1::outbound_policy::Kind;

use super::OutboundTraffic::{AllowAny, RegistryOnly};
use super::golden_tests::{namespace, objects, planned, reasons, settings};
use super::{KeptKeys, Plan, plan};

fn service(name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n"
    )
}

fn rule(name: &str, namespace: &str, host: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{host: {host}, trafficPolicy: {{connectionPool: {{{spec}}}}}}}\n"
    )
}

fn told(plan: &Plan) -> Vec<String> {
    plan.outbound
        .iter()
        .map(|policy| match policy.kind.as_ref().unwrap() {
            Kind::Egress(egress) => format!("{}:{}", egress.namespace, egress.registry_only),
            Kind::Limits(limits) => {
                let time = limits.connect_timeout.map_or(0, |time| time.seconds);
                format!("{} {} {time}", limits.hostname, limits.max_connections)
            }
        })
        .collect()
}

#[test]
fn namespaces_say_where_their_workloads_may_go() {
    let with = |default, label: &str| {
        let labels = format!("isobar.dev/outbound-traffic-policy: {label}");
        let labels = if label.is_empty() { "" } else { &labels };
        let mut settings = settings();
        settings.outbound = default;
        plan(
            &objects(&namespace(labels)),
            &settings,
            &KeptKeys::default(),
        )
    };
    for (default, label, expect) in [
        (AllowAny, "", vec![]),
        (AllowAny, "REGISTRY_ONLY", vec!["shop:true"]),
        (RegistryOnly, "", vec![":true"]),
        (RegistryOnly, "ALLOW_ANY", vec![":true", "shop:false"]),
        // A word that is not known closes.
        (AllowAny, "registry", vec!["shop:true"]),
    ] {
        let plan = with(default, label);
        assert_eq!(told(&plan), expect, "{default:?} {label:?}");
        let odd = label == "registry";
        assert_eq!(reasons(&plan, "Namespace shop").is_empty(), !odd);
    }
}

#[test]
fn connection_limits_of_services_without_a_waypoint() {
    const TCP: &str = "tcp: {maxConnections: 3, connectTimeout: 2s}";
    const CART: &str = "cart.shop.svc.cluster.local 3 2";
    let base = format!("{}{}", namespace(""), service("cart", ""));
    for (what, rules, expect) in [
        ("no rule", String::new(), vec![]),
        ("its own", rule("r", "shop", "cart", TCP), vec![CART]),
        (
            "of somewhere else",
            rule("r", "web", "cart.shop", TCP),
            vec![],
        ),
        (
            "of the root namespace",
            rule("r", "istio-system", "cart.shop.svc.cluster.local", TCP),
            vec![CART],
        ),
        (
            "its own before the root's",
            format!(
                "{}{}",
                rule(
                    "r",
                    "istio-system",
                    "\"*.svc.cluster.local\"",
                    "tcp: {maxConnections: 9}"
                ),
                rule("r", "shop", "cart", TCP)
            ),
            vec![CART],
        ),
        (
            "the more exact host",
            format!(
                "{}{}",
                rule(
                    "a",
                    "shop",
                    "\"*.shop.svc.cluster.local\"",
                    "tcp: {maxConnections: 9}"
                ),
                rule("b", "shop", "cart", TCP)
            ),
            vec![CART],
        ),
        (
            "nothing for connections",
            rule("r", "shop", "cart", "http: {maxRetries: 1}"),
            vec![],
        ),
    ] {
        let plan = planned(&format!("{base}{rules}"));
        assert_eq!(told(&plan), expect, "{what}");
    }
    // A waypoint applies it by itself.
    let served = service("cart", "istio.io/use-waypoint: wp");
    let served = format!(
        "{}{served}{}",
        namespace(""),
        rule("r", "shop", "cart", TCP)
    );
    assert!(told(&planned(&served)).is_empty());
}

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
            Kind::Trust(trust) => trust.domains.join(" "),
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

#[test]
fn failed_connections_of_services_without_a_waypoint() {
    for (asked, expect) in [
        ("{}", "5 10 0 - -"),
        ("{consecutive5xxErrors: 3}", "3 10 0 - -"),
        ("{consecutiveErrors: 4}", "4 10 0 - -"),
        // The first to be reached counts.
        ("{consecutiveGatewayErrors: 2}", "2 10 0 - -"),
        (
            "{consecutiveGatewayErrors: 9, consecutive5xxErrors: 0}",
            "9 10 0 - -",
        ),
        ("{consecutive5xxErrors: 0}", ""),
        ("{splitExternalLocalOriginErrors: true}", "5 10 0 - -"),
        (
            "{splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 7, \
             consecutive5xxErrors: 1}",
            "7 10 0 - -",
        ),
        ("{consecutiveLocalOriginFailures: 1}", "5 10 0 - -"),
        (
            "{interval: 2s, baseEjectionTime: 4s, maxEjectionPercent: 100, minHealthPercent: 30}",
            "5 100 30 2 4",
        ),
    ] {
        let rule = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: r, namespace: shop}}\n\
             spec: {{host: cart, trafficPolicy: {{outlierDetection: {asked}}}}}\n"
        );
        let base = format!("{}{}", namespace(""), service("cart", ""));
        let plan = planned(&format!("{base}{rule}"));
        let told: Vec<_> = plan
            .outbound
            .iter()
            .map(|policy| {
                let Some(Kind::Limits(limits)) = &policy.kind else {
                    panic!("{policy:?}")
                };
                let rule = limits.outliers.as_ref().unwrap();
                let seconds = |time: Option<prost_types::Duration>| {
                    time.map_or("-".to_owned(), |time| time.seconds.to_string())
                };
                format!(
                    "{} {} {} {} {}",
                    rule.failures,
                    rule.max_ejected_percent,
                    rule.min_healthy_percent,
                    seconds(rule.interval),
                    seconds(rule.base_ejection),
                )
            })
            .collect();
        assert_eq!(told.join(";"), expect, "{asked}");
        let said = format!("{:?}", plan.verdicts);
        assert_eq!(
            said.contains("ZtunnelAccepted"),
            !expect.is_empty(),
            "{said}"
        );
    }
}

#[test]
fn tls_that_nobody_would_begin_is_told() {
    let of = |tls: &str| {
        let rule =
            rule("r", "shop", "cart", "").replace("connectionPool: {}", &format!("tls: {{{tls}}}"));
        let plan = planned(&format!("{}{}{rule}", namespace(""), service("cart", "")));
        let verdicts = plan
            .verdicts
            .iter()
            .filter(|v| v.condition == "ZtunnelAccepted");
        verdicts.map(|v| v.reason).collect::<Vec<_>>()
    };
    assert_eq!(of("mode: SIMPLE, sni: a.example"), ["UnsupportedValue"]);
    assert!(of("mode: ISTIO_MUTUAL").is_empty());
}

use isobar_proto::istio::workload as wire;
use isobar_proto::istio::workload::gateway_address::Destination;

use super::golden_tests::{gateway, namespace, planned, pod, policy, reasons, waypoint_pod};
use super::{Plan, Severity};

const NAMED: &str = "istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: b";

/// A Service with these labels and annotations.
fn service(labels: &str, annotations: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: cart, namespace: shop, labels: {{{labels}}}, annotations: {{{annotations}}}}}
spec: {{clusterIP: 10.96.0.7, selector: {{app: cart}}, ports: [{{name: http, port: 80}}]}}
"
    )
}

fn weight(text: &str) -> String {
    format!("istio.io/use-waypoint-canary-weight: \"{text}\"")
}

/// Waypoints `wp` and `b`, each with a ready pod, and a pod behind the Service.
fn both() -> String {
    [
        gateway("wp", ""),
        waypoint_pod("wp", true),
        gateway("b", ""),
        waypoint_pod("b", true),
        pod("cart-1", "cart", "app: cart", true),
    ]
    .concat()
}

fn short(address: Option<&wire::GatewayAddress>) -> String {
    match address.and_then(|one| one.destination.as_ref()) {
        Some(Destination::Hostname(name)) => {
            let name = name.hostname.split('.').next().unwrap_or_default();
            name.to_owned()
        }
        other => format!("{other:?}"),
    }
}

/// The waypoint of a service, and the shares: `wp wp*70 b*30`.
fn told(service: &wire::Service) -> String {
    let mut all = vec![short(service.waypoint.as_ref())];
    let parts = service.weighted_waypoints.iter();
    all.extend(parts.map(|one| format!("{}*{}", short(one.destination.as_ref()), one.weight)));
    all.join(" ")
}

fn of_cart(plan: &Plan) -> String {
    told(&plan.services[plan.services.len() - 1].wire)
}

/// What is said of the Service: whether it is bound, the reason and the sentence.
fn said(plan: &Plan) -> (bool, &'static str, String, Severity) {
    let about = |object: &isobar_objects::ObjectRef| object.to_string() == "Service shop/cart";
    let mut all = plan.verdicts.iter().filter(|one| about(&one.object));
    let one = all.next().unwrap();
    assert!(all.next().is_none(), "{:?}", plan.verdicts);
    (one.holds, one.reason, one.message.clone(), one.severity)
}

#[test]
fn a_second_waypoint_takes_its_share_and_both_know_the_service() {
    let deny = policy(
        "shop",
        "targetRefs: [{kind: Service, group: '', name: cart}], action: DENY, \
         rules: [{to: [{operation: {paths: [/secret]}}]}]",
    );
    for (annotation, shares) in [
        (weight("30"), "wp wp*70 b*30"),
        (weight("0"), "wp wp*100 b*0"),
        (weight("100"), "wp wp*0 b*100"),
        (String::new(), "wp wp*100 b*0"),
    ] {
        let yaml = [
            namespace(""),
            service(NAMED, &annotation),
            both(),
            deny.clone(),
        ];
        let plan = planned(&yaml.concat());
        assert_eq!(of_cart(&plan), shares, "{annotation}");
        let (bound, reason, text, severity) = said(&plan);
        assert!(bound && reason == "WaypointAccepted", "{reason}: {text}");
        assert!(
            text.contains("% of its calls pass canary waypoint shop/b"),
            "{text}"
        );
        assert_eq!(severity, Severity::Info);
        // Whatever its share: it may be another one soon.
        assert_eq!(plan.waypoints.len(), 2);
        for waypoint in &plan.waypoints {
            assert_eq!(waypoint.authorizations.len(), 1, "{}", waypoint.key);
            assert_eq!(waypoint.authorizations[0].services.len(), 1);
        }
        assert_eq!(reasons(&plan, "AuthorizationPolicy shop/p"), ["Accepted"]);
    }
}

#[test]
fn a_namespace_names_one_for_what_has_its_first_one_from_there() {
    let home = |annotations: &str| {
        let text = namespace(NAMED);
        text.replace(
            "name: shop,",
            &format!("name: shop, annotations: {{{annotations}}},"),
        )
    };
    for (labels, annotations, shares) in [
        ("", String::new(), "wp wp*80 b*20"),
        ("", weight("55"), "wp wp*45 b*55"),
        ("istio.io/use-waypoint-canary: none", String::new(), "wp"),
        // One of its own: its namespace's share was meant for another one.
        (
            "istio.io/use-waypoint-canary: c",
            String::new(),
            "wp wp*100 c*0",
        ),
        ("istio.io/use-waypoint: c", String::new(), "c"),
        ("istio.io/use-waypoint: none", String::new(), "None"),
    ] {
        let third = gateway("c", "") + &waypoint_pod("c", true);
        let yaml = [
            home(&weight("20")),
            service(labels, &annotations),
            both(),
            third,
        ];
        assert_eq!(
            of_cart(&planned(&yaml.concat())),
            shares,
            "{labels} {annotations}"
        );
    }
}

/// The label that names this waypoint as the second one.
fn second(name: &str) -> String {
    format!("istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: {name}")
}

/// Sees that the first waypoint takes all calls, and that this is said so.
fn alone(labels: &str, annotation: &str, (bound, reason): (bool, &str), word: &str) {
    let others = [
        gateway("pods", ", labels: {istio.io/waypoint-for: workload}"),
        waypoint_pod("pods", true),
        gateway("asleep", ""),
        waypoint_pod("asleep", false),
        gateway("far", "").replace("namespace: shop", "namespace: other"),
    ];
    let yaml = [
        namespace(""),
        service(labels, annotation),
        both(),
        others.concat(),
    ];
    let plan = planned(&yaml.concat());
    assert_eq!(of_cart(&plan), "wp", "{labels} {annotation}");
    let (holds, why, text, severity) = said(&plan);
    assert_eq!((holds, why), (bound, reason), "{labels}: {text}");
    assert!(text.contains(word), "{text}");
    let first = "waypoint shop/wp, which takes all calls";
    assert!(text.contains(first), "{text}");
    assert_eq!(severity, Severity::Warning);
}

#[test]
fn a_mistake_about_the_second_waypoint_leaves_all_calls_to_the_first() {
    let same = (false, "CanarySameAsPrimary");
    alone(&second("wp"), &weight("30"), same, "the same waypoint");
    for (text, word) in [
        ("x", "\"x\""),
        ("101", "0 to 100"),
        ("-1", "\"-1\""),
        ("0.5", "whole number"),
        ("", "\"\""),
    ] {
        let invalid = (false, "CanaryInvalidWeight");
        alone(&second("b"), &weight(text), invalid, word);
    }
}

#[test]
fn a_second_waypoint_that_cannot_be_used_leaves_all_calls_to_the_first() {
    let elsewhere = second("far") + ", istio.io/use-waypoint-canary-namespace: other";
    for (labels, word) in [
        (second("away"), "shop/away does not exist"),
        (second("asleep"), "shop/asleep has no ready pod"),
        (second("pods"), "does not take service traffic"),
        (elsewhere, "does not allow objects"),
    ] {
        alone(&labels, &weight("30"), (true, "WaypointAccepted"), word);
    }
}

#[test]
fn a_first_waypoint_that_ran_keeps_its_share_while_it_is_away() {
    let ready = "\nstatus: {conditions: [{type: Programmed, status: \"True\", reason: Programmed, \
                 message: m, lastTransitionTime: \"2026-01-01T00:00:00Z\"}]}\n";
    let away = |labels: &str, annotation: &str, ran: bool| {
        let first = gateway("wp", "") + if ran { ready } else { "" };
        let second = gateway("b", "") + &waypoint_pod("b", true);
        planned(&[namespace(""), service(labels, annotation), first, second].concat())
    };
    let plan = away(NAMED, &weight("30"), true);
    assert_eq!(of_cart(&plan), "wp wp*70 b*30");
    let (bound, reason, text, _) = said(&plan);
    assert_eq!((bound, reason), (false, "WaypointIsNotReady"));
    assert!(text.contains("30 % of its calls"), "{text}");
    // Nothing is refused.
    let plan = away(NAMED, &weight("100"), true);
    assert_eq!(of_cart(&plan), "wp wp*0 b*100");
    let (bound, reason, ..) = said(&plan);
    assert_eq!((bound, reason), (true, "WaypointAccepted"));
    // Never there: there is nothing to take a share of.
    let plan = away(NAMED, &weight("30"), false);
    assert_eq!(of_cart(&plan), "wp");
    // Asked to be passed while it is away.
    let open = format!("{NAMED}, isobar.dev/waypoint-failure: fail-open");
    let plan = away(&open, &weight("30"), true);
    assert_eq!(of_cart(&plan), "None");
}

#[test]
fn pods_take_calls_from_both_and_entries_have_two_as_well() {
    let required = format!("{NAMED}, isobar.dev/require-waypoint: \"true\"");
    let entry = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: e, namespace: shop, labels: {{{NAMED}}}, annotations: {{{}}}}}\n\
         spec: {{hosts: [a.example], addresses: [192.0.2.1], resolution: DNS, \
         ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n",
        weight("5")
    );
    let yaml = [
        namespace(""),
        service(&required, &weight("30")),
        both(),
        entry,
    ];
    let plan = planned(&yaml.concat());
    let passage: Vec<_> = plan
        .authorizations
        .iter()
        .flat_map(|policy| &policy.rules)
        .flat_map(|rule| &rule.clauses)
        .flat_map(|clause| &clause.matches)
        .map(|one| one.not_principals.len())
        .collect();
    assert_eq!(passage, [2], "the two waypoints and nobody else");
    assert_eq!(told(&plan.entries[0]), "wp wp*95 b*5");
    assert_eq!(reasons(&plan, "ServiceEntry shop/e")[0], "Accepted");
}

#[test]
fn a_policy_for_one_of_two_gateways_is_told() {
    let deny = |targets: &str| {
        let target = |name: &str| {
            format!("{{group: gateway.networking.k8s.io, kind: Gateway, name: {name}}}")
        };
        let targets: Vec<String> = targets.split(' ').map(target).collect();
        policy(
            "shop",
            &format!(
                "targetRefs: [{}], action: DENY, rules: [{{to: [{{operation: {{paths: [/a]}}}}]}}]",
                targets.join(", ")
            ),
        )
    };
    for (targets, share, around) in [
        ("wp", "30", true),
        ("wp", "0", false),
        ("wp b", "30", false),
        ("b", "30", false),
    ] {
        let yaml = [
            namespace(""),
            service(NAMED, &weight(share)),
            both(),
            deny(targets),
        ];
        let told = reasons(&planned(&yaml.concat()), "AuthorizationPolicy shop/p");
        let found = told.contains(&"CanaryGoesAround");
        assert_eq!(found, around, "{targets} at {share} %: {told:?}");
    }
}

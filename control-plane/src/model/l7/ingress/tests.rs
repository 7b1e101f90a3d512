use isobar_proto::isobar::v1 as wire;

use crate::model::golden_tests::{namespace, planned, pod, reasons};
use crate::model::{Plan, WaypointPlan};

const SERVICES: &str = "---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80}]}
";

fn gateway(name: &str, day: u8, servers: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {{name: {name}, namespace: shop, creationTimestamp: '2025-01-{day:02}T00:00:00Z'}}\n\
         spec: {{selector: {{istio: edge}}, servers: [{servers}]}}\n"
    )
}

fn server(port: u16, protocol: &str, hosts: &str, tls: &str) -> String {
    let tls = match tls {
        "" => String::new(),
        some => format!(", tls: {{{some}}}"),
    };
    format!("{{port: {{number: {port}, name: p, protocol: {protocol}}}, hosts: [{hosts}]{tls}}}")
}

fn rules(name: &str, place: &str, hosts: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: {place}}}\n\
         spec: {{hosts: [{hosts}], gateways: [shop/new, shop/old], {rules}}}\n"
    )
}

const TO_CART: &str = "http: [{route: [{destination: {host: cart.shop.svc.cluster.local}}]}]";
const SIMPLE: &str = "mode: SIMPLE, credentialName: page";
const MUTUAL: &str = "mode: MUTUAL, credentialName: page";

fn shop(objects: &str) -> Plan {
    let edge = pod("edge-1", "edge", "istio: edge", true);
    let web = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n";
    planned(&format!("{}{web}{SERVICES}{edge}{objects}", namespace("")))
}

fn listeners(plan: &Plan) -> &[wire::Listener] {
    let mut all = plan.waypoints.iter();
    let edge = all.find(|one| !one.waypoint.listeners.is_empty()).unwrap();
    &edge.waypoint.listeners
}

fn edge(plan: &Plan) -> &WaypointPlan {
    let mut all = plan.waypoints.iter();
    all.find(|one| !one.waypoint.listeners.is_empty()).unwrap()
}

/// Where these rules count.
fn parents(plan: &Plan, name: &str) -> Vec<String> {
    let all = edge(plan)
        .routes
        .iter()
        .filter(|one| one.name.starts_with(name));
    let parents = all.flat_map(|one| &one.parents);
    let mut parents: Vec<_> = parents.map(|one| one.hostname.clone()).collect();
    parents.sort_unstable();
    parents
}

#[test]
fn the_older_gateway_keeps_its_host() {
    let plan = shop(&format!(
        "{}{}{}",
        gateway("old", 1, &server(443, "HTTPS", "a.example", SIMPLE)),
        gateway(
            "new",
            2,
            &server(443, "HTTPS", "a.example, b.example", SIMPLE)
        ),
        rules("page", "shop", "a.example, b.example", TO_CART),
    ));
    let all = listeners(&plan).iter();
    let names: Vec<_> = all
        .map(|one| (&*one.name, one.server_names.join(",")))
        .collect();
    assert_eq!(
        names,
        [
            ("shop.new-0", "b.example".to_owned()),
            ("shop.old-0", "a.example".to_owned())
        ]
    );
    assert_eq!(reasons(&plan, "Gateway shop/old"), ["Accepted"]);
    assert_eq!(reasons(&plan, "Gateway shop/new"), ["Conflicted"]);
}

#[test]
fn a_port_speaks_what_the_older_gateway_says() {
    let other = "---\napiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: shop}\n\
        spec: {clusterIP: 10.96.0.8, selector: {istio: edge}, ports: \
        [{name: a, port: 443, targetPort: 8443}, {name: b, port: 80, targetPort: 8443}]}\n";
    for (word, tls) in [("HTTP", ""), ("TCP", "")] {
        let plan = shop(&format!(
            "{other}{}{}",
            gateway("old", 1, &server(443, "HTTPS", "a.example", SIMPLE)),
            gateway("new", 2, &server(80, word, "'*'", tls)),
        ));
        let told: Vec<_> = listeners(&plan).iter().map(|one| &*one.name).collect();
        assert_eq!(told, ["shop.old-0"], "{word}");
        assert_eq!(reasons(&plan, "Gateway shop/new"), ["Conflicted"]);
    }
    let plan = shop(&format!(
        "{}{}",
        gateway("new", 2, &server(80, "HTTPS", "a.example", SIMPLE)),
        gateway("old", 1, &server(80, "HTTP", "'*'", "")),
    ));
    let told: Vec<_> = listeners(&plan).iter().map(|one| &*one.name).collect();
    assert_eq!(told, ["port-80"]);
}

#[test]
fn hosts_in_the_clear_are_shared_by_those_who_say_the_same() {
    let plan = shop(&format!(
        "{}{}",
        gateway("old", 1, &server(80, "HTTP", "'*'", "")),
        gateway("new", 2, &server(80, "HTTP", "'*'", "")),
    ));
    assert_eq!(reasons(&plan, "Gateway shop/new"), ["Accepted"]);
    let plan = shop(&format!(
        "{}{}",
        gateway("old", 1, &server(80, "HTTP", "shop/a.example", "")),
        gateway("new", 2, &server(80, "HTTP", "web/a.example", "")),
    ));
    assert_eq!(reasons(&plan, "Gateway shop/new"), ["Conflicted"]);
}

#[test]
fn rules_count_at_the_most_exact_server_only() {
    let plan = shop(&format!(
        "{}{}{}",
        gateway(
            "old",
            1,
            &format!(
                "{}, {}, {}",
                server(443, "HTTPS", "'*.example'", SIMPLE),
                server(443, "HTTPS", "shop/a.example", MUTUAL),
                server(80, "HTTP", "'*.example', shop/a.example", "")
            )
        ),
        rules("own", "shop", "a.example", TO_CART),
        rules("foreign", "web", "a.example, '*.example'", TO_CART),
    ));
    assert_eq!(
        parents(&plan, "own"),
        ["port-80|a.example", "shop.old-1|a.example"]
    );
    assert_eq!(
        parents(&plan, "foreign"),
        ["port-80|*.example", "shop.old-0|*.example"]
    );
    let mut all = listeners(&plan).iter();
    let simple = all.find(|one| one.name == "shop.old-0").unwrap();
    let shown: Vec<_> = simple.virtual_hosts.iter().map(|one| &*one.host).collect();
    assert_eq!(
        shown,
        ["*.example", "a.example"],
        "nobody answers for the latter"
    );
}

#[test]
fn callers_that_cannot_be_limited_as_written_are_refused() {
    for limit in [
        "subjectAltNames: [me]",
        "caCrl: /crl",
        "verifyCertificateSpki: [x]",
        "verifyCertificateHash: [x]",
    ] {
        let plan = shop(&format!(
            "{}{}",
            gateway(
                "old",
                1,
                &format!(
                    "{}, {}",
                    server(443, "HTTPS", "'*.example'", SIMPLE),
                    server(443, "HTTPS", "a.example", &format!("{MUTUAL}, {limit}"))
                )
            ),
            rules("own", "shop", "a.example", TO_CART),
        ));
        assert_eq!(
            reasons(&plan, "Gateway shop/old"),
            ["UnsupportedValue"],
            "{limit}"
        );
        assert!(parents(&plan, "own").is_empty(), "{limit}");
        let mut all = listeners(&plan).iter();
        let closed = all.find(|one| one.name == "shop.old-1").unwrap();
        assert!(closed.tls.is_none() && closed.virtual_hosts.is_empty());
    }
}

#[test]
fn passed_on_names_are_those_that_a_namespace_may_use() {
    let passed = server(
        443,
        "TLS",
        "'web/*.example', shop/a.example",
        "mode: PASSTHROUGH",
    );
    let to = "tls: [{match: [{sniHosts: [a.example, b.example, c.test]}], \
              route: [{destination: {host: cart.shop.svc.cluster.local, port: {number: 80}}}]}]";
    let plan = shop(&format!(
        "{}{}{}",
        gateway("old", 1, &passed),
        rules("own", "shop", "'*'", to),
        rules("foreign", "web", "'*'", to),
    ));
    assert_eq!(parents(&plan, "own"), ["shop.old-0:a.example|*"]);
    assert_eq!(parents(&plan, "foreign"), ["shop.old-0:*.example|*"]);
    let mut all = edge(&plan).routes.iter();
    let own = all.find(|one| one.name == "own").unwrap();
    assert_eq!(own.tls[0].matches[0].sni_hosts, ["a.example"]);
}

#[test]
fn a_service_entry_asks_for_its_waypoint_itself() {
    let entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
        metadata: {name: out, namespace: shop, labels: {istio.io/ingress-use-waypoint: 'true'}}\n\
        spec: {hosts: [out.example], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}\n";
    let to = "http: [{route: [{destination: {host: out.example}}]}]";
    let plan = shop(&format!(
        "{entry}{}{}",
        gateway("old", 1, &server(80, "HTTP", "'*'", "")),
        rules("own", "shop", "a.example", to),
    ));
    let through = &edge(&plan).waypoint.through_waypoint;
    assert_eq!(through.len(), 1);
    assert_eq!(through[0].hostname, "out.example");
}

fn api(listeners: &str, whole: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: front, namespace: shop}}\n\
         spec: {{gatewayClassName: isobar, listeners: [{listeners}]{whole}}}\n"
    )
}

fn problems(plan: &Plan) -> Vec<Option<&'static str>> {
    let mut all = plan.gateways.iter();
    let facts = all.find(|one| &*one.key.name == "front").unwrap();
    let told = facts.listeners.iter().flatten();
    told.map(|one| one.problem.as_ref().map(|(word, _)| *word))
        .collect()
}

#[test]
fn an_open_listener_does_not_answer_for_a_more_exact_one() {
    let open = "allowedRoutes: {namespaces: {from: All}}";
    let route = |name: &str, hosts: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: {name}, namespace: web}}\nspec:\n  \
             parentRefs: [{{name: front, namespace: shop}}]\n  hostnames: [{hosts}]\n  \
             rules: [{{filters: [{{type: RequestRedirect, requestRedirect: {{scheme: https}}}}]}}]\n"
        )
    };
    let plan = shop(&format!(
        "{}{}{}",
        api(
            &format!(
                "{{name: open, port: 80, protocol: HTTP, {open}}}, \
                 {{name: own, port: 80, protocol: HTTP, hostname: a.example}}"
            ),
            ""
        ),
        route("exact", "a.example"),
        route("wide", "'*.example'"),
    ));
    let all = edge(&plan).routes.iter();
    let hosts: Vec<_> = all.map(|one| one.hosts.join(",")).collect();
    assert_eq!(hosts, ["*.example"]);
    let shown = &listeners(&plan)[0].virtual_hosts;
    let shown: Vec<_> = shown.iter().map(|one| &*one.host).collect();
    assert_eq!(shown, ["*.example", "a.example"]);
    let mut all = plan.routes.iter();
    let exact = all.find(|one| &*one.object.name == "exact").unwrap();
    assert_eq!(
        exact.parents[0].conditions[0].reason,
        "NoMatchingListenerHostname"
    );
}

#[test]
fn listeners_that_want_the_same_or_limit_callers_are_not_served() {
    let plan = shop(&api(
        "{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}, \
         {name: c, port: 80, protocol: TCP}, {name: d, port: 443, protocol: HTTPS, \
         tls: {certificateRefs: [{name: page}], frontendValidation: {caCertificateRefs: []}}}",
        "",
    ));
    assert_eq!(
        problems(&plan),
        [
            None,
            Some("HostnameConflict"),
            Some("ProtocolConflict"),
            Some("Invalid")
        ]
    );
    let plan = shop(&api(
        "{name: d, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: page}]}}",
        ", tls: {frontend: {default: {validation: {caCertificateRefs: []}}}}",
    ));
    assert_eq!(problems(&plan), [Some("Invalid")]);
}

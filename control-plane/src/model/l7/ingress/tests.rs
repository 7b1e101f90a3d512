use isobar_proto::isobar::v1 as wire;

use crate::model::golden_tests::{namespace, planned, pod, reasons};
use crate::model::ingress_tests::secret;
use crate::model::{Plan, WaypointPlan};

mod mesh;

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
    bare(&format!("{}{objects}", secret("page", "shop")))
}

/// Without a Secret.
fn bare(objects: &str) -> Plan {
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
        "subjectAltNames: ['me@a.example']",
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

#[test]
fn a_server_for_one_address_is_refused() {
    let at = |bind: &str| {
        let server = server(80, "HTTP", "'*'", "");
        let bound = server.replacen('{', &format!("{{bind: '{bind}', "), 1);
        let own = rules("own", "shop", "a.example", TO_CART);
        shop(&format!("{}{own}", gateway("old", 1, &bound)))
    };
    for all in ["0.0.0.0", "::"] {
        assert_eq!(reasons(&at(all), "Gateway shop/old"), ["Accepted"]);
        assert_eq!(parents(&at(all), "own"), ["port-80|a.example"]);
    }
    let one = at("127.0.0.1");
    assert_eq!(reasons(&one, "Gateway shop/old"), ["UnsupportedValue"]);
    let mut told = one.waypoints.iter();
    assert!(told.all(|one| one.waypoint.listeners.is_empty() && one.routes.is_empty()));
}

fn tls(plan: &Plan, name: &str) -> wire::ListenerTls {
    let mut all = listeners(plan).iter();
    let found = all.find(|one| one.name == name).unwrap();
    found.tls.clone().unwrap()
}

#[test]
fn names_of_callers_and_versions_are_told() {
    let names = "subjectAltNames: [me.example, 'spiffe://a/b', 10.0.0.1]";
    let old = |tls: &str| {
        let plan = shop(&gateway("old", 1, &server(443, "HTTPS", "a.example", tls)));
        (plan, "shop.old-0")
    };
    let (plan, name) = old(&format!("{MUTUAL}, {names}"));
    assert_eq!(reasons(&plan, "Gateway shop/old"), ["Accepted"]);
    let expected = ["me.example", "spiffe://a/b", "10.0.0.1"];
    assert_eq!(tls(&plan, name).client_names, expected);
    for (text, only) in [
        ("minProtocolVersion: TLSV1_3", (true, false)),
        ("maxProtocolVersion: TLSV1_2", (false, true)),
        ("minProtocolVersion: TLSV1_2", (false, false)),
    ] {
        let (plan, name) = old(&format!("{SIMPLE}, {text}"));
        let tls = tls(&plan, name);
        assert_eq!((tls.only_tls13, tls.only_tls12), only, "{text}");
    }
    // Callers that show nothing are not verified, by whatever name.
    let (plan, _) = old(&format!("{SIMPLE}, {names}"));
    assert_eq!(reasons(&plan, "Gateway shop/old"), ["UnsupportedValue"]);
}

#[test]
fn one_name_may_be_a_certificate_and_an_authority() {
    let plan = bare(&format!(
        "{}{}{}",
        secret("page-cacert", "shop"),
        secret("page", "shop"),
        gateway(
            "old",
            1,
            &format!(
                "{}, {}",
                server(443, "HTTPS", "a.example", MUTUAL),
                server(
                    443,
                    "HTTPS",
                    "b.example",
                    "mode: SIMPLE, credentialName: page-cacert"
                )
            )
        ),
    ));
    let told = &edge(&plan).credentials;
    let names: Vec<_> = told.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["page", "page-cacert"]);
    assert!(told[0].authority.is_empty());
    let both = &told[1];
    assert!(both.authority == "authority" && !both.key.is_empty());
}

#[test]
fn a_secret_that_is_missing_or_useless_is_told() {
    let simple = gateway("old", 1, &server(443, "HTTPS", "a.example", SIMPLE));
    let useless = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: page, namespace: shop}\n\
         stringData: {tls.crt: none, tls.key: none}\n";
    let empty = useless.replace("none", "\"\"");
    for (secret, missing) in [("", true), (&*empty, true), (useless, false)] {
        let plan = bare(&format!("{simple}{secret}"));
        assert_eq!(
            reasons(&plan, "Gateway shop/old"),
            ["InvalidCertificateRef"]
        );
        let front = api(
            "{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: page}]}}",
            "",
        );
        let plan = bare(&format!("{front}{secret}"));
        assert_eq!(problems(&plan), [Some("InvalidCertificateRef")]);
        let mut told = plan.waypoints.iter();
        let front = told.find(|one| &*one.key.name == "front").unwrap();
        // Pods go on with what they had only if there is something new, of no use to them.
        assert_eq!(front.waypoint.listeners.is_empty(), missing);
        let served = plan
            .gateways
            .iter()
            .flat_map(|one| one.listeners.iter().flatten());
        assert!(served.into_iter().all(|one| one.served != missing));
    }
    let authority = secret("page", "shop").replace("ca.crt", "other");
    let mutual = gateway("old", 1, &server(443, "HTTPS", "a.example", MUTUAL));
    let plan = bare(&format!("{mutual}{authority}"));
    assert_eq!(
        reasons(&plan, "Gateway shop/old"),
        ["InvalidCertificateRef"]
    );
}

#[test]
fn a_policy_that_a_gateway_goes_around_is_told() {
    let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: deny, namespace: shop}\n\
         spec: {targetRefs: [{group: '', kind: Service, name: cart}], action: DENY, rules: [{}]}\n";
    let front = format!(
        "{}{}",
        gateway("old", 1, &server(80, "HTTP", "'*'", "")),
        rules("own", "shop", "a.example", TO_CART)
    );
    let told = |objects: &str| {
        let reasons = reasons(&shop(objects), "AuthorizationPolicy shop/deny");
        reasons.contains(&"GatewayGoesAround")
    };
    assert!(told(&format!("{policy}{front}")));
    assert!(!told(policy));
    let label = "---\napiVersion: v1\nkind: Service\n\
         metadata: {name: cart, namespace: shop, labels: {istio.io/ingress-use-waypoint: 'true'}}\n\
         spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80}]}\n";
    assert!(!told(&format!("{policy}{front}{label}")), "{label}");
    assert!(!told(&format!(
        "{}{front}",
        policy.replace("DENY", "AUDIT")
    )));
}

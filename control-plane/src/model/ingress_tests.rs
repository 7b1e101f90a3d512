use isobar_proto::isobar::v1 as wire;
use isobar_tls::ca::Authority;

use super::golden_tests::{gateway, namespace, planned, pod, reasons, waypoint_pod};
use super::{Plan, WaypointPlan};

const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: shop}
spec: {clusterIP: 10.96.0.8, selector: {istio: edge}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn istio_gateway(name: &str, labels: &str, servers: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{{labels}}}, servers: [{servers}]}}\n"
    )
}

fn http(hosts: &str) -> String {
    format!("{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [{hosts}]}}")
}

fn rules(name: &str, hosts: &str, gateways: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: [{hosts}], gateways: [{gateways}], http: [\n\
         {{match: [{{uri: {{prefix: /mesh}}, gateways: [mesh]}}, {{uri: {{prefix: /edge}}, gateways: [front]}}], \
         route: [{{destination: {{host: cart}}}}]}}]}}\n"
    )
}

/// A namespace with a gateway's pod `edge-1`, the Service `cart` and these objects.
fn shop(objects: &str) -> Plan {
    let edge = pod("edge-1", "edge", "istio: edge", true);
    planned(&format!("{}{SERVICE}{edge}{objects}", namespace("")))
}

fn hosts(plan: &WaypointPlan) -> Vec<&str> {
    let listeners = plan.waypoint.listeners.iter();
    let hosts = listeners.flat_map(|listener| &listener.virtual_hosts);
    hosts.map(|host| host.host.as_str()).collect()
}

#[test]
fn hosts_of_a_gateway_and_of_its_routes_have_to_meet() {
    let front = istio_gateway(
        "front",
        "istio: edge",
        &http("'*.example', shop.test, web/a.test"),
    );
    let plan = shop(&format!(
        "{front}{}{}",
        rules("one", "a.example, shop.test, other.test", "front"),
        rules("two", "'*', a.test", "shop/front")
    ));
    let edge = &plan.waypoints[0];
    assert_eq!(
        hosts(edge),
        ["a.example", "shop.test", "*.example"],
        "a.test is for rules of another namespace"
    );
    let listener = &edge.waypoint.listeners[0];
    assert_eq!((listener.port, listener.service_port), (8080, 80));
    // Of `shop.test` both, of the others one each.
    let parents = |name: &str| {
        let all = edge.routes.iter().find(|route| route.name == name);
        let all = all.unwrap().parents.iter();
        all.map(|parent| parent.hostname.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        parents("one"),
        ["port-8080|a.example", "port-8080|shop.test"]
    );
    assert_eq!(
        parents("two"),
        ["port-8080|*.example", "port-8080|shop.test"]
    );
    let matches = &edge.routes[0].http[0].matches;
    assert_eq!(matches.len(), 1, "the other block is for the mesh");
    assert_eq!(plan.instances.len(), 1);
    assert_eq!(plan.instances[0].gateway, edge.key);
}

#[test]
fn rules_for_other_gateways_are_not_for_this_one() {
    let front = istio_gateway("front", "istio: edge", &http("'*'"));
    let back = istio_gateway("back", "istio: nobody", &http("'*'"));
    let plan = shop(&format!(
        "{front}{back}{}{}{}",
        rules("own", "a.example", "front"),
        rules("other", "b.example", "back"),
        rules("nowhere", "c.example", "nosuch")
    ));
    assert_eq!(plan.waypoints.len(), 1);
    assert_eq!(hosts(&plan.waypoints[0]), ["a.example"]);
    assert_eq!(reasons(&plan, "VirtualService shop/own"), ["Accepted"]);
    assert_eq!(reasons(&plan, "VirtualService shop/other"), ["Invalid"]);
    assert_eq!(reasons(&plan, "VirtualService shop/nowhere"), ["Invalid"]);
}

#[test]
fn every_host_of_a_server_that_wants_https_is_sent_there() {
    let server = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}}";
    let front = istio_gateway("front", "istio: edge", server);
    let plan = shop(&format!("{front}{}", rules("own", "a.example", "front")));
    let listener = &plan.waypoints[0].waypoint.listeners[0];
    assert_eq!(listener.virtual_hosts.len(), 2);
    assert!(
        listener
            .virtual_hosts
            .iter()
            .all(|host| host.https_redirect)
    );
}

/// A Secret with a certificate of its own.
pub(super) fn secret(name: &str, namespace: &str) -> String {
    let day = std::time::Duration::from_secs(86_400);
    let authority = Authority::generate("test").unwrap();
    let issued = authority
        .issue_server(&["a.example".to_owned()], day)
        .unwrap();
    let text = |text: &str| serde_json::to_string(text).unwrap();
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         stringData: {{tls.crt: {}, tls.key: {}, ca.crt: authority}}\n",
        text(&issued.chain),
        text(&issued.key.to_pem().unwrap())
    )
}

#[test]
fn keys_are_told_to_the_gateway_that_names_them_and_to_nobody_else() {
    let tls = |port: u16, name: &str, mode: &str| {
        format!(
            "{{port: {{number: {port}, name: https, protocol: HTTPS}}, hosts: ['*'], \
             tls: {{mode: {mode}, credentialName: {name}}}}}"
        )
    };
    let plan = shop(&format!(
        "{}{}{}{}{}{}",
        istio_gateway("front", "istio: edge", &tls(443, "page", "SIMPLE")),
        istio_gateway("back", "istio: back", &tls(443, "other", "MUTUAL")),
        pod("back-1", "back", "istio: back", true),
        secret("page", "shop"),
        secret("other", "shop"),
        secret("page", "web"),
    ));
    let told = |of: &str| {
        let mut all = plan.waypoints.iter();
        let plan = all.find(|one| one.key.name.starts_with(of)).unwrap();
        let names = plan.credentials.iter();
        names
            .map(|one| format!("{}/{}", one.namespace, one.name))
            .collect::<Vec<_>>()
    };
    assert_eq!(told("edge:"), ["shop/page"]);
    assert_eq!(told("back:"), ["shop/other", "shop/other-cacert"]);
    let back = plan
        .waypoints
        .iter()
        .find(|one| one.key.name.starts_with("back:"));
    let credentials = &back.unwrap().credentials;
    assert!(
        credentials[1].key.is_empty(),
        "who signs callers has no key here"
    );
    assert_eq!(credentials[1].authority, "authority");
    let tls = back.unwrap().waypoint.listeners[0].tls.clone().unwrap();
    let required: i32 = wire::listener_tls::ClientCertificate::Required.into();
    assert_eq!(tls.client, required);
    // Whoever only carries the label of a Gateway's pods gets what it names in its own namespace.
    assert_eq!(plan.instances.len(), 2);
}

const API: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: isobar
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: '*.example'}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: page, namespace: web}]}}
";

fn route(name: &str, place: &str, hosts: &str, path: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: {place}}}\nspec:\n  \
         parentRefs: [{{name: front, namespace: shop, sectionName: http}}]\n  hostnames: [{hosts}]\n  rules:\n  \
         - matches: [{{path: {{value: {path}}}}}]\n    backendRefs: [{{name: cart, port: 80}}]\n"
    )
}

#[test]
fn routes_attach_to_listeners_that_take_them() {
    let plan = shop(&format!(
        "{API}{}{}{}{}{}",
        secret("page", "web"),
        route("wide", "shop", "'*.example'", "/wide"),
        route("exact", "shop", "a.example, b.test", "/"),
        route("foreign", "web", "a.example", "/"),
        route("nohost", "shop", "a.test", "/"),
    ));
    let mut edges = plan.waypoints.iter();
    let edge = edges.find(|one| &*one.key.name == "front").unwrap();
    assert_eq!(hosts(edge), ["*.example", "a.example"]);
    let exact = edge
        .routes
        .iter()
        .find(|one| one.hosts == ["a.example"])
        .unwrap();
    let names: Vec<_> = exact.http.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(
        names,
        ["exact/rules[0]", "wide/rules[0]"],
        "the more exact host first"
    );
    let conditions = |name: &str| {
        let mut all = plan.routes.iter();
        let status = all.find(|one| &*one.object.name == name).unwrap();
        status.parents[0].conditions[0].reason
    };
    assert_eq!(conditions("exact"), "Accepted");
    assert_eq!(conditions("foreign"), "NotAllowedByListeners");
    assert_eq!(conditions("nohost"), "NoMatchingListenerHostname");
    let facts = plan
        .gateways
        .iter()
        .find(|one| &*one.key.name == "front")
        .unwrap();
    let listeners = facts.listeners.as_ref().unwrap();
    assert_eq!((listeners[0].attached, &listeners[0].problem), (2, &None));
    let (word, _) = listeners[1].problem.as_ref().unwrap();
    assert_eq!(*word, "RefNotPermitted");
    assert!(edge.credentials.is_empty(), "no grant, no key");
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: {name: keys, namespace: web}\nspec:\n  \
         from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}]\n  to: [{group: '', kind: Secret}]\n";
    let plan = shop(&format!("{API}{}{grant}", secret("page", "web")));
    let mut edges = plan.waypoints.iter();
    let edge = edges.find(|one| &*one.key.name == "front").unwrap();
    assert_eq!(edge.credentials.len(), 1);
}

#[test]
fn policies_that_select_a_gateways_pods_are_kept_by_it() {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let plan = shop(&format!(
        "{}{}{}",
        istio_gateway("front", "istio: edge", &http("'*'")),
        policy("edge", "selector: {matchLabels: {istio: edge}}, rules: []"),
        policy("other", "selector: {matchLabels: {app: cart}}, rules: []"),
    ));
    let policies = &plan.waypoints[0].authorizations;
    let names: Vec<_> = policies
        .iter()
        .map(|one| (&*one.name, one.whole_waypoint))
        .collect();
    assert_eq!(names, [("edge", true)]);
}

#[test]
fn a_gateway_takes_no_pod_of_others() {
    const NAME: &str = "gateway.networking.k8s.io/gateway-name: wp";
    let waypoint = format!("{}{}", gateway("wp", ""), waypoint_pod("wp", true));
    let selecting = istio_gateway("front", NAME, &http("'*'"));
    let gateways = |plan: &Plan| {
        let all = plan.instances.iter();
        let all = all.map(|one| format!("{} {}", one.pod, one.gateway));
        all.collect::<Vec<_>>()
    };
    let plan = planned(&format!("{waypoint}{selecting}"));
    assert_eq!(gateways(&plan), ["shop/wp-pod shop/wp"]);
    // Nor by another label, nor from another namespace.
    let tunnel = istio_gateway("front", "networking.istio.io/tunnel: http", &http("'*'"));
    let plan = planned(&format!("{waypoint}{tunnel}"));
    assert_eq!(gateways(&plan), ["shop/wp-pod shop/wp"]);
    let here = istio_gateway("front", "istio: edge", &http("'*'"));
    let there = here.replace("namespace: shop", "namespace: web");
    assert!(gateways(&shop(&there)).is_empty());
    assert_eq!(gateways(&shop(&here)).len(), 1);
    // Nor what runs as a part of the mesh; other pods beside it are like any.
    let plan = |account: &str| {
        let pod = pod("edge-1", account, "istio: edge", true);
        planned(&format!("{pod}{here}").replace("namespace: shop", "namespace: istio-system"))
    };
    assert!(gateways(&plan("ztunnel")).is_empty());
    assert_eq!(gateways(&plan("edge")).len(), 1);
}

#[test]
fn another_gateway_or_rollout_leaves_a_pod_its_name() {
    let front = istio_gateway("front", "istio: edge", &http("'a.example'"));
    let more = istio_gateway("back", "tier: one", &http("'b.example'"));
    let rollout = istio_gateway("rollout", "pod-template-hash: x1", &http("'*'"));
    let pod = |name: &str, labels: &str| pod(name, "edge", &format!("istio: edge, {labels}"), true);
    let pods = format!(
        "{}{}{}",
        pod("edge-a", "tier: one, pod-template-hash: x1"),
        pod("edge-b", "tier: one, pod-template-hash: x2"),
        pod("edge-c", "tier: two, pod-template-hash: x3"),
    );
    let before = planned(&format!("{pods}{front}"));
    let after = planned(&format!("{pods}{front}{more}{rollout}"));
    let scopes = |plan: &Plan| {
        let all = plan.instances.iter();
        let mut all: Vec<_> = all
            .map(|one| (one.pod.name.to_string(), one.gateway.clone()))
            .collect();
        all.sort();
        all
    };
    let (before, told) = (scopes(&before), scopes(&after));
    assert_eq!(before, told);
    assert_eq!(told.len(), 3);
    assert_eq!(told[0].1, told[1].1);
    assert_ne!(told[1].1, told[2].1, "other labels, another group");
}

#[test]
fn policies_are_kept_whichever_pod_of_a_gateway_they_select() {
    let policy = |name: &str, version: &str, action: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{{version}}}}}, action: {action}, rules: [{{}}]}}\n"
        )
    };
    let pod = |name: &str, version: &str| {
        let labels = format!("gateway.networking.k8s.io/gateway-name: front, version: {version}");
        pod(name, "front", &labels, true)
    };
    let kept = |policies: &str| {
        let pods = format!("{}{}", pod("front-a", "v1"), pod("front-b", "v2"));
        let plan = shop(&format!("{API}{pods}{policies}"));
        let mut edges = plan.waypoints.iter();
        let edge = edges.find(|one| &*one.key.name == "front").unwrap();
        let all = edge.authorizations.iter();
        all.map(|one| format!("{} {}", one.name, one.rules.len()))
            .collect::<Vec<_>>()
    };
    let (one, two) = ("version: v1", "version: v2");
    assert_eq!(kept(&policy("first", one, "DENY")), ["first 1"]);
    assert_eq!(kept(&policy("last", two, "DENY")), ["last 1"]);
    assert!(kept(&policy("none", "version: v3", "DENY")).is_empty());
    assert_eq!(kept(&policy("only", one, "ALLOW")), ["only 1"]);
    // Who may come to one of them must not come to the other.
    let both = [policy("a", one, "ALLOW"), policy("b", two, "ALLOW")].concat();
    assert_eq!(kept(&both), ["a 0", "b 0"]);
    let name = "gateway.networking.k8s.io/gateway-name: front";
    let both = [policy("a", name, "ALLOW"), policy("b", two, "ALLOW")].concat();
    assert_eq!(kept(&both), ["a 1", "b 0"]);
}

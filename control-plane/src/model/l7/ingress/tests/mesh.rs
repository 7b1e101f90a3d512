//! Servers whose callers are of the mesh, and those that are passed on by what server names say.

use isobar_proto::isobar::v1 as wire;
use wire::listener::Protocol;

use super::{SIMPLE, TO_CART, edge, gateway, listeners, parents, rules, server, shop, tls};
use crate::model::Plan;
use crate::model::golden_tests::reasons;

const TO_CART_TCP: &str = "tcp: [{route: [{destination: {host: cart.shop.svc.cluster.local}}]}]";
const ISTIO: &str = "mode: ISTIO_MUTUAL";

fn found<'a>(plan: &'a Plan, name: &str) -> &'a wire::Listener {
    let mut all = listeners(plan).iter();
    all.find(|one| one.name == name).unwrap()
}

#[test]
fn a_server_may_be_for_callers_of_the_mesh() {
    let one = |word: &str, tls: &str, to: &str| {
        shop(&format!(
            "{}{}",
            gateway("old", 1, &server(443, word, "a.example", tls)),
            rules("own", "shop", "a.example", to)
        ))
    };
    let plan = one("HTTPS", ISTIO, TO_CART);
    assert_eq!(reasons(&plan, "Gateway shop/old"), ["Accepted"]);
    let name = "shop.old-0";
    assert_eq!(found(&plan, name).protocol(), Protocol::Https);
    let told = tls(&plan, name);
    assert!(told.mesh && told.credentials.is_empty(), "{told:?}");
    assert_eq!(parents(&plan, "own"), ["shop.old-0|a.example"]);
    assert!(edge(&plan).credentials.is_empty());

    let id = "spiffe://cluster.local/ns/web/sa/me";
    let plan = one(
        "HTTPS",
        &format!("{ISTIO}, subjectAltNames: ['{id}']"),
        TO_CART,
    );
    assert_eq!(tls(&plan, name).client_names, [id]);

    for bad in [
        "subjectAltNames: [me.example]",
        "credentialName: page",
        "maxProtocolVersion: TLSV1_2",
        "caCrl: /crl",
    ] {
        let plan = one("HTTPS", &format!("{ISTIO}, {bad}"), TO_CART);
        let told = reasons(&plan, "Gateway shop/old");
        assert_eq!(told, ["UnsupportedValue"], "{bad}");
        let mut all = plan.waypoints.iter();
        assert!(all.all(|one| one.routes.is_empty()), "{bad}");
    }
}

#[test]
fn connections_within_tls_that_ends_go_by_rules_for_connections() {
    for mode in [ISTIO, SIMPLE] {
        let plan = shop(&format!(
            "{}{}",
            gateway("old", 1, &server(443, "TLS", "a.example, b.example", mode)),
            rules("own", "shop", "a.example", TO_CART_TCP)
        ));
        assert_eq!(reasons(&plan, "Gateway shop/old"), ["Accepted"], "{mode}");
        let ended = found(&plan, "shop.old-0:a.example");
        assert_eq!(ended.protocol(), Protocol::Tls);
        assert_eq!(ended.tls.as_ref().unwrap().mesh, mode == ISTIO);
        assert_eq!(parents(&plan, "own"), ["shop.old-0:a.example|*"], "{mode}");
        let own = edge(&plan).routes.iter().find(|one| one.name == "own");
        assert_eq!(own.unwrap().tcp.len(), 1, "{mode}");
    }
}

/// What server names lead to, and where.
fn led(plan: &Plan) -> Vec<(String, String)> {
    let routes = edge(plan).routes.iter();
    let rules = routes.flat_map(|route| &route.tls);
    let mut all: Vec<_> = rules
        .map(|rule| {
            let to = rule.destinations[0].destination.as_ref().unwrap();
            let place = format!("{}:{}:{}", to.host, to.port, to.subset);
            (rule.matches[0].sni_hosts.join(","), place)
        })
        .collect();
    all.sort_unstable();
    all
}

const ENTRIES: &str = "---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: shop}
spec: {clusterIP: 10.96.0.8, selector: {istio: edge}, ports: [{name: tls, port: 15443}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec: {host: cart.shop.svc.cluster.local, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: inside, namespace: web}
spec: {hosts: [db.local], location: MESH_INTERNAL, resolution: STATIC, endpoints: [{address: 192.0.2.1}], ports: [{number: 5432, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: web}
spec: {hosts: [own.local], exportTo: ['.'], location: MESH_INTERNAL, resolution: STATIC, endpoints: [{address: 192.0.2.1}], ports: [{number: 5432, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: web}
spec: {hosts: [out.local], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}
";

#[test]
fn server_names_say_where_connections_go() {
    let auto = |hosts: &str| {
        let one = server(15443, "TLS", hosts, "mode: AUTO_PASSTHROUGH");
        let page = rules("own", "shop", "'*'", TO_CART_TCP);
        shop(&format!("{ENTRIES}{}{page}", gateway("old", 1, &one)))
    };
    let all = "cart.shop.svc.cluster.local";
    let cart = [
        (format!("outbound_.80_._.{all}"), format!("{all}:80:")),
        (format!("outbound_.80_.v1_.{all}"), format!("{all}:80:v1")),
    ];
    let db = (
        "outbound_.5432_._.db.local".to_owned(),
        "db.local:5432:".to_owned(),
    );
    let plan = auto("'*.local'");
    assert_eq!(reasons(&plan, "Gateway shop/old"), ["Accepted"]);
    // What is outside the mesh, or not for this namespace, is not there, nor is the gateway itself.
    assert_eq!(led(&plan), [db.clone(), cart[0].clone(), cart[1].clone()]);
    let told = found(&plan, "shop.old-0");
    assert!(told.raw && told.tls.is_none() && told.server_names == ["*.local"]);
    assert!(parents(&plan, "own").is_empty(), "rules are not asked");
    // Whole names, and those of one namespace only.
    let plan = auto(&format!("web/*.local, {all}"));
    assert_eq!(led(&plan), [db, cart[0].clone(), cart[1].clone()]);
    let told = &found(&plan, "shop.old-0").server_names;
    assert_eq!(*told, ["*.local".to_owned(), format!("*.{all}")]);
    assert!(led(&auto("'other/*.local'")).is_empty());
}

#[test]
fn rules_for_the_mesh_and_a_gateway_are_told_what_is_missing_at_either() {
    let told = |gateways: &str| {
        let both =
            rules("own", "shop", "a.example", TO_CART).replace("shop/new, shop/old", gateways);
        let plan = shop(&format!(
            "{}{both}",
            gateway("old", 1, &server(443, "HTTPS", "a.example", ISTIO))
        ));
        let reasons = reasons(&plan, "VirtualService shop/own");
        (reasons, parents(&plan, "own"))
    };
    let (reasons, places) = told("mesh, shop/old");
    assert_eq!(reasons, ["Accepted"]);
    assert_eq!(places, ["shop.old-0|a.example"]);
    let (reasons, places) = told("mesh, shop/nowhere");
    assert_eq!(reasons, ["Invalid"]);
    assert!(places.is_empty());
}

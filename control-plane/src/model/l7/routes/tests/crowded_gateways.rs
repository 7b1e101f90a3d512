//! Routes of several namespaces at one Gateway, some of which come to too much.

use super::crowded::large;
use super::*;

const MEGABYTE: usize = 1 << 20;

fn front(listener: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: front, namespace: shop}}
spec:
  gatewayClassName: isobar
  listeners: [{{name: one, {listener}, allowedRoutes: {{namespaces: {{from: All}}}}}}]
"
    )
}

/// A route for these hosts.
fn at(kind: &str, head: &str, hosts: &[String], rules: &str) -> String {
    let more = format!("hostnames: {hosts:?}, ");
    of_kind(kind, head, "{name: front, namespace: shop}", &more, rules)
}

fn planned_at(listener: &str, routes: &[String]) -> Plan {
    let front = front(listener);
    let routes = routes.concat();
    planned(&format!("{}{SERVICES}{front}{routes}", namespace("")))
}

fn told_to_gateway(plan: &Plan) -> &[wire::VirtualService] {
    let edge = plan.waypoints.iter().find(|one| &*one.key.name == "front");
    &edge.unwrap().routes
}

fn rules_of<'a>(plan: &'a Plan, host: &str) -> &'a [wire::HttpRoute] {
    let mut all = told_to_gateway(plan).iter();
    &all.find(|one| one.hosts == [host]).unwrap().http
}

const HTTP: &str = "port: 80, protocol: HTTP";
const PAY: &str = "[{matches: [{path: {value: /pay}}], backendRefs: [{name: pay, port: 80}]}]";

/// Routes of 16 hosts each.
fn many(head: &str, routes: usize) -> Vec<String> {
    let routes = (0..routes).map(|route| {
        let hosts: Vec<_> = (0..16)
            .map(|host| format!("h{route}-{host}.example"))
            .collect();
        at(
            "HTTPRoute",
            &head.replace('#', &route.to_string()),
            &hosts,
            PAY,
        )
    });
    routes.collect()
}

#[test]
fn hosts_of_one_namespace_do_not_drive_out_the_wildcard_of_another() {
    let mut routes = many("name: evil-#, namespace: evil", 20);
    let wild = ["*.example".to_owned()];
    let last = ["z.example".to_owned()];
    routes.push(at(
        "HTTPRoute",
        "name: wild, namespace: bank",
        &wild,
        &large(64),
    ));
    routes.push(at("HTTPRoute", "name: last, namespace: bank", &last, PAY));
    let plan = planned_at(HTTP, &routes);

    assert_eq!(told(&plan, "wild"), WELL);
    assert_eq!(told(&plan, "last"), WELL);
    assert_eq!(rules_of(&plan, "*.example").len(), 64);
    assert_eq!(rules_of(&plan, "z.example").len(), 65);
    // Who made the places pays for them.
    assert!(told(&plan, "evil-9").contains("Programmed=false(TooManyRules)"));
    let [own, rest] = rules_of(&plan, "h9-9.example") else {
        panic!("its own rule and a refusal")
    };
    assert!(own.name.starts_with("evil-9/"), "{own:?}");
    assert_eq!(rest.name, "too many rules");
    let size = told_to_gateway(&plan)
        .iter()
        .map(prost::Message::encoded_len);
    let size: usize = size.sum();
    assert!((30 * MEGABYTE..34 * MEGABYTE).contains(&size), "{size}");
}

#[test]
fn a_large_wildcard_does_not_drive_out_the_rules_of_exact_hosts() {
    let mut routes = many("name: own-#, namespace: bank", 4);
    let wild = ["*.example".to_owned()];
    routes.push(at(
        "HTTPRoute",
        "name: wild, namespace: evil",
        &wild,
        &large(240),
    ));
    let plan = planned_at(HTTP, &routes);
    assert_eq!(told(&plan, "wild").lines().count(), 1);
    assert!(!told(&plan, "wild").contains("TooManyRules"));
    let exact = told_to_gateway(&plan).iter();
    let exact: Vec<_> = exact.filter(|one| one.hosts != wild).collect();
    assert_eq!(exact.len(), 64);
    let own = |one: &&wire::VirtualService| one.http[0].name.starts_with("own-");
    assert!(exact.iter().all(own), "what they say themselves counts");
    let refused = |one: &&&wire::VirtualService| one.http[1].name == "too many rules";
    assert!((25..35).contains(&exact.iter().filter(refused).count()));
}

#[test]
fn connections_of_crowded_routes_go_to_nobody_else() {
    let listener = "port: 443, protocol: TLS, tls: {mode: Passthrough}";
    let name = |name: &str| [name.to_owned()];
    let rule = "{backendRefs: [{name: pay, port: 80}]}";
    let of = |rules: usize| {
        let large = format!("[{}]", vec![rule; rules].join(", "));
        planned_at(
            listener,
            &[
                at(
                    "TLSRoute",
                    "name: crowded, namespace: bank",
                    &name("a.example"),
                    &large,
                ),
                at(
                    "TLSRoute",
                    "name: short, namespace: shop",
                    &name("b.io"),
                    "[{backendRefs: [{name: cart, port: 80}]}]",
                ),
                at(
                    "TLSRoute",
                    "name: wild, namespace: shop",
                    &name("*.example"),
                    "[{backendRefs: [{name: cart, port: 80}]}]",
                ),
            ],
        )
    };
    let lines = |plan: &Plan| {
        let mut lines = Vec::new();
        let refuses = |to: &wire::WeightedDestination| to.destination.as_ref().unwrap().refuse;
        for object in told_to_gateway(plan) {
            assert_eq!(object.http, [], "nothing here is about requests");
            for rule in &object.tls {
                let names = rule.matches[0].sni_hosts.join(" ");
                lines.push(format!("{names} {}", refuses(&rule.destinations[0])));
            }
            for rule in &object.tcp {
                lines.push(format!("rest {}", refuses(&rule.destinations[0])));
            }
        }
        lines
    };
    let crowded = of(9000);
    assert!(told(&crowded, "crowded").contains("TooManyRules"));
    assert_eq!(
        lines(&crowded),
        ["a.example 500", "b.io 0", "*.example 0", "rest 500"]
    );
    assert!(!told(&of(1), "crowded").contains("TooManyRules"));
}

//! Routes of callers' own namespaces, and of many hosts, that come to too much.

use super::*;

/// So many rules of some 4 KiB.
pub(super) fn large(count: usize) -> String {
    let value = "x".repeat(4000);
    let rules = (0..count).map(|at| {
        format!("{{matches: [{{headers: [{{name: a, value: '{at}{value}'}}]}}], backendRefs: [{{name: pay, port: 80}}]}}")
    });
    format!("[{}]", rules.collect::<Vec<_>>().join(", "))
}

#[test]
fn callers_do_not_fill_the_rules_of_somebody_elses_host() {
    let parent = "{group: \"\", kind: Service, name: cart, namespace: shop}";
    let theirs = |count| {
        route(
            "HTTPRoute",
            "name: theirs, namespace: bank",
            parent,
            &large(count),
        )
    };
    let own = http("name: own", "[{backendRefs: [{name: cart-v2, port: 80}]}]");
    let small = plan(&format!("{own}{}", theirs(3)));
    let all = rules(&small);
    assert!(
        all.starts_with("from bank ") && !all.contains("500"),
        "{all}"
    );
    assert!(!told(&small, "theirs").contains("TooManyRules"));

    let crowded = plan(&format!("{own}{}", theirs(300)));
    let all = rules(&crowded);
    let own = all.lines().filter(|line| !line.starts_with("from bank"));
    // Nothing of theirs is left to other rules, and what the owner says counts.
    assert!(all.starts_with("from bank -> 500\n"), "{all}");
    assert_eq!(own.collect::<Vec<_>>(), ["//* -> cart-v2:80x1", "-> 404"]);
    assert!(told(&crowded, "theirs").contains("TooManyRules"));
    assert!(!told(&crowded, "own").contains("TooManyRules"));
}

#[test]
fn a_route_of_many_hosts_is_not_there_for_each() {
    let hosts: Vec<String> = (0..256).map(|at| format!("h{at}.example")).collect();
    let entry = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: many, namespace: shop}}\nspec:\n  hosts: [{}]\n  resolution: DNS\n  \
         ports: [{{number: 80, name: http, protocol: HTTP}}]\n",
        hosts.join(", ")
    );
    let parent = "{group: networking.istio.io, kind: ServiceEntry, name: many}";
    let plan = plan(&format!(
        "{entry}{}",
        route("HTTPRoute", "name: h", parent, &large(64))
    ));
    let routes = &plan.waypoints[0].routes;
    let size: usize = routes.iter().map(prost::Message::encoded_len).sum();
    assert_eq!(routes.len(), 256, "each host has rules");
    assert!((30 << 20..34 << 20).contains(&size), "{size}");
    assert!(routes.iter().all(|one| !one.http.is_empty()));
    assert!(told(&plan, "h").contains("TooManyRules"));
}

#[test]
fn routes_of_others_do_not_fill_a_gateway() {
    let front = "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: isobar
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]
";
    let at = |name: &str, rules: &str| {
        let parent = "{name: front, namespace: shop}";
        route("HTTPRoute", name, parent, rules)
    };
    let of = |count: usize| {
        let own = at("name: own", "[{backendRefs: [{name: cart, port: 80}]}]");
        let theirs = at("name: theirs, namespace: bank", &large(count));
        planned(&format!("{}{SERVICES}{front}{own}{theirs}", namespace("")))
    };
    let rules = |plan: &Plan| {
        let edge = plan.waypoints.iter().find(|one| &*one.key.name == "front");
        let http = edge.unwrap().routes.iter().flat_map(|one| one.http.clone());
        http.collect::<Vec<_>>()
    };
    let all = rules(&of(3));
    assert_eq!(all.len(), 4, "{all:?}");
    let crowded = of(300);
    let all = rules(&crowded);
    let [own, last] = &all[..] else {
        panic!("{} rules", all.len())
    };
    assert!(matches!(own.action, Some(Action::Forward(_))), "{own:?}");
    assert_eq!(last.name, "too many rules");
    assert!(told(&crowded, "theirs").contains("Programmed=false(TooManyRules)"));
    assert!(!told(&crowded, "own").contains("TooManyRules"));
}

//! Hosts of ServiceEntries as parents and destinations, and filters of one destination.

use super::*;

const OUTSIDE: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec:
  hosts: [api.example, www.example]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: bank}
spec: {hosts: [far.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: bank}
spec: {hosts: [hidden.example], exportTo: [.], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
";

#[test]
fn every_host_of_a_service_entry_has_its_routes() {
    let of = |name: &str, more: &str| {
        format!("{{group: networking.istio.io, kind: ServiceEntry, name: {name}{more}}}")
    };
    let to = |name: &str| {
        format!(
            "[{{backendRefs: [{{group: networking.istio.io, kind: Hostname, name: {name}, port: 80}}]}}]"
        )
    };
    let plan = plan(&format!(
        "{OUTSIDE}{}{}{}",
        route(
            "HTTPRoute",
            "name: h",
            &of("outside", ""),
            &to("api.example")
        ),
        of_kind(
            "TCPRoute",
            "name: t",
            &of("outside", ", sectionName: tls"),
            "",
            "[{backendRefs: [{name: cart, port: 80}]}]"
        ),
        route(
            "HTTPRoute",
            "name: far",
            &of("far", ", namespace: bank"),
            &to("far.example")
        ),
    ));
    assert_eq!(told(&plan, "h"), WELL);
    assert_eq!(told(&plan, "t"), WELL);
    // The parent's own destination needs no leave; but no waypoint is there to see to it.
    assert!(
        told(&plan, "far")
            .ends_with("ResolvedRefs=true(ResolvedRefs) Programmed=false(NoWaypoint)")
    );
    let mut lines = Vec::new();
    for rules in &plan.waypoints[0].routes {
        for http in &rules.http {
            let to = match http.action.as_ref().unwrap() {
                Action::Forward(to) => to.destinations[0].destination.as_ref().unwrap(),
                _ => continue,
            };
            let to = to.service.as_ref().unwrap();
            lines.push(format!(
                "{} {} -> {}/{}",
                rules.name, rules.parents[0].hostname, to.namespace, to.hostname
            ));
        }
        for tcp in &rules.tcp {
            let port = tcp.matches.first().map_or(0, |block| block.port);
            lines.push(format!("{} :{port}", rules.hosts[0]));
        }
    }
    assert_eq!(
        lines,
        [
            "api.example:routes-of-host api.example -> shop/api.example",
            "api.example :443",
            "api.example :443",
            "api.example :0",
            "www.example:routes-of-host www.example -> shop/api.example",
            "www.example :443",
            "www.example :443",
            "www.example :0",
        ]
    );
}

#[test]
fn hosts_of_others_are_no_destinations_without_leave() {
    let to = |name: &str, port: u16| {
        let rules = format!(
            "[{{backendRefs: [{{group: networking.istio.io, kind: Hostname, name: {name}, port: {port}}}]}}]"
        );
        http("name: r", &rules)
    };
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: {name: g, namespace: bank}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n  \
         to: [{group: networking.istio.io, kind: ServiceEntry, name: far}]\n";
    for (name, port, more, reason) in [
        ("api.example", 80, "", "ResolvedRefs"),
        ("api.example", 81, "", "BackendNotFound"),
        ("nobody.example", 80, "", "BackendNotFound"),
        // A Service is not to be had by its host name: that takes a reference to it.
        ("pay.bank.svc.cluster.local", 80, "", "BackendNotFound"),
        ("far.example", 80, "", "RefNotPermitted"),
        ("far.example", 80, grant, "ResolvedRefs"),
        ("hidden.example", 80, grant, "BackendNotFound"),
    ] {
        let plan = plan(&format!("{OUTSIDE}{more}{}", to(name, port)));
        let told = told(&plan, "r");
        assert!(told.contains(&format!("({reason}) Prog")), "{name}: {told}");
        let refused = rules(&plan).contains("!500");
        assert_eq!(
            refused,
            reason != "ResolvedRefs",
            "{name}: {}",
            rules(&plan)
        );
    }
}

#[test]
fn a_parent_is_a_destination_without_leave_only_where_it_is_the_only_parent() {
    let cart = "group: '', kind: Service, name: cart, namespace: shop";
    let far = "group: networking.istio.io, kind: ServiceEntry, name: far, namespace: bank";
    let to_cart = "[{backendRefs: [{name: cart, namespace: shop, port: 80}]}]";
    let to_far = "[{backendRefs: [{group: networking.istio.io, kind: Hostname, name: far.example, port: 80}]}]";
    for (own, namespace, to, other) in [
        (cart, "bank", to_cart, "group: '', kind: Service, name: pay"),
        (far, "shop", to_far, "group: '', kind: Service, name: cart"),
    ] {
        for (more, is_let) in [
            (String::new(), true),
            (format!(", {{{own}, port: 80}}"), true),
            (format!(", {{{other}}}"), false),
            (", {name: edge}".to_owned(), false),
            (
                ", {group: x.example, kind: Bucket, name: z}".to_owned(),
                false,
            ),
        ] {
            for parents in [
                format!("{{{own}}}{more}"),
                format!("{more}, {{{own}}}")
                    .trim_start_matches(", ")
                    .to_owned(),
            ] {
                let head = format!("name: r, namespace: {namespace}");
                let plan = plan(&format!(
                    "{OUTSIDE}{}",
                    route("HTTPRoute", &head, &parents, to)
                ));
                let told = told(&plan, "r");
                let refused = told.contains("ResolvedRefs=false(RefNotPermitted)");
                assert_eq!(refused, !is_let, "{parents}: {told}");
                if own == cart {
                    assert_eq!(rules(&plan).contains("!500"), !is_let, "{parents}");
                }
            }
        }
    }
}

#[test]
fn filters_of_a_destination_are_told_with_it() {
    let with = |filter: &str| {
        plan(&http(
            "name: r",
            &format!("[{{backendRefs: [{{name: cart, port: 80, filters: [{filter}]}}]}}]"),
        ))
    };
    let own = |plan: &Plan| {
        let mut all = plan.waypoints[0].routes.iter().flat_map(|r| &r.http);
        match all.next().unwrap().action.clone().unwrap() {
            Action::Forward(to) => to.destinations[0].clone(),
            other => panic!("{other:?}"),
        }
    };
    let rewritten = with(
        "{type: URLRewrite, urlRewrite: {hostname: a.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}",
    );
    let rewrite = own(&rewritten).rewrite.unwrap();
    assert_eq!((&*rewrite.authority, &*rewrite.uri), ("a.example", "/x"));
    let sent = with("{type: RequestRedirect, requestRedirect: {hostname: b.example}}");
    assert_eq!(own(&sent).redirect.unwrap().authority, "b.example");
    let copied =
        with("{type: RequestMirror, requestMirror: {backendRef: {name: cart-v2, port: 80}}}");
    let mirror = own(&copied).mirrors.remove(0).destination.unwrap();
    assert_eq!(mirror.host, "cart-v2");
    for plan in [&rewritten, &sent, &copied] {
        assert_eq!(told(plan, "r"), WELL);
    }
    for (filter, reason) in [
        (
            "{type: CORS, cors: {allowOrigins: ['*']}}",
            "UnsupportedValue",
        ),
        (
            "{type: ExtensionRef, extensionRef: {group: x, kind: Other, name: z}}",
            "UnsupportedValue",
        ),
        (
            "{type: RequestRedirect, requestRedirect: {port: 81}}, {type: URLRewrite, urlRewrite: {hostname: a}}",
            "IncompatibleFilters",
        ),
    ] {
        let plan = with(filter);
        assert!(told(&plan, "r").starts_with(&format!("Accepted=false({reason})")));
        let own = own(&plan);
        assert_eq!(own.destination.unwrap().refuse, 500, "{filter}");
        assert!(own.redirect.is_none(), "{filter}");
    }
}

#[test]
fn a_route_that_names_a_waypoint_is_told_where_it_belongs() {
    let rules = "[{backendRefs: [{name: cart, port: 80}]}]";
    let plan = plan(&route("HTTPRoute", "name: r", "{name: wp}", rules));
    let told = told(&plan, "r");
    assert!(
        told.starts_with("Accepted=false(NotAllowedByListeners)"),
        "{told}"
    );
    let waypoint = plan.gateways.iter().find(|one| &*one.key.name == "wp");
    assert!(waypoint.is_some_and(|one| one.listeners.is_none()));
}

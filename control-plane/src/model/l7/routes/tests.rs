mod beyond;
mod crowded;
mod crowded_gateways;
mod guarded;

use std::fmt::Write as _;

use isobar_proto::isobar::v1 as wire;
use wire::http_route::Action;
use wire::string_match::MatchType;

use crate::model::Plan;
use crate::model::golden_tests::{gateway, namespace, planned};

const SERVICES: &str = "---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80}, {name: admin, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart-v2, namespace: shop}
spec: {clusterIP: 10.96.0.8, selector: {app: cart2}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: bank}
spec: {clusterIP: 10.96.0.9, selector: {app: pay}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: bank}
";

/// A route of that kind: its head, its parents and its rules.
fn route(kind: &str, head: &str, parents: &str, rules: &str) -> String {
    let head = match head.contains("namespace") {
        true => head.to_owned(),
        false => format!("{head}, namespace: shop"),
    };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{{head}}}\n\
         spec: {{parentRefs: [{parents}], rules: {rules}}}\n"
    )
}

const CART: &str = "{group: \"\", kind: Service, name: cart}";

fn http(head: &str, rules: &str) -> String {
    route("HTTPRoute", head, CART, rules)
}

fn plan(routes: &str) -> Plan {
    let enrolled = namespace("istio.io/use-waypoint: wp");
    planned(&format!(
        "{enrolled}{SERVICES}{}{routes}",
        gateway("wp", "")
    ))
}

/// The rules for `cart`, one a line: match, then what happens.
fn rules(plan: &Plan) -> String {
    let told = &plan.waypoints[0].routes;
    let mut text = String::new();
    for rule in told.iter().flat_map(|object| &object.http) {
        for one in &rule.matches {
            if !one.source_namespace.is_empty() {
                let _ = write!(text, "from {} ", one.source_namespace);
            }
            if one.port != 0 {
                let _ = write!(text, ":{} ", one.port);
            }
            let uri = one.uri.as_ref().and_then(|uri| uri.match_type.clone());
            match uri {
                Some(MatchType::Exact(path)) => text.push_str(&format!("={path} ")),
                Some(MatchType::PathPrefix(path)) => text.push_str(&format!("{path}/* ")),
                Some(MatchType::Prefix(path)) => text.push_str(&format!("{path}* ")),
                Some(MatchType::Regex(path)) => text.push_str(&format!("~{path} ")),
                _ => {}
            }
            if let Some(method) = &one.method {
                let _ = write!(text, "{:?} ", method.match_type.as_ref().unwrap());
            }
            for name in one.headers.keys().chain(one.query_params.keys()) {
                let _ = write!(text, "{name} ");
            }
        }
        text.push_str("-> ");
        match rule.action.as_ref().unwrap() {
            Action::Forward(forward) => {
                for one in &forward.destinations {
                    let to = one.destination.as_ref().unwrap();
                    let _ = write!(text, "{}:{}", to.host, to.port);
                    if to.refuse != 0 {
                        let _ = write!(text, "!{}", to.refuse);
                    }
                    let _ = write!(text, "x{} ", one.weight);
                }
            }
            Action::Redirect(to) => text.push_str(&format!("redirect {} ", to.code)),
            Action::DirectResponse(reply) => text.push_str(&format!("{} ", reply.status)),
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Conditions of the route of that name, one parent a line.
fn told(plan: &Plan, name: &str) -> String {
    let mut found = plan.routes.iter();
    let status = found.find(|status| &*status.object.name == name).unwrap();
    let lines = status.parents.iter().map(|parent| {
        let conditions = parent.conditions.iter();
        let words = conditions.map(|c| format!("{}={}({})", c.condition, c.holds, c.reason));
        words.collect::<Vec<_>>().join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

const WELL: &str =
    "Accepted=true(Accepted) ResolvedRefs=true(ResolvedRefs) Programmed=true(Programmed)";

#[test]
fn the_more_exact_rule_comes_first_across_routes() {
    let first = http(
        "name: b-route",
        "[{matches: [{path: {value: /a}}, {path: {value: /}}], backendRefs: [{name: cart, port: 80}]},
          {matches: [{path: {type: Exact, value: /a}}], backendRefs: [{name: cart, port: 80}]}]",
    );
    let second = http(
        "name: a-route",
        "[{matches: [{path: {value: /a/longer}}, {path: {value: /a}, method: GET},
                     {path: {value: /a}, headers: [{name: x, value: v}]},
                     {path: {value: /a}, queryParams: [{name: q, value: v}]},
                     {path: {type: RegularExpression, value: /r.*}}],
           backendRefs: [{name: cart-v2, port: 80}]}]",
    );
    let plan = plan(&format!("{first}{second}"));
    assert_eq!(
        rules(&plan),
        "=/a -> cart:80x1
/a/longer/* -> cart-v2:80x1
/a/* Exact(\"GET\") -> cart-v2:80x1
/a/* x -> cart-v2:80x1
/a/* q -> cart-v2:80x1
/a/* -> cart:80x1
~/r.* -> cart-v2:80x1
//* -> cart:80x1
-> 404
"
    );
    assert_eq!(told(&plan, "a-route"), WELL);
}

#[test]
fn equal_rules_are_ordered_by_age_then_name() {
    let rule = |to: &str| format!("[{{backendRefs: [{{name: {to}, port: 80}}]}}]");
    let young = "name: a, creationTimestamp: \"2024-01-02T00:00:00Z\"";
    let old = "name: b, creationTimestamp: \"2024-01-01T00:00:00Z\"";
    let by_age = plan(&format!(
        "{}{}",
        http(young, &rule("cart")),
        http(old, &rule("cart-v2"))
    ));
    assert_eq!(
        rules(&by_age),
        "//* -> cart-v2:80x1\n//* -> cart:80x1\n-> 404\n"
    );
    let by_name = plan(&format!(
        "{}{}",
        http("name: b", &rule("cart")),
        http("name: a", &rule("cart-v2"))
    ));
    assert_eq!(
        rules(&by_name),
        "//* -> cart-v2:80x1\n//* -> cart:80x1\n-> 404\n"
    );
}

#[test]
fn a_consumer_route_is_for_its_namespace_and_a_port_for_its_port() {
    let parent = "{group: \"\", kind: Service, name: cart, namespace: shop, port: 80}";
    let to = "[{backendRefs: [{name: pay, port: 80}]}]";
    let consumer = route("HTTPRoute", "name: c, namespace: bank", parent, to);
    let only = plan(&consumer);
    assert_eq!(
        rules(&only),
        "from bank :80 //* -> pay:80x1\nfrom bank :80 -> 404\n-> cart.shop.svc.cluster.local:0x1\n"
    );
    let by_name = "{group: \"\", kind: Service, name: cart, sectionName: admin}";
    let producer = route(
        "HTTPRoute",
        "name: p",
        by_name,
        "[{backendRefs: [{name: cart, port: 80}]}]",
    );
    let both = plan(&format!("{consumer}{producer}"));
    assert_eq!(
        rules(&both),
        "from bank :80 //* -> pay:80x1\nfrom bank :80 -> 404\n\
         :8080 //* -> cart:80x1\n:8080 -> 404\n-> cart.shop.svc.cluster.local:0x1\n"
    );
}

#[test]
fn destinations_that_are_not_there_or_not_allowed_answer_500() {
    let to_pay = "[{backendRefs: [{name: pay, namespace: bank, port: 80, weight: 3}, {name: cart, port: 80}]}]";
    let refused = plan(&http("name: r", to_pay));
    assert_eq!(rules(&refused), "//* -> pay:0!500x3 cart:80x1\n-> 404\n");
    assert!(
        told(&refused, "r").contains("Accepted=true(Accepted) ResolvedRefs=false(RefNotPermitted)")
    );
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: {name: g, namespace: bank}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n  \
         to: [{group: \"\", kind: Service, name: NAME}]\n";
    let granted = plan(&format!(
        "{}{}",
        http("name: r", to_pay),
        grant.replace("NAME", "pay")
    ));
    assert_eq!(rules(&granted), "//* -> pay:80x3 cart:80x1\n-> 404\n");
    assert_eq!(told(&granted, "r"), WELL);
    let other = plan(&format!(
        "{}{}",
        http("name: r", to_pay),
        grant.replace("NAME", "x")
    ));
    assert!(told(&other, "r").contains("RefNotPermitted"));
    for (to, reason) in [
        ("{name: nosuch, port: 80}", "BackendNotFound"),
        ("{name: cart, port: 81}", "BackendNotFound"),
        ("{name: cart}", "BackendNotFound"),
        (
            "{group: x.example, kind: Bucket, name: cart, port: 80}",
            "InvalidKind",
        ),
    ] {
        let plan = plan(&http("name: r", &format!("[{{backendRefs: [{to}]}}]")));
        assert!(rules(&plan).contains("!500"), "{to}");
        assert!(
            told(&plan, "r").contains(&format!("ResolvedRefs=false({reason})")),
            "{to}"
        );
    }
    let nothing = plan(&http(
        "name: r",
        "[{backendRefs: []}, {backendRefs: [{name: cart, port: 80, weight: 0}]}]",
    ));
    assert_eq!(rules(&nothing), "//* -> 500\n//* -> 500\n-> 404\n");
}

#[test]
fn what_cannot_be_honoured_answers_500_and_is_told() {
    let to = "backendRefs: [{name: cart, port: 80}]";
    for (rule, reason) in [
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: x, kind: Other, name: z}}]",
            "UnsupportedValue",
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {port: 81}}, {type: URLRewrite, urlRewrite: {hostname: a}}]",
            "IncompatibleFilters",
        ),
    ] {
        let rule = match reason {
            "IncompatibleFilters" => format!("[{{{rule}}}]"),
            _ => format!("[{{{rule}, {to}}}]"),
        };
        let plan = plan(&http("name: r", &rule));
        assert_eq!(rules(&plan), "//* -> 500\n-> 404\n", "{rule}");
        assert!(
            told(&plan, "r").contains(&format!("Accepted=false({reason})")),
            "{rule}"
        );
    }
}

#[test]
fn parents_that_are_not_there_are_told() {
    for (parent, conditions) in [
        (
            "{group: networking.istio.io, kind: ServiceEntry, name: cart}",
            "Accepted=false(NoMatchingParent)",
        ),
        (
            "{group: \"\", kind: Service, name: nosuch}",
            "Accepted=false(NoMatchingParent)",
        ),
        (
            "{group: \"\", kind: Service, name: cart, port: 1}",
            "Accepted=false(NoMatchingParent)",
        ),
        (
            "{group: \"\", kind: Service, name: cart, sectionName: x}",
            "Accepted=false(NoMatchingParent)",
        ),
        (
            "{group: \"\", kind: Service, name: pay, namespace: bank}",
            "Accepted=true(Accepted) ResolvedRefs=true(ResolvedRefs) Programmed=false(NoWaypoint)",
        ),
    ] {
        let rules = "[{backendRefs: [{name: cart, port: 80}]}]";
        let plan = plan(&route("HTTPRoute", "name: r", parent, rules));
        let told = told(&plan, "r");
        assert!(told.starts_with(conditions), "{parent}: {told}");
    }
    let plan = plan(&route("HTTPRoute", "name: r", "{name: edge}", "[]"));
    assert!(
        plan.routes.is_empty(),
        "a Gateway's controller tells about it"
    );
}

#[test]
fn a_virtual_service_takes_the_place_of_routes() {
    let object = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: vs, namespace: shop}\n\
         spec: {hosts: [cart], http: [{route: [{destination: {host: cart-v2}}]}]}\n";
    let rules_of_route = "[{backendRefs: [{name: cart, port: 80}]}]";
    let plan = plan(&format!("{object}{}", http("name: r", rules_of_route)));
    assert_eq!(rules(&plan), "-> cart-v2:0x100\n");
    assert!(told(&plan, "r").contains("Accepted=false(Conflicted)"));
}

#[test]
fn filters_limits_and_retries() {
    let plan = plan(&http(
        "name: r",
        "[{name: first, filters: [
             {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}},
             {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: f, value: g}]}},
             {type: RequestMirror, requestMirror: {backendRef: {name: cart-v2, port: 80}, fraction: {numerator: 1, denominator: 4}}},
             {type: URLRewrite, urlRewrite: {hostname: h.example, path: {type: ReplaceFullPath, replaceFullPath: /full}}},
             {type: CORS, cors: {allowOrigins: [\"https://*.example\"], allowMethods: [\"*\"], allowCredentials: true}}],
           timeouts: {request: 3s, backendRequest: 1s}, retry: {codes: [500, 503], attempts: 4, backoff: 10ms},
           backendRefs: [{name: cart, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: i, value: j}]}}]}]},
          {matches: [{path: {type: Exact, value: /go}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: x.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /n}}}]}]",
    ));
    let told = &plan.waypoints[0].routes[0].http;
    let (redirect, rule) = (&told[0], &told[1]);
    assert_eq!(rule.name, "r/first");
    let headers = rule.headers.as_ref().unwrap();
    assert_eq!(headers.request.as_ref().unwrap().set["a"], "b");
    assert_eq!(headers.request.as_ref().unwrap().remove, ["e"]);
    assert_eq!(headers.response.as_ref().unwrap().set["f"], "g");
    assert_eq!(rule.mirrors[0].percentage, 25.0);
    let rewrite = rule.rewrite.as_ref().unwrap();
    assert_eq!(
        (&*rewrite.authority, &*rewrite.regex_rewrite),
        ("h.example", "/full")
    );
    let cors = rule.cors.as_ref().unwrap();
    assert_eq!(cors.allow_methods.len(), 9);
    let retries = rule.retries.as_ref().unwrap();
    assert_eq!(retries.attempts, 4);
    assert_eq!(
        retries.retry_on,
        "reset,connect-failure,refused-stream,500,503"
    );
    assert_eq!(retries.per_try_timeout.as_ref().unwrap().seconds, 1);
    assert_eq!(rule.timeout.as_ref().unwrap().seconds, 3);
    let Some(Action::Forward(forward)) = &rule.action else {
        panic!("{rule:?}");
    };
    let own = forward.destinations[0].headers.as_ref().unwrap();
    assert_eq!(own.request.as_ref().unwrap().set["i"], "j");
    let Some(Action::Redirect(to)) = &redirect.action else {
        panic!("{redirect:?}");
    };
    assert_eq!((to.code, to.port, &*to.prefix_rewrite), (302, 443, "/n"));
}

#[test]
fn grpc_methods_are_paths() {
    let rules_of_route = "[{matches: [
        {method: {service: a.B, method: C}}, {method: {service: a.B}}, {method: {method: C}},
        {method: {type: RegularExpression, service: \"a.+\"}}, {headers: [{name: x, value: v}]}],
        backendRefs: [{name: cart, port: 80}]}]";
    let plan = plan(&route("GRPCRoute", "name: g", CART, rules_of_route));
    assert_eq!(
        rules(&plan),
        "=/a.B/C -> cart:80x1
/a.B/* -> cart:80x1
~/[^/]+/C -> cart:80x1
x -> cart:80x1
~/(a.+)/([^/]+) -> cart:80x1
-> 404
"
    );
    assert_eq!(told(&plan, "g"), WELL);
}

/// The rules for opaque connections to `cart`, one a line.
fn opaque(plan: &Plan) -> Vec<String> {
    let line = |l4: Option<&wire::L4Match>, names: &[String], to: &[wire::WeightedDestination]| {
        let mut text = String::new();
        if let Some(l4) = l4 {
            if !l4.source_namespace.is_empty() {
                let _ = write!(text, "from {} ", l4.source_namespace);
            }
            if l4.port != 0 {
                let _ = write!(text, ":{} ", l4.port);
            }
        }
        let _ = write!(text, "{} ->", names.join(","));
        for one in to {
            let to = one.destination.as_ref().unwrap();
            let _ = match to.refuse {
                0 => write!(text, " {}x{}", to.host, one.weight),
                _ => write!(text, " nowhere"),
            };
        }
        text
    };
    let routes = &plan.waypoints[0].routes;
    let tls = routes.iter().flat_map(|r| &r.tls).map(|rule| {
        let one = &rule.matches[0];
        line(one.l4.as_ref(), &one.sni_hosts, &rule.destinations)
    });
    let tcp = routes.iter().flat_map(|r| &r.tcp);
    let tcp = tcp.map(|rule| line(rule.matches.first(), &[], &rule.destinations));
    tls.chain(tcp).collect()
}

fn of_kind(kind: &str, head: &str, parents: &str, more: &str, rules: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    let text = route(kind, head, parents, rules).replace(
        "gateway.networking.k8s.io/v1",
        &format!("gateway.networking.k8s.io/{version}"),
    );
    text.replace("spec: {", &format!("spec: {{{more}"))
}

#[test]
fn tcp_and_tls_routes_are_rules_for_opaque_connections() {
    let split = "[{backendRefs: [{name: cart, port: 80, weight: 9}, {name: cart-v2, port: 80}]}]";
    let tcp = plan(&of_kind("TCPRoute", "name: t", CART, "", split));
    assert_eq!(opaque(&tcp), [" -> cartx9 cart-v2x1", " -> nowhere"]);
    assert_eq!(rules(&tcp), "", "requests go where they went");
    assert_eq!(
        told(&tcp, "t").replace(
            "Programmed=false(NoWaypoint)",
            "Programmed=true(Programmed)"
        ),
        WELL
    );

    let to = |name: &str| format!("[{{backendRefs: [{{name: {name}, port: 80}}]}}]");
    let routes = [
        of_kind(
            "TLSRoute",
            "name: wide",
            CART,
            "hostnames: [\"*.example\"], ",
            &to("cart"),
        ),
        of_kind(
            "TLSRoute",
            "name: exact",
            CART,
            "hostnames: [a.example, b.example], ",
            &to("cart-v2"),
        ),
        of_kind("TLSRoute", "name: any", CART, "", &to("cart")),
    ];
    assert_eq!(
        opaque(&plan(&routes.concat())),
        [
            "a.example -> cart-v2x1",
            "b.example -> cart-v2x1",
            "*.example -> cartx1",
            " -> cartx1",
            " -> nowhere",
        ]
    );
}

#[test]
fn opaque_routes_of_ports_and_callers_leave_the_rest_as_it_was() {
    let admin = "{group: \"\", kind: Service, name: cart, port: 8080}";
    let theirs = "{group: \"\", kind: Service, name: cart, namespace: shop}";
    let to = "[{backendRefs: [{name: cart-v2, port: 80}]}]";
    let routes = [
        of_kind("TCPRoute", "name: admin", admin, "", to),
        of_kind(
            "TCPRoute",
            "name: theirs, namespace: bank",
            theirs,
            "",
            "[{backendRefs: [{name: pay, port: 80}]}]",
        ),
    ];
    assert_eq!(
        opaque(&plan(&routes.concat())),
        [
            "from bank  -> payx1",
            "from bank  -> nowhere",
            ":8080  -> cart-v2x1",
            ":8080  -> nowhere",
            " -> cart.shop.svc.cluster.localx1",
        ]
    );
    let missing = of_kind(
        "TCPRoute",
        "name: t",
        CART,
        "",
        "[{backendRefs: [{name: nobody, port: 80}]}]",
    );
    let plan = plan(&missing);
    assert_eq!(opaque(&plan), [" -> nowhere", " -> nowhere"]);
    assert!(told(&plan, "t").contains("ResolvedRefs=false(BackendNotFound)"));
}

#[test]
fn sessions_reach_the_waypoint() {
    let plan = plan(&http(
        "name: s",
        "[{backendRefs: [{name: cart, port: 80}], sessionPersistence: {absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}},
          {matches: [{path: {value: /h}}], backendRefs: [{name: cart, port: 80}], sessionPersistence: {sessionName: x-s, type: Header, idleTimeout: 5m}}]",
    ));
    let all = plan.waypoints[0].routes.iter().flat_map(|r| &r.http);
    let sessions: Vec<_> = all.filter_map(|r| r.session.clone()).collect();
    let seconds = |at: usize| sessions[at].lifetime.map(|d| d.seconds);
    assert_eq!(sessions[0].idle.map(|d| d.seconds), Some(300));
    assert_eq!(sessions[1].idle, None);
    assert!(told(&plan, "s").contains(WELL));
    assert_eq!(
        (&*sessions[0].name, sessions[0].header, seconds(0)),
        ("x-s", true, None)
    );
    assert_eq!(
        (&*sessions[1].name, sessions[1].permanent, seconds(1)),
        ("isobar-session", true, Some(3600))
    );
}

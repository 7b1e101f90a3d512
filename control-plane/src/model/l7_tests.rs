use isobar_proto::isobar::v1 as wire;
use wire::http_route::Action;

use super::Plan;
use super::golden_tests::{gateway, namespace, planned, policy, reasons, waypoint_pod};

/// A namespace with the Service `cart` behind the waypoint `wp`, and these objects.
fn shop(objects: &str) -> Plan {
    let service = "---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80}]}
";
    planned(&format!(
        "{}{service}{}{}{objects}",
        namespace(""),
        gateway("wp", ""),
        waypoint_pod("wp", true)
    ))
}

fn virtual_service(name: &str, place: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: {place}}}\nspec: {{{spec}}}\n"
    )
}

/// Host of the first destination, or the status of a direct response.
fn goes_to(route: &wire::HttpRoute) -> String {
    match route.action.as_ref() {
        Some(Action::Forward(forward)) => {
            let first = forward.destinations[0].destination.as_ref().unwrap();
            first.service.as_ref().unwrap().hostname.clone()
        }
        Some(Action::DirectResponse(reply)) => reply.status.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_rule_hands_over_to_the_rules_of_another_object() {
    let root = "hosts: [cart], http: [
      {match: [{uri: {prefix: /a}}], name: root, timeout: 2s, delegate: {name: team, namespace: web}},
      {route: [{destination: {host: cart}}]}]";
    let team = "http: [
      {match: [{uri: {exact: /a/1}}], name: one, route: [{destination: {host: own}}]},
      {match: [{uri: {exact: /b}}], route: [{destination: {host: own}}]},
      {timeout: 5s, directResponse: {status: 203, body: {bytes: aGk=}}}]";
    let both = |team: &str| {
        let team = virtual_service("team", "web", team);
        shop(&format!("{}{team}", virtual_service("root", "shop", root)))
    };
    let plan = both(team);
    let routes = &plan.waypoints[0].routes;
    assert_eq!(routes.len(), 1, "the delegate is not a route of its own");
    let http = &routes[0].http;
    let names: Vec<_> = http.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["root-one", "root", ""]);
    // Names in a delegate are those of its own namespace.
    let to: Vec<_> = http.iter().map(goes_to).collect();
    let (own, cart) = ("own.web.svc.cluster.local", "cart.shop.svc.cluster.local");
    assert_eq!(to, [own, "203", cart]);
    let seconds = |at: usize| http[at].timeout.map(|t| t.seconds);
    assert_eq!([seconds(0), seconds(1)], [Some(2), Some(5)]);
    let Some(Action::DirectResponse(reply)) = &http[1].action else {
        unreachable!("seen above")
    };
    assert_eq!(reply.body, b"hi");
    assert_eq!(reasons(&plan, "VirtualService shop/root"), ["Accepted"]);

    // What cannot be handed over to is refused, and not left to the rules behind.
    for (team, why) in [
        (
            "exportTo: [\".\"], http: [{directResponse: {status: 203}}]",
            "exported",
        ),
        (
            "hosts: [own], http: [{directResponse: {status: 203}}]",
            "hosts",
        ),
    ] {
        let plan = both(team);
        let http = &plan.waypoints[0].routes[0].http;
        let to: Vec<_> = http.iter().map(goes_to).collect();
        assert_eq!(to, ["500", cart], "{why}");
        assert_eq!(reasons(&plan, "VirtualService shop/root"), ["Invalid"]);
    }
    let alone = shop(&virtual_service("root", "shop", root));
    assert_eq!(goes_to(&alone.waypoints[0].routes[0].http[0]), "500");
}

#[test]
fn rules_that_hand_over_to_many_come_to_no_more_than_there_is_room_for() {
    let many = |count: usize, rule: fn(usize) -> String| {
        let rules: Vec<String> = (0..count).map(rule).collect();
        format!("http: [{}]", rules.join(", "))
    };
    let root = |count| {
        let rules = many(count, |at| {
            format!("{{match: [{{uri: {{prefix: /{at}}}}}], delegate: {{name: team}}}}")
        });
        virtual_service("root", "shop", &format!("hosts: [cart], {rules}"))
    };
    let rule = |at| {
        format!(
            "{{match: [{{headers: {{a: {{exact: '{at}'}}}}}}], directResponse: {{status: 203}}}}"
        )
    };
    let team = |count| virtual_service("team", "shop", &many(count, rule));
    // Some hundred kilobytes of text would be hundreds of megabytes.
    let plan = shop(&format!("{}{}", root(1000), team(1000)));
    let http = &plan.waypoints[0].routes[0].http;
    let size: usize = http.iter().map(prost::Message::encoded_len).sum();
    assert!(size < 16 << 20, "{size}");
    assert_eq!(goes_to(&http[0]), "203", "the first ones count");
    // Nothing of a rule that does not count goes on to a later one.
    let last = http.last().unwrap();
    assert_eq!((goes_to(last), last.matches.len()), ("500".to_owned(), 1));
    assert_eq!(reasons(&plan, "VirtualService shop/root"), ["Invalid"]);
    // One match each, but a whole list of them at once.
    let list: Vec<String> = (0..5000)
        .map(|at| format!("{{uri: {{prefix: /{at}}}}}"))
        .collect();
    let list = format!(
        "hosts: [cart], http: [{{match: [{}], delegate: {{name: team}}}}]",
        list.join(", ")
    );
    let plan = shop(&format!(
        "{}{}",
        virtual_service("root", "shop", &list),
        team(1000)
    ));
    assert_eq!(goes_to(&plan.waypoints[0].routes[0].http[0]), "500");
    // A usual one has all of it.
    let plan = shop(&format!("{}{}", root(100), team(50)));
    let http = &plan.waypoints[0].routes[0].http;
    assert!(http.len() == 5000 && http.iter().all(|rule| goes_to(rule) == "203"));
}

#[test]
fn dry_runs_and_everything_a_source_may_say_reach_the_waypoint() {
    let spec = "targetRefs: [{kind: Service, group: '', name: cart}], action: DENY, \
                rules: [{from: [{source: {remoteIpBlocks: [192.0.2.0/24], trustDomains: [td]}}], \
                to: [{operation: {paths: ['/a/{*}', '/b*']}}], when: [{key: remote.ip, values: [192.0.2.1]}]}]";
    let plan = shop(&policy("shop", spec));
    let sent = &plan.waypoints[0].authorizations[0];
    assert_eq!(sent.unenforceable, "");
    assert!(!sent.dry_run);
    let source = &sent.rules[0].from[0];
    assert_eq!(source.remote_ip_blocks, ["192.0.2.0/24"]);
    assert_eq!(source.trust_domains.len(), 1);
    assert_eq!(reasons(&plan, "AuthorizationPolicy shop/p"), ["Accepted"]);

    let dry = policy("shop", spec).replace(
        "namespace: shop",
        "namespace: shop, annotations: {istio.io/dry-run: \"true\"}",
    );
    let plan = shop(&dry);
    assert!(plan.waypoints[0].authorizations[0].dry_run);
    assert_eq!(reasons(&plan, "AuthorizationPolicy shop/p"), ["DryRun"]);
}

#[test]
fn rate_limits_reach_the_waypoints_of_their_targets() {
    let limits = |target: &str| {
        format!(
            "---\napiVersion: isobar.dev/v1\nkind: RateLimitPolicy\n\
             metadata: {{name: r, namespace: shop}}\nspec: {{targetRefs: [{target}], limits: [\
             {{name: each, requests: 10, per: 1m, by: [{{caller: identity}}, {{header: x-user}}], \
             match: [{{sourceLabels: {{team: a}}}}]}}]}}\n"
        )
    };
    let service = "{kind: Service, group: '', name: cart}";
    let plan = shop(&limits(service));
    let sent = &plan.waypoints[0].rate_limits;
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].services.len(), 1);
    assert!(!sent[0].whole_waypoint);
    let limit = &sent[0].limits[0];
    assert_eq!((limit.requests, limit.keys.len()), (10, 2));
    assert_eq!(limit.per.map(|per| per.seconds), Some(60));
    // What its matches ask of callers has to be known.
    assert!(plan.waypoints[0].label_keys.contains("team"));
    assert_eq!(reasons(&plan, "RateLimitPolicy shop/r"), ["Accepted"]);

    let gateway = "{kind: Gateway, group: gateway.networking.k8s.io, name: wp}";
    assert!(shop(&limits(gateway)).waypoints[0].rate_limits[0].whole_waypoint);
    let nobody = shop(&limits("{kind: Service, group: '', name: nobody}"));
    assert!(nobody.waypoints[0].rate_limits.is_empty());
    let told = reasons(&nobody, "RateLimitPolicy shop/r");
    assert_eq!(told, ["TargetNotFound"]);
}

#[test]
fn blocks_for_other_gateways_are_no_rules_of_the_mesh() {
    let spec = "hosts: [cart], gateways: [mesh, in],
      tls: [{match: [{sniHosts: [cart], gateways: [in]}], route: [{destination: {host: one}}]},
            {match: [{sniHosts: [cart], gateways: [mesh]}], route: [{destination: {host: two}}]}],
      tcp: [{match: [{port: 1, gateways: [in]}], route: [{destination: {host: one}}]},
            {match: [{port: 2, gateways: [in]}, {port: 3}], route: [{destination: {host: two}}]}]";
    let plan = shop(&virtual_service("v", "shop", spec));
    let route = &plan.waypoints[0].routes[0];
    let host = |to: &[wire::WeightedDestination]| to[0].destination.as_ref().unwrap().host.clone();
    let tls: Vec<_> = route.tls.iter().map(|r| host(&r.destinations)).collect();
    assert_eq!(tls, ["two"]);
    let tcp = route.tcp.iter().map(|r| {
        let ports: Vec<u32> = r.matches.iter().map(|m| m.port).collect();
        (host(&r.destinations), ports)
    });
    assert_eq!(tcp.collect::<Vec<_>>(), [("two".to_owned(), vec![3])]);
}

const OUTSIDE: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec:
  hosts: [api.example]
  addresses: [192.0.2.1]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]
  resolution: DNS
  endpoints: [{address: a.example, labels: {version: v1}}, {address: b.example}]
";

#[test]
fn a_service_entry_has_routes_rules_and_policies_at_its_waypoint() {
    let route =
        "hosts: [api.example], http: [{route: [{destination: {host: api.example, subset: v1}}]}]";
    let objects = format!(
        "{OUTSIDE}{}---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: d, namespace: shop}}
spec: {{host: api.example, subsets: [{{name: v1, labels: {{version: v1}}}}],
  trafficPolicy: {{tls: {{mode: SIMPLE, sni: sni.example}}}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: shop}}
spec: {{targetRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: out}}], rules: [{{}}]}}
",
        virtual_service("v", "shop", route)
    );
    let plan = shop(&objects);
    let told = &plan.waypoints[0];
    let out = wire::ServiceRef {
        namespace: "shop".into(),
        hostname: "api.example".into(),
    };
    assert_eq!(told.routes[0].parents[0], out);
    assert_eq!(goes_to(&told.routes[0].http[0]), "api.example");
    assert_eq!(told.rules[0].services[0], out);
    let tls = told.rules[0].traffic_policy.as_ref().unwrap().tls.as_ref();
    assert_eq!(tls.unwrap().sni, "sni.example");
    assert_eq!(told.authorizations[0].services, [out]);
    // The subset's label is told of the endpoint that has it.
    let labels: Vec<_> = told.labels.iter().map(|one| &*one.uid).collect();
    let uid = "Kubernetes/networking.istio.io/ServiceEntry/shop/out/a.example";
    assert_eq!(labels, [uid]);
    for object in [
        "ServiceEntry shop/out",
        "DestinationRule shop/d",
        "VirtualService shop/v",
    ] {
        assert!(reasons(&plan, object).contains(&"Accepted"), "{object}");
    }
    assert_eq!(reasons(&plan, "AuthorizationPolicy shop/p"), ["Accepted"]);
    // Without a waypoint nobody could enforce the policy.
    let bare = objects.replace(", labels: {istio.io/use-waypoint: wp}", "");
    let plan = shop(&bare);
    assert!(plan.entries[0].waypoint.is_some());
    assert_eq!(
        reasons(&plan, "AuthorizationPolicy shop/p"),
        ["AncestorNotBound"]
    );
}

fn secret(name: &str, place: &str, entries: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {place}}}\n\
         stringData: {{{entries}}}\n"
    )
}

fn destination_rule(place: &str, policy: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: out, namespace: {place}}}\n\
         spec: {{host: cart.shop.svc.cluster.local, trafficPolicy: {{{policy}}}}}\n"
    )
}

#[test]
fn keys_of_a_rule_are_told_to_the_waypoint_of_its_namespace() {
    let rule = destination_rule("shop", "tls: {mode: SIMPLE, credentialName: keys}");
    let object = "DestinationRule shop/out";
    let told = |plan: &Plan| {
        let all = plan.waypoints[0].credentials.iter();
        let all = all.map(|one| format!("{}/{} {}", one.namespace, one.name, one.authority));
        all.collect::<Vec<_>>()
    };
    let plan = shop(&format!(
        "{rule}{}",
        secret("keys", "shop", "ca.crt: roots, tls.key: key")
    ));
    assert_eq!(told(&plan), ["shop/keys-cacert roots"]);
    assert!(
        plan.waypoints[0].credentials[0].key.is_empty(),
        "nobody asked for it"
    );
    assert_eq!(reasons(&plan, object), ["Accepted"]);
    for (secrets, what) in [
        (String::new(), "it is not there"),
        (secret("keys", "shop", "tls.crt: x"), "it holds no roots"),
        (
            secret("keys", "web", "ca.crt: roots"),
            "it is another namespace's",
        ),
    ] {
        let plan = shop(&format!("{rule}{secrets}"));
        assert!(told(&plan).is_empty(), "{what}");
        assert_eq!(reasons(&plan, object), ["InvalidCertificateRef"], "{what}");
    }
    let mutual = destination_rule("shop", "tls: {mode: MUTUAL, credentialName: keys}");
    let pair = secret(
        "keys",
        "shop",
        "tls.crt: chain, tls.key: key, ca.crt: roots",
    );
    let plan = shop(&format!("{mutual}{pair}"));
    let of = |at: usize| plan.waypoints[0].credentials[at].clone();
    assert_eq!(
        (&*of(0).name, &*of(0).chain, &*of(0).key),
        ("keys", "chain", "key")
    );
    assert_eq!(
        (&*of(1).name, &*of(1).authority, &*of(1).key),
        ("keys-cacert", "roots", "")
    );
}

#[test]
fn keys_stay_in_the_namespace_of_their_rule() {
    let root = "istio-system";
    let rule = destination_rule(root, "tls: {mode: MUTUAL, credentialName: keys}");
    let place = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n";
    let secrets = secret("keys", root, "tls.crt: chain, tls.key: key, ca.crt: roots");
    let plan = shop(&format!("{place}{rule}{secrets}"));
    let waypoint = &plan.waypoints[0];
    assert_eq!(waypoint.rules.len(), 1, "the rule itself is told");
    assert!(waypoint.credentials.is_empty());
    let policy = waypoint.rules[0].traffic_policy.clone().unwrap();
    let tls = policy.tls.unwrap();
    assert!(tls.refuse.contains("credentialName"), "{tls:?}");
    assert!(
        tls.credential.is_empty() && tls.authority.is_empty(),
        "{tls:?}"
    );
}

#[test]
fn who_called_is_told_as_the_rule_says() {
    use wire::traffic_policy::ProxyProtocol;
    for (version, told) in [
        ("proxyProtocol: {version: V2}", ProxyProtocol::V2),
        ("proxyProtocol: {version: V1}", ProxyProtocol::V1),
        ("proxyProtocol: {}", ProxyProtocol::V1),
        ("loadBalancer: {simple: PASSTHROUGH}", ProxyProtocol::None),
    ] {
        let plan = shop(&destination_rule("shop", version));
        let policy = plan.waypoints[0].rules[0].traffic_policy.clone().unwrap();
        assert_eq!(policy.proxy_protocol(), told, "{version}");
        assert_eq!(reasons(&plan, "DestinationRule shop/out"), ["Accepted"]);
    }
}

#[test]
fn a_rule_for_some_callers_is_in_force_nowhere_and_stands_before_none() {
    let simple =
        |kind: &str| destination_rule("shop", &format!("loadBalancer: {{simple: {kind}}}"));
    let for_some = |place: &str| {
        let rule = simple("RANDOM").replace("name: out, namespace: shop", place);
        rule.replace(
            "spec: {",
            "spec: {workloadSelector: {matchLabels: {app: a}}, ",
        )
    };
    // One of an older name beside it, one of the root namespace, and none.
    for (more, rules) in [(simple("ROUND_ROBIN"), 1), (String::new(), 0)] {
        let plan = shop(&format!("{}{more}", for_some("name: a, namespace: shop")));
        let told: Vec<_> = plan.waypoints[0].rules.iter().map(|r| &*r.name).collect();
        assert_eq!(told, vec!["out"; rules]);
        assert_eq!(
            reasons(&plan, "DestinationRule shop/a"),
            ["UnsupportedValue"]
        );
    }
    let of_mesh = simple("ROUND_ROBIN").replace("namespace: shop", "namespace: istio-system");
    let plan = shop(&format!(
        "{}{of_mesh}",
        for_some("name: a, namespace: shop")
    ));
    let told: Vec<_> = plan.waypoints[0]
        .rules
        .iter()
        .map(|r| &*r.namespace)
        .collect();
    assert_eq!(told, ["istio-system"]);
}

use isobar_objects::{DirectoryOptions, DirectorySource, ObjectSource as _};
use isobar_types::Reason;

use super::*;

mod capture;

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec: {replicas: 1, selector: {matchLabels: {app: cart}}, template: {metadata: {labels: {app: cart}}, spec: {serviceAccountName: cart, containers: [{name: c, image: i}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: stranger, namespace: plain}
spec: {replicas: 1, selector: {matchLabels: {app: s}}, template: {metadata: {labels: {app: s}}, spec: {containers: [{name: c, image: i}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: v1, namespace: shop}
spec: {replicas: 2, selector: {matchLabels: {app: reviews, version: v1}}, template: {metadata: {labels: {app: reviews, version: v1}}, spec: {containers: [{name: c, image: i}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: v2, namespace: shop}
spec: {replicas: 1, selector: {matchLabels: {app: reviews, version: v2}}, template: {metadata: {labels: {app: reviews, version: v2}}, spec: {containers: [{name: c, image: i}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop, labels: {}}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

const WAYPOINT: &str = "\
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: isobar-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}}
";

const ROUTES: &str = "\
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new}
  - match: [{uri: {prefix: /gone}}]
    route: [{destination: {host: reviews, subset: v3}}]
  - match: [{method: {exact: GET}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 80}
    - {destination: {host: reviews, subset: v2}, weight: 20}
";

fn world(parts: &[&str]) -> World {
    let folder = tempfile::tempdir().unwrap();
    // A later document replaces an earlier one of the same object here, as an edit would.
    let mut documents: Vec<&str> = Vec::new();
    let text = parts.concat();
    for document in text.split("---\n").filter(|d| !d.trim().is_empty()) {
        let head = |d: &str| -> Vec<String> {
            let lines = d
                .lines()
                .filter(|l| l.starts_with("kind:") || l.starts_with("metadata:"));
            lines
                .map(|l| l.split(", labels").next().unwrap().to_owned())
                .collect()
        };
        documents.retain(|have| head(have) != head(document));
        documents.push(document);
    }
    std::fs::write(folder.path().join("all.yaml"), documents.join("---\n")).unwrap();
    let options = DirectoryOptions::new(vec![folder.path().to_owned()], None);
    let source = DirectorySource::open(options).unwrap();
    let published = source.subscribe().borrow().clone();
    let errors: Vec<_> = published.findings.iter().filter(|f| f.is_error()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    World::imagined(&published.objects)
}

fn ask(
    world: &World,
    source: &str,
    destination: &str,
    request: Option<(&str, &str)>,
) -> Explanation {
    let mut question = Question::new("shop", source, destination).unwrap();
    question.request = request.map(|(method, path)| Asked::new(method, path, &[]).unwrap());
    explain(world, &question).unwrap()
}

fn refusal(way: &Way) -> (Reason, Option<u16>) {
    match &way.outcome {
        Outcome::Refused { reason, status, .. } => (*reason, *status),
        other => panic!("{other:?}"),
    }
}

fn text(explanation: &Explanation) -> String {
    format!("{explanation:#?}")
}

#[test]
fn without_a_waypoint_the_two_node_proxies_decide() {
    let found = ask(&world(&[SHOP]), "cart", "reviews", None);
    assert_eq!(found.allowed(), Some(true));
    assert_eq!(
        found.identity.as_deref(),
        Some("spiffe://cluster.local/ns/shop/sa/cart")
    );
    let pods: usize = found
        .ways
        .iter()
        .map(|way| match &way.outcome {
            Outcome::Reaches { pods, port: 8080 } => pods.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(pods, 3);
    let share: f64 = found.ways.iter().map(|way| way.share).sum();
    assert!((share - 1.0).abs() < 0.01, "{share}");
    assert_eq!(found.ways[0].steps.len(), 2, "{}", text(&found));
}

#[test]
fn a_route_at_the_waypoint_has_its_shares() {
    let world = world(&[SHOP, WAYPOINT, ROUTES]);
    let found = ask(&world, "cart", "http://reviews/x", Some(("GET", "/x")));
    let shares: Vec<(f64, usize)> = found
        .ways
        .iter()
        .map(|way| match &way.outcome {
            Outcome::Reaches { pods, .. } => (way.share, pods.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    let total: f64 = shares.iter().map(|(share, _)| share).sum();
    assert!((total - 1.0).abs() < 0.01);
    let v2 = found
        .ways
        .iter()
        .find(|way| text(&found).contains("v2") && way.share < 0.25);
    assert!((v2.unwrap().share - 0.2).abs() < 0.01, "{}", text(&found));
    assert!(text(&found).contains("DestinationRule shop/reviews"));
}

#[test]
fn each_of_two_waypoints_has_its_share_and_its_policies() {
    let second = WAYPOINT
        .replace("name: wp, namespace", "name: b, namespace")
        .replace(
            "use-waypoint: wp}",
            "use-waypoint: wp, istio.io/use-waypoint-canary: b}, \
             annotations: {istio.io/use-waypoint-canary-weight: \"30\"}",
        );
    let deny = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                metadata: {name: wall, namespace: shop}\n\
                spec: {targetRefs: [{kind: Service, group: '', name: reviews}], action: DENY, \
                rules: [{to: [{operation: {paths: [/secret]}}]}]}\n";
    let world = world(&[SHOP, WAYPOINT, &second, deny]);
    let found = ask(&world, "cart", "http://reviews/x", Some(("GET", "/x")));
    let of = |waypoint: &str| {
        let passing = found.ways.iter().filter(|way| {
            let mut steps = way.steps.iter();
            steps.any(|step| step.place == format!("waypoint shop/{waypoint}"))
        });
        passing.map(|way| way.share).sum::<f64>()
    };
    assert!((of("wp") - 0.7).abs() < 0.005, "{}", text(&found));
    assert!((of("b") - 0.3).abs() < 0.005, "{}", text(&found));
    let told = text(&found);
    assert!(told.contains("30 % of the calls to service"), "{told}");
    let refused = ask(
        &world,
        "cart",
        "http://reviews/secret",
        Some(("GET", "/secret")),
    );
    assert_eq!(refused.allowed(), Some(false), "{}", text(&refused));
    assert_eq!(refused.ways.len(), 2, "one at each waypoint");
}

#[test]
fn what_a_waypoint_answers_itself() {
    let world = world(&[SHOP, WAYPOINT, ROUTES]);
    let outcome =
        |method, path| ask(&world, "cart", "reviews:80", Some((method, path))).ways[0].clone();
    let redirect = outcome("GET", "/old/page").outcome;
    assert!(
        matches!(redirect, Outcome::Answered { status: 301, .. }),
        "{redirect:?}"
    );
    assert_eq!(
        refusal(&outcome("GET", "/gone")),
        (Reason::NoCluster, Some(503))
    );
    assert_eq!(
        refusal(&outcome("POST", "/x")),
        (Reason::NoRoute, Some(404))
    );
}

/// A rule for every request to reviews, and a service of one other port.
const LONE: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: lone, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 8080}]}
";

#[test]
fn a_destination_without_a_port_has_the_services_only_one() {
    let route = "\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec: {hosts: [reviews], http: [{route: [{destination: {host: lone}}]}]}
";
    let world = world(&[SHOP, WAYPOINT, LONE, route]);
    let found = ask(&world, "cart", "reviews:80", Some(("GET", "/")));
    assert!(
        matches!(found.ways[0].outcome, Outcome::Reaches { port: 8080, .. }),
        "{}",
        text(&found)
    );
}

#[test]
fn a_destination_that_nobody_granted_is_answered_with_500() {
    let route = "\
---
apiVersion: v1
kind: Service
metadata: {name: theirs, namespace: plain}
spec: {selector: {app: s}, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 80}]
  rules: [{backendRefs: [{name: theirs, namespace: plain, port: 80}]}]
";
    let world = world(&[SHOP, WAYPOINT, route]);
    let found = ask(&world, "cart", "reviews:80", Some(("GET", "/")));
    let expected = (Reason::NoCluster, Some(500));
    assert_eq!(refusal(&found.ways[0]), expected, "{}", text(&found));
}

#[test]
fn an_authoriser_is_named_where_it_is_asked() {
    let route = "\
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 80}]
  rules:
  - filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: reviews, port: 80}}}]
    backendRefs:
    - name: reviews
      port: 80
      filters: [{type: ExtensionRef, extensionRef: {group: isobar.dev, kind: RateLimitPolicy, name: ten}}]
---
apiVersion: isobar.dev/v1
kind: RateLimitPolicy
metadata: {name: ten, namespace: shop}
spec: {limits: [{name: all, requests: 10}]}
";
    let world = world(&[SHOP, WAYPOINT, route]);
    let told = text(&ask(&world, "cart", "reviews:80", Some(("GET", "/"))));
    for step in [
        "shown to authoriser reviews over HTTP",
        "counted in limit all of shop/ten",
    ] {
        assert!(told.contains(step), "{told}");
    }
}

#[test]
fn headers_are_seen_as_the_waypoint_sees_them() {
    let route = "\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {x-forwarded-host: {regex: '.+'}}}, {headers: {x-envoy-max-retries: {regex: '.+'}}}]
    redirect: {uri: /spoofed}
  - match: [{headers: {x-request-id: {regex: '.+'}, x-forwarded-proto: {exact: http}, cookie: {exact: a=1; b=2}}}]
    redirect: {uri: /seen}
";
    let world = world(&[SHOP, WAYPOINT, route]);
    let lines = [
        "x-forwarded-host: evil",
        "x-envoy-max-retries: 7",
        "cookie: a=1",
        "cookie: b=2",
    ]
    .map(str::to_owned);
    let mut question = Question::new("shop", "cart", "reviews:80").unwrap();
    question.request = Some(Asked::new("GET", "/", &lines).unwrap());
    let found = explain(&world, &question).unwrap();
    match &found.ways[0].outcome {
        Outcome::Answered { detail, .. } => assert!(detail.ends_with("/seen"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn policies_are_named() {
    let allow = "\
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-cart, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: reviews}]
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}], to: [{operation: {methods: [GET]}}]}]
";
    let world = world(&[SHOP, WAYPOINT, allow]);
    let get = ask(&world, "cart", "reviews:80", Some(("GET", "/")));
    assert_eq!(get.allowed(), Some(true), "{}", text(&get));
    assert!(text(&get).contains("rule 0 of AuthorizationPolicy shop/only-cart"));
    let post = ask(&world, "cart", "reviews:80", Some(("POST", "/")));
    assert_eq!(refusal(&post.ways[0]), (Reason::PolicyDenied, Some(403)));
    let other = ask(&world, "v1", "reviews:80", Some(("GET", "/")));
    assert_eq!(other.allowed(), Some(false));
}

#[test]
fn a_waypoint_cannot_be_gone_around() {
    let world = world(&[SHOP, WAYPOINT]);
    let stranger = ask(
        &world,
        "plain/stranger",
        "reviews.shop:80",
        Some(("GET", "/")),
    );
    assert_eq!(stranger.identity, None);
    assert_eq!(stranger.allowed(), Some(false), "{}", text(&stranger));
    assert_eq!(refusal(&stranger.ways[0]).0, Reason::WaypointBypassed);
}

#[test]
fn strict_refuses_plain_text_and_says_which_policy() {
    let strict = "\
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    let world = world(&[SHOP, strict]);
    let stranger = ask(&world, "plain/stranger", "reviews.shop:80", None);
    assert_eq!(refusal(&stranger.ways[0]).0, Reason::PlaintextRefused);
    assert_eq!(
        ask(&world, "cart", "reviews:80", None).allowed(),
        Some(true)
    );
}

#[test]
fn what_is_not_of_the_mesh_leaves_it() {
    let found = ask(&world(&[SHOP]), "cart", "192.0.2.7:443", None);
    assert!(
        matches!(found.ways[0].outcome, Outcome::Leaves { .. }),
        "{}",
        text(&found)
    );
}

#[test]
fn wrong_questions_say_what_there_is() {
    let world = world(&[SHOP]);
    let error = |source, destination| {
        let question = Question::new("shop", source, destination).unwrap();
        explain(&world, &question).unwrap_err().to_string()
    };
    assert!(error("nobody", "reviews").contains("there are cart-"));
    assert!(error("cart", "review:80").contains("there are reviews"));
    assert!(error("cart", "reviews:x").contains("\"x\" is no port"));
    let two_ports = "\
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}, {name: http-b, port: 81}]}
";
    let world = self::world(&[SHOP, two_ports]);
    let question = Question::new("shop", "cart", "two").unwrap();
    let error = explain(&world, &question).unwrap_err().to_string();
    assert!(error.contains("80") && error.contains("81"), "{error}");
    assert!(Asked::new("GET", "x", &[]).is_err());
    assert!(Asked::new("GET", "/", &["no colon".to_owned()]).is_err());
}

/// A policy of shop for pods with a label.
fn netpol(name: &str, app: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{{app}}}}}, {spec}}}\n"
    )
}

#[test]
fn what_a_network_plugin_drops_does_not_come_in() {
    let port = "policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]";
    let with = |policy: &str| world(&[SHOP, policy]);
    let shut = with(&netpol("np", "app: reviews", port));
    let found = ask(&shut, "cart", "reviews:80", None);
    assert_eq!(found.allowed(), Some(false), "{}", text(&found));
    assert_eq!(
        refusal(&found.ways[0]),
        (Reason::UpstreamConnectTimeout, None)
    );
    assert!(
        text(&found).contains("the network plugin drops it on port 15008: NetworkPolicy shop/np")
    );
    // Plain text goes to the port that is open.
    let plain = ask(&shut, "plain/stranger", "reviews.shop:80", None);
    assert_eq!(plain.allowed(), Some(true), "{}", text(&plain));
    let open = port.replace("8080}", "8080}, {port: 15008}");
    let open = with(&netpol("np", "app: reviews", &open));
    assert_eq!(ask(&open, "cart", "reviews:80", None).allowed(), Some(true));
    // Who may not leave does not get there.
    let kept = with(&netpol(
        "np",
        "app: cart",
        "policyTypes: [Egress], egress: [{ports: [{port: 80}]}]",
    ));
    let found = ask(&kept, "cart", "reviews:80", None);
    assert!(
        text(&found).contains("no rule lets the caller out on port 15008"),
        "{}",
        text(&found)
    );
    let outwards = ask(&kept, "cart", "192.0.2.7:443", None);
    assert_eq!(outwards.allowed(), Some(false));
    assert_eq!(
        ask(&kept, "cart", "192.0.2.7:80", None).allowed(),
        Some(true)
    );
}

#[test]
fn a_network_plugin_stands_on_both_sides_of_a_waypoint() {
    let from = |who: &str| {
        format!(
            "policyTypes: [Ingress], ingress: [{{from: [{{podSelector: {{matchLabels: {{{who}}}}}}}], ports: [{{port: 15008}}, {{port: 8080}}]}}]"
        )
    };
    let gateway = "gateway.networking.k8s.io/gateway-name: wp";
    let asked = |np: &str| {
        ask(
            &world(&[SHOP, WAYPOINT, np]),
            "cart",
            "reviews:80",
            Some(("GET", "/")),
        )
    };
    // The pods admit the caller, who comes as the waypoint.
    let behind = asked(&netpol("np", "app: reviews", &from("app: cart")));
    assert_eq!(
        refusal(&behind.ways[0]),
        (Reason::UpstreamConnectTimeout, Some(503)),
        "{}",
        text(&behind)
    );
    assert!(
        text(&behind).contains("waypoint shop/wp"),
        "{}",
        text(&behind)
    );
    let through = netpol("np", "app: reviews", &from(gateway))
        + &netpol("np2", "app: reviews", &from("app: cart"));
    let through = asked(&through);
    assert_eq!(through.allowed(), Some(true), "{}", text(&through));
    let before = asked(&netpol("np", gateway, &from("app: nobody")));
    assert_eq!(
        refusal(&before.ways[0]),
        (Reason::UpstreamConnectTimeout, None),
        "{}",
        text(&before)
    );
}

#[test]
fn a_request_counts_in_the_limits_that_are_about_it() {
    let limits = "\
---
apiVersion: isobar.dev/v1
kind: RateLimitPolicy
metadata: {name: slow, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: reviews}]
  limits:
  - {name: each, requests: 10, per: 1s, by: [{caller: identity}]}
  - {name: posts, requests: 1, per: 1m, match: [{method: {exact: POST}}], by: [{header: x-user}, {path: true}]}
";
    let world = world(&[SHOP, WAYPOINT, limits]);
    let get = text(&ask(&world, "cart", "reviews:80", Some(("GET", "/"))));
    assert!(get.contains("counted in limit each of shop/slow"), "{get}");
    assert!(
        get.contains("10 at once, then one each 100ms, else 429"),
        "{get}"
    );
    assert!(
        get.contains("caller spiffe://cluster.local/ns/shop/sa/cart"),
        "{get}"
    );
    assert!(!get.contains("posts"), "{get}");
    let post = text(&ask(&world, "cart", "reviews:80", Some(("POST", "/r"))));
    assert!(
        post.contains("limit posts") && post.contains("limit each"),
        "{post}"
    );
    assert!(post.contains("header x-user none, path /r"), "{post}");
}

//! Filters that are somebody else's decision: authorisers, and limits by their name.

use super::*;

const LIMITS: &str = "---
apiVersion: isobar.dev/v1
kind: RateLimitPolicy
metadata: {name: ten, namespace: shop}
spec: {limits: [{name: all, requests: 10, match: [{sourceLabels: {team: a}}]}]}
";

fn first(plan: &Plan) -> wire::HttpRoute {
    let mut all = plan.waypoints[0].routes.iter().flat_map(|r| &r.http);
    all.next().unwrap().clone()
}

fn with(filter: &str) -> Plan {
    let rule = format!("[{{filters: [{filter}], backendRefs: [{{name: cart, port: 80}}]}}]");
    plan(&format!("{LIMITS}{}", http("name: r", &rule)))
}

fn of_destination(filter: &str) -> Plan {
    let rule = format!("[{{backendRefs: [{{name: cart, port: 80, filters: [{filter}]}}]}}]");
    plan(&format!("{LIMITS}{}", http("name: r", &rule)))
}

fn destination(plan: &Plan) -> wire::WeightedDestination {
    match first(plan).action.unwrap() {
        Action::Forward(to) => to.destinations[0].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn authorisers_reach_the_waypoint_with_their_destination() {
    use wire::external_auth::Protocol;
    let http = "{type: ExternalAuth, externalAuth: {protocol: HTTP, \
                backendRef: {name: cart-v2, port: 80}, forwardBody: {maxSize: 100}, \
                http: {path: /auth, allowedHeaders: [x-a], allowedResponseHeaders: [x-b]}}}";
    let grpc = "{type: ExternalAuth, externalAuth: {protocol: GRPC, \
                backendRef: {name: cart-v2, port: 80}, grpc: {allowedHeaders: [x-c]}}}";
    let plan = with(http);
    assert_eq!(told(&plan, "r"), WELL);
    let asked = first(&plan).external_auth.remove(0);
    let to = asked.destination.unwrap();
    assert_eq!((&*to.host, to.port, to.refuse), ("cart-v2", 80, 0));
    assert_eq!(asked.max_body, 100);
    match asked.protocol.unwrap() {
        Protocol::Http(http) => {
            let lists = (&http.headers[..], &http.answer_headers[..]);
            assert_eq!(
                (&*http.path, lists),
                ("/auth", (&["x-a".to_owned()][..], &["x-b".to_owned()][..]))
            );
        }
        other @ Protocol::Grpc(_) => panic!("{other:?}"),
    }
    let plan = of_destination(grpc);
    assert_eq!(told(&plan, "r"), WELL);
    let asked = destination(&plan).external_auth.remove(0);
    match asked.protocol.unwrap() {
        Protocol::Grpc(grpc) => assert_eq!(grpc.headers, ["x-c"]),
        other @ Protocol::Http(_) => panic!("{other:?}"),
    }
    // Rules for the authoriser's own Service come along.
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                metadata: {name: d, namespace: shop}\n\
                spec: {host: cart-v2, trafficPolicy: {tls: {mode: DISABLE}}}\n";
    let rule_of = |rules: &str| super::plan(&format!("{rule}{}", super::http("name: r", rules)));
    let guarded = format!("[{{filters: [{grpc}], backendRefs: [{{name: cart, port: 80}}]}}]");
    assert_eq!(rule_of(&guarded).waypoints[0].rules[0].services.len(), 1);
}

#[test]
fn without_its_authoriser_nobody_passes() {
    let to = |reference: &str| {
        format!("{{type: ExternalAuth, externalAuth: {{protocol: GRPC, backendRef: {reference}}}}}")
    };
    for (reference, reason) in [
        ("{name: nosuch, port: 80}", "BackendNotFound"),
        ("{name: cart-v2, port: 81}", "BackendNotFound"),
        ("{name: pay, namespace: bank, port: 80}", "RefNotPermitted"),
        ("{kind: Bucket, group: x, name: cart}", "InvalidKind"),
    ] {
        let wanted = format!("ResolvedRefs=false({reason})");
        let plan = with(&to(reference));
        assert_eq!(rules(&plan), "//* -> 500\n-> 404\n", "{reference}");
        assert!(told(&plan, "r").contains(&wanted), "{reference}");
        let plan = of_destination(&to(reference));
        assert!(rules(&plan).contains("cart:80!500"), "{reference}");
        assert!(told(&plan, "r").contains(&wanted), "{reference}");
    }
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: bank}\n\
                 spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], \
                 to: [{group: '', kind: Service}]}\n";
    let filter = to("{name: pay, namespace: bank, port: 80}");
    let rule = format!("[{{filters: [{filter}], backendRefs: [{{name: cart, port: 80}}]}}]");
    let plan = plan(&format!("{grant}{}", http("name: r", &rule)));
    assert_eq!(told(&plan, "r"), WELL);
    assert_eq!(first(&plan).external_auth.len(), 1);
}

#[test]
fn limits_that_routes_name_reach_the_waypoint() {
    let ten =
        "{type: ExtensionRef, extensionRef: {group: isobar.dev, kind: RateLimitPolicy, name: ten}}";
    let status = |plan: &Plan| {
        let mut found = plan.verdicts.iter();
        let verdict = found
            .find(|v| &*v.object.kind == "RateLimitPolicy")
            .unwrap();
        (verdict.reason, verdict.holds)
    };
    let plan = with(ten);
    assert_eq!(told(&plan, "r"), WELL);
    assert_eq!(first(&plan).rate_limits[0].limits[0].requests, 10);
    assert_eq!(status(&plan), ("Accepted", true));
    // What its matches ask of callers has to be known; beside that it is about nothing.
    assert!(plan.waypoints[0].label_keys.contains("team"));
    assert!(plan.waypoints[0].rate_limits.is_empty());
    let plan = of_destination(ten);
    assert_eq!(told(&plan, "r"), WELL);
    assert_eq!(destination(&plan).rate_limits[0].name, "ten");
    assert!(plan.waypoints[0].label_keys.contains("team"));

    let unnamed = with("{type: CORS, cors: {allowOrigins: ['*']}}");
    assert_eq!(status(&unnamed), ("TargetNotFound", false));
    let missing = ten.replace("name: ten", "name: nosuch");
    let plan = with(&missing);
    assert_eq!(rules(&plan), "//* -> 500\n-> 404\n");
    assert!(told(&plan, "r").contains("ResolvedRefs=false(BackendNotFound)"));
    let foreign = ten.replace("RateLimitPolicy", "Other");
    let plan = with(&foreign);
    assert_eq!(rules(&plan), "//* -> 500\n-> 404\n");
    assert!(told(&plan, "r").contains("ResolvedRefs=false(InvalidKind)"));
    // Of the route's own namespace and no other.
    let elsewhere = LIMITS.replace("namespace: shop", "namespace: bank");
    let rule = format!("[{{filters: [{ten}], backendRefs: [{{name: cart, port: 80}}]}}]");
    let plan = super::plan(&format!("{elsewhere}{}", http("name: r", &rule)));
    assert!(told(&plan, "r").contains("ResolvedRefs=false(BackendNotFound)"));
}

#[test]
fn a_rule_that_goes_nowhere_comes_before_less_exact_ones() {
    let free = http("name: a", "[{backendRefs: [{name: cart, port: 80}]}]");
    let stand_in = http("name: r", "[{matches: [{path: {value: /admin}}, {}]}]");
    let plan = plan(&format!("{free}{stand_in}"));
    assert!(
        rules(&plan).starts_with("/admin/* -> 500\n"),
        "{}",
        rules(&plan)
    );
    let plan = super::plan(&http(
        "name: r",
        "[{matches: [{path: {value: /admin}}, {}]}]",
    ));
    assert_eq!(rules(&plan), "/admin/* -> 500\n//* -> 500\n-> 404\n");
}

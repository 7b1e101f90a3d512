//! Values of the wrong shape, and texts that no header can carry.

use super::{findings, policy, route, rule, with_route};

fn fields(text: &str) -> Vec<String> {
    let found = findings(text);
    found.into_iter().map(|finding| finding.field).collect()
}

#[test]
fn a_list_is_no_object_and_an_entry_has_something_in_it() {
    for (text, field) in [
        // Each of these would be a rule that holds for everybody.
        (policy("{rules: [[]]}"), "spec.rules[0]"),
        (policy("{rules: [null]}"), "spec.rules[0]"),
        (policy("{rules: [{from: [[]]}]}"), "spec.rules[0].from[0]"),
        (policy("{rules: [{from: [null]}]}"), "spec.rules[0].from[0]"),
        (
            policy("{rules: [{from: [{source: []}]}]}"),
            "spec.rules[0].from[0].source",
        ),
        (with_route("match: [null]"), "spec.http[0].match[0]"),
        (rule("{host: a, trafficPolicy: []}"), "spec.trafficPolicy"),
    ] {
        assert_eq!(fields(&text), [field], "{text}");
    }
    // What is absent may be said to be nothing, and an empty rule may be meant.
    assert_eq!(fields(&policy("{selector: null, rules: [{}]}")), [""; 0]);
}

#[test]
fn what_is_written_into_heads_has_no_control_characters() {
    for (text, field) in [
        (
            with_route("headers: {request: {set: {a: \"b\\r\\nc: d\"}}}"),
            "spec.http[0].headers.request.set[a]",
        ),
        (
            with_route("headers: {response: {add: {a: \"\\0\"}}}"),
            "spec.http[0].headers.response.add[a]",
        ),
        (
            with_route("rewrite: {uri: \"/a\\nb\"}"),
            "spec.http[0].rewrite.uri",
        ),
        (
            with_route("rewrite: {authority: \"a\\nb\"}"),
            "spec.http[0].rewrite.authority",
        ),
        (
            route("{redirect: {uri: \"/a\\nb\"}}"),
            "spec.http[0].redirect.uri",
        ),
    ] {
        assert_eq!(fields(&text), [field], "{text}");
    }
    assert_eq!(
        fields(&with_route("headers: {request: {set: {a: \"b\\tc\"}}}")),
        [""; 0]
    );
}

#[test]
fn sticky_cookies_and_warming_up_have_their_ranges() {
    for (balancer, field) in [
        (
            "consistentHash: {httpCookie: {ttl: 1s}}",
            "consistentHash.httpCookie.name",
        ),
        (
            "consistentHash: {httpCookie: {name: a, path: \"/;b\"}}",
            "consistentHash.httpCookie.path",
        ),
        (
            "consistentHash: {httpHeaderName: \"a b\"}",
            "consistentHash.httpHeaderName",
        ),
        (
            "consistentHash: {httpHeaderName: \":else\"}",
            "consistentHash.httpHeaderName",
        ),
        (
            "warmup: {duration: 1s, minimumPercent: -1}",
            "warmup.minimumPercent",
        ),
        (
            "warmup: {duration: 1s, aggression: 0.5}",
            "warmup.aggression",
        ),
        (
            "warmup: {duration: 1s, aggression: 2000000}",
            "warmup.aggression",
        ),
    ] {
        let text = rule(&format!(
            "{{host: a, trafficPolicy: {{loadBalancer: {{{balancer}}}}}}}"
        ));
        let field = format!("spec.trafficPolicy.loadBalancer.{field}");
        assert_eq!(fields(&text), [field], "{text}");
    }
}

#[test]
fn pseudo_headers_are_taken_and_told() {
    let text = rule(
        "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: \":authority\"}}}}",
    );
    let found = findings(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].severity, crate::Severity::Warning);
}

use super::{findings, lines, spec, with_route};

const PARENTS: &str = "parentRefs: [{group: \"\", kind: Service, name: a}]";

fn fields(kind: &str, text: &str) -> Vec<String> {
    let found = findings(&spec("gateway.networking.k8s.io/v1", kind, text));
    found.into_iter().map(|finding| finding.field).collect()
}

#[test]
fn what_is_wrong_in_a_filter_of_ours_or_an_authoriser_is_told_by_field() {
    for (rule, field) in [
        (
            "{filters: [{type: ExternalAuth, externalAuth: {protocol: UDP, backendRef: {name: a}}}]}",
            "spec.rules[0].filters[0].externalAuth.protocol",
        ),
        (
            "{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: a}, grpc: {}}}]}",
            "spec.rules[0].filters[0].externalAuth.grpc",
        ),
        (
            "{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: a}, http: {path: a}}}]}",
            "spec.rules[0].filters[0].externalAuth.http.path",
        ),
        (
            "{filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: A B}, grpc: {}}}]}",
            "spec.rules[0].filters[0].externalAuth.backendRef.name",
        ),
        (
            "{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: a}, http: {allowedHeaders: [a b]}}}]}",
            "spec.rules[0].filters[0].externalAuth.http.allowedHeaders",
        ),
        (
            "{filters: [{type: ExtensionRef, extensionRef: {group: isobar.dev, kind: RateLimitPolicy}}]}",
            "spec.rules[0].filters[0].extensionRef.name",
        ),
    ] {
        let text = format!("{{{PARENTS}, rules: [{rule}]}}");
        assert_eq!(fields("HTTPRoute", &text), [field], "{rule}");
    }
}

#[test]
fn what_is_wrong_in_a_route_is_told_by_field() {
    for (rule, field) in [
        (
            "{matches: [{path: {value: a}}]}",
            "spec.rules[0].matches[0].path.value",
        ),
        (
            "{matches: [{path: {type: RegularExpression, value: \"(\"}}]}",
            "spec.rules[0].matches[0].path.value",
        ),
        (
            "{matches: [{headers: [{name: \"a b\", value: c}]}]}",
            "spec.rules[0].matches[0].headers[0].name",
        ),
        (
            "{filters: [{type: Nothing}]}",
            "spec.rules[0].filters[0].type",
        ),
        (
            "{filters: [{type: URLRewrite}]}",
            "spec.rules[0].filters[0]",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}",
            "spec.rules[0].filters[0].requestRedirect.statusCode",
        ),
        (
            "{backendRefs: [{name: a, port: 80, weight: -1}]}",
            "spec.rules[0].backendRefs[0].weight",
        ),
        (
            "{timeouts: {request: 1s, backendRequest: 2s}}",
            "spec.rules[0].timeouts.backendRequest",
        ),
        ("{retry: {codes: [200]}}", "spec.rules[0].retry.codes"),
    ] {
        let text = format!("{{{PARENTS}, rules: [{rule}]}}");
        assert_eq!(fields("HTTPRoute", &text), [field], "{rule}");
    }
    let gap = "{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]}";
    let text = format!("{{{PARENTS}, rules: [{gap}]}}");
    assert_eq!(
        fields("HTTPRoute", &text),
        ["spec.rules[0].filters[0].extensionRef"]
    );
    let ours = gap.replace(
        "group: a, kind: B",
        "group: isobar.dev, kind: RateLimitPolicy",
    );
    let text = format!("{{{PARENTS}, rules: [{ours}]}}");
    assert!(fields("HTTPRoute", &text).is_empty());
    let parent = "{parentRefs: [{kind: Service, name: a}], rules: []}";
    assert_eq!(fields("GRPCRoute", parent), ["spec.parentRefs[0].group"]);
    let entry = "{parentRefs: [{kind: ServiceEntry, name: a}], rules: []}";
    assert_eq!(fields("TCPRoute", entry)[0], "spec.parentRefs[0].group");
    let method = format!("{{{PARENTS}, rules: [{{matches: [{{method: {{}}}}]}}]}}");
    assert_eq!(
        fields("GRPCRoute", &method),
        ["spec.rules[0].matches[0].method"]
    );
    assert_eq!(fields("ReferenceGrant", "{}"), ["spec.from", "spec.to"]);
}

/// A length that is not so lets the next message on a connection be read as a part of this one.
#[test]
fn rules_write_no_header_that_frames_messages() {
    let edits = "headers: {request: {set: {Content-Length: '85', x-a: b}}, \
                 response: {add: {transfer-encoding: chunked}, remove: [connection]}}";
    let said = lines(&with_route(edits));
    assert_eq!(said.len(), 2, "{said:?}");
    for (line, field) in said
        .iter()
        .zip(["set[Content-Length]", "add[transfer-encoding]"])
    {
        assert!(
            line.contains(field) && line.contains("where messages end"),
            "{line}"
        );
    }
    let filter = "{type: RequestHeaderModifier, \
                  requestHeaderModifier: {add: [{name: upgrade, value: h2c}], remove: [te]}}";
    let route = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: svc}}], rules: [{{filters: [{filter}], backendRefs: [{{name: svc, port: 80}}]}}]}}\n"
    );
    let said = lines(&route);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("\"upgrade\""), "{said:?}");
}

#[test]
fn shares_names_and_texts_of_filters_are_told_by_field() {
    for (rule, field) in [
        ("{retry: {attempts: -1}}", "spec.rules[0].retry.attempts"),
        (
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a}, percent: 101}}]}",
            "spec.rules[0].filters[0].requestMirror.percent",
        ),
        (
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a}, fraction: {numerator: 3, denominator: 2}}}]}",
            "spec.rules[0].filters[0].requestMirror.fraction",
        ),
        (
            "{filters: [{type: RequestMirror, requestMirror: {}}]}",
            "spec.rules[0].filters[0].requestMirror.backendRef.name",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {scheme: gopher}}]}",
            "spec.rules[0].filters[0].requestRedirect.scheme",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {hostname: a b}}]}",
            "spec.rules[0].filters[0].requestRedirect.hostname",
        ),
        (
            "{filters: [{type: URLRewrite, urlRewrite: {hostname: ''}}]}",
            "spec.rules[0].filters[0].urlRewrite.hostname",
        ),
        (
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"b\\nc\"}]}}]}",
            "spec.rules[0].filters[0]",
        ),
    ] {
        let text = format!("{{{PARENTS}, rules: [{rule}]}}");
        assert_eq!(fields("HTTPRoute", &text), [field], "{rule}");
    }
}

use std::collections::BTreeMap;

use http::HeaderMap;

use super::*;
use crate::context::begin;

fn told(request: &Request<'_>) -> (Span, BTreeMap<String, String>) {
    let mut headers = HeaderMap::new();
    let context = begin(&mut headers, 1_000_000);
    let span = span(&context, request);
    let told = span.attributes.iter().map(|one| {
        let value = match one.value.as_ref().unwrap().value.as_ref().unwrap() {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        (one.key.clone(), value)
    });
    let told = told.collect();
    (span, told)
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().unwrap().code == i32::from(StatusCode::Error)
}

#[test]
fn a_request_has_the_attributes_of_the_conventions() {
    let (span, told) = told(&Request {
        start: 5_000_000_000,
        duration: Duration::from_millis(3),
        method: "GET",
        path: "/a/b?token=secret",
        scheme: "http",
        host: "svc.default.svc.cluster.local",
        port: 8080,
        version: "1.1",
        user_agent: Some("curl/8"),
        route: "default/vs/http[0]",
        code: 404,
        flags: "-",
        source: Party {
            workload: "client",
            canonical_service: "shop",
            canonical_revision: "v1",
            ..Party::default()
        },
        ..Request::default()
    });
    assert_eq!(span.name, "GET default/vs/http[0]");
    assert_eq!(span.kind, i32::from(SpanKind::Server));
    assert_eq!(span.end_time_unix_nano, 5_003_000_000);
    assert!(!is_error(&span), "a caller's mistake is none of the server");
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "404"),
        ("url.path", "/a/b"),
        ("url.scheme", "http"),
        ("server.address", "svc.default.svc.cluster.local"),
        ("server.port", "8080"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "curl/8"),
        ("response_flags", "-"),
        ("istio.source_workload", "client"),
        ("istio.source_app", "shop"),
        ("istio.source_version", "v1"),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(!told.contains_key("istio.destination_workload"));
    assert!(told.values().all(|value| !value.contains("secret")));
}

#[test]
fn a_call_of_grpc_is_named_by_its_method() {
    let call = Request {
        method: "POST",
        path: "/shop.Cart/Add",
        code: 200,
        grpc: Some(Some("5")),
        flags: "-",
        ..Request::default()
    };
    let (span, all) = told(&call);
    assert_eq!(span.name, "shop.Cart/Add");
    assert_eq!(all["rpc.system"], "grpc");
    assert_eq!(all["rpc.service"], "shop.Cart");
    assert_eq!(all["rpc.method"], "Add");
    assert_eq!(all["rpc.grpc.status_code"], "5");
    assert!(!is_error(&span));
    let (span, all) = told(&Request {
        grpc: Some(Some("14")),
        ..call.clone()
    });
    assert!(is_error(&span));
    assert_eq!(all["error.type"], "14");
    for path in ["/", "/a", "//a", "/a/", "/a/b/c", "a/b"] {
        let (span, all) = told(&Request {
            path,
            ..call.clone()
        });
        assert_eq!(span.name, "POST", "{path}");
        assert!(!all.contains_key("rpc.service"), "{path}");
    }
}

#[test]
fn what_fails_is_an_error() {
    let of = |code, is_broken| {
        let (span, all) = told(&Request {
            code,
            is_broken,
            flags: "UC",
            ..Request::default()
        });
        is_error(&span).then(|| all["error.type"].clone())
    };
    assert_eq!(of(200, false), None);
    assert_eq!(of(499, false), None);
    assert_eq!(of(500, false).as_deref(), Some("500"));
    assert_eq!(of(200, true).as_deref(), Some("UC"));
    assert_eq!(of(0, false).as_deref(), Some("UC"));
}

#[test]
fn what_callers_write_is_bounded() {
    let long = "ä".repeat(100_000);
    let (span, told) = told(&Request {
        method: &long,
        path: &long,
        host: &long,
        user_agent: Some(&long),
        id: Some(&long),
        route: &long,
        cluster: &long,
        service: &long,
        code: 200,
        flags: "-",
        ..Request::default()
    });
    assert_eq!(told["http.request.method"], "_OTHER");
    assert!(span.name.starts_with("HTTP "));
    let size: usize = told.values().map(String::len).sum();
    assert!(size < 4096, "{size}");
}

//! A request that is over, as a span: OpenTelemetry's conventions for HTTP and RPC servers, and Istio's names for who
//! called whom.

use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use crate::context::Context;

/// Most bytes of what callers write, and of names: a span that waits holds no more.
const PATH: usize = 1024;
const AGENT: usize = 256;
const NAME: usize = 256;
/// Bit of a span's flags: it is known whether the parent is in another process, and it is.
const REMOTE: u32 = 0x300;

/// Methods that HTTP knows; others are one, since callers may write any.
const METHODS: [&str; 10] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
];

/// A request at its end.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// When its head had arrived, in nanoseconds since the epoch.
    pub start: u64,
    /// From there to its last byte.
    pub duration: Duration,
    /// Its method.
    pub method: &'a str,
    /// Its path, with or without query.
    pub path: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host that was asked for.
    pub host: &'a str,
    /// Port that was asked for.
    pub port: u16,
    /// Version of HTTP: `1.1` or `2`.
    pub version: &'a str,
    /// What the caller calls itself.
    pub user_agent: Option<&'a str>,
    /// `x-request-id`.
    pub id: Option<&'a str>,
    /// Address of whoever called.
    pub client: String,
    /// The rule that took it, if one did.
    pub route: &'a str,
    /// Where it went, by Istio's name for that.
    pub cluster: &'a str,
    /// Status of the answer; 0 where there was none.
    pub code: u16,
    /// A call of gRPC, and its status where one is known.
    pub grpc: Option<Option<&'a str>>,
    /// Envoy's flags, `-` for none.
    pub flags: &'a str,
    /// Its answer did not come to its end.
    pub is_broken: bool,
    /// Who called.
    pub source: Party<'a>,
    /// Who was called.
    pub destination: Party<'a>,
    /// Host name of the service that was called.
    pub service: &'a str,
}

/// A workload, as far as it is known; what is not is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Party<'a> {
    /// Its workload.
    pub workload: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Name of its canonical service, which is its app.
    pub canonical_service: &'a str,
    /// Revision of that, which is its version.
    pub canonical_revision: &'a str,
    /// Its identity.
    pub principal: &'a str,
}

/// The beginning of a text, of at most `most` bytes.
pub(crate) fn bounded(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

pub(crate) fn attribute(key: &str, value: &str) -> KeyValue {
    of(key, Value::StringValue(value.to_owned()))
}

fn of(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Attributes in the making: those without a value are left out.
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, key: &str, value: &str, most: usize) {
        if !value.is_empty() {
            self.0.push(attribute(key, bounded(value, most)));
        }
    }

    fn number(&mut self, key: &str, value: impl Into<i64>) {
        self.0.push(of(key, Value::IntValue(value.into())));
    }

    fn party(&mut self, keys: [&str; 7], party: &Party<'_>) {
        let values = [
            party.workload,
            party.namespace,
            party.canonical_service,
            party.canonical_revision,
            party.canonical_service,
            party.canonical_revision,
            party.principal,
        ];
        for (key, value) in keys.into_iter().zip(values) {
            self.text(key, value, NAME);
        }
    }
}

/// The span of a request.
#[must_use]
pub fn span(context: &Context, request: &Request<'_>) -> Span {
    let nanos = u64::try_from(request.duration.as_nanos()).unwrap_or(u64::MAX);
    let parent = context.parent.map(u64::to_be_bytes);
    Span {
        trace_id: context.trace.to_be_bytes().to_vec(),
        span_id: context.span.to_be_bytes().to_vec(),
        trace_state: context.state.clone(),
        parent_span_id: parent.map(Vec::from).unwrap_or_default(),
        flags: REMOTE | u32::from(context.is_sampled()),
        name: name(request),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: request.start,
        end_time_unix_nano: request.start.saturating_add(nanos),
        attributes: attributes(request),
        status: Some(status(request)),
        ..Span::default()
    }
}

fn method(request: &Request<'_>) -> Option<&'static str> {
    METHODS.into_iter().find(|known| *known == request.method)
}

/// Service and method of a call of gRPC.
fn call<'a>(request: &Request<'a>) -> Option<(&'a str, &'a str)> {
    let path = path(request);
    let called = path.strip_prefix('/')?.split_once('/');
    called.filter(|(service, method)| {
        let whole = !service.is_empty() && !method.is_empty() && !method.contains('/');
        whole && request.grpc.is_some()
    })
}

fn path<'a>(request: &Request<'a>) -> &'a str {
    let path = request.path.split(['?', '#']).next();
    path.unwrap_or_default()
}

fn name(request: &Request<'_>) -> String {
    let name = match call(request) {
        Some((service, method)) => format!("{service}/{method}"),
        None => {
            let method = method(request).unwrap_or("HTTP");
            let parts = [method, request.route];
            let parts = parts.iter().filter(|part| !part.is_empty());
            parts.copied().collect::<Vec<_>>().join(" ")
        }
    };
    bounded(&name, NAME).to_owned()
}

fn attributes(request: &Request<'_>) -> Vec<KeyValue> {
    let mut all = Attributes(Vec::with_capacity(40));
    match method(request) {
        Some(method) => all.text("http.request.method", method, NAME),
        None => {
            all.text("http.request.method", "_OTHER", NAME);
            all.text("http.request.method_original", request.method, NAME);
        }
    }
    if request.code > 0 {
        all.number("http.response.status_code", request.code);
    }
    // Not the query: that is where secrets stand.
    all.text("url.path", path(request), PATH);
    all.text("url.scheme", request.scheme, NAME);
    all.text("server.address", request.host, NAME);
    all.number("server.port", request.port);
    all.text("client.address", &request.client, NAME);
    all.text("network.protocol.name", "http", NAME);
    all.text("network.protocol.version", request.version, NAME);
    let agent = request.user_agent.unwrap_or_default();
    all.text("user_agent.original", agent, AGENT);
    all.text("guid:x-request-id", request.id.unwrap_or_default(), NAME);
    if let Some(status) = request.grpc {
        all.text("rpc.system", "grpc", NAME);
        if let Some((service, method)) = call(request) {
            all.text("rpc.service", service, NAME);
            all.text("rpc.method", method, NAME);
        }
        if let Some(code) = status.and_then(|status| status.parse::<u8>().ok()) {
            all.number("rpc.grpc.status_code", code);
        }
    }
    if let Some(kind) = error(request) {
        all.text("error.type", &kind, NAME);
    }
    all.text("response_flags", request.flags, NAME);
    all.text("upstream_cluster", request.cluster, NAME);
    all.party(
        [
            "istio.source_workload",
            "istio.source_namespace",
            "istio.source_canonical_service",
            "istio.source_canonical_revision",
            "istio.source_app",
            "istio.source_version",
            "istio.source_principal",
        ],
        &request.source,
    );
    all.party(
        [
            "istio.destination_workload",
            "istio.destination_namespace",
            "istio.destination_canonical_service",
            "istio.destination_canonical_revision",
            "istio.destination_app",
            "istio.destination_version",
            "istio.destination_principal",
        ],
        &request.destination,
    );
    all.text("istio.destination_service", request.service, NAME);
    all.0
}

/// What went wrong, by a word from a short list; what callers did wrong is none of it.
fn error(request: &Request<'_>) -> Option<String> {
    if request.is_broken || request.code == 0 {
        return Some(request.flags.to_owned());
    }
    if request.code >= 500 {
        return Some(request.code.to_string());
    }
    // Statuses of gRPC that say so of the server.
    let status = request.grpc.flatten();
    let failed = status.filter(|status| matches!(*status, "2" | "4" | "12" | "13" | "14" | "15"));
    failed.map(str::to_owned)
}

fn status(request: &Request<'_>) -> Status {
    let code = match error(request) {
        Some(_) => StatusCode::Error,
        None => StatusCode::Unset,
    };
    Status {
        code: code.into(),
        ..Status::default()
    }
}

#[cfg(test)]
mod tests;

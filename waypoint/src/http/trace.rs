//! The trace that a request is part of, and its span.

use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Version};
use isobar_route::Tracing;
use isobar_route::path::split_port;
use isobar_spans::{Context, Party, Request, span};
use isobar_state::Workload;
use isobar_types::{Identity, Reason};

use super::exchange::{Exchange, moment};
use super::sanitise::REQUEST_ID;

/// Begins a span, and tells whoever gets the request next.
#[cold]
pub(super) fn begin(with: &Tracing, headers: &mut HeaderMap) -> Box<Context> {
    Box::new(isobar_spans::begin(headers, with.per_million))
}

/// Records the span of a request that is over, where it is sampled.
#[cold]
pub(super) fn record(exchange: &Exchange, context: &Context, flags: &str, duration: Duration) {
    if context.is_sampled() {
        let spans = &exchange.session().worker.world.spans;
        spans.record(|| made(exchange, context, flags, duration));
    }
}

fn made(
    exchange: &Exchange,
    context: &Context,
    flags: &str,
    duration: Duration,
) -> isobar_spans::Span {
    let request = &exchange.request;
    let asked = exchange.asked.as_deref();
    let session = exchange.session();
    let (host, port) = split_port(&request.authority);
    let port = port.and_then(|port| port.parse().ok());
    let id = asked.and_then(|asked| asked.headers.get(REQUEST_ID));
    let [route, cluster] = [exchange.route.to_string(), exchange.cluster.to_string()];
    let start = moment(exchange.started).as_nanosecond();
    let caller = exchange.caller.as_deref();
    let peer = session.peer.identity.as_ref();
    let called = exchange.workload().map(|workload| &**workload);
    let identity = called.map(Workload::identity);
    let [from, to] = [peer, identity.as_ref()].map(|one| one.map(ToString::to_string));
    let is_broken = !exchange.answered && exchange.reason != Reason::Complete;
    span(
        context,
        &Request {
            start: u64::try_from(start).unwrap_or_default(),
            duration,
            method: request.method.as_str(),
            path: &request.path,
            scheme: asked.map_or("http", |asked| asked.clean.scheme),
            host,
            port: port.unwrap_or_else(|| exchange.destination().port()),
            version: version(request.version),
            user_agent: text(request.user_agent.as_ref()),
            id: text(id),
            client: session.peer.address.ip().to_string(),
            route: &route,
            cluster: &cluster,
            code: exchange.code,
            grpc: request.grpc.then_some(exchange.grpc_status),
            flags,
            is_broken,
            source: party(
                caller.and_then(|caller| caller.workload.as_deref()),
                peer,
                from.as_deref(),
            ),
            destination: party(called, identity.as_ref(), to.as_deref()),
            service: exchange
                .service
                .as_ref()
                .map_or("", |service| &*service.key.hostname),
        },
    )
}

/// Whatever is text of a header.
fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|value| value.to_str().ok())
}

/// A workload where one is known; its identity says more than what discovery tells of it.
fn party<'a>(
    workload: Option<&'a Workload>,
    identity: Option<&'a Identity>,
    principal: Option<&'a str>,
) -> Party<'a> {
    let mut party = workload.map_or_else(Party::default, |workload| Party {
        workload: &workload.workload_name,
        namespace: &workload.namespace,
        canonical_service: &workload.canonical_name,
        canonical_revision: match &*workload.canonical_revision {
            "" => "latest",
            revision => revision,
        },
        principal: "",
    });
    if let Some(identity) = identity {
        party.namespace = &identity.namespace;
    }
    party.principal = principal.unwrap_or_default();
    party
}

const fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

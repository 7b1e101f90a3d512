//! Istio's standard metrics, as a waypoint reports them (`reporter="waypoint"`).

mod recent;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isobar_route::{Caller, Observed, Target};
use isobar_state::{Service, Workload};
use isobar_telemetry::Registry;
use isobar_types::{Identity, NamespacedName, Str};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;

use crate::attribution::Attributed;
use crate::cluster::Load;

use recent::Counters;
pub use recent::Recent;

const UNKNOWN: &str = "unknown";
/// Envoy's buckets; they apply to bytes too.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Label names in Istio's order. The last two are there for requests only.
const NAMES: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "response_code",
    "grpc_response_status",
];
/// Labels that opaque connections have too.
const COMMON: usize = 23;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels(Vec<Str>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in NAMES.iter().zip(&self.0) {
            (*name, &**value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct EnvoyBuckets;

impl MetricConstructor<Histogram> for EnvoyBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS)
    }
}

type Histograms = Family<Labels, Histogram, EnvoyBuckets>;

/// Counters of the process; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    duration: Histograms,
    request_bytes: Histograms,
    response_bytes: Histograms,
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    refused: Family<Vec<(&'static str, &'static str)>, Counter>,
    retries: Family<Vec<(&'static str, &'static str)>, Counter>,
    mirrors: Family<Vec<(&'static str, &'static str)>, Counter>,
    ejections: Family<Vec<(&'static str, String)>, Counter>,
    overflows: Family<Vec<(&'static str, String)>, Counter>,
    observations: Family<Vec<(&'static str, String)>, Counter>,
    rate_limited: Family<Vec<(&'static str, String)>, Counter>,
    authorised: Family<Vec<(&'static str, String)>, Counter>,
    prefixed: Family<Vec<(&'static str, String)>, Counter>,
}

/// What became of a copy for a mirror.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mirrored {
    /// It was sent and answered.
    Sent,
    /// No endpoint answered.
    Failed,
    /// Too many were under way, there was nowhere to send it, or its body was too long to be kept.
    LeftOut,
}

/// What became of a wish to try again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Retried {
    /// Another try was made.
    Again,
    /// A retry gave the answer.
    Answered,
    /// No tries were left.
    Exhausted,
    /// The body was too long to be kept.
    BodyGone,
    /// Too many retries were under way.
    Overflow,
}

/// What an authoriser said.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Authorised {
    /// The request goes on.
    Allowed,
    /// The caller got the authoriser's answer.
    Refused,
    /// Nothing that could be used: the caller got 403.
    Failed,
}

/// One request at its end.
pub(crate) struct Request<'a> {
    pub(crate) caller: Option<&'a Attributed>,
    pub(crate) peer: Option<&'a Identity>,
    pub(crate) service: Option<&'a Arc<Service>>,
    pub(crate) workload: Option<&'a Arc<Workload>>,
    pub(crate) grpc: bool,
    pub(crate) grpc_status: Option<&'a str>,
    pub(crate) code: u16,
    pub(crate) flags: &'a Cow<'static, str>,
    pub(crate) duration: Duration,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
}

/// One opaque connection.
pub(crate) struct TcpConnection<'a> {
    pub(crate) caller: Option<&'a Attributed>,
    pub(crate) peer: Option<&'a Identity>,
    pub(crate) service: Option<&'a Service>,
    pub(crate) workload: Option<&'a Workload>,
}

/// Byte counters of one open connection.
pub(crate) struct TcpBytes {
    received: Counter,
    sent: Counter,
    told: std::cell::Cell<(u64, u64)>,
}

impl TcpBytes {
    /// Brings the counters up to these totals.
    pub(crate) fn advance(&self, received: u64, sent: u64) {
        let (had_received, had_sent) = self.told.replace((received, sent));
        self.received.inc_by(received.saturating_sub(had_received));
        self.sent.inc_by(sent.saturating_sub(had_sent));
    }
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let histogram = |name: &str, help: &str| {
            registry.register(name, help, Histograms::new_with_constructor(EnvoyBuckets))
        };
        let counter = |name: &str, help: &str| registry.register(name, help, Family::default());
        let plain = |name: &str, help: &str| registry.register(name, help, Family::default());
        Self {
            requests: counter("istio_requests", "Requests answered"),
            duration: histogram(
                "istio_request_duration_milliseconds",
                "Time from a request's head to the end of its response",
            ),
            request_bytes: histogram("istio_request_bytes", "Size of requests, heads included"),
            response_bytes: histogram("istio_response_bytes", "Size of responses, heads included"),
            opened: counter("istio_tcp_connections_opened", "Opaque connections opened"),
            closed: counter("istio_tcp_connections_closed", "Opaque connections closed"),
            received: counter("istio_tcp_received_bytes", "Bytes of callers to endpoints"),
            sent: counter("istio_tcp_sent_bytes", "Bytes of endpoints to callers"),
            refused: registry.register(
                "isobar_tunnels_refused",
                "Tunnels refused before anything was sent",
                Family::default(),
            ),
            retries: plain(
                "isobar_upstream_retries",
                "Retries of requests, by what became of them",
            ),
            mirrors: plain(
                "isobar_mirrored_requests",
                "Copies of requests for mirrors, by what became of them",
            ),
            ejections: registry.register(
                "isobar_outlier_ejections",
                "Endpoints left out for a while because they failed",
                Family::default(),
            ),
            observations: registry.register(
                "isobar_authorization_observations",
                "What audits and dry runs of AuthorizationPolicies said of requests and connections",
                Family::default(),
            ),
            prefixed: registry.register(
                "isobar_route_requests",
                "Requests by the statPrefix of the match that took them",
                Family::default(),
            ),
            rate_limited: registry.register(
                "isobar_rate_limited_requests",
                "Requests refused by a RateLimitPolicy",
                Family::default(),
            ),
            authorised: registry.register(
                "isobar_external_authorizations",
                "Requests shown to an authoriser of a route, by what it said",
                Family::default(),
            ),
            overflows: registry.register(
                "isobar_upstream_overflows",
                "Requests and connections refused at a limit of a DestinationRule",
                Family::default(),
            ),
        }
    }

    /// Counts a tunnel that was refused.
    pub fn refused(&self, reason: isobar_types::Reason) {
        let labels = vec![("reason", reason.as_str())];
        self.refused.get_or_create(&labels).inc();
    }

    pub(crate) fn retried(&self, what: Retried) {
        let outcome = match what {
            Retried::Again => "again",
            Retried::Answered => "answered",
            Retried::Exhausted => "exhausted",
            Retried::BodyGone => "body_gone",
            Retried::Overflow => "overflow",
        };
        self.retries
            .get_or_create(&vec![("outcome", outcome)])
            .inc();
    }

    pub(crate) fn mirrored(&self, what: Mirrored) {
        let outcome = match what {
            Mirrored::Sent => "sent",
            Mirrored::Failed => "failed",
            Mirrored::LeftOut => "left_out",
        };
        self.mirrors
            .get_or_create(&vec![("outcome", outcome)])
            .inc();
    }

    pub(crate) fn observed(&self, observed: &Observed) {
        let labels = vec![
            ("policy", observed.policy.to_string()),
            ("outcome", observed.outcome.as_str().to_owned()),
        ];
        self.observations.get_or_create(&labels).inc();
    }

    pub(crate) fn rate_limited(&self, policy: &NamespacedName, limit: &str) {
        let labels = vec![("policy", policy.to_string()), ("limit", limit.to_owned())];
        self.rate_limited.get_or_create(&labels).inc();
    }

    pub(crate) fn authorised(&self, authoriser: &Target, what: Authorised) {
        let outcome = match what {
            Authorised::Allowed => "allowed",
            Authorised::Refused => "refused",
            Authorised::Failed => "failed",
        };
        let service = authoriser.service.as_ref();
        let service = service.map_or_else(|| authoriser.host.to_string(), ToString::to_string);
        let labels = vec![("service", service), ("outcome", outcome.to_owned())];
        self.authorised.get_or_create(&labels).inc();
    }

    /// Counts a request for a match's `statPrefix`.
    pub(crate) fn counted(&self, prefix: &str, code: u16) {
        let labels = vec![
            ("stat_prefix", prefix.to_owned()),
            ("response_code", code.to_string()),
        ];
        self.prefixed.get_or_create(&labels).inc();
    }

    pub(crate) fn ejected(&self, service: &Service) {
        let labels = vec![("service", service.key.to_string())];
        self.ejections.get_or_create(&labels).inc();
    }

    pub(crate) fn overflowed(&self, service: &Service, limit: Load) {
        let limit = match limit {
            Load::Connection => "connections",
            Load::Pending => "pending",
            Load::Request => "requests",
            Load::Retry => "retries",
        };
        let labels = vec![
            ("service", service.key.to_string()),
            ("limit", limit.to_owned()),
        ];
        self.overflows.get_or_create(&labels).inc();
    }

    pub(crate) fn request(&self, request: &Request<'_>, recent: &Recent) {
        recent.with(self, request, |counters| {
            let millis = request.duration.as_secs_f64() * 1000.0;
            counters.requests.inc();
            counters.duration.observe(millis);
            let bytes = [request.request_bytes, request.response_bytes].map(approximate);
            counters.request_bytes.observe(bytes[0]);
            counters.response_bytes.observe(bytes[1]);
        });
    }

    fn counters(&self, request: &Request<'_>) -> Counters {
        let protocol = if request.grpc { "grpc" } else { "http" };
        let connection = TcpConnection {
            caller: request.caller,
            peer: request.peer,
            service: request.service.map(|s| &**s),
            workload: request.workload.map(|w| &**w),
        };
        let mut labels = labels(&connection, protocol, request.flags);
        labels.push(request.code.to_string().into());
        labels.push(request.grpc_status.unwrap_or("").into());
        let labels = Labels(labels);
        Counters {
            requests: self.requests.get_or_create(&labels).clone(),
            duration: self.duration.get_or_create(&labels).clone(),
            request_bytes: self.request_bytes.get_or_create(&labels).clone(),
            response_bytes: self.response_bytes.get_or_create(&labels).clone(),
        }
    }

    pub(crate) fn tcp_opened(&self, connection: &TcpConnection<'_>) -> TcpBytes {
        let labels = Labels(labels(connection, "tcp", "-"));
        self.opened.get_or_create(&labels).inc();
        TcpBytes {
            received: self.received.get_or_create(&labels).clone(),
            sent: self.sent.get_or_create(&labels).clone(),
            told: std::cell::Cell::default(),
        }
    }

    pub(crate) fn tcp_closed(&self, connection: &TcpConnection<'_>, flags: &str) {
        let labels = Labels(labels(connection, "tcp", flags));
        self.closed.get_or_create(&labels).inc();
    }
}

/// Histograms count in floating point; sizes beyond 2^53 lose nothing that matters.
#[expect(clippy::cast_precision_loss, reason = "a size for a histogram")]
const fn approximate(bytes: u64) -> f64 {
    bytes as f64
}

fn labels(c: &TcpConnection<'_>, protocol: &str, flags: &str) -> Vec<Str> {
    let known = |text: Option<&Str>| -> Str {
        text.filter(|t| !t.is_empty())
            .cloned()
            .unwrap_or_else(|| UNKNOWN.into())
    };
    let source = c.caller.and_then(|c| c.workload.as_deref());
    let identity = c.caller.map_or(c.peer, |c| {
        let caller: &Caller = &c.caller;
        caller.identity.as_ref()
    });
    let of = |w: Option<&Workload>, field: fn(&Workload) -> &Str| known(w.map(field));
    let to = c.workload;
    let revision = |w: Option<&Workload>| match w {
        Some(w) if w.canonical_revision.is_empty() => "latest".into(),
        other => of(other, |w| &w.canonical_revision),
    };
    let mut out: Vec<Str> = Vec::with_capacity(NAMES.len());
    out.push("waypoint".into());
    out.push(of(source, |w| &w.workload_name));
    out.push(of(source, |w| &w.canonical_name));
    out.push(revision(source));
    out.push(known(identity.map(|i| &i.namespace)));
    out.push(identity.map_or_else(|| UNKNOWN.into(), |i| i.to_string().into()));
    out.push(of(source, |w| &w.canonical_name));
    out.push(of(source, |w| &w.canonical_revision));
    out.push(of(source, |w| &w.cluster_id));
    out.push(of(to, |w| &w.workload_name));
    out.push(of(to, |w| &w.namespace));
    out.push(to.map_or_else(|| UNKNOWN.into(), |w| w.identity().to_string().into()));
    out.push(of(to, |w| &w.canonical_name));
    out.push(of(to, |w| &w.canonical_revision));
    out.push(known(c.service.map(|s| &s.key.hostname)));
    out.push(of(to, |w| &w.canonical_name));
    out.push(revision(to));
    out.push(known(c.service.map(|s| &s.name)));
    out.push(known(c.service.map(|s| &s.key.namespace)));
    out.push(of(to, |w| &w.cluster_id));
    out.push(protocol.into());
    out.push(flags.into());
    let mutual = identity.is_some() && to.is_some();
    out.push(if mutual {
        "mutual_tls".into()
    } else {
        UNKNOWN.into()
    });
    debug_assert_eq!(out.len(), COMMON);
    out
}

//! The metrics of the data path, with Istio's names and labels (as Istio's ztunnel does).

mod discovery;
mod series;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use isobar_state::Service;
use isobar_telemetry::Registry;
use isobar_telemetry::access::Direction;
use isobar_types::{Reason, Str};
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

pub use discovery::DiscoveryMetrics;
pub use series::Series;
use series::Traffic;
pub(crate) use series::{Idle, LOOK};

/// Ends that are known only from what peers told of themselves and that have series of their own, at once:
/// anybody with a certificate can tell something new with each connection.
const TOLD_ENDS: usize = 512;

/// What stands for a label that is not known.
const UNKNOWN: &str = "unknown";

/// Labels of one end of a connection; `None` is written as `unknown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EndLabels {
    /// Name of the owner.
    pub workload: Option<Str>,
    /// Canonical name.
    pub canonical_service: Option<Str>,
    /// Canonical revision.
    pub canonical_revision: Option<Str>,
    /// Namespace.
    pub namespace: Option<Str>,
    /// SPIFFE identity.
    pub principal: Option<Str>,
    /// Value of the label `app`.
    pub app: Option<Str>,
    /// Value of the label `version`.
    pub version: Option<Str>,
    /// Cluster id.
    pub cluster: Option<Str>,
    /// Region.
    pub region: Option<Str>,
    /// Zone.
    pub zone: Option<Str>,
}

/// Labels of the service a connection is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// Host name.
    pub host: Option<Str>,
    /// Namespace.
    pub namespace: Option<Str>,
    /// Name of the object.
    pub name: Option<Str>,
}

/// The common label set of the traffic metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    /// Which side tells.
    pub direction: Direction,
    /// Mutual TLS on the wire.
    pub mutual_tls: bool,
    /// Istio's flags of the ending; `-` for none and while it has not ended.
    pub flags: &'static str,
    /// Our reason of the ending, once it has ended.
    pub reason: Option<Reason>,
    /// The caller; shared between the samples of a connection.
    pub source: Arc<EndLabels>,
    /// The called workload.
    pub destination: Arc<EndLabels>,
    /// The called service.
    pub service: Arc<ServiceLabels>,
}

/// Traffic and life of pods.
#[derive(Debug, Clone)]
pub struct Metrics {
    traffic: Traffic,
    refused: Family<RefusedLabels, Counter>,
    dry_runs: Family<DryRunLabels, Counter>,
    revoked: Family<ReporterLabels, Counter>,
    ejections: Family<EjectionLabels, Counter>,
    told: Arc<Mutex<HashSet<EndLabels>>>,
    /// Pods served.
    pub active_pods: Gauge,
    /// Pods announced that could not be started yet.
    pub pending_pods: Gauge,
    /// Pods ever started.
    pub pods_started: Counter,
    /// Pods ever ended.
    pub pods_stopped: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ReporterLabels(Direction);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EjectionLabels {
    host: Str,
    namespace: Str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RefusedLabels {
    direction: Direction,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct DryRunLabels {
    policy: Str,
    reason: Reason,
}

fn ejections(registry: &Registry) -> Family<EjectionLabels, Counter> {
    registry.register(
        "isobar_endpoint_ejections",
        "Endpoints whose connections failed often enough to leave them out of a pod's calls",
        Family::default(),
    )
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            traffic: Traffic::new(registry),
            refused: registry.register(
                "isobar_connections_refused_early",
                "Connections refused before anything was known about their destination",
                Family::default(),
            ),
            dry_runs: registry.register(
                "isobar_dry_run_denials",
                "Connections let in that a policy in dry run or audit would have refused",
                Family::default(),
            ),
            revoked: registry.register(
                "istio_crl_policy_rejections",
                "Handshakes refused because the peer's certificate is revoked",
                Family::default(),
            ),
            ejections: ejections(registry),
            told: Arc::default(),
            active_pods: registry.register(
                "workload_manager_active_proxy_count",
                "The total number current workloads with active proxies (unstable)",
                Gauge::default(),
            ),
            pending_pods: registry.register(
                "workload_manager_pending_proxy_count",
                "The total number current workloads with pending proxies (unstable)",
                Gauge::default(),
            ),
            pods_started: registry.register(
                "workload_manager_proxies_started",
                "The total number of proxies that were started (unstable)",
                Counter::default(),
            ),
            pods_stopped: registry.register(
                "workload_manager_proxies_stopped",
                "The total number of proxies that were stopped (unstable)",
                Counter::default(),
            ),
        }
    }

    /// Labels of an end that only its peer's words describe, except for namespace and identity where a
    /// certificate proves them: those of the first 512 of them as told, of all others what is proven.
    #[must_use]
    pub fn told_end(&self, proven: EndLabels, told: EndLabels) -> EndLabels {
        let mut known = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&told) {
            return told;
        }
        if known.len() >= TOLD_ENDS {
            return proven;
        }
        known.insert(told.clone());
        told
    }

    /// Counts a connection refused before its way was known.
    pub fn refused_early(&self, direction: Direction, reason: Reason) {
        self.refused
            .get_or_create(&RefusedLabels { direction, reason })
            .inc();
    }
}

impl Metrics {
    /// Counts a handshake refused because the peer's certificate is revoked.
    pub fn revoked(&self, direction: Direction) {
        self.revoked.get_or_create(&ReporterLabels(direction)).inc();
    }

    /// Counts an endpoint that failed often enough to be left out; `result` says whether it is.
    pub fn ejection(&self, service: &Service, result: &'static str) {
        let labels = EjectionLabels {
            host: service.key.hostname.clone(),
            namespace: service.key.namespace.clone(),
            result,
        };
        self.ejections.get_or_create(&labels).inc();
    }

    /// Counts a connection that a policy which is not enforced would have refused; the policy by
    /// key, empty where no ALLOW would have let it in.
    pub fn dry_run_denial(&self, policy: &str, reason: Reason) {
        let policy = policy.into();
        self.dry_runs
            .get_or_create(&DryRunLabels { policy, reason })
            .inc();
    }
}

/// Istio's `response_flags` of an ending. An outbound connect that times out is how a NetworkPolicy
/// on port 15008 shows.
#[must_use]
pub const fn response_flags(reason: Reason, direction: Direction) -> &'static str {
    match reason {
        Reason::Complete | Reason::Drained | Reason::DownstreamReset | Reason::WorkloadRemoved => {
            "-"
        }
        Reason::PolicyDenied
        | Reason::PolicyWithdrawn
        | Reason::PlaintextRefused
        | Reason::WaypointBypassed => "DENY",
        Reason::UpstreamTls | Reason::DownstreamTls => "TLS_FAILURE",
        Reason::NoCertificate => "IDENTITY_ERROR",
        Reason::CertificateRevoked => "CERT_REVOKED",
        Reason::UpstreamConnectTimeout if matches!(direction, Direction::Outbound) => {
            "NETWORK_POLICY"
        }
        Reason::UpstreamProtocol => "H2_HANDSHAKE_FAILURE",
        _ => "CONNECT",
    }
}

fn put(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> Result<(), fmt::Error> {
    use prometheus_client::encoding::EncodeLabel;
    (name, value).encode(encoder.encode_label())
}

/// Which side tells, in Istio's words.
const fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "destination",
        Direction::Outbound => "source",
    }
}

impl EncodeLabelSet for ReporterLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        put(encoder, "reporter", reporter(self.0))
    }
}

impl EncodeLabelSet for EjectionLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        put(encoder, "destination_service", &self.host)?;
        put(encoder, "destination_service_namespace", &self.namespace)?;
        put(encoder, "result", self.result)
    }
}

impl EncodeLabelSet for RefusedLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        put(encoder, "direction", self.direction.as_str())?;
        put(encoder, "reason", self.reason.as_str())
    }
}

impl EncodeLabelSet for DryRunLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        put(encoder, "policy", &self.policy)?;
        put(encoder, "reason", self.reason.as_str())
    }
}

impl EncodeLabelSet for TrafficLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        put(encoder, "reporter", reporter(self.direction))?;
        self.source.encode("source", encoder)?;
        let known = |v: &Option<Str>| v.clone().unwrap_or_else(|| UNKNOWN.into());
        put(encoder, "destination_service", &known(&self.service.host))?;
        put(
            encoder,
            "destination_service_namespace",
            &known(&self.service.namespace),
        )?;
        put(
            encoder,
            "destination_service_name",
            &known(&self.service.name),
        )?;
        self.destination.encode("destination", encoder)?;
        put(encoder, "request_protocol", "tcp")?;
        put(encoder, "response_flags", self.flags)?;
        let security = if self.mutual_tls {
            "mutual_tls"
        } else {
            UNKNOWN
        };
        put(encoder, "connection_security_policy", security)?;
        self.source.encode_locality("source", encoder)?;
        self.destination.encode_locality("destination", encoder)?;
        match self.reason {
            Some(reason) => put(encoder, "reason", reason.as_str()),
            None => Ok(()),
        }
    }
}

impl EndLabels {
    fn encode(&self, side: &str, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in [
            ("workload", &self.workload),
            ("canonical_service", &self.canonical_service),
            ("canonical_revision", &self.canonical_revision),
            ("workload_namespace", &self.namespace),
            ("principal", &self.principal),
            ("app", &self.app),
            ("version", &self.version),
            ("cluster", &self.cluster),
        ] {
            let value = value.as_deref().unwrap_or(UNKNOWN);
            put(encoder, &format!("{side}_{name}"), value)?;
        }
        Ok(())
    }

    fn encode_locality(
        &self,
        side: &str,
        encoder: &mut LabelSetEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        for (name, value) in [("region", &self.region), ("zone", &self.zone)] {
            if let Some(value) = value {
                put(encoder, &format!("{side}_{name}"), value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_has_istios_labels_in_order() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let labels = TrafficLabels {
            direction: Direction::Outbound,
            mutual_tls: true,
            flags: "-",
            reason: None,
            source: Arc::new(EndLabels {
                workload: Some("front".into()),
                region: Some("r1".into()),
                ..EndLabels::default()
            }),
            destination: Arc::default(),
            service: Arc::default(),
        };
        let series = metrics.series(labels);
        series.opened();
        series.received.inc_by(7);
        let flags = response_flags(Reason::PolicyDenied, Direction::Outbound);
        series.closed(Reason::PolicyDenied, flags);
        for _ in 0..2 {
            series.opened();
            series.closed(Reason::Complete, "-");
        }
        let text = registry.encode();
        assert!(
            text.contains(
                "istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"front\",\
                 source_canonical_service=\"unknown\""
            ),
            "{text}"
        );
        assert!(text.contains(
            "request_protocol=\"tcp\",response_flags=\"-\",\
             connection_security_policy=\"mutual_tls\",source_region=\"r1\"} 7"
        ));
        assert!(text.contains("istio_tcp_sockets_open{reporter=\"source\"} 0"));
        assert!(text.contains("istio_tcp_connections_failed_total"));
        let complete = text
            .lines()
            .find(|line| line.contains("reason=\"complete\""));
        assert!(complete.is_some_and(|l| l.ends_with("} 2")), "{text}");
        assert!(text.contains("response_flags=\"DENY\""));
    }

    #[test]
    fn what_peers_tell_has_an_end() {
        let metrics = Metrics::new(&Registry::new());
        let end = |name: String| EndLabels {
            workload: Some(name.into()),
            ..EndLabels::default()
        };
        for number in 0..2000 {
            let got = metrics.told_end(EndLabels::default(), end(number.to_string()));
            assert_eq!(got.workload.is_some(), number < TOLD_ENDS, "{number}");
        }
        let again = metrics.told_end(EndLabels::default(), end("7".to_owned()));
        assert_eq!(again.workload.as_deref(), Some("7"));
    }
}

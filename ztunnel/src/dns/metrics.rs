//! What is counted of queries, and for how long it is shown.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hickory_proto::rr::RecordType;
use isobar_runtime::Lifetime;
use isobar_state::Snapshot;
use isobar_telemetry::Registry;
use isobar_types::Str;
use isobar_xds::Store;
use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::{Idle, LOOK};

/// DNS metrics, with Istio's names.
#[derive(Debug, Clone)]
pub(super) struct DnsMetrics {
    requests: Family<DnsLabels, Counter>,
    pub(super) forwarded: Family<DnsLabels, Counter>,
    pub(super) failures: Family<DnsLabels, Counter>,
    pub(super) duration: Family<DnsLabels, Histogram>,
    // Held to note a new series, or to forget some.
    shown: Arc<Mutex<HashMap<DnsLabels, Idle>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct DnsLabels {
    pub(super) kind: &'static str,
    pub(super) protocol: &'static str,
    pub(super) service: Str,
    pub(super) revision: Str,
}

/// The type as a label: a pod may ask for 65,536 of them.
pub(super) const fn kind_label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::ANY => "ANY",
        RecordType::CAA => "CAA",
        RecordType::CNAME => "CNAME",
        RecordType::HTTPS => "HTTPS",
        RecordType::MX => "MX",
        RecordType::NAPTR => "NAPTR",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::SVCB => "SVCB",
        RecordType::TXT => "TXT",
        _ => "other",
    }
}

impl DnsMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.register(
                "istio_dns_requests",
                "Total number of DNS requests (unstable)",
                Family::default(),
            ),
            forwarded: registry.register(
                "istio_dns_upstream_requests",
                "Total number of DNS requests forwarded to upstream (unstable)",
                Family::default(),
            ),
            failures: registry.register(
                "istio_dns_upstream_failures",
                "Total number of DNS requests forwarded to upstream (unstable)",
                Family::default(),
            ),
            duration: registry.register(
                "istio_dns_upstream_request_duration_seconds",
                "Total time in seconds Istio takes to get DNS response from upstream (unstable)",
                Family::new_with_constructor(|| {
                    Histogram::new([0.0005, 0.001, 0.01, 0.1, 1.0, 5.0])
                }),
            ),
            shown: Arc::default(),
        }
    }

    /// Counts a query.
    pub(super) fn asked(&self, labels: &DnsLabels) {
        if let Some(known) = self.requests.get(labels) {
            known.inc();
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.entry(labels.clone()).or_default();
        self.requests.get_or_create(labels).inc();
    }

    /// Forgets the series of services without a workload that have not asked in the last five minutes, now and
    /// then, until `life` is stopped.
    pub(super) async fn tidy(self, store: Store, life: Lifetime) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = life.stopped() => return,
                _ = look.tick() => self.forget_gone(&store.load(), Instant::now()),
            }
        }
    }

    fn forget_gone(&self, snapshot: &Snapshot, now: Instant) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        for (labels, idle) in shown.iter_mut() {
            let count = self.requests.get(labels).map_or(0, |known| known.get());
            if idle.is_due(count, false, now) {
                due.push(labels.clone());
            }
        }
        if due.is_empty() {
            return;
        }
        let mut away: HashSet<_> = due.iter().map(|labels| &*labels.service).collect();
        for workload in snapshot.workloads() {
            away.remove(&*workload.canonical_name);
        }
        for labels in due.iter().filter(|labels| away.contains(&*labels.service)) {
            shown.remove(labels);
            self.requests.remove(labels);
            self.forwarded.remove(labels);
            self.failures.remove(labels);
            self.duration.remove(labels);
        }
    }
}

impl EncodeLabelSet for DnsLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in [
            ("request_query_type", self.kind),
            ("request_protocol", self.protocol),
            ("source_canonical_service", &*self.service),
            ("source_canonical_revision", &*self.revision),
        ] {
            (name, value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_a_handful_of_labels() {
        let labels: std::collections::BTreeSet<_> = (0..=u16::MAX)
            .map(|n| kind_label(RecordType::from(n)))
            .collect();
        assert_eq!(labels.len(), 15);
        assert_eq!(kind_label(RecordType::AAAA), "AAAA");
    }

    #[test]
    fn series_of_services_that_are_gone_are_forgotten() {
        let registry = Registry::new();
        let metrics = DnsMetrics::new(&registry);
        let labels = |service: &str| DnsLabels {
            kind: "A",
            protocol: "udp",
            service: service.into(),
            revision: "".into(),
        };
        for service in ["job", "cart"] {
            metrics.asked(&labels(service));
            let duration = &metrics.duration;
            duration.get_or_create(&labels(service)).observe(0.1);
        }
        let workload = isobar_proto::istio::workload::Workload {
            uid: "cart".to_owned(),
            canonical_name: "cart".to_owned(),
            ..Default::default()
        };
        let address = isobar_proto::istio::workload::Address {
            r#type: Some(isobar_proto::istio::workload::address::Type::Workload(
                workload,
            )),
        };
        let mut draft = Snapshot::default().draft();
        draft.upsert_address(&address).unwrap();
        let mesh = draft.finish();
        let start = Instant::now();
        let shows = |service: &str| registry.encode().contains(&format!("\"{service}\""));
        for minute in 0..=6 {
            assert!(shows("job") && shows("cart"), "{minute}");
            metrics.forget_gone(&mesh, start + minute * LOOK);
        }
        assert!(!shows("job") && shows("cart"));
        metrics.asked(&labels("job"));
        assert!(shows("job"), "it begins anew");
    }
}

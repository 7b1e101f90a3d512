use std::sync::Arc;

use isobar_telemetry::Registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

type Labels = Vec<(&'static str, &'static str)>;

/// What the control plane counts, under Istio's names where there is one.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    certificates: Family<Labels, Counter>,
    plans: Counter,
    patches: Counter,
    serialised: Family<Labels, Counter>,
    plan_micros: Gauge,
    resources: Family<Labels, Gauge>,
    pushes: Family<Labels, Counter>,
    rejects: Family<Labels, Counter>,
    validations: Family<Labels, Counter>,
    clients: Arc<Gauge>,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new(registry: &Registry) -> Self {
        let clients = registry.register("pilot_xds", "Connected clients", Gauge::default());
        Self {
            certificates: registry.register(
                "citadel_server_csr_count",
                "Certificate requests, by result",
                Family::default(),
            ),
            plans: registry.register(
                "isobar_plans",
                "Plans made from objects",
                Counter::default(),
            ),
            patches: registry.register(
                "isobar_plans_patched",
                "Plans of which only changed pods were made anew",
                Counter::default(),
            ),
            serialised: registry.register(
                "isobar_xds_serialisations",
                "Resources serialised, by type; once for all clients",
                Family::default(),
            ),
            plan_micros: registry.register(
                "isobar_plan_duration_microseconds",
                "Duration of the last plan",
                Gauge::default(),
            ),
            resources: registry.register(
                "isobar_resources",
                "Resources served, by type",
                Family::default(),
            ),
            pushes: registry.register(
                "pilot_xds_pushes",
                "Responses sent, by type",
                Family::default(),
            ),
            rejects: registry.register(
                "pilot_total_xds_rejects",
                "Responses refused by clients, by type",
                Family::default(),
            ),
            validations: registry.register(
                "isobar_validations",
                "Objects judged for the API server, by result",
                Family::default(),
            ),
            clients: Arc::new(clients),
        }
    }

    /// A certificate was issued or refused.
    pub(crate) fn certificate(&self, issued: bool) {
        let result = if issued { "issued" } else { "refused" };
        self.certificates
            .get_or_create(&vec![("result", result)])
            .inc();
    }

    /// A plan took so long; `is_patch` if only changed pods were planned.
    pub(crate) fn planned(&self, took: std::time::Duration, is_patch: bool) {
        self.plans.inc();
        if is_patch {
            self.patches.inc();
        }
        self.plan_micros
            .set(i64::try_from(took.as_micros()).unwrap_or(i64::MAX));
    }

    /// A resource was serialised.
    pub(crate) fn serialised(&self, kind: &'static str) {
        self.serialised.get_or_create(&vec![("type", kind)]).inc();
    }

    /// Resources serialised so far.
    #[cfg(test)]
    pub(crate) fn serialisations(&self, kind: &'static str) -> u64 {
        let labels = vec![("type", kind)];
        self.serialised.get_or_create(&labels).get()
    }

    /// Plans so far of which only changed pods were made.
    #[cfg(test)]
    pub(crate) fn patches(&self) -> u64 {
        self.patches.get()
    }

    /// So many resources of a type are served.
    pub(crate) fn resources(&self, kind: &'static str, count: usize) {
        self.resources
            .get_or_create(&vec![("type", kind)])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A response was sent.
    pub(crate) fn pushed(&self, kind: &'static str) {
        self.pushes.get_or_create(&vec![("type", kind)]).inc();
    }

    /// A client refused something.
    pub(crate) fn rejected(&self, kind: &'static str) {
        self.rejects.get_or_create(&vec![("type", kind)]).inc();
    }

    /// An object was let in or refused.
    pub(crate) fn validated(&self, allowed: bool) {
        let result = if allowed { "allowed" } else { "refused" };
        self.validations
            .get_or_create(&vec![("result", result)])
            .inc();
    }

    /// A client came or went.
    pub(crate) fn clients(&self, change: i64) {
        self.clients.inc_by(change);
    }
}

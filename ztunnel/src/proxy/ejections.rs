//! Endpoints left out because connections to them failed, as one pod sees them: what one pod cannot
//! reach says nothing about others.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use isobar_state::{
    Ejected, Ejections, Failure, OutlierRule, Outliers, Place, Service, Snapshot, Workload,
};
use isobar_types::NamespacedHostname;
use serde_json::{Value, json};

use crate::metrics::Metrics;

/// The endpoints that a pod's calls leave out, on all workers.
#[derive(Debug, Default)]
pub struct PodEjections {
    // Held for one look or one change; taken only for services with a rule.
    outliers: Mutex<Outliers>,
}

impl Ejections for PodEjections {
    fn ejected(&self, service: &NamespacedHostname) -> Vec<Place> {
        self.with(|outliers| outliers.of(service, Instant::now()))
    }
}

impl PodEjections {
    /// A connection to `endpoint` of `service` was made.
    pub(super) fn succeeded(&self, service: &Service, endpoint: &Workload, rule: &OutlierRule) {
        self.with(|outliers| outliers.succeeded(&service.key, endpoint, rule, Instant::now()));
    }

    /// A connection to `endpoint` of `service` could not be made, which is no fault of the caller.
    pub(super) fn failed(
        &self,
        snapshot: &Snapshot,
        service: &Service,
        endpoint: &Workload,
        rule: &OutlierRule,
        metrics: &Metrics,
    ) {
        let all = snapshot.endpoint_count(service);
        let now = Instant::now();
        let led_to = self.with(|outliers| outliers.failed(&service.key, endpoint, rule, all, now));
        let name = endpoint.display_name();
        match led_to {
            Failure::Counted => {}
            Failure::Ejected(time) => {
                metrics.ejection(service, "ejected");
                tracing::warn!(
                    service = %service.key, endpoint = %name, seconds = time.as_secs_f64(),
                    "endpoint is left out: connections to it failed {} times in a row", rule.failures
                );
            }
            Failure::Spared => {
                metrics.ejection(service, "spared");
                tracing::debug!(
                    service = %service.key, endpoint = %name,
                    "failing endpoint stays: as many are left out as maxEjectionPercent allows"
                );
            }
        }
    }

    /// What is left out now, for dumps.
    #[must_use]
    pub fn views(&self) -> Vec<Value> {
        let now = Instant::now();
        let mut all = self.with(|outliers| outliers.all(now));
        all.sort_unstable_by(|a, b| (&a.service, &a.place.uid).cmp(&(&b.service, &b.place.uid)));
        all.iter().map(|one| view(one, now)).collect()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Outliers) -> T) -> T {
        act(&mut self.outliers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn view(one: &Ejected, now: Instant) -> Value {
    let left = one.until.saturating_duration_since(now);
    json!({
        "service": one.service.to_string(),
        "endpoint": &*one.place.uid,
        "address": one.place.address,
        "secondsLeft": left.as_secs(),
        "times": one.times,
    })
}

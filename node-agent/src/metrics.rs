//! Counters of the agent.

use std::sync::Arc;

use isobar_telemetry::Registry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::board::Board;
use crate::zds::Zds;

type Labels = Vec<(&'static str, &'static str)>;

/// What the agent counts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    steps: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    repairs: Counter,
    reinstalls: Counter,
}

impl Metrics {
    /// Registers everything; the board and the proxies are counted at scrape time.
    #[must_use]
    pub fn register(registry: &Registry, board: Arc<Board>, zds: Zds) -> Self {
        registry.collector(Box::new(Observed { board, zds }));
        Self {
            steps: registry.register(
                "isobar_cni_steps",
                "Steps of enrolling and leaving that succeeded",
                Family::default(),
            ),
            failures: registry.register(
                "isobar_cni_failures",
                "Steps of enrolling and leaving that failed",
                Family::default(),
            ),
            repairs: registry.register(
                "isobar_cni_repairs",
                "Times the rules of an enrolled pod were not as planned and were written again",
                Counter::default(),
            ),
            reinstalls: registry.register(
                "isobar_cni_reinstalls",
                "Times somebody changed the CNI plugin's program or configuration and it was written again",
                Counter::default(),
            ),
        }
    }

    /// A step succeeded.
    pub fn step(&self, step: &'static str) {
        self.steps.get_or_create(&vec![("step", step)]).inc();
    }

    /// A step failed.
    pub fn failure(&self, step: &'static str) {
        self.failures.get_or_create(&vec![("step", step)]).inc();
    }

    /// A file of the CNI plugin had to be written again.
    pub fn reinstalled(&self) {
        self.reinstalls.inc();
    }

    /// Rules of an enrolled pod had to be written again.
    pub fn repair(&self) {
        self.repairs.inc();
    }
}

#[derive(Debug)]
struct Observed {
    board: Arc<Board>,
    zds: Zds,
}

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let pods = ConstGauge::new(0i64);
        let mut family = encoder.encode_descriptor(
            "isobar_cni_pods",
            "Pods of the node by where they stand",
            None,
            EncodeMetric::metric_type(&pods),
        )?;
        for (standing, count) in self.board.counts() {
            let labels = [("standing", standing.as_str())];
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&labels)?)?;
        }
        let proxies = i64::try_from(self.zds.proxies().len()).unwrap_or(i64::MAX);
        let proxies = ConstGauge::new(proxies);
        proxies.encode(encoder.encode_descriptor(
            "isobar_cni_node_proxies",
            "Connected node proxies",
            None,
            EncodeMetric::metric_type(&proxies),
        )?)
    }
}

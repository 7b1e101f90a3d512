use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::{Handle, RuntimeMetrics};

/// Samples the data-path runtimes at scrape time, with Istio's names: one runtime of one thread is
/// one worker.
#[derive(Debug)]
pub struct Runtimes(Vec<RuntimeMetrics>);

impl Runtimes {
    /// Of these runtimes.
    #[must_use]
    pub fn new(handles: &[Handle]) -> Self {
        Self(handles.iter().map(Handle::metrics).collect())
    }

    fn gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&RuntimeMetrics) -> usize,
    ) -> Result<(), fmt::Error> {
        let sum: usize = self.0.iter().map(value).sum();
        let gauge = ConstGauge::new(i64::try_from(sum).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }
}

impl Collector for Runtimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        self.gauge(encoder, "tokio_num_workers", "Worker threads", |m| {
            m.num_workers()
        })?;
        self.gauge(
            encoder,
            "tokio_global_queue_depth",
            "Tasks waiting in the injection queues",
            RuntimeMetrics::global_queue_depth,
        )?;
        self.gauge(
            encoder,
            "tokio_num_alive_tasks",
            "Tasks alive",
            RuntimeMetrics::num_alive_tasks,
        )?;
        let mut family = encoder.encode_descriptor(
            "tokio_worker_total_busy_duration_seconds",
            "Time a worker was busy",
            None,
            MetricType::Counter,
        )?;
        for (worker, metrics) in self.0.iter().enumerate() {
            let labels = [("worker", worker)];
            let busy = metrics.worker_total_busy_duration(0).as_secs_f64();
            ConstCounter::new(busy).encode(family.encode_family(&labels)?)?;
        }
        type Count = fn(&RuntimeMetrics, usize) -> u64;
        let counts: [(&str, &str, Count); 2] = [
            (
                "tokio_worker_park_count",
                "Times a worker had nothing to do",
                RuntimeMetrics::worker_park_count,
            ),
            (
                "tokio_worker_park_unpark_count",
                "Times a worker went to sleep or woke up",
                RuntimeMetrics::worker_park_unpark_count,
            ),
        ];
        for (name, help, count) in counts {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (worker, metrics) in self.0.iter().enumerate() {
                let labels = [("worker", worker)];
                let value = count(metrics, 0);
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

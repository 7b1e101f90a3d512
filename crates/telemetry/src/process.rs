use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Samples `process_open_fds` and `process_max_fds` from `/proc/self` at scrape time, and panics.
#[derive(Debug)]
pub(crate) struct Descriptors;

impl Collector for Descriptors {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let samples = [
            (
                "process_open_fds",
                "Number of open file descriptors",
                open(),
            ),
            (
                "process_max_fds",
                "Maximum number of open file descriptors",
                allowed(),
            ),
        ];
        for (name, help, value) in samples {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let panics = ConstCounter::new(isobar_runtime::panics());
        panics.encode(encoder.encode_descriptor(
            "isobar_task_panics",
            "Number of tasks that panicked, each without taking others along",
            None,
            panics.metric_type(),
        )?)
    }
}

fn open() -> Option<i64> {
    // One entry is the directory handle that counts.
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
    i64::try_from(entries.saturating_sub(1)).ok()
}

fn allowed() -> Option<i64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|l| l.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

use std::fmt;

use isobar_xds::{SyncReport, SyncStatus, TypeReport};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Discovery as of the scrape, with Istio's names where it has them.
#[derive(Debug)]
pub struct DiscoveryMetrics(pub SyncStatus);

impl Collector for DiscoveryMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let report = self.0.report();
        per_type(
            &mut encoder,
            &report,
            "istio_xds_message",
            "Total number of messages received (unstable)",
            |t| t.messages,
        )?;
        per_type(
            &mut encoder,
            &report,
            "istio_xds_message_bytes",
            "Total number of bytes received (unstable)",
            |t| t.bytes,
        )?;
        let connected = ConstGauge::new(i64::from(report.connected));
        connected.encode(encoder.encode_descriptor(
            "isobar_xds_connected",
            "Whether a discovery stream is open",
            None,
            MetricType::Gauge,
        )?)
    }
}

fn per_type(
    encoder: &mut DescriptorEncoder<'_>,
    report: &SyncReport,
    name: &str,
    help: &str,
    value: impl Fn(&TypeReport) -> u64,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for kind in &report.types {
        let labels = [("url", kind.type_url)];
        ConstCounter::new(value(kind)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

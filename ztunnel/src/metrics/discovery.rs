use std::fmt;

use isobar_xds::{SyncReport, SyncStatus, Termination, TypeReport};
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
        let mut family = encoder.encode_descriptor(
            "istio_xds_connection_terminations",
            "The total number of completed connections to xds server (unstable)",
            None,
            MetricType::Counter,
        )?;
        for reason in Termination::ALL {
            let labels = [("reason", reason.as_str())];
            let count = report.terminations.get(&reason).copied().unwrap_or(0);
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use isobar_telemetry::Registry;
    use isobar_xds::{AdsClient, AdsConfig, Roots, Store};

    #[test]
    fn check_49_discoverys_series_are_there_from_the_start() {
        let config = AdsConfig {
            address: "https://localhost:1".into(),
            roots: Roots::Pem(String::new()),
            alt_hostname: None,
            token: None,
            cluster_id: String::new(),
            headers: Vec::new(),
            node_id: String::new(),
            metadata: serde_json::Map::new(),
        };
        let client = AdsClient::new(config, Store::default(), Vec::new());
        let registry = Registry::new();
        registry.collector(Box::new(DiscoveryMetrics(client.status())));
        let text = registry.encode();
        for series in [
            "istio_xds_message_total{url=\"type.googleapis.com/istio.workload.Address\"} 0",
            "istio_xds_message_bytes_total{url=\"type.googleapis.com/istio.security.Authorization\"} 0",
            "istio_xds_connection_terminations_total{reason=\"ConnectionError\"} 0",
            "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 0",
        ] {
            assert!(text.contains(series), "{series}: {text}");
        }
    }
}

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Metric;

/// Content type of what [`Registry::encode`] returns, for a client that asks for OpenMetrics.
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";

/// The metrics of a process. Cheap to clone; registering is for start-up, encoding for scrapes.
#[derive(Clone, Default)]
pub struct Registry {
    // Held while registering one metric or encoding one scrape: scrapes have threads of their own.
    inner: Arc<Mutex<prometheus_client::registry::Registry>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// An empty registry that also tells the process's open and allowed descriptors.
    #[must_use]
    pub fn new() -> Self {
        let registry = Self::default();
        registry.collector(Box::new(crate::process::Descriptors));
        registry
    }

    /// Registers `metric` (clone it before: metrics share their state between clones) and returns
    /// it. Counters get the suffix `_total` when encoded, so leave it out of `name`.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.register(name, help, metric.clone());
        metric
    }

    /// Registers something that makes its samples at scrape time.
    pub fn collector(&self, collector: Box<dyn Collector>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.register_collector(collector);
    }

    /// Registers the gauge `istio_build{component, tag} 1`.
    pub fn build_info(&self, component: &'static str, version: &'static str) {
        use prometheus_client::metrics::{family::Family, gauge::Gauge};
        let family = self.register(
            "istio_build",
            "Istio component build info",
            Family::<Vec<(&'static str, &'static str)>, Gauge>::default(),
        );
        family
            .get_or_create(&vec![("component", component), ("tag", version)])
            .set(1);
    }

    /// All samples as OpenMetrics text, ending in `# EOF`. Families without samples are left out.
    #[must_use]
    pub fn encode(&self) -> String {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        // Writing to a string cannot fail; a metric that fails to encode ends the page early.
        if encode(&mut text, &inner).is_err() {
            tracing::error!("a metric failed to encode");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::{counter::Counter, family::Family};

    #[test]
    fn encodes_openmetrics_with_istios_names() {
        let registry = Registry::new();
        let opened = registry.register(
            "istio_tcp_connections_opened",
            "Opened",
            Family::<Vec<(&str, &str)>, Counter>::default(),
        );
        registry.build_info("ztunnel", "0.1");
        assert!(!registry.encode().contains("istio_tcp_connections_opened"));
        opened.get_or_create(&vec![("reporter", "source")]).inc();
        let text = registry.encode();
        assert!(text.contains("istio_tcp_connections_opened_total{reporter=\"source\"} 1"));
        assert!(text.contains("istio_build{component=\"ztunnel\",tag=\"0.1\"} 1"));
        assert!(text.contains("process_open_fds "), "{text}");
        assert!(text.contains("process_max_fds "));
        assert!(text.ends_with("# EOF\n"));
    }
}

//! What the parts of a mesh in a cluster say of themselves, through the API server.

use std::time::Duration;

use anyhow::Context as _;
use isobar_kubernetes::Cluster;
use isobar_objects::{ObjectHead as _, ObjectSet};
use isobar_types::{labels, ports};

use super::Progress;
use super::archive::Report;
use crate::arguments::Global;
use crate::mesh_access::REPLICAS;
use crate::port_forward::admin_page;

/// The parts: folder of the report, label of their pods, port of their metrics.
const PARTS: [(&str, &str, u16); 2] = [
    ("ztunnel", "app=ztunnel", ports::METRICS),
    ("isobar-cni", "app=isobar-cni", 0),
];

/// Whom is asked, and how.
pub(super) struct Asked<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) namespace: &'a str,
    pub(super) global: &'a Global,
    pub(super) lines: u32,
    pub(super) limit: Duration,
}

pub(super) async fn collect(
    asked: &Asked<'_>,
    objects: Option<&ObjectSet>,
    report: &mut Report,
    progress: &Progress,
) -> anyhow::Result<()> {
    let (cluster, namespace) = (asked.cluster, asked.namespace);
    progress.tell("control plane")?;
    for pod in asked.pods(namespace, REPLICAS, report).await {
        for page in super::CONTROL_PLANE_PAGES {
            let port = ports::CONTROL_PLANE_MONITORING;
            let text = asked
                .within(cluster.page(namespace, &pod, port, page))
                .await;
            report.page(format!("control-plane/{pod}{}", super::file_of(page)), text);
        }
        asked.log(namespace, &pod, report).await;
    }
    for (part, label, port) in PARTS {
        progress.tell(part)?;
        for pod in asked.pods(namespace, label, report).await {
            asked.proxy(part, (namespace, &pod), port, report).await;
        }
    }
    let waypoints = objects.into_iter().flat_map(|set| set.pods.iter());
    for pod in waypoints.filter(|pod| pod.label(labels::GATEWAY_NAME).is_some()) {
        let place = (pod.namespace(), pod.name());
        progress.tell(&format!("waypoint {}/{}", place.0, place.1))?;
        asked.proxy("waypoint", place, ports::METRICS, report).await;
    }
    Ok(())
}

impl Asked<'_> {
    async fn within<T, E: Into<anyhow::Error>>(
        &self,
        asking: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        let limit = self.limit;
        let answer = tokio::time::timeout(limit, asking).await;
        let answer = answer.with_context(|| format!("no answer within {limit:?}"))?;
        answer.map_err(Into::into)
    }

    async fn pods(&self, namespace: &str, label: &str, report: &mut Report) -> Vec<String> {
        let listed = self
            .within(self.cluster.running_pods(namespace, label))
            .await;
        let missing = match listed {
            Ok(pods) if pods.is_empty() => anyhow::anyhow!("none runs in namespace {namespace}"),
            Ok(pods) => return pods,
            Err(error) => error,
        };
        report.missing(&format!("pods with label {label}"), &missing);
        Vec::new()
    }

    async fn log(&self, namespace: &str, pod: &str, report: &mut Report) {
        let log = self
            .within(self.cluster.log(namespace, pod, self.lines))
            .await;
        report.page(format!("logs/{namespace}/{pod}.log"), log);
    }

    /// Metrics through the API server; the dump, which is for the pod's own loopback, through a
    /// forwarded port; and the log.
    async fn proxy(
        &self,
        part: &str,
        (namespace, pod): (&str, &str),
        port: u16,
        report: &mut Report,
    ) {
        if port != 0 {
            let page = self.cluster.page(namespace, pod, port, "/metrics");
            let metrics = self.within(page).await;
            report.page(format!("{part}/{pod}/metrics.txt"), metrics);
            let dump = admin_page(self.global, namespace, pod, "/config_dump");
            let dump = self.within(dump).await;
            report.page(format!("{part}/{pod}/config_dump.json"), dump);
        }
        self.log(namespace, pod, report).await;
    }
}

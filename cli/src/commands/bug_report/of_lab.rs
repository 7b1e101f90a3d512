//! What a lab's processes say of themselves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use isobar_lab::{Lab, LabStatus, Target};
use isobar_types::ports;

use super::Progress;
use super::archive::Report;
use crate::lab_access::{ADMIN, CONTROL_PLANE, text_page};

const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ports::METRICS);

pub(super) async fn collect(
    lab: &Lab,
    (lines, limit): (u32, Duration),
    report: &mut Report,
    progress: &Progress,
) -> anyhow::Result<()> {
    let status = lab.status().await?;
    report.value("lab.json", serde_json::to_value(&status)?);
    let ask = async |from: Target, to: SocketAddr, path: &str| {
        let asked = tokio::time::timeout(limit, text_page(lab, from, to, path)).await;
        asked.with_context(|| format!("no answer within {limit:?}"))?
    };
    progress.tell("control plane")?;
    for page in super::CONTROL_PLANE_PAGES {
        let path = format!("control-plane/isobard{}", super::file_of(page));
        report.page(path, ask(Target::Outer, CONTROL_PLANE, page).await);
    }
    for node in &status.nodes {
        progress.tell(&format!("ztunnel of {}", node.name))?;
        let from = || Target::node(node.name.clone());
        let folder = format!("ztunnel/{}", node.name);
        let dump = ask(from(), ADMIN, "/config_dump").await;
        report.page(format!("{folder}/config_dump.json"), dump);
        let mut metrics = ask(from(), METRICS, "/metrics").await;
        if metrics.is_err() {
            let own = SocketAddr::new(node.address, ports::METRICS);
            metrics = ask(from(), own, "/metrics").await;
        }
        report.page(format!("{folder}/metrics.txt"), metrics);
    }
    for (name, pod) in waypoints(&status) {
        progress.tell(&format!("waypoint {name}"))?;
        let dump = ask(Target::pod(name.clone()), ADMIN, "/config_dump").await;
        report.page(format!("waypoint/{name}/config_dump.json"), dump);
        let at = pod.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let metrics = (at, ports::METRICS).into();
        let metrics = ask(Target::pod(name.clone()), metrics, "/metrics").await;
        report.page(format!("waypoint/{name}/metrics.txt"), metrics);
    }
    progress.tell("logs")?;
    let components = status.components.iter().map(|one| one.name.clone());
    let of_waypoints = waypoints(&status).into_iter().map(|(name, _)| name);
    for name in components.chain(of_waypoints) {
        let text = log(lab, &name, lines).await;
        report.page(format!("logs/{name}.log"), text);
    }
    Ok(())
}

/// Names and addresses of the pods of waypoints.
fn waypoints(status: &LabStatus) -> Vec<(String, Option<IpAddr>)> {
    let pods = status.pods.iter().filter(|pod| {
        let mut images = pod.images.iter();
        images.any(|image| image.contains("isobar/waypoint"))
    });
    pods.map(|pod| (format!("{}/{}", pod.namespace, pod.name), pod.ip))
        .collect()
}

async fn log(lab: &Lab, name: &str, lines: u32) -> anyhow::Result<String> {
    let path = lab.log_path(name).await?;
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(super::end_of(&String::from_utf8_lossy(&bytes), lines))
}

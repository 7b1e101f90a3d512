//! `isobar dashboard`.

use std::process::ExitCode;

use anyhow::bail;
use isobar_types::{labels, ports};
use tokio::signal::unix::{SignalKind, signal};

use super::forward;
use super::proxy_config::{node_of, waypoint_pod};
use crate::arguments::{Dashboard, Global, Grafana};
use crate::lab_access::chosen_mesh;
use crate::mesh_access::{Mesh, REPLICAS};
use crate::output::print;
use crate::port_forward::Forwarded;

const TRAFFIC: &str = include_str!("../../../manifests/dashboards/traffic.json");
const OPERATION: &str = include_str!("../../../manifests/dashboards/operation.json");

pub(crate) async fn run(what: Dashboard, global: &Global) -> anyhow::Result<ExitCode> {
    if let Dashboard::Grafana { which } = what {
        print(match which {
            Grafana::Traffic => TRAFFIC,
            Grafana::Operation => OPERATION,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if global.means_cluster() {
        in_cluster(what, global).await?;
    } else {
        in_lab(what, global).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn in_lab(what: Dashboard, global: &Global) -> anyhow::Result<()> {
    let (lab, status) = chosen_mesh(global.lab.as_deref()).await?;
    let (target, ports) = match what {
        Dashboard::ControlPlane { port } => {
            ("outer".to_owned(), (port, ports::CONTROL_PLANE_MONITORING))
        }
        Dashboard::Ztunnel { node, port } => {
            let node = node_of(&status, &node, None)?;
            (format!("node:{node}"), (port, ports::ADMIN))
        }
        Dashboard::Waypoint {
            name,
            namespace,
            port,
        } => {
            let pod = waypoint_pod(&status, &format!("{namespace}/{name}"))?;
            (pod, (port, ports::ADMIN))
        }
        Dashboard::Grafana { .. } => return Ok(()),
    };
    forward::run(lab, &target, ports, None).await
}

async fn in_cluster(what: Dashboard, global: &Global) -> anyhow::Result<()> {
    let Mesh::Cluster {
        cluster,
        namespace: mesh,
        ..
    } = Mesh::chosen(global).await?
    else {
        bail!("no cluster is meant");
    };
    let (namespace, pods, ports) = match what {
        Dashboard::ControlPlane { port } => {
            let pods = cluster.running_pods(&mesh, REPLICAS).await?;
            (mesh, pods, (port, ports::CONTROL_PLANE_MONITORING))
        }
        Dashboard::Ztunnel { node, port } => {
            let of = cluster.running_pods_on(&mesh, "app=ztunnel", &node).await?;
            (mesh, of, (port, ports::ADMIN))
        }
        Dashboard::Waypoint {
            name,
            namespace,
            port,
        } => {
            let label = format!("{}={name}", labels::GATEWAY_NAME);
            let pods = cluster.running_pods(&namespace, &label).await?;
            (namespace, pods, (port, ports::ADMIN))
        }
        Dashboard::Grafana { .. } => return Ok(()),
    };
    let Some(pod) = pods.first() else {
        bail!("no such pod runs in namespace {namespace}");
    };
    let mut forwarded = Forwarded::start(global, &namespace, pod, ports).await?;
    // Before anybody is told to press it: one pressed while the listener is made would be lost.
    let mut interrupt = signal(SignalKind::interrupt())?;
    print(&format!(
        "forwarding http://{} to pod {namespace}/{pod} port {}; Ctrl-C ends it\n",
        forwarded.address, ports.1
    ))?;
    tokio::select! {
        ended = forwarded.ended() => ended,
        _ = interrupt.recv() => Ok(()),
    }
}

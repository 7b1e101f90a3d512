//! `isobar lab forward`: connections from this machine into the lab.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use isobar_lab::{Lab, LabStatus, Target};
use isobar_runtime::Scope;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::lab_access::qualified;
use crate::output::print;

const DIAL: Duration = Duration::from_secs(10);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where connections are opened from, and to which addresses, the first that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    from: Target,
    to: Vec<SocketAddr>,
}

pub(crate) async fn run(
    lab: Lab,
    target: &str,
    (local, remote): (u16, u16),
    namespace: Option<&str>,
) -> anyhow::Result<()> {
    let way = way(&lab.status().await?, target, namespace, remote)?;
    // Says now, not at the first connection, that there is no such place.
    drop(lab.netns(way.from.clone()).await?);
    let listener = TcpListener::bind((LOOPBACK, local))
        .await
        .with_context(|| format!("listening on 127.0.0.1:{local}"))?;
    // Before anybody is told to press it, and once: one pressed between two listeners is heard by neither.
    let mut interrupt = signal(SignalKind::interrupt())?;
    print(&format!(
        "forwarding http://{} to {target} port {remote}; Ctrl-C ends it\n",
        listener.local_addr()?
    ))?;
    let scope = Scope::new("forward");
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = interrupt.recv() => break,
        };
        let (lab, way) = (lab.clone(), way.clone());
        scope.spawn("connection", async move {
            if let Err(error) = carry(&lab, way, stream).await {
                anstream::eprintln!("warning: {error:#}");
            }
        });
    }
    scope.shutdown(Duration::ZERO).await;
    Ok(())
}

async fn carry(lab: &Lab, way: Way, mut here: TcpStream) -> anyhow::Result<()> {
    let mut failure = None;
    for to in way.to {
        match lab.dial(way.from.clone(), to, DIAL).await {
            Ok(there) => {
                there.set_nonblocking(true)?;
                let mut there = TcpStream::from_std(there)?;
                // How a connection ends is the business of its two ends.
                let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                return Ok(());
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

fn way(
    status: &LabStatus,
    target: &str,
    namespace: Option<&str>,
    port: u16,
) -> anyhow::Result<Way> {
    let service = target
        .strip_prefix("svc/")
        .or_else(|| target.strip_prefix("service/"));
    if let Some(name) = service {
        return to_service(status, &qualified(namespace, name), port);
    }
    let from: Target = qualified(namespace, target)
        .parse()
        .unwrap_or_else(|never| match never {});
    let to = match &from {
        Target::Outer => vec![SocketAddr::from(([172, 30, 0, 1], port))],
        Target::Node(name) => {
            // Its own programs on the loopback, Services' node ports at its address.
            let own = status.nodes.iter().find(|node| node.name == *name);
            let own = own.map(|node| node.address);
            let both = [Some(LOOPBACK), own].into_iter().flatten();
            both.map(|ip| SocketAddr::new(ip, port)).collect()
        }
        Target::Pod(name) => {
            let own = status.pods.iter().find(|pod| {
                pod.name == *name || format!("{}/{}", pod.namespace, pod.name) == *name
            });
            let own = own.and_then(|pod| pod.ip);
            [Some(LOOPBACK), own]
                .into_iter()
                .flatten()
                .map(|ip| SocketAddr::new(ip, port))
                .collect()
        }
    };
    Ok(Way { from, to })
}

fn to_service(status: &LabStatus, name: &str, port: u16) -> anyhow::Result<Way> {
    let found: Vec<_> = status
        .services
        .iter()
        .filter(|s| s.name == name || format!("{}/{}", s.namespace, s.name) == name)
        .collect();
    let service = match found[..] {
        [service] => service,
        [] => bail!(
            "there is no service {name}; `isobar lab status --lab {}` lists those there are",
            status.name
        ),
        _ => bail!("several namespaces have a service {name}; choose one with -n"),
    };
    if !service.ports.is_empty() && !service.ports.contains(&format!("{port}/TCP")) {
        bail!(
            "service {name} has no port {port}, only {}",
            service.ports.join(", ")
        );
    }
    let Some(node) = status.nodes.first() else {
        bail!("the lab has no nodes");
    };
    let address = service.cluster_ip.or(service.endpoints.first().copied());
    let Some(address) = address else {
        bail!("service {name} has neither an address nor endpoints");
    };
    Ok(Way {
        from: Target::node(node.name.clone()),
        to: vec![SocketAddr::new(address, port)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> LabStatus {
        serde_json::from_value(
            json!({"name": "demo", "ready": true, "mesh": true, "objects": [],
            "state_dir": "/", "components": [], "findings": [],
            "nodes": [{"name": "node-1", "address": "172.30.0.11", "pod_cidr": "10.244.1.0/24"}],
            "pods": [{"namespace": "hello", "name": "httpbin", "uid": "u", "node": "node-1",
                "ip": "10.244.1.2", "phase": "Running", "ready": true, "restarts": 0,
                "images": ["x"], "mesh": "enrolled", "message": ""}],
            "services": [{"namespace": "hello", "name": "svc", "cluster_ip": "10.96.0.9",
                "ports": ["8080/TCP", "53/UDP"], "endpoints": []}]}),
        )
        .unwrap()
    }

    #[test]
    fn a_service_is_reached_by_its_own_ports() {
        let to = |target: &str, port| way(&status(), target, Some("hello"), port);
        assert_eq!(
            to("svc/svc", 8080).unwrap().to,
            ["10.96.0.9:8080".parse().unwrap()]
        );
        assert!(to("service/svc", 53).is_err());
        let error = to("svc/svc", 80).unwrap_err().to_string();
        assert!(
            error.contains("no port 80, only 8080/TCP, 53/UDP"),
            "{error}"
        );
        let error = to("svc/nix", 80).unwrap_err().to_string();
        assert!(error.contains("isobar lab status --lab demo"), "{error}");
    }

    #[test]
    fn a_pod_is_reached_by_loopback_first() {
        let way = way(&status(), "pod/httpbin", Some("hello"), 80).unwrap();
        assert_eq!(way.from, Target::pod("hello/httpbin"));
        let to: Vec<_> = way.to.iter().map(ToString::to_string).collect();
        assert_eq!(to, ["127.0.0.1:80", "10.244.1.2:80"]);
    }
}

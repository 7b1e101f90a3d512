use std::time::Duration;

use isobar_proto::istio::workload as wire;
use isobar_runtime::{Scope, Worker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wire::address::Type;

use crate::rig::{LIMIT, VIP, service};
use crate::stage::{Stage, echoes, ends_soon, greeted, open_descriptors, until};

/// All scenarios, on one stage: building it is what takes time.
pub(crate) async fn all(workers: Vec<Worker>, same_node: bool) {
    let stage = Stage::with_tunnels(workers, !same_node).await;
    let security = if same_node { "unknown" } else { "mutual_tls" };
    reaches_pods_and_services(&stage, security).await;
    passes_through_what_is_unknown(&stage).await;
    a_missing_waypoint_closes_before_any_byte(&stage).await;
    a_removed_pod_is_gone(&stage).await;
}

async fn reaches_pods_and_services(stage: &Stage, security: &str) {
    // The server's application sees the client's own address.
    let answer = stage.client.ask("10.0.0.3:8080", "by pod").await;
    assert_eq!(answer, "10.0.0.2:by pod");
    let answer = stage.client.ask(&format!("{VIP}:80"), "by service").await;
    assert_eq!(answer, "10.0.0.2:by service");
    // A megabyte both ways survives half-close.
    let mut tcp = stage.client.connect("10.0.0.3:8080").await.unwrap();
    let sent = vec![b'x'; 1 << 20];
    let (mut read, mut write) = tcp.split();
    let mut got = Vec::new();
    let both = async {
        let write = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(write, read.read_to_end(&mut got));
        read.unwrap();
    };
    tokio::time::timeout(LIMIT, both).await.unwrap();
    assert_eq!(got.len(), sent.len() + "10.0.0.2:".len());

    let security = format!("connection_security_policy=\"{}\"", security);
    until("both sides tell the service and how", || {
        let text = stage.metrics();
        ["source", "destination"].iter().all(|side| {
            text.lines().any(|line| {
                line.starts_with("istio_tcp_connections_closed_total")
                    && line.contains(&format!("reporter=\"{side}\""))
                    && line.contains("destination_service=\"web.ns.svc.cluster.local\"")
                    && line.contains("source_principal=\"spiffe://cluster.local/ns/ns/sa/client\"")
                    && line.contains(&security)
                    && line.contains("reason=\"complete\"")
            })
        })
    })
    .await;
}

async fn passes_through_what_is_unknown(stage: &Stage) {
    let answer = stage.client.ask("10.0.0.4:8080", "plain").await;
    assert_eq!(answer, "10.0.0.2:plain");
}

async fn a_missing_waypoint_closes_before_any_byte(stage: &Stage) {
    let mut bound = service("bound", "10.96.0.2", 8080);
    bound.waypoint = Some(wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(
            wire::NamespacedHostname {
                namespace: "ns".into(),
                hostname: "waypoint.ns.svc.cluster.local".into(),
            },
        )),
        hbone_mtls_port: 15008,
    });
    stage.mesh.put([Type::Service(bound)]);
    assert_eq!(stage.client.ask("10.96.0.2:80", "hello").await, "");
    until("the reason is counted", || {
        stage.metrics().contains("reason=\"waypoint_missing\"")
    })
    .await;
}

async fn a_removed_pod_is_gone(stage: &Stage) {
    use ztunnel::zds::PodHost as _;

    let mut open = greeted(&stage.client, "10.0.0.2:").await;
    stage.mesh.pods.stop("server").await;
    ends_soon(&mut open).await;
    assert!(
        stage
            .client
            .connect("10.0.0.3:15008")
            .await
            .is_ok_and(|_| true)
    );
    drop(open);

    // Served anew, then drained: what is open may go on for the time allowed, and is then cut.
    let (server, info) = (&stage.server, stage.server.info());
    let netns = Some(server.netns.clone());
    stage.mesh.pods.serve("server", &info, netns).await.unwrap();
    let mut open = greeted(&stage.client, "10.0.0.2:").await;
    let draining = stage.mesh.pods.clone();
    let drained = Scope::new("drain");
    let (done, result) = tokio::sync::oneshot::channel();
    drained.spawn("drain", async move {
        let orderly = draining.drain(Duration::from_millis(500)).await;
        done.send(orderly).unwrap();
    });
    until("no new connection is taken", || {
        let connect = std::net::TcpStream::connect("10.0.0.3:15008");
        connect.is_err()
    })
    .await;
    echoes(&mut open).await;
    ends_soon(&mut open).await;
    assert!(!result.await.unwrap());
    drop(open);
    until("the reason is counted", || {
        stage.metrics().contains("reason=\"drained\"")
    })
    .await;
    // Each worker keeps one of the namespace it belongs to.
    let most = stage.descriptors + stage.workers.len() + 1;
    until("every descriptor is closed", || open_descriptors() <= most).await;
    println!(
        "R-13: {} descriptors before the first pod, {} after the last connection",
        stage.descriptors,
        open_descriptors()
    );
}

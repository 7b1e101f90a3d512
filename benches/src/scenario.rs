use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::{Mesh, eventually};
use serde::Serialize;

use crate::client::{Kind, Measured};
use crate::cost::{Usage, usage};

/// Which way the load takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Way {
    /// Two pods outside the mesh.
    NoMesh,
    /// Two enrolled pods: two ztunnels.
    L4,
    /// Two enrolled pods and a waypoint between them.
    L7,
}

/// One row of the table, before medians.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) load: &'static str,
    pub(crate) way: Way,
    pub(crate) measured: Measured,
    /// CPU seconds the node proxies used.
    pub(crate) ztunnel_cpu: f64,
    /// CPU seconds the waypoint used.
    pub(crate) waypoint_cpu: f64,
    pub(crate) ztunnel_rss_kib: u64,
    pub(crate) waypoint_rss_kib: u64,
}

const LOADS: [(&str, Kind, usize, &[Way]); 5] = [
    ("bulk, 1 stream", Kind::Bulk, 1, &[Way::NoMesh, Way::L4]),
    ("bulk, 64 streams", Kind::Bulk, 64, &[Way::NoMesh, Way::L4]),
    (
        "HTTP/1.1, 1 connection",
        Kind::Requests,
        1,
        &[Way::NoMesh, Way::L4, Way::L7],
    ),
    (
        "HTTP/1.1, 64 connections",
        Kind::Requests,
        64,
        &[Way::NoMesh, Way::L4, Way::L7],
    ),
    (
        "new connections, 16 at once",
        Kind::Connections,
        16,
        &[Way::NoMesh, Way::L4],
    ),
];

/// The scenery: the same pair of pods outside the mesh, inside it, and behind a waypoint.
fn objects() -> String {
    let program = std::env::current_exe()
        .map(|p| p.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut documents = Vec::new();
    for (namespace, labels) in [
        ("bench-plain", ""),
        (
            "bench-l4",
            "  labels:\n    istio.io/dataplane-mode: ambient\n",
        ),
        (
            "bench-l7",
            "  labels:\n    istio.io/dataplane-mode: ambient\n    istio.io/use-waypoint: waypoint\n",
        ),
    ] {
        documents.push(format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n{labels}"
        ));
        for (pod, node, command) in [
            ("client", "node-1", "sleep infinity".to_owned()),
            ("server", "node-2", format!("{program} server --port 8080")),
        ] {
            documents.push(format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {pod}\n  namespace: {namespace}\n  labels:\n    app: {pod}\n  annotations:\n    lab.isobar.dev/command: {command}\nspec:\n  nodeName: {node}\n  containers:\n  - name: main\n    image: local\n"
            ));
        }
        documents.push(format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: server\n  namespace: {namespace}\nspec:\n  selector:\n    app: server\n  ports:\n  - name: http\n    port: 8080\n  - name: tcp-sink\n    port: 8081\n"
        ));
    }
    documents.push(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: waypoint\n  namespace: bench-l7\nspec:\n  gatewayClassName: isobar-waypoint\n  listeners:\n  - name: mesh\n    port: 15008\n    protocol: HBONE\n"
            .to_owned(),
    );
    documents.join("---\n")
}

/// Runs every load over every way, round by round.
pub(crate) async fn all(seconds: u64, rounds: u32) -> Result<Vec<Sample>> {
    eprintln!("starting the lab");
    let mesh = Mesh::start(&[("bench.yaml", &objects())]).await?;
    for (namespace, wanted) in [
        ("bench-plain", "plain"),
        ("bench-l4", "enrolled"),
        ("bench-l7", "enrolled"),
    ] {
        for pod in ["client", "server"] {
            mesh.settled(&format!("{namespace}/{pod}"), wanted).await?;
        }
    }
    let mut samples = Vec::new();
    for round in 1..=rounds {
        for (load, kind, connections, ways) in LOADS {
            for way in ways {
                eprintln!("round {round} of {rounds}: {load}, {way:?}");
                samples.push(one(&mesh, load, kind, connections, *way, seconds).await?);
            }
        }
    }
    mesh.down()?;
    Ok(samples)
}

async fn one(
    mesh: &Mesh,
    load: &'static str,
    kind: Kind,
    connections: usize,
    way: Way,
    seconds: u64,
) -> Result<Sample> {
    let namespace = match way {
        Way::NoMesh => "bench-plain",
        Way::L4 => "bench-l4",
        Way::L7 => "bench-l7",
    };
    let port = if kind == Kind::Bulk { 8081 } else { 8080 };
    let to: SocketAddr = (mesh.service_ip(&format!("{namespace}/server")).await?, port).into();
    let client = format!("{namespace}/client");
    if kind != Kind::Bulk {
        let caller = mesh.caller(&client).await?;
        eventually("the way is open", async || {
            let reply = caller.get(to, "/").await?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        })
        .await?;
    }
    let program = std::env::current_exe()?;
    let program = program
        .to_str()
        .context("the path of this program is not text")?;
    let kind = kind.name();
    let (to, connections, seconds) = (to.to_string(), connections.to_string(), seconds.to_string());
    let argv = [
        program,
        "client",
        "--kind",
        kind,
        "--to",
        &to,
        "--connections",
        &connections,
        "--seconds",
        &seconds,
    ];
    let state = mesh.lab().paths().dir().to_string_lossy().into_owned();
    let used = || (usage("ztunnel", &state), usage("waypoint", &state));
    let before = used();
    let output = mesh.lab().output(Target::pod(&*client), &argv).await?;
    let after = used();
    ensure!(output.code == 0, "{load}: {}", output.stderr);
    let measured: Measured = serde_json::from_str(output.stdout.trim())?;
    let spent = |before: Usage, after: Usage| after.cpu_seconds - before.cpu_seconds;
    Ok(Sample {
        load,
        way,
        measured,
        ztunnel_cpu: spent(before.0, after.0),
        waypoint_cpu: spent(before.1, after.1),
        ztunnel_rss_kib: after.0.rss_kib,
        waypoint_rss_kib: after.1.rss_kib,
    })
}

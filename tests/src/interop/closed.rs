//! A waypoint that is named and not there: nothing reaches the application.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use isobar_runtime::Scope;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::call::calls_read;
use super::matrix::{Matrix, Scenario};
use super::scenery::{NODES, ROUTES, Route, Scene, idle};
use crate::eventually;
use crate::yaml::{documents, service, service_account};

const NS: &str = "closed";
/// Port of the applications, which are this program's own so that it can count.
const PORT: u16 = 9090;
const CALLS: usize = 10;

const OPEN: Scenario = Scenario {
    id: "closed_not_yet",
    what: "before a waypoint is named calls reach the application, by Service and by pod address",
};
const NEVER: Scenario = Scenario {
    id: "closed_never_there",
    what: "the namespace names a waypoint that does not exist",
};
const DELETED: Scenario = Scenario {
    id: "closed_deleted",
    what: "the waypoint was there and is deleted; the namespace still names it",
};
const MIXED: Scenario = Scenario {
    id: "closed_mixed",
    what: "a Service some of whose endpoints run as an account with a waypoint, others as one without: calls to the Service are refused",
};

/// An application that counts.
struct Counter {
    reached: Arc<AtomicUsize>,
    _life: Scope,
}

impl Counter {
    async fn start(scene: &Scene, pod: &str) -> Result<Self> {
        let listener = scene.mesh.caller(pod).await?.listen(PORT)?;
        let reached = Arc::new(AtomicUsize::new(0));
        let life = Scope::new("counting application");
        life.spawn("accept", serve(listener, Arc::clone(&reached)));
        Ok(Self {
            reached,
            _life: life,
        })
    }

    fn now(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }
}

async fn serve(listener: TcpListener, reached: Arc<AtomicUsize>) {
    loop {
        if let Ok((mut stream, _)) = listener.accept().await {
            reached.fetch_add(1, Ordering::SeqCst);
            // One at a time is enough for callers that wait for their answer.
            let _ = tokio::time::timeout(Duration::from_secs(2), answer(&mut stream)).await;
        }
    }
}

async fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await?);
    }
    let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(reply).await?;
    stream.shutdown().await
}

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.label(NS, &[])?;
    scene.mesh.apply("closed.yaml", &applications())?;
    let mut counters = Vec::new();
    for (word, _) in NODES {
        let pod = format!("{NS}/{word}-server");
        scene.mesh.settled(&pod, "enrolled").await?;
        counters.push((format!("{word}-server"), Counter::start(scene, &pod).await?));
    }
    let everything = |named: bool| {
        let reached = if named { 0 } else { CALLS };
        format!("{reached} of {CALLS} by Service, {reached} of {CALLS} by pod")
    };
    reach(scene, matrix, OPEN, &counters, &everything(false)).await?;

    scene.label(NS, &[("istio.io/use-waypoint", "nowhere")])?;
    reach(scene, matrix, NEVER, &counters, &everything(true)).await?;

    let apply = ["waypoint", "apply", "-n", NS, "--for", "all", "--wait"];
    scene.mesh.isobar(&apply).await?;
    scene.label(NS, &[("istio.io/use-waypoint", "waypoint")])?;
    through(scene, &counters).await?;
    std::fs::remove_file(gateway(scene)?)?;
    reach(scene, matrix, DELETED, &counters, &everything(true)).await?;

    scene.label(NS, &[])?;
    mixed(scene, matrix, &counters).await
}

fn applications() -> String {
    let each = NODES.iter().map(|(word, node)| {
        let name = format!("{word}-server");
        documents([
            idle(NS, &name, node),
            service(NS, &name, &name, PORT, false),
        ])
    });
    documents(each)
}

fn counter<'a>(counters: &'a [(String, Counter)], route: &Route) -> Result<&'a Counter> {
    let found = counters.iter().find(|(name, _)| name == route.server);
    Ok(&found.context("every route has a server")?.1)
}

/// How many of [`CALLS`] calls reach an application.
async fn reached(scene: &Scene, route: &Route, counter: &Counter, to: SocketAddr) -> Result<usize> {
    let client = scene.client(route).await?;
    let before = counter.now();
    calls_read(&client, to, "/", CALLS, |_| String::new()).await;
    Ok(counter.now() - before)
}

async fn reach(
    scene: &Scene,
    matrix: &mut Matrix,
    scenario: Scenario,
    counters: &[(String, Counter)],
    expected: &str,
) -> Result<()> {
    for route in &ROUTES {
        let counter = counter(counters, route)?;
        let service = scene.by_service(NS, route, PORT).await?;
        let pod = scene.by_pod(NS, route, PORT).await?;
        matrix
            .cell(scenario, route.direction, expected, async || {
                let by_service = reached(scene, route, counter, service).await?;
                let by_pod = reached(scene, route, counter, pod).await?;
                Ok(format!(
                    "{by_service} of {CALLS} by Service, {by_pod} of {CALLS} by pod"
                ))
            })
            .await;
    }
    Ok(())
}

/// Waits until calls pass the waypoint, so that its end is seen by everybody.
async fn through(scene: &Scene, counters: &[(String, Counter)]) -> Result<()> {
    for route in &ROUTES {
        let counter = counter(counters, route)?;
        let to = scene.by_service(NS, route, PORT).await?;
        eventually("calls pass the waypoint", async || {
            let count = reached(scene, route, counter, to).await?;
            anyhow::ensure!(count > 0, "none of {CALLS} reaches the application");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The file in which `isobar waypoint apply` keeps this namespace's Gateway.
fn gateway(scene: &Scene) -> Result<PathBuf> {
    let folder = scene.mesh.lab().paths().overlay().join("cli");
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        if text.contains("\"Gateway\"") && text.contains(&format!("\"{NS}\"")) {
            return Ok(path);
        }
    }
    anyhow::bail!("no Gateway of {NS} in {}", folder.display())
}

/// One more endpoint for each Service, as an account that has a waypoint.
async fn mixed(scene: &Scene, matrix: &mut Matrix, counters: &[(String, Counter)]) -> Result<()> {
    let bound = service_account(NS, "bound", &[]);
    let more = NODES.iter().map(|(word, node)| {
        idle(NS, &format!("{word}-more"), node)
            .replace(
                &format!("    app: \"{word}-more\"\n"),
                &format!("    app: \"{word}-server\"\n"),
            )
            .replace(
                &format!("serviceAccountName: {word}-more"),
                "serviceAccountName: bound",
            )
    });
    let objects: Vec<_> = std::iter::once(bound).chain(more).collect();
    scene.mesh.apply("closed-more.yaml", &documents(objects))?;
    let mut added = Vec::new();
    for (word, _) in NODES {
        let pod = format!("{NS}/{word}-more");
        scene.mesh.settled(&pod, "enrolled").await?;
        added.push((format!("{word}-server"), Counter::start(scene, &pod).await?));
    }
    // An account is bound from the moment its waypoint works.
    let bind = ["waypoint", "apply", "-n", NS, "--service-account", "bound"];
    let wait = ["--for", "all", "--wait"];
    scene.mesh.isobar(&[&bind[..], &wait].concat()).await?;
    let expected = format!("0 of {CALLS} by Service");
    for route in &ROUTES {
        let (own, other) = (counter(counters, route)?, counter(&added, route)?);
        let to = scene.by_service(NS, route, PORT).await?;
        matrix
            .cell(MIXED, route.direction, &expected, async || {
                let before = other.now();
                let at_own = reached(scene, route, own, to).await?;
                let at_other = other.now() - before;
                Ok(format!("{} of {CALLS} by Service", at_own + at_other))
            })
            .await;
    }
    Ok(())
}

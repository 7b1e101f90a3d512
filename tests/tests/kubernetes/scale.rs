//! A big cluster in the API server: what it costs the control plane, and how soon a change arrives.
//! A small one by default: making the objects of the big one takes minutes (`ISOBAR_TEST_LONG`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use isobar_runtime::Scope;
use isobar_tests::{ApiServer, binaries, eventually_within};
use isobar_xds::{AdsClient, AdsConfig, Store};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Map, json};
use tokio::sync::watch;

use crate::run;
use counter::Seen;

mod counter;

/// How much there is.
#[derive(Clone, Copy)]
struct Size {
    pods: u32,
    services: u32,
    clients: usize,
    /// Changes of one pod that are timed.
    changes: u32,
    /// What must hold.
    bars: Bars,
}

#[derive(Clone, Copy)]
struct Bars {
    /// First full push to a client.
    push: Duration,
    /// From a change of a pod to all clients, milliseconds, of 99 in 100.
    change: u128,
    /// The control plane's memory at most, MB.
    memory: u64,
}

const BIG: Size = Size {
    pods: 10_000,
    services: 1_000,
    clients: 50,
    changes: 100,
    bars: Bars {
        push: Duration::from_secs(5),
        change: 100,
        memory: 150,
    },
};
const SMALL: Size = Size {
    pods: 300,
    services: 30,
    clients: 10,
    changes: 20,
    // It shows that it works, on a machine that may be busy.
    bars: Bars {
        push: Duration::from_secs(10),
        change: 1000,
        memory: 300,
    },
};
const NAMESPACES: u32 = 10;
/// The pod's name to node proxies.
const WATCHED: &str = "Kubernetes//Pod/ns-0/pod-0";
/// Requests to the API server under way at once.
const AT_ONCE: usize = 24;
/// Far more than reading the cluster takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn namespace(number: u32) -> String {
    format!("ns-{}", number % NAMESPACES)
}

/// The pod that changes is of the mesh, and isolated by a policy.
const POLICY: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: ns-0, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: svc-0, namespace: ns-0}
spec:
  podSelector: {matchLabels: {app: svc-0}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: svc-10}}}]
    ports: [{port: 8080}, {port: 15008}]
";

/// Makes services, and pods with the status that a kubelet would give them.
async fn fill(server: &ApiServer, size: Size) -> Result<()> {
    let client = server.cluster().client();
    let params = PostParams::default();
    let service = async |number: u32| -> Result<()> {
        let services: Api<Service> = Api::namespaced(client.clone(), &namespace(number));
        let service = serde_json::from_value(json!({
            "metadata": {"name": format!("svc-{number}")},
            "spec": {
                "selector": {"app": format!("svc-{number}")},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            },
        }))?;
        services.create(&params, &service).await?;
        Ok(())
    };
    let pod = async |number: u32| -> Result<()> {
        let of = number % size.services;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace(of));
        let name = format!("pod-{number}");
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app": format!("svc-{of}")}},
            "spec": {
                "nodeName": format!("node-{}", number % 200),
                "containers": [{"name": "c", "image": "i"}],
            },
        }))?;
        pods.create(&params, &pod).await?;
        let ip = std::net::Ipv4Addr::from(0x0a80_0000 + number);
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let patch = Patch::Merge(status);
        pods.patch_status(&name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    };
    let services = stream::iter(0..size.services).map(&service);
    services
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let pods = stream::iter(0..size.pods).map(&pod);
    pods.buffer_unordered(AT_ONCE).try_collect().await
}

/// A control plane over the server, killed when this is dropped.
struct ControlPlane {
    process: Child,
    address: String,
    roots: PathBuf,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl ControlPlane {
    fn start(server: &ApiServer) -> Result<Self> {
        let free = || -> Result<String> {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            Ok(listener.local_addr()?.to_string())
        };
        let (address, monitoring) = (free()?, free()?);
        let state = server.folder().join("control-plane");
        let log = std::fs::File::create(server.folder().join("isobard.log"))?;
        let process = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(binaries()?.join("isobard"))
            .args(["--kubernetes", "--tls-san", "127.0.0.1"])
            .args(["--listen", &address, "--monitoring", &monitoring])
            .arg("--state-dir")
            .arg(&state)
            .env(
                "KUBECONFIG",
                server.kubeconfig("control-plane", "admin-token")?,
            )
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self {
            process,
            address,
            roots: state.join("root-cert.pem"),
        })
    }

    /// Memory in use, and the most that ever was, MB.
    fn memory(&self) -> Result<(u64, u64)> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let of = |key: &str| -> Result<u64> {
            let line = text.lines().find(|line| line.starts_with(key));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            Ok(number.context("a number")?.parse::<u64>()? / 1024)
        };
        Ok((of("VmRSS:")?, of("VmHWM:")?))
    }

    /// Time its threads have run, milliseconds.
    fn spent(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields = text.rsplit_once(')').context("a name")?.1;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: Vec<u64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
        // 100 ticks a second, wherever Linux runs.
        Ok(ticks.iter().sum::<u64>() * 10)
    }

    /// A node proxy's own view of the mesh.
    fn store(&self, scope: &Scope, token: &Path) -> Store {
        let config = AdsConfig {
            address: format!("https://{}", self.address),
            roots: self.roots.clone().into(),
            alt_hostname: None,
            token: Some(token.to_owned().into()),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
            node_id: "ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local".to_owned(),
            metadata: Map::new(),
        };
        let store = Store::default();
        let client = AdsClient::new(config, store.clone(), Vec::new());
        scope.spawn("client", client.run(scope.lifetime()));
        store
    }

    /// A client that costs next to nothing: it counts, and looks at one pod.
    fn counter(&self, scope: &Scope, token: &Path) -> Result<watch::Receiver<Seen>> {
        let roots = std::fs::read_to_string(&self.roots)?;
        let token = std::fs::read_to_string(token)?;
        let (told, seen) = watch::channel(Seen::default());
        let client = counter::Counter {
            address: self.address.clone(),
            roots,
            token,
            watched: WATCHED,
            seen: told,
        };
        let life = scope.lifetime();
        scope.spawn("counter", async move {
            tokio::select! {
                Err(error) = client.run() => eprintln!("a client ended: {error:#}"),
                () = life.stopped() => {}
            }
        });
        Ok(seen)
    }
}

/// A token of a node proxy.
async fn token(server: &ApiServer) -> Result<PathBuf> {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: z, namespace: istio-system},
        spec: {nodeName: node-1, serviceAccountName: ztunnel, containers: [{name: c, image: i}]}}";
    server
        .kubectl(&["create", "serviceaccount", "ztunnel", "-n", "istio-system"])
        .await?;
    server.apply(pod).await?;
    let of = ["create", "token", "ztunnel", "-n", "istio-system"];
    let bound = [
        "--audience=istio-ca",
        "--bound-object-kind=Pod",
        "--bound-object-name=z",
    ];
    let token = server.kubectl(&[&of[..], &bound].concat()).await?;
    let path = server.folder().join("token");
    std::fs::write(&path, token.trim())?;
    Ok(path)
}

async fn all_there(store: &Store, pods: u32) -> Result<Duration> {
    let ((), took) = eventually_within("every workload is there", PATIENCE, async || {
        let found = store.load().workloads().count();
        ensure!(found >= pods as usize, "{found}");
        Ok(())
    })
    .await?;
    Ok(took)
}

/// Milliseconds from asking the API server for each change until each client has it, in order; and
/// until the API server has answered.
async fn changes(
    server: &ApiServer,
    clients: &mut [watch::Receiver<Seen>],
    count: u32,
) -> Result<(Vec<u128>, Vec<u128>)> {
    let (mut times, mut answers) = (Vec::new(), Vec::new());
    let pods: Api<Pod> = Api::namespaced(server.cluster().client(), "ns-0");
    for number in 0..count {
        let version = format!("v{number}");
        let patch = Patch::Merge(json!({"metadata": {"labels": {"version": version}}}));
        let asked = Instant::now();
        pods.patch("pod-0", &PatchParams::default(), &patch).await?;
        answers.push(asked.elapsed().as_millis());
        for client in &mut *clients {
            let seen = client.wait_for(|seen| seen.revision == version).await?;
            let at = seen.at.context("a time")?;
            times.push(at.duration_since(asked).as_millis());
        }
    }
    times.sort_unstable();
    answers.sort_unstable();
    Ok((times, answers))
}

async fn counted(client: &mut watch::Receiver<Seen>, all: u32) -> Result<()> {
    let patience = tokio::time::timeout(PATIENCE, client.wait_for(|seen| seen.held >= all));
    patience.await.context("everything is there")??;
    Ok(())
}

#[test]
fn many_pods_and_many_clients() {
    let size = match std::env::var_os("ISOBAR_TEST_LONG") {
        Some(_) => BIG,
        None => SMALL,
    };
    run(async |server| {
        server.namespace("istio-system").await?;
        for number in 0..NAMESPACES {
            server.namespace(&namespace(number)).await?;
        }
        let begun = Instant::now();
        fill(server, size).await?;
        server.apply(POLICY).await?;
        println!(
            "{} pods and {} services made in {:?}",
            size.pods,
            size.services,
            begun.elapsed()
        );
        let token = token(server).await?;
        let started = Instant::now();
        let control_plane = ControlPlane::start(server)?;
        let scope = Scope::new("clients");
        let result = measured((server, size), &control_plane, (&scope, &token), started).await;
        scope.shutdown(Duration::from_secs(1)).await;
        result
    });
}

async fn measured(
    (server, size): (&ApiServer, Size),
    control_plane: &ControlPlane,
    (scope, token): (&Scope, &Path),
    started: Instant,
) -> Result<()> {
    eventually_within("the roots are there", PATIENCE, async || {
        Ok(std::fs::metadata(&control_plane.roots)?)
    })
    .await?;
    let first = control_plane.store(scope, token);
    all_there(&first, size.pods).await?;
    let took = started.elapsed();
    println!("a node proxy has everything {took:?} after the control plane's start");
    println!("memory then: {:?} MB, at most", control_plane.memory()?);
    let all = size.pods + size.services;
    let begun = Instant::now();
    let mut clients = vec![control_plane.counter(scope, token)?];
    counted(&mut clients[0], all).await?;
    let push = begun.elapsed();
    println!("first full push to a further client: {push:?}");
    let begun = Instant::now();
    for _ in 1..size.clients {
        clients.push(control_plane.counter(scope, token)?);
    }
    for client in &mut clients {
        counted(client, all).await?;
    }
    let (pushes, memory) = (begun.elapsed(), control_plane.memory()?);
    println!(
        "{} more at once: {pushes:?}; memory {memory:?} MB",
        size.clients - 1
    );

    let before = control_plane.spent()?;
    let (times, answers) = changes(server, &mut clients, size.changes).await?;
    let spent = control_plane.spent()? - before;
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "a change at {} clients: median {} ms, p99 {} ms, most {} ms",
        size.clients,
        at(50),
        at(99),
        at(100)
    );
    println!(
        "of that the API server's answer: median {} ms; the control plane ran {} ms for each change",
        answers[answers.len() / 2],
        spent / u64::from(size.changes)
    );
    let (now, most) = control_plane.memory()?;
    println!("memory of the control plane: {now} MB, at most {most} MB");
    let bars = size.bars;
    ensure!(push <= bars.push, "{push:?}");
    ensure!(at(99) <= bars.change, "p99 {} ms", at(99));
    ensure!(most <= bars.memory, "{most} MB");
    Ok(())
}

//! A big cluster in the API server: what it costs the control plane, and how soon a change arrives.
//! Only with `ISOBAR_TEST_LONG`: making its objects takes minutes.

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

use crate::run;

const PODS: u32 = 10_000;
const SERVICES: u32 = 1_000;
const NAMESPACES: u32 = 10;
const CLIENTS: usize = 50;
/// Changes of one pod that are timed.
const CHANGES: u32 = 40;
/// Requests to the API server under way at once.
const AT_ONCE: usize = 24;
/// Far more than reading the cluster takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn namespace(number: u32) -> String {
    format!("ns-{}", number % NAMESPACES)
}

/// Makes services, and pods with the status that a kubelet would give them.
async fn fill(server: &ApiServer) -> Result<()> {
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
        let of = number % SERVICES;
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
    let services = stream::iter(0..SERVICES).map(&service);
    services
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let pods = stream::iter(0..PODS).map(&pod);
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

    /// A node proxy's view of the mesh.
    fn client(&self, scope: &Scope, token: &Path) -> Store {
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

async fn all_there(store: &Store) -> Result<Duration> {
    let ((), took) = eventually_within("every workload is there", PATIENCE, async || {
        let found = store.load().workloads().count();
        ensure!(found >= PODS as usize, "{found}");
        Ok(())
    })
    .await?;
    Ok(took)
}

/// Milliseconds from asking the API server for each change until each client has it, in order.
async fn changes(server: &ApiServer, stores: &[Store]) -> Result<Vec<u128>> {
    let mut times = Vec::new();
    let pods: Api<Pod> = Api::namespaced(server.cluster().client(), "ns-0");
    for number in 0..CHANGES {
        let version = format!("v{number}");
        let patch = Patch::Merge(json!({"metadata": {"labels": {"version": version}}}));
        let asked = Instant::now();
        let uid = "Kubernetes//Pod/ns-0/pod-0";
        let arrivals = stores.iter().map(async |store| -> Result<u128> {
            let mut versions = store.versions();
            loop {
                let workload = store.load().workload_by_uid(uid).cloned();
                if workload.is_some_and(|one| *one.canonical_revision == *version) {
                    return Ok(asked.elapsed().as_millis());
                }
                versions.changed().await?;
            }
        });
        let arrivals = futures_util::future::try_join_all(arrivals);
        let params = PatchParams::default();
        let (patched, arrived) = tokio::join!(pods.patch("pod-0", &params, &patch), arrivals);
        patched?;
        times.extend(arrived?);
    }
    times.sort_unstable();
    Ok(times)
}

#[test]
fn ten_thousand_pods() {
    if std::env::var_os("ISOBAR_TEST_LONG").is_none() {
        eprintln!("not run: only with ISOBAR_TEST_LONG");
        return;
    }
    run(async |server| {
        server.namespace("istio-system").await?;
        for number in 0..NAMESPACES {
            server.namespace(&namespace(number)).await?;
        }
        let begun = Instant::now();
        fill(server).await?;
        println!(
            "{PODS} pods and {SERVICES} services made in {:?}",
            begun.elapsed()
        );
        let token = token(server).await?;
        let started = Instant::now();
        let control_plane = ControlPlane::start(server)?;
        let scope = Scope::new("clients");
        eventually_within("the roots are there", PATIENCE, async || {
            Ok(std::fs::metadata(&control_plane.roots)?)
        })
        .await?;
        let mut stores = vec![control_plane.client(&scope, &token)];
        all_there(&stores[0]).await?;
        println!(
            "a client has everything {:?} after the control plane's start",
            started.elapsed()
        );
        stores.push(control_plane.client(&scope, &token));
        let push = all_there(&stores[1]).await?;
        println!("first full push to a further client: {push:?}");
        for _ in 2..CLIENTS {
            stores.push(control_plane.client(&scope, &token));
        }
        for store in &stores {
            all_there(store).await?;
        }
        let times = changes(server, &stores).await?;
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        let (now, most) = control_plane.memory()?;
        println!(
            "a change at {CLIENTS} clients: median {} ms, p99 {} ms, most {} ms",
            at(50),
            at(99),
            at(100)
        );
        println!("memory of the control plane: {now} MB, at most {most} MB");
        scope.shutdown(Duration::from_secs(1)).await;
        // Far above the bars, which a release build on a quiet machine has to hold.
        ensure!(push < Duration::from_secs(15), "{push:?}");
        ensure!(at(99) < 10_000, "p99 {} ms", at(99));
        Ok(())
    });
}

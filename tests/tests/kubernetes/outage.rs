//! The API server goes away and comes back, and a replica of the control plane dies.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isobar_lab::{ApiServerPlan, Exec, Target};
use isobar_runtime::Scope;
use isobar_tests::{Mesh, binaries, eventually, eventually_within, kube_tools};
use serde_json::Value;

use crate::alone;
use crate::shop::{Calls, shop};

/// Where the lab's control plane listens, and where another one beside it does.
pub(crate) const ADDRESS: &str = "172.30.0.1";
const SECOND: u16 = 16012;
const SECOND_MONITORING: u16 = 16014;
/// Port of an API server beside the lab's own, over the same store.
const BESIDE: u16 = 6444;
/// What a change may take to be in force.
const SOON: Duration = Duration::from_secs(5);
/// What may pass without anybody who writes: the lease has to run out first.
const HANDOVER: Duration = Duration::from_secs(15);

pub(crate) const DENY_VAULT: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-vault
  namespace: shop
spec:
  selector:
    matchLabels:
      app: vault
";

const WAYPOINT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: waypoint
  namespace: shop
spec:
  gatewayClassName: isobar-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
";

/// How long the API server is away.
fn away() -> Duration {
    let is_long = std::env::var_os("ISOBAR_TEST_LONG").is_some();
    Duration::from_secs(if is_long { 60 } else { 5 })
}

/// A program beside those of the lab. It is killed when this is dropped.
pub(crate) struct Beside(#[expect(dead_code, reason = "ends the program when dropped")] Scope);

impl Beside {
    pub(crate) fn start(
        mesh: &Mesh,
        target: Target,
        argv: Vec<String>,
        env: Vec<(String, String)>,
    ) -> Result<Self> {
        let log = mesh.lab().paths().component_log("beside");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        let exec = Exec {
            target,
            argv,
            env,
            stdio: [
                std::fs::File::open("/dev/null")?.into(),
                log.try_clone()?.into(),
                log.into(),
            ],
        };
        let scope = Scope::new("beside");
        let lab = mesh.lab().clone();
        scope.spawn("program", async move {
            // How it ends is seen by what it does not do any more.
            drop(lab.exec(exec).await);
        });
        Ok(Self(scope))
    }
}

/// Where the files of the lab's API server are.
pub(crate) fn kubernetes(mesh: &Mesh) -> PathBuf {
    mesh.lab().paths().kubernetes()
}

/// Compacts the whole history of the store; every watch that starts from before has to list anew.
async fn compact(mesh: &Mesh) -> Result<()> {
    let ask = async |call: &str, body: &str| -> Result<Value> {
        let url = format!("http://127.0.0.1:2379/v3/kv/{call}");
        let curl = ["curl", "-sS", "--fail-with-body", "-d", body, &url];
        let output = mesh.lab().output(Target::Outer, &curl).await?;
        ensure!(output.code == 0, "{call}: {output:?}");
        Ok(serde_json::from_str(&output.stdout)?)
    };
    let now = ask("range", r#"{"key":"AA=="}"#).await?;
    let revision = now["header"]["revision"].as_str().context("a revision")?;
    let request = format!(r#"{{"revision":"{revision}","physical":true}}"#);
    ask("compaction", &request).await.map(drop)
}

/// Changes objects while the mesh's parts have no API server: another one over the same store.
async fn change_meanwhile(mesh: &Mesh) -> Result<()> {
    let plan = ApiServerPlan {
        tools: kube_tools()?,
        folder: kubernetes(mesh),
        ip: ADDRESS.parse()?,
        port: BESIDE,
        store: 2379,
        peers: 2380,
    };
    let other = Beside::start(mesh, Target::Outer, plan.server_argv(), Vec::new())?;
    let server = format!("--server=https://{ADDRESS}:{BESIDE}");
    let limit = Duration::from_secs(60);
    eventually_within("the other API server is ready", limit, async || {
        mesh.kubectl(&[&server, "get", "--raw", "/readyz"])
    })
    .await?;
    let file = kubernetes(mesh).join("deny-vault.yaml");
    std::fs::write(&file, DENY_VAULT)?;
    mesh.kubectl(&[&server, "apply", "-f", &file.to_string_lossy()])?;
    drop(other);
    Ok(())
}

#[test]
fn an_outage_cuts_nothing_and_its_changes_take_force_after_it() {
    alone(async {
        let shop = shop(true).await?;
        let mesh = &shop.mesh;
        let calls = Calls::start(&shop);
        calls.progress().await?;
        mesh.lab().kill_component("kube-apiserver").await?;
        let gone = Instant::now();
        change_meanwhile(mesh).await?;
        compact(mesh).await?;
        // The outage itself is what is tested, so here time has to pass.
        while gone.elapsed() < away() {
            calls.progress().await?;
        }
        let reply = shop.caller.get(shop.vault, "/ip").await?;
        ensure!(reply.status == 200, "nobody can have heard of the change");
        mesh.lab().start_component("kube-apiserver").await?;
        let limit = Duration::from_secs(60);
        eventually_within("the API server is back", limit, async || {
            mesh.kubectl(&["get", "--raw", "/readyz"])
        })
        .await?;
        let ((), took) = eventually_within("the change is in force", SOON, async || {
            ensure!(shop.caller.get(shop.vault, "/ip").await.is_err(), "let in");
            Ok(())
        })
        .await?;
        println!("in force {took:?} after an outage of {:?}", gone.elapsed());
        calls.all_good().await?;
        let log = mesh.log("isobard").await?;
        ensure!(log.contains("watching again"), "it never noticed");
        shop.mesh.down()
    });
}

/// A second control plane, and every new connection to the first goes to one of the two.
async fn second_control_plane(mesh: &Mesh) -> Result<Beside> {
    let folder = kubernetes(mesh);
    let argv = [
        &*binaries()?.join("isobard").to_string_lossy(),
        "--kubernetes",
        "--state-dir",
        &*folder.join("second").to_string_lossy(),
        "--listen",
        &format!("{ADDRESS}:{SECOND}"),
        "--monitoring",
        &format!("{ADDRESS}:{SECOND_MONITORING}"),
        "--tls-san",
        ADDRESS,
    ]
    .map(str::to_owned);
    let config = folder.join("isobard.kubeconfig");
    let env = (
        "KUBECONFIG".to_owned(),
        config.to_string_lossy().into_owned(),
    );
    let second = Beside::start(mesh, Target::Outer, argv.into(), vec![env])?;
    eventually("the second control plane is ready", async || {
        mesh.page(Target::Outer, SECOND_MONITORING, "/healthz/ready")
            .await
    })
    .await?;
    let chain = "type nat hook prerouting priority dstnat;";
    let replicas = format!("numgen inc mod 2 map {{ 0 : 15012, 1 : {SECOND} }}");
    let rule = format!("ip daddr {ADDRESS} tcp dport 15012 redirect to :{replicas}");
    let rules = format!("table ip replicas {{ chain in {{ {chain} {rule}\n }}\n }}");
    let output = mesh.lab().output(Target::Outer, &["nft", &rules]).await?;
    ensure!(output.code == 0, "{output:?}");
    Ok(second)
}

#[test]
fn another_replica_writes_and_serves_when_the_leader_dies() {
    alone(async {
        let shop = shop(true).await?;
        let mesh = &shop.mesh;
        let _second = second_control_plane(mesh).await?;
        let leads = |log: &str| log.matches("leads=true").count();
        ensure!(leads(&mesh.log("isobard").await?) == 1, "the first leads");
        let calls = Calls::start(&shop);
        calls.progress().await?;
        mesh.lab().kill_component("isobard").await?;
        let died = Instant::now();
        mesh.apply("waypoint.yaml", WAYPOINT)?;
        let path = r#"jsonpath={.status.conditions[?(@.type=="Accepted")].status}"#;
        let get = ["get", "gateway", "waypoint", "-n", "shop", "-o", path];
        eventually_within("a status is written", Duration::from_secs(30), async || {
            ensure!(mesh.kubectl(&get)? == "True");
            Ok(())
        })
        .await?;
        let took = died.elapsed();
        ensure!(took < HANDOVER, "a status only after {took:?}");
        println!("the first status {took:?} after the leader died");

        eventually("both node proxies are with the other replica", async || {
            let page = mesh
                .page(Target::Outer, SECOND_MONITORING, "/debug/syncz")
                .await?;
            let page: Value = serde_json::from_str(&page)?;
            let clients = page["clients"].as_array().context("clients")?;
            let nodes = clients.iter().filter(|client| client["kind"] == "ztunnel");
            ensure!(nodes.count() == 2, "{page}");
            Ok(())
        })
        .await?;
        mesh.apply("deny-vault.yaml", DENY_VAULT)?;
        eventually_within("a change is in force", SOON, async || {
            ensure!(shop.caller.get(shop.vault, "/ip").await.is_err(), "let in");
            Ok(())
        })
        .await?;
        calls.all_good().await?;
        shop.mesh.down()
    });
}

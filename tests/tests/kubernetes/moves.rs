//! Node proxies that go over from one control plane to a second one, as an upgrade by revision has it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_lab::Target;
use isobar_tests::{Mesh, MeshOptions, binaries, eventually, eventually_within, kube_tools};
use serde_json::Value;

use crate::alone;
use crate::outage::{ADDRESS, Beside, DENY_VAULT, kubernetes};
use crate::shop::{Calls, shop_with};

const LISTEN: u16 = 17012;
const MONITORING: u16 = 17014;
/// Where the lab's own is asked.
const FIRST: u16 = 15014;
const READY: u16 = 15021;
/// What a change may take to be in force.
const SOON: Duration = Duration::from_secs(5);

/// A control plane with a name of its own.
async fn canary(mesh: &Mesh) -> Result<Beside> {
    let folder = kubernetes(mesh);
    let argv = [
        &*binaries()?.join("isobard").to_string_lossy(),
        "--kubernetes",
        "--revision=canary",
        "--state-dir",
        &*folder.join("canary").to_string_lossy(),
        "--listen",
        &format!("{ADDRESS}:{LISTEN}"),
        "--monitoring",
        &format!("{ADDRESS}:{MONITORING}"),
        "--tls-san",
        ADDRESS,
    ]
    .map(str::to_owned);
    let config = folder.join("isobard.kubeconfig");
    let config = config.to_string_lossy().into_owned();
    let env = vec![("KUBECONFIG".to_owned(), config)];
    let second = Beside::start(mesh, Target::Outer, argv.into(), env)?;
    eventually("the second control plane is ready", async || {
        mesh.page(Target::Outer, MONITORING, "/healthz/ready").await
    })
    .await?;
    Ok(second)
}

/// The node proxy that follows the lab's on `node`, with the second control plane. It runs in the
/// network of `at`, where the ports of its own are free.
async fn successor(mesh: &Mesh, node: &str, at: Target) -> Result<Beside> {
    let paths = mesh.lab().paths();
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let control_plane = format!("https://{ADDRESS}:{LISTEN}");
    let program = text(binaries()?.join("ztunnel"));
    let argv = [&*program, "proxy", "ztunnel"].map(str::to_owned);
    let root = text(paths.root_cert());
    let env = [
        ("XDS_ADDRESS", control_plane.clone()),
        ("CA_ADDRESS", control_plane),
        ("XDS_ROOT_CA", root.clone()),
        ("CA_ROOT_CA", root),
        ("NODE_NAME", node.to_owned()),
        ("AUTH_TOKEN", text(paths.node(node).join("token"))),
        ("POD_NAME", format!("ztunnel-{node}")),
        ("POD_NAMESPACE", "istio-system".to_owned()),
        ("SERVICE_ACCOUNT", "ztunnel".to_owned()),
        ("INPOD_UDS", text(paths.zds(node))),
        ("RUST_LOG", "info".to_owned()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value));
    let proxy = Beside::start(mesh, at.clone(), argv.into(), env.into())?;
    eventually("the next node proxy has its pods", async || {
        mesh.page(at.clone(), READY, "/healthz/ready").await
    })
    .await?;
    Ok(proxy)
}

/// Nodes whose proxies are with the control plane at that port, each of which has all there is.
async fn nodes(mesh: &Mesh, port: u16) -> Result<Vec<String>> {
    let page = mesh.page(Target::Outer, port, "/debug/syncz").await?;
    let page: Value = serde_json::from_str(&page)?;
    let clients = page["clients"].as_array().context("clients")?;
    let proxies = clients.iter().filter(|client| client["kind"] == "ztunnel");
    let fed = proxies.filter(|one| one["types"]["Address"]["status"] == "SYNCED");
    let mut nodes: Vec<String> = fed
        .filter_map(|one| one["node"].as_str().map(str::to_owned))
        .collect();
    nodes.sort_unstable();
    Ok(nodes)
}

/// Ends the lab's node proxy of `node`: what came in by it goes on until its callers end it.
async fn ends_in_order(mesh: &Mesh, node: &str, kept: Calls) -> Result<()> {
    let component = format!("ztunnel-{node}");
    let goes_on = async {
        eventually("it takes nothing new", async || {
            let log = mesh.log(&component).await?;
            ensure!(log.contains("draining"), "{log}");
            Ok(())
        })
        .await?;
        kept.all_good().await
    };
    let lab = mesh.lab();
    let (stopped, kept) = tokio::join!(lab.stop_component(&component), goes_on);
    stopped?;
    kept
}

#[test]
fn node_proxies_go_over_to_a_second_control_plane_under_load() {
    alone(async {
        // The pods of a DaemonSet have this time to let their connections end.
        let patience = ("TERMINATION_GRACE_PERIOD_SECONDS", "60");
        let patience = [(patience.0.to_owned(), patience.1.to_owned())];
        let options = MeshOptions {
            api_server: Some(kube_tools()?),
            program_env: [("ztunnel".to_owned(), patience.into())].into(),
            ..MeshOptions::default()
        };
        let shop = shop_with(options, true).await?;
        let mesh = &shop.mesh;
        let calls = Calls::fresh(&shop);
        calls.progress().await?;
        let _second = canary(mesh).await?;
        ensure!(nodes(mesh, FIRST).await? == ["node-1", "node-2"]);
        ensure!(nodes(mesh, MONITORING).await?.is_empty());

        // One node after the other, each with both proxies for a while.
        let mut proxies = Vec::new();
        for (node, at) in [
            ("node-1", Target::Outer),
            ("node-2", Target::node("node-1")),
        ] {
            let kept = Calls::kept(&shop);
            kept.progress().await?;
            proxies.push(successor(mesh, node, at).await?);
            eventually("it is with the second control plane", async || {
                let there = nodes(mesh, MONITORING).await?;
                ensure!(there.iter().any(|one| one == node), "{there:?}");
                Ok(())
            })
            .await?;
            calls.progress().await?;
            ends_in_order(mesh, node, kept).await?;
            calls.progress().await?;
        }
        eventually("nobody is left with the first", async || {
            let left = nodes(mesh, FIRST).await?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await?;
        // The first one can go; what is written is in force by the second.
        mesh.lab().stop_component("isobard").await?;
        mesh.apply("deny-vault.yaml", DENY_VAULT)?;
        eventually_within("a change is in force", SOON, async || {
            ensure!(shop.caller.get(shop.vault, "/ip").await.is_err(), "let in");
            Ok(())
        })
        .await?;
        calls.all_good().await?;
        drop(proxies);
        shop.mesh.down()
    });
}

//! The control plane goes away and comes back.

use std::time::{Duration, Instant};

use anyhow::ensure;
use isobar_tests::{Load, LoadKind, eventually_within};

use crate::fixture::{Shop, run, shop};

const AWAY: Duration = Duration::from_secs(30);
/// For everything that was still to be written.
const SAVED: Duration = Duration::from_secs(60);
/// Longer than a change waits to be written.
const QUIET: Duration = Duration::from_secs(5);

const DENY_ALL: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-all
  namespace: shop
spec: {}
";

#[test]
fn known_workloads_go_on_without_the_control_plane() {
    run(async {
        let Shop { mesh, caller, to } = shop(&[]).await?;
        let kept = Load::start(caller.clone(), to, "server", "/ip", LoadKind::KeepAlive, 20);
        let fresh = Load::start(
            caller.clone(),
            to,
            "server",
            "/ip",
            LoadKind::NewConnections,
            20,
        );
        fresh.progress(20).await?;
        mesh.lab().kill_component("isobard").await?;
        let gone = Instant::now();
        // The outage itself is what is tested, so here time has to pass.
        while gone.elapsed() < AWAY {
            fresh.progress(20).await?;
        }
        mesh.apply("deny.yaml", DENY_ALL)?;
        for (name, load) in [("keep-alive", kept), ("new connections", fresh)] {
            let tally = load.stop().await;
            ensure!(tally.bad.is_empty(), "{name}: {:?}", tally.bad);
            ensure!(tally.good >= 400, "{name}: only {}", tally.good);
        }
        mesh.lab().start_component("isobard").await?;
        let ((), took) = eventually_within(
            "the change is in force",
            Duration::from_secs(5),
            async || {
                ensure!(caller.get(to, "/ip").await.is_err(), "still let in");
                Ok(())
            },
        )
        .await?;
        println!("in force {took:?} after the control plane came back");
        mesh.down()
    });
}

#[test]
fn a_node_proxy_that_restarts_without_the_control_plane_serves_at_once() {
    run(async {
        let Shop { mesh, caller, to } = shop(&[]).await?;
        let nodes = ["node-1", "node-2"];
        for node in nodes {
            let saved = mesh.lab().paths().node(node).join("state/mesh");
            // Changes are written together, a moment after the first: wait for the last ones.
            eventually_within("the mesh is saved", SAVED, async || {
                let age = std::fs::metadata(&saved)?.modified()?.elapsed()?;
                ensure!(age > QUIET, "written {age:?} ago");
                Ok(())
            })
            .await?;
        }
        mesh.lab().kill_component("isobard").await?;
        for node in nodes {
            let proxy = format!("ztunnel-{node}");
            mesh.lab().kill_component(&proxy).await?;
            mesh.lab().start_component(&proxy).await?;
        }
        let limit = Duration::from_secs(10);
        let ((), took) = eventually_within("calls are answered", limit, async || {
            let reply = caller.get(to, "/ip").await?;
            ensure!(reply.status == 200, "{}", reply.status);
            Ok(())
        })
        .await?;
        println!("serving again {took:?} after both node proxies were restarted");
        for node in nodes {
            let log = mesh.log(&format!("ztunnel-{node}")).await?;
            for line in ["mesh restored from file", "serving what was saved"] {
                ensure!(log.contains(line), "{node} does not say {line:?}");
            }
        }
        let log = mesh.log("ztunnel-node-1").await?;
        ensure!(
            log.contains("direction=\"outbound\""),
            "the call went through no proxy"
        );
        mesh.down()
    });
}

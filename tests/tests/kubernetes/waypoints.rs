//! `isobar waypoint` against an API server.

use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_lab::Target;
use isobar_tests::{Caller, Mesh, binaries, eventually};
use std::net::SocketAddr;

use crate::alone;
use crate::shop::{Calls, shop};

/// What passes a waypoint carries it.
const MARK: &str = "x-envoy-upstream-service-time";
/// Long enough for a hole to show.
const WATCHED: u32 = 60;

const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: no-headers
  namespace: shop
spec:
  targetRefs:
  - group: gateway.networking.k8s.io
    kind: Gateway
    name: server-waypoint
  action: DENY
  rules:
  - to:
    - operation:
        paths: [/headers]
";

/// Runs `isobar` where the API server is.
async fn isobar(mesh: &Mesh, args: &[&str]) -> Result<String> {
    let program = binaries()?.join("isobar");
    let config = mesh
        .lab()
        .paths()
        .kubernetes()
        .join("admin-6443.kubeconfig");
    let (program, config) = (program.to_string_lossy(), config.to_string_lossy());
    let argv = [&[&*program, "--kubeconfig", &config], args].concat();
    let output = mesh.lab().output(Target::Outer, &argv).await?;
    ensure!(output.code == 0, "isobar {}: {output:?}", args.join(" "));
    Ok(output.stdout)
}

async fn passes_waypoint(caller: &Caller, to: SocketAddr) -> Result<bool> {
    let reply = caller.get(to, "/ip").await?;
    ensure!(reply.status == 200, "{}", reply.status);
    Ok(reply.headers.contains_key(MARK))
}

#[test]
fn a_waypoint_for_an_account_is_made_used_and_removed() {
    alone(async {
        let shop = shop(true).await?;
        let mesh = &shop.mesh;
        let calls = Calls::fresh(&shop);
        let apply = [
            "waypoint",
            "apply",
            "-n",
            "shop",
            "--service-account",
            "server",
        ];
        isobar(mesh, &[&apply[..], &["--for", "all", "--wait"]].concat()).await?;
        ensure!(passes_waypoint(&shop.caller, shop.server).await?);
        ensure!(
            !passes_waypoint(&shop.caller, shop.vault).await?,
            "another account"
        );
        let list = isobar(mesh, &["waypoint", "list"]).await?;
        ensure!(
            list.contains("server-waypoint") && list.contains("server"),
            "{list}"
        );
        let status = isobar(mesh, &["waypoint", "status", "-n", "shop"]).await?;
        ensure!(status.contains("Programmed"), "{status}");
        let status = isobar(mesh, &["status"]).await?;
        ensure!(
            status.matches("ztunnel").count() >= 2 && status.contains("waypoint"),
            "{status}"
        );

        let delete = ["waypoint", "delete", "-n", "shop", "server-waypoint"];
        isobar(mesh, &delete).await?;
        ensure!(!passes_waypoint(&shop.caller, shop.server).await?);
        calls.all_good().await?;
        shop.mesh.down()
    });
}

#[test]
fn what_a_policy_refuses_stays_refused_when_its_waypoint_is_deleted() {
    alone(async {
        let shop = shop(true).await?;
        let mesh = &shop.mesh;
        let apply = [
            "waypoint",
            "apply",
            "-n",
            "shop",
            "--service-account",
            "server",
        ];
        isobar(mesh, &[&apply[..], &["--for", "all", "--wait"]].concat()).await?;
        mesh.apply("deny.yaml", DENY)?;
        let refused = async || shop.caller.get(shop.server, "/headers").await;
        eventually("the policy is in force", async || {
            ensure!(refused().await?.status == 403);
            Ok(())
        })
        .await?;
        mesh.kubectl(&["delete", "gateway", "server-waypoint", "-n", "shop"])?;
        for _ in 0..WATCHED {
            let reply = refused().await;
            ensure!(
                reply.as_ref().map_or(true, |reply| reply.status != 200),
                "{reply:?}"
            );
            // Time has to pass, for everybody to hear of it.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        shop.mesh.down()
    });
}

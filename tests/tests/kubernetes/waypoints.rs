//! `isobar waypoint` against an API server.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use isobar_lab::{Output, Target};
use isobar_tests::yaml::service;
use isobar_tests::{Answer, App, Caller, Load, LoadKind, Mesh, binaries, eventually};

use crate::alone;
use crate::shop::{Calls, Shop, shop};

/// What passes a waypoint carries it.
const MARK: &str = "x-envoy-upstream-service-time";
/// Requests of each load, 20 a second: long enough for a hole to show.
const WATCHED: u64 = 80;
/// Where the application listens.
const PORT: u16 = 8080;

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
pub(crate) async fn isobar(mesh: &Mesh, args: &[&str]) -> Result<String> {
    let output = command(mesh, args).await?;
    ensure!(output.code == 0, "isobar {}: {output:?}", args.join(" "));
    Ok(output.stdout)
}

async fn command(mesh: &Mesh, args: &[&str]) -> Result<Output> {
    let program = binaries()?.join("isobar");
    let config = mesh
        .lab()
        .paths()
        .kubernetes()
        .join("admin-6443.kubeconfig");
    let (program, config) = (program.to_string_lossy(), config.to_string_lossy());
    let argv = [&[&*program, "--kubeconfig", &config], args].concat();
    Ok(mesh.lab().output(Target::Outer, &argv).await?)
}

/// What it complains of.
pub(crate) async fn refusal(mesh: &Mesh, args: &[&str]) -> Result<String> {
    let output = command(mesh, args).await?;
    ensure!(output.code == 1, "isobar {}: {output:?}", args.join(" "));
    Ok(output.stderr)
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

/// A waypoint with a policy, and an application behind it that counts.
struct Guarded {
    shop: Shop,
    app: App,
    to: SocketAddr,
    /// Requests that came before the policy did.
    before: usize,
}

impl Guarded {
    async fn start() -> Result<Self> {
        let shop = shop(true).await?;
        let mesh = &shop.mesh;
        let listener = mesh.caller("shop/server").await?.listen(PORT)?;
        let app = App::serve("counted", listener, |_| Answer::Status(200));
        let counted = service("shop", "counted", "server", PORT, false);
        mesh.apply("counted.yaml", &counted)?;
        let to = eventually("the Service has an address", async || {
            mesh.service_ip("shop/counted").await
        })
        .await?;
        let to = (to, PORT).into();
        mesh.answers(&shop.caller, to, "counted", "/ip").await?;
        let apply = ["waypoint", "apply", "-n", "shop", "--service-account"];
        isobar(
            mesh,
            &[&apply[..], &["server", "--for", "all", "--wait"]].concat(),
        )
        .await?;
        mesh.apply("deny.yaml", DENY)?;
        eventually("the policy is in force", async || {
            ensure!(shop.caller.get(to, "/headers").await?.status == 403);
            Ok(())
        })
        .await?;
        let mut guarded = Self {
            shop,
            app,
            to,
            before: 0,
        };
        guarded.before = guarded.let_in();
        Ok(guarded)
    }

    /// Requests that the policy refuses, and the application had all the same.
    fn let_in(&self) -> usize {
        let all = self.app.arrived();
        let refused = all.iter().filter(|one| one.path == "/headers");
        refused.count() - self.before
    }

    fn load(&self, path: &str, kind: LoadKind) -> Load {
        Load::start(self.shop.caller.clone(), self.to, "counted", path, kind, 20)
    }

    /// What the policy refuses, again and again.
    fn refused(&self) -> [Load; 2] {
        [LoadKind::NewConnections, LoadKind::KeepAlive].map(|kind| self.load("/headers", kind))
    }

    /// None of it was answered well, and none reached the application.
    async fn none_let_in(&self, loads: &[Load], more: u64) -> Result<()> {
        for load in loads {
            load.progress(more).await?;
        }
        let count = self.let_in();
        ensure!(
            count == 0,
            "{count} refused requests reached the application"
        );
        Ok(())
    }
}

#[test]
fn what_a_policy_refuses_stays_refused_when_its_waypoint_is_deleted() {
    alone(async {
        let guarded = Guarded::start().await?;
        let mesh = &guarded.shop.mesh;
        let loads = guarded.refused();
        guarded.none_let_in(&loads, 20).await?;
        mesh.kubectl(&["delete", "gateway", "server-waypoint", "-n", "shop"])?;
        guarded.none_let_in(&loads, WATCHED).await?;
        for load in loads {
            ensure!(load.stop().await.good == 0);
        }
        guarded.app.stop().await;
        guarded.shop.mesh.down()
    });
}

#[test]
fn a_waypoint_with_policies_goes_only_when_that_is_said() {
    alone(async {
        let guarded = Guarded::start().await?;
        let mesh = &guarded.shop.mesh;
        let refused = guarded.refused();
        let allowed = guarded.load("/ip", LoadKind::NewConnections);
        let delete = ["waypoint", "delete", "-n", "shop", "server-waypoint"];
        let said = refusal(mesh, &delete).await?;
        let words = ["AuthorizationPolicy shop/no-headers", "--unbind", "--force"];
        ensure!(words.iter().all(|word| said.contains(word)), "{said}");
        guarded.none_let_in(&refused, 20).await?;
        allowed.progress(20).await?;
        let tally = allowed.stop().await;
        ensure!(tally.bad.is_empty() && tally.good >= 20, "{:?}", tally.bad);

        // Gone, and what was bound is refused.
        let said = isobar(mesh, &[&delete[..], &["--force"]].concat()).await?;
        ensure!(
            said.contains("ServiceAccount shop/server stays bound"),
            "{said}"
        );
        guarded.none_let_in(&refused, WATCHED).await?;
        let said = refusal(mesh, &delete).await?;
        ensure!(said.contains("ServiceAccount shop/server"), "{said}");
        guarded.none_let_in(&refused, 20).await?;

        let said = isobar(mesh, &[&delete[..], &["--unbind"]].concat()).await?;
        ensure!(
            said.contains("ServiceAccount shop/server unbound"),
            "{said}"
        );
        mesh.answers(&guarded.shop.caller, guarded.to, "counted", "/headers")
            .await?;
        for load in refused {
            load.stop().await;
        }
        guarded.app.stop().await;
        guarded.shop.mesh.down()
    });
}

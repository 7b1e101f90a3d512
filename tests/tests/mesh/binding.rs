//! `isobar waypoint` under load: nothing that is under way notices that a waypoint comes, is another one, or goes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{Load, LoadKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fixture::{Shop, run, shop};

/// Requests a second, of each kind.
const RATE: u32 = 100;
const HOST: &str = "server";
/// The waypoint alone sets this response header.
const PASSED: &str = "x-passed";

const ROUTE: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: server
  namespace: shop
spec:
  hosts: [server]
  http:
  - headers:
      response:
        set:
          x-passed: waypoint
    route:
    - destination:
        host: server
";

const KINDS: [LoadKind; 2] = [LoadKind::KeepAlive, LoadKind::NewConnections];
/// Who leaves a waypoint is asked to come again.
const ASKED: [LoadKind; 2] = [LoadKind::Reused, LoadKind::NewConnections];

/// Far more than a connection that nobody uses may outlive its way.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that nobody uses now.
struct Idle(TcpStream);

impl Idle {
    /// It ends without a word.
    async fn ends(mut self) -> Result<()> {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut rest)).await;
        ended.context("it is still open")?.context("it was cut")?;
        let rest = String::from_utf8_lossy(&rest);
        ensure!(!rest.contains("HTTP/1.1"), "{rest}");
        Ok(())
    }
}

impl Shop {
    /// A connection that has had an answer and is kept.
    async fn idle(&self) -> Result<Idle> {
        let mut stream = self.caller.connect(self.to).await?;
        let request = format!("GET /status/200 HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        Ok(Idle(stream))
    }

    /// Calls steadily while `isobar` runs with `args`, and sees that every request is answered.
    async fn uncut(&self, kinds: &[LoadKind], args: &[&str]) -> Result<()> {
        let start = |kind: &LoadKind| {
            let caller = self.caller.clone();
            Load::start(caller, self.to, HOST, "/status/200", *kind, RATE)
        };
        let loads: Vec<Load> = kinds.iter().map(start).collect();
        for load in &loads {
            load.progress(10).await?;
        }
        self.mesh.isobar(args).await?;
        for load in &loads {
            load.progress(u64::from(RATE)).await?;
        }
        for (load, kind) in loads.into_iter().zip(kinds) {
            let tally = load.stop().await;
            ensure!(
                tally.bad.is_empty(),
                "{}: {kind:?}: {} of {} requests failed: {:#?}",
                args.join(" "),
                tally.bad.len(),
                tally.good + tally.bad.len() as u64,
                tally.bad
            );
        }
        Ok(())
    }

    async fn passes_the_waypoint(&self) -> Result<bool> {
        let reply = self
            .caller
            .request(self.to, "GET", HOST, "/status/200", &[]);
        Ok(reply.await?.headers.contains_key(PASSED))
    }
}

#[test]
fn applying_a_waypoint_and_leaving_it_cuts_nothing() {
    run(async {
        let shop = shop(&[("route.yaml", ROUTE)]).await?;
        let apply = ["waypoint", "apply", "-n", "shop"];
        let with = |more: &[&'static str]| [&apply[..], more].concat();

        shop.uncut(&KINDS, &with(&["--enroll-namespace", "--wait"]))
            .await?;
        ensure!(
            shop.passes_the_waypoint().await?,
            "--wait has returned, but the route is not in force"
        );
        // Once more, with other flags, and to another waypoint.
        shop.uncut(&KINDS, &with(&["--enroll-namespace"])).await?;
        shop.uncut(&KINDS, &with(&["--for", "all", "--wait"]))
            .await?;
        // To another waypoint, and to none: both ways are open until everybody knows.
        let other = [
            "--name",
            "other",
            "--enroll-namespace",
            "--overwrite",
            "--wait",
        ];
        let idle = shop.idle().await?;
        shop.uncut(&ASKED, &with(&other)).await?;
        idle.ends().await?;
        ensure!(
            shop.passes_the_waypoint().await?,
            "the second waypoint is passed by"
        );
        let idle = shop.idle().await?;
        shop.uncut(&ASKED, &["waypoint", "delete", "-n", "shop", "other"])
            .await?;
        idle.ends().await?;
        ensure!(!shop.passes_the_waypoint().await?, "a waypoint is passed");
        shop.mesh.down()
    });
}

#[test]
fn nothing_is_bound_to_a_waypoint_that_does_not_come() {
    run(async {
        let shop = shop(&[("route.yaml", ROUTE)]).await?;
        let apply = ["waypoint", "apply", "-n", "shop", "--enroll-namespace"];
        let output = shop
            .mesh
            .isobar_output(&[&apply[..], &["--waypoint-timeout", "0"]].concat())
            .await?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{text}");
        for words in ["is not ready", "nothing is bound", "isobar waypoint status"] {
            ensure!(text.contains(words), "lacks {words:?}: {text}");
        }
        let list = shop.mesh.isobar(&["waypoint", "list"]).await?;
        ensure!(!list.contains("Namespace shop"), "{list}");
        shop.mesh
            .answers(&shop.caller, shop.to, HOST, "/status/200")
            .await?;
        shop.mesh.down()
    });
}

//! A second waypoint takes a share of the calls.

use std::cell::Cell;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use isobar_lab::Target;
use isobar_tests::{Caller, Load, LoadKind, Mesh, eventually};

use crate::fixture::{Shop, run, server, shop};

const HOST: &str = "server";
const FIRST: &str = "waypoint";
const SECOND: &str = "next";
/// Waypoints alone set this response header.
const PASSED: &str = "x-envoy-upstream-service-time";

const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-headers, namespace: shop}
spec:
  targetRefs: [{group: \"\", kind: Service, name: server}]
  action: DENY
  rules: [{to: [{operation: {paths: [/headers]}}]}]
";

/// A gateway to the server.
const FRONT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: isobar
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: page, namespace: shop}
spec:
  parentRefs: [{name: front}]
  rules: [{backendRefs: [{name: server, port: 80}]}]
";

/// The server, of whose calls the second waypoint takes this percentage.
fn with_share(weight: &str) -> String {
    server("shop", &[]).replace(
        "kind: Service\nmetadata:\n",
        &format!(
            "kind: Service\nmetadata:\n  labels:\n    istio.io/use-waypoint: {FIRST}\n    \
             istio.io/use-waypoint-canary: {SECOND}\n    istio.io/ingress-use-waypoint: \"true\"\n  \
             annotations:\n    istio.io/use-waypoint-canary-weight: \"{weight}\"\n"
        ),
    )
}

/// Requests for a path that a waypoint has in its log.
async fn seen(mesh: &Mesh, waypoint: &str, path: &str) -> Result<usize> {
    let log = mesh.log(&format!("shop/{waypoint}")).await?;
    let line = format!("\"GET {path} ");
    Ok(log.lines().filter(|one| one.contains(&line)).count())
}

/// How many of `all` requests for a path each of the two has seen, once these have.
async fn shares(mesh: &Mesh, path: &str, all: usize) -> Result<(usize, usize)> {
    eventually("each request is in a log", async || {
        let both = (
            seen(mesh, FIRST, path).await?,
            seen(mesh, SECOND, path).await?,
        );
        ensure!(both.0 + both.1 == all, "{both:?} of {all}");
        Ok(both)
    })
    .await
}

/// Calls a path so often, on a connection each; the status of all answers.
async fn calls(shop: &Shop, path: &str, times: usize, status: u16) -> Result<()> {
    for number in 0..times {
        let reply = shop.caller.request(shop.to, "GET", HOST, path, &[]).await?;
        ensure!(reply.status == status, "call {number}: {reply:?}");
    }
    Ok(())
}

/// Waits until calls with paths of their own are shared as `good` says.
async fn share_becomes(
    shop: &Shop,
    what: &str,
    good: impl Fn((usize, usize)) -> bool,
) -> Result<()> {
    let turn = Cell::new(0);
    eventually(what, async || {
        turn.set(turn.get() + 1);
        let path = format!("/anything/{}/{}", what.replace(' ', "-"), turn.get());
        calls(shop, &path, 20, 200).await?;
        let both = shares(&shop.mesh, &path, 20).await?;
        ensure!(good(both), "{both:?}");
        Ok(())
    })
    .await
}

async fn start(weight: &str) -> Result<Shop> {
    let shop = shop(&[("front.yaml", FRONT)]).await?;
    for name in [FIRST, SECOND] {
        let apply = ["waypoint", "apply", "-n", "shop", "--wait", "--name"];
        shop.mesh.isobar(&[&apply[..], &[name]].concat()).await?;
    }
    shop.mesh.apply("server.yaml", &with_share(weight))?;
    eventually("calls pass a waypoint", async || {
        for _ in 0..10 {
            let reply = shop.caller.get(shop.to, "/ip").await?;
            ensure!(reply.headers.contains_key(PASSED), "{reply:?}");
        }
        Ok(())
    })
    .await?;
    Ok(shop)
}

#[test]
fn a_share_of_the_calls_passes_the_second_waypoint_and_policies_hold_at_both() {
    run(async {
        let shop = start("30").await?;
        let mesh = &shop.mesh;
        share_becomes(&shop, "both see calls", |(one, two)| one > 0 && two > 0).await?;
        calls(&shop, "/anything/counted", 200, 200).await?;
        let (first, second) = shares(mesh, "/anything/counted", 200).await?;
        println!("30 % of 200 calls: {first} and {second}");
        // Five standard deviations.
        ensure!((28..=92).contains(&second), "{first} and {second}");

        mesh.apply("deny.yaml", DENY)?;
        eventually("the policy is in force at both", async || {
            calls(&shop, "/headers", 20, 403).await
        })
        .await?;
        calls(&shop, "/headers?again", 100, 403).await?;
        let refused = shares(mesh, "/headers?again", 100).await?;
        ensure!(refused.0 > 0 && refused.1 > 0, "{refused:?}");

        let request = ["explain", "shop/client", "http://server/ip"];
        let told = mesh.isobar(&request).await?;
        for words in ["30 % of the calls", "70 % of the calls"] {
            ensure!(told.contains(words), "lacks {words:?}: {told}");
        }
        let list = mesh.isobar(&["waypoint", "list", "-n", "shop"]).await?;
        let named = "Service shop/server (canary, 30 %)";
        ensure!(list.contains(named), "{list}");
        gateways_share_requests(&shop).await?;
        goes_only_when_that_is_said(&shop).await?;
        shop.mesh.down()
    });
}

/// A gateway shares requests, not connections.
async fn gateways_share_requests(shop: &Shop) -> Result<()> {
    let mesh = &shop.mesh;
    let front: SocketAddr = eventually("the Gateway has a Service", async || {
        Ok((mesh.service_ip("shop/front").await?, 80).into())
    })
    .await?;
    let inside = Caller::inside(mesh.lab().netns(Target::Node("node-1".into())).await?)?;
    let mut kept = eventually("the gateway answers", async || {
        let mut kept = inside.http(front).await?;
        let reply = kept.get("page.example", "/ip").await?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(kept)
    })
    .await?;
    for _ in 0..60 {
        let reply = kept.get("page.example", "/anything/outside").await?;
        ensure!(reply.status == 200, "{reply:?}");
    }
    let (first, second) = shares(mesh, "/anything/outside", 60).await?;
    println!("30 % of 60 requests of one connection to a gateway: {first} and {second}");
    ensure!(first > 0 && second > 0, "{first} and {second}");
    Ok(())
}

/// The second waypoint is deleted with `--force` only, and all calls pass the first one then.
async fn goes_only_when_that_is_said(shop: &Shop) -> Result<()> {
    let mesh = &shop.mesh;
    let delete = ["waypoint", "delete", "-n", "shop", SECOND];
    let output = mesh.isobar_output(&delete).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{said}");
    for words in [
        "Service shop/server (canary, 30 %)",
        "istio.io/use-waypoint-canary",
        "the first waypoint takes all their calls",
    ] {
        ensure!(said.contains(words), "lacks {words:?}: {said}");
    }
    mesh.isobar(&[&delete[..], &["--force"]].concat()).await?;
    eventually("the first one takes all calls", async || {
        calls(shop, "/ip", 20, 200).await
    })
    .await?;
    let output = mesh.isobar_output(&["analyze"]).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("ISO0235"), "{said}");
    Ok(())
}

#[test]
fn a_share_moves_and_no_call_notices() {
    run(async {
        let shop = start("0").await?;
        let mesh = &shop.mesh;
        share_becomes(&shop, "the first has all", |both| both == (20, 0)).await?;
        let load = |kind| {
            let caller = shop.caller.clone();
            Load::start(caller, shop.to, HOST, "/status/200", kind, 50)
        };
        let loads = [LoadKind::NewConnections, LoadKind::KeepAlive].map(load);
        for (weight, what) in [("50", "half"), ("100", "all"), ("0", "none")] {
            for load in &loads {
                load.progress(25).await?;
            }
            mesh.apply("server.yaml", &with_share(weight))?;
            share_becomes(
                &shop,
                &format!("the second has {what}"),
                |both| match weight {
                    "50" => both.0 > 0 && both.1 > 0,
                    "100" => both == (0, 20),
                    _ => both == (20, 0),
                },
            )
            .await?;
        }
        for load in loads {
            load.progress(50).await?;
            let tally = load.stop().await;
            println!(
                "{} calls while the share moved: {:?}",
                tally.good, tally.bad
            );
            ensure!(tally.bad.is_empty(), "{:?}", tally.bad);
        }
        shop.mesh.down()
    });
}

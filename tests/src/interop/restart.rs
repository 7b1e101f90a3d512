//! A node proxy that is killed in the middle of what it carries, and started again.

use std::time::Duration;

use anyhow::Result;

use super::call::{CALLS, calls};
use super::matrix::{Matrix, Scenario};
use super::scenery::{BASE, PORTS, ROUTES, Route, Scene};
use crate::{Caller, Connection};

const OURS: Scenario = Scenario {
    id: "restart_ours",
    what: "our node proxy is killed and started again: open connections end, meanwhile nothing gets past it, then calls are answered",
};
const PEER: Scenario = Scenario {
    id: "restart_peer",
    what: "the peer is killed and started again: open connections end, meanwhile nothing gets past it, then calls are answered",
};
/// For the end of a connection to be seen.
const LIMIT: Duration = Duration::from_secs(5);

/// A way through the proxy that is killed, and a connection that is open on it.
struct Way {
    route: Route,
    client: Caller,
    open: Connection,
}

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    for (scenario, node) in [(OURS, "node-1"), (PEER, "node-2")] {
        scene.open(BASE).await?;
        one(scene, matrix, scenario, node).await?;
    }
    Ok(())
}

async fn one(scene: &Scene, matrix: &mut Matrix, scenario: Scenario, node: &str) -> Result<()> {
    let mut ways = Vec::new();
    for route in ROUTES.iter().filter(|route| route.passes(node)) {
        let client = scene.client(route).await?;
        let to = scene.by_service(BASE, route, PORTS[0]).await?;
        let mut open = client.http(to).await?;
        open.get(&to.to_string(), "/ip").await?;
        let route = *route;
        ways.push(Way {
            route,
            client,
            open,
        });
    }
    let proxy = format!("ztunnel-{node}");
    scene.mesh.lab().kill_component(&proxy).await?;
    let mut seen = Vec::new();
    for way in &mut ways {
        let to = scene.by_service(BASE, &way.route, PORTS[0]).await?;
        let again = tokio::time::timeout(LIMIT, way.open.get("server", "/ip")).await;
        let open = match again {
            Ok(Err(_)) => "the open one ended",
            Ok(Ok(_)) => "the open one is answered",
            Err(_) => "the open one hangs",
        };
        let meanwhile = calls(&way.client, to, "/ip").await;
        seen.push(format!("{open}; meanwhile {meanwhile}"));
    }
    scene.mesh.lab().start_component(&proxy).await?;
    let expected = format!("the open one ended; meanwhile {CALLS}× closed; then {CALLS}× 200");
    for (way, seen) in ways.iter().zip(&seen) {
        let to = scene.by_service(BASE, &way.route, PORTS[0]).await?;
        matrix
            .cell(scenario, way.route.direction, &expected, async || {
                let then = calls(&way.client, to, "/ip").await;
                Ok(format!("{seen}; then {then}"))
            })
            .await;
    }
    Ok(())
}

//! Calls through a waypoint of ours.

use anyhow::{Result, ensure};

use super::call::{CALLS, calls, calls_read};
use super::matrix::{Direction, Matrix, Scenario};
use super::policy::authorization;
use super::scenery::{PORTS, ROUTES, Route, Scene};
use crate::yaml::documents;
use crate::{Reply, eventually};

const NS: &str = "passage";
/// The label by which receivers of other makes are told their waypoint.
const REQUIRED: (&str, &str) = ("isobar.dev/require-waypoint", "true");

const ROUTED: Scenario = Scenario {
    id: "passage_service",
    what: "calls to a Service behind a waypoint: the waypoint's VirtualService leaves its header",
};
const PATHS: Scenario = Scenario {
    id: "passage_paths",
    what: "the waypoint refuses a path and lets others pass, by Service and by pod address",
};
const CALLERS: Scenario = Scenario {
    id: "passage_callers",
    what: "the waypoint knows who called it: it lets the client's identity pass and refuses the stranger's",
};
const TARGET: Scenario = Scenario {
    id: "passage_target",
    what: "a DENY of the client's identity on the pods behind the waypoint is applied by the waypoint",
};
const BYPASS: Scenario = Scenario {
    id: "passage_bypass",
    what: "from outside the mesh nothing gets past the waypoint, by pod address",
};

const PATHS_YAML: &str = "  targetRefs:\n  - group: gateway.networking.k8s.io\n    kind: Gateway\n    name: waypoint\n  action: DENY\n  rules:\n  - to:\n    - operation:\n        paths: [/status/204]\n";
const CALLERS_YAML: &str = "  targetRefs:\n  - group: gateway.networking.k8s.io\n    kind: Gateway\n    name: waypoint\n  action: ALLOW\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/callers/*]\n";
const FILE: &str = "passage-policy.yaml";

fn route_of(server: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: {server}\n  namespace: {NS}\nspec:\n  hosts: [{server}]\n  http:\n  - headers:\n      response:\n        set:\n          x-passed: {server}\n    route:\n    - destination:\n        host: {server}\n        port:\n          number: 80\n"
    )
}

fn passed(reply: &Reply, server: &str) -> String {
    let by = reply.headers.get("x-passed");
    let marked = by.is_some_and(|value| value == server);
    let how = if marked { "routed" } else { "not routed" };
    format!("{} {how}", reply.status)
}

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.servers(NS, &[]).await?;
    scene.open(NS).await?;
    let routes = ["ours-server", "peer-server", "far-server"].map(route_of);
    scene
        .mesh
        .apply("passage-routes.yaml", &documents(routes))?;
    let apply = ["waypoint", "apply", "-n", NS, "--for", "all", "--wait"];
    scene.mesh.isobar(&apply).await?;
    scene.label(NS, &[("istio.io/use-waypoint", "waypoint"), REQUIRED])?;
    for route in &ROUTES {
        routed(scene, matrix, route).await?;
    }
    bypass(scene, matrix).await?;
    scene
        .mesh
        .apply(FILE, &authorization(NS, "paths", PATHS_YAML))?;
    for route in &ROUTES {
        paths(scene, matrix, route).await?;
    }
    for (scenario, policy, client, stranger) in [
        (CALLERS, CALLERS_YAML, "200", "403"),
        (TARGET, super::policy::deny_clients(), "403", "200"),
    ] {
        scene.mesh.delete(FILE)?;
        reopened(scene).await?;
        scene.mesh.apply(FILE, &authorization(NS, "who", policy))?;
        for route in &ROUTES {
            let expected = format!("client {CALLS}× {client}; stranger {CALLS}× {stranger}");
            who(scene, matrix, route, scenario, &expected).await?;
        }
    }
    scene.mesh.delete(FILE)?;
    Ok(())
}

async fn routed(scene: &Scene, matrix: &mut Matrix, route: &Route) -> Result<()> {
    let client = scene.client(route).await?;
    let to = scene.by_service(NS, route, PORTS[0]).await?;
    let expected = format!("{CALLS}× 200 routed");
    matrix
        .cell(ROUTED, route.direction, &expected, async || {
            let seen = calls_read(&client, to, "/ip", CALLS, |reply| {
                passed(reply, route.server)
            });
            Ok(seen.await)
        })
        .await;
    Ok(())
}

async fn paths(scene: &Scene, matrix: &mut Matrix, route: &Route) -> Result<()> {
    let client = scene.client(route).await?;
    let at = [
        scene.by_service(NS, route, PORTS[0]).await?,
        scene.by_pod(NS, route, PORTS[0]).await?,
    ];
    let both = format!("open {CALLS}× 200, forbidden {CALLS}× 403");
    let expected = format!("Service: {both}; pod: {both}");
    matrix
        .cell(PATHS, route.direction, &expected, async || {
            let mut seen = Vec::new();
            for to in at {
                let open = calls(&client, to, "/ip").await;
                let forbidden = calls(&client, to, "/status/204").await;
                seen.push(format!("open {open}, forbidden {forbidden}"));
            }
            Ok(format!("Service: {}; pod: {}", seen[0], seen[1]))
        })
        .await;
    Ok(())
}

async fn who(
    scene: &Scene,
    matrix: &mut Matrix,
    route: &Route,
    scenario: Scenario,
    expected: &str,
) -> Result<()> {
    let (client, stranger) = (scene.client(route).await?, scene.stranger(route).await?);
    let to = scene.by_service(NS, route, PORTS[0]).await?;
    matrix
        .cell(scenario, route.direction, expected, async || {
            let client = calls(&client, to, "/ip").await;
            let stranger = calls(&stranger, to, "/ip").await;
            Ok(format!("client {client}; stranger {stranger}"))
        })
        .await;
    Ok(())
}

async fn bypass(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    let outsider = scene.outsider().await?;
    let expected = format!("{CALLS}× closed");
    for (direction, route) in [
        (Direction::OutsideToOurs, &ROUTES[0]),
        (Direction::OutsideToPeer, &ROUTES[1]),
    ] {
        let to = scene.by_pod(NS, route, PORTS[0]).await?;
        matrix
            .cell(BYPASS, direction, &expected, async || {
                Ok(calls(&outsider, to, "/ip").await)
            })
            .await;
    }
    Ok(())
}

/// Waits until everybody passes again, as before a policy.
async fn reopened(scene: &Scene) -> Result<()> {
    for route in &ROUTES {
        for caller in [scene.client(route).await?, scene.stranger(route).await?] {
            let to = scene.by_service(NS, route, PORTS[0]).await?;
            eventually("everybody passes the waypoint", async || {
                let seen = calls(&caller, to, "/status/204").await;
                ensure!(seen == format!("{CALLS}× 204"), "{seen}");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

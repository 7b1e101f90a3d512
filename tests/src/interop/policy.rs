//! L4 policy, enforced by whoever is the server's node proxy.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::call::{CALLS, calls};
use super::matrix::{Direction, Matrix, Scenario};
use super::scenery::{BASE, PORTS, ROUTES, Route, Scene};

/// By what a policy that lets everybody pass is seen to be in force.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// It refuses one of those who call.
    Calls,
    /// Calls to the other port are refused.
    OtherPort,
    /// Plain text is refused.
    PlainText,
}

/// A policy, and whom it refuses.
struct Case {
    scenario: Scenario,
    sign: Sign,
    yaml: &'static str,
    client: &'static str,
    stranger: &'static str,
}

const OPEN: &str = "200";
const CLOSED: &str = "closed";

const CASES: &[Case] = &[
    Case {
        scenario: Scenario {
            id: "policy_deny_principal",
            what: "DENY of the client's identity, for every pod of the namespace",
        },
        sign: Sign::Calls,
        yaml: "  action: DENY\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/callers/sa/ours-client, cluster.local/ns/callers/sa/peer-client]\n",
        client: CLOSED,
        stranger: OPEN,
    },
    Case {
        scenario: Scenario {
            id: "policy_allow_principal",
            what: "ALLOW of the client's identity only",
        },
        sign: Sign::Calls,
        yaml: "  action: ALLOW\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/callers/sa/ours-client, cluster.local/ns/callers/sa/peer-client]\n",
        client: OPEN,
        stranger: CLOSED,
    },
    Case {
        scenario: Scenario {
            id: "policy_deny_namespace",
            what: "DENY of the stranger's namespace",
        },
        sign: Sign::Calls,
        yaml: "  action: DENY\n  rules:\n  - from:\n    - source:\n        namespaces: [strangers]\n",
        client: OPEN,
        stranger: CLOSED,
    },
    Case {
        scenario: Scenario {
            id: "policy_allow_prefix",
            what: "ALLOW of principals that begin with a prefix",
        },
        sign: Sign::Calls,
        yaml: "  action: ALLOW\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/callers/*]\n",
        client: OPEN,
        stranger: CLOSED,
    },
    Case {
        scenario: Scenario {
            id: "policy_deny_other_port",
            what: "DENY of everybody on another port than the one that is called",
        },
        sign: Sign::OtherPort,
        yaml: "  action: DENY\n  rules:\n  - to:\n    - operation:\n        ports: [\"8080\"]\n",
        client: OPEN,
        stranger: OPEN,
    },
    Case {
        scenario: Scenario {
            id: "policy_deny_port",
            what: "DENY of everybody on the port that is called",
        },
        sign: Sign::Calls,
        yaml: "  action: DENY\n  rules:\n  - to:\n    - operation:\n        ports: [\"80\"]\n",
        client: CLOSED,
        stranger: CLOSED,
    },
    Case {
        scenario: Scenario {
            id: "policy_deny_without_identity",
            what: "DENY of what has no identity: the mesh is let in",
        },
        sign: Sign::PlainText,
        yaml: "  action: DENY\n  rules:\n  - from:\n    - source:\n        notPrincipals: [\"*\"]\n",
        client: OPEN,
        stranger: OPEN,
    },
    Case {
        scenario: Scenario {
            id: "policy_allow_nothing",
            what: "ALLOW without rules: nobody is let in",
        },
        sign: Sign::Calls,
        yaml: "  {}\n",
        client: CLOSED,
        stranger: CLOSED,
    },
];

const STRICT: Scenario = Scenario {
    id: "policy_strict",
    what: "PeerAuthentication STRICT: the mesh is let in, plain text is not",
};
const PERMISSIVE: Scenario = Scenario {
    id: "policy_permissive",
    what: "without a PeerAuthentication plain text is let in",
};
const LIVE: Scenario = Scenario {
    id: "policy_live",
    what: "a new DENY of the client's identity cuts its open connection and spares the stranger's",
};

const STRICT_YAML: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  namespace: base\nspec:\n  mtls:\n    mode: STRICT\n";

/// The file of the policy that is tried.
const FILE: &str = "base-policy.yaml";
/// A connection that nobody cuts.
const CUT: Duration = Duration::from_secs(5);

pub(super) fn authorization(ns: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {ns}\nspec:\n{spec}"
    )
}

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    for case in CASES {
        // Else what an earlier one refuses would be taken for what this one does.
        scene.open(BASE).await?;
        let name = case.scenario.id.replace('_', "-");
        scene
            .mesh
            .apply(FILE, &authorization(BASE, &name, case.yaml))?;
        for route in &ROUTES {
            let (client, stranger) = (scene.client(route).await?, scene.stranger(route).await?);
            let to = scene.by_service(BASE, route, PORTS[0]).await?;
            let expected = format!(
                "client {CALLS}× {}; stranger {CALLS}× {}",
                case.client, case.stranger
            );
            matrix
                .cell(case.scenario, route.direction, &expected, async || {
                    if !in_force(scene, route, case.sign).await? {
                        return Ok("the policy is not in force".to_owned());
                    }
                    let client = calls(&client, to, "/ip").await;
                    let stranger = calls(&stranger, to, "/ip").await;
                    Ok(format!("client {client}; stranger {stranger}"))
                })
                .await;
        }
        scene.mesh.delete(FILE)?;
    }
    plain_text(scene, matrix, PERMISSIVE, OPEN).await?;
    scene.mesh.apply(FILE, STRICT_YAML)?;
    plain_text(scene, matrix, STRICT, CLOSED).await?;
    let expected = format!("{CALLS}× 200");
    for route in &ROUTES {
        let client = scene.client(route).await?;
        let to = scene.by_service(BASE, route, PORTS[0]).await?;
        matrix
            .cell(STRICT, route.direction, &expected, async || {
                if !in_force(scene, route, Sign::PlainText).await? {
                    return Ok("the policy is not in force".to_owned());
                }
                Ok(calls(&client, to, "/ip").await)
            })
            .await;
    }
    scene.mesh.delete(FILE)?;
    live(scene, matrix).await
}

/// True if the route's server is seen to be under the policy; else calls that pass prove nothing.
async fn in_force(scene: &Scene, route: &Route, sign: Sign) -> Result<bool> {
    let (caller, port) = match sign {
        Sign::Calls => return Ok(true),
        Sign::OtherPort => (scene.client(route).await?, PORTS[1]),
        Sign::PlainText => (scene.outsider().await?, PORTS[0]),
    };
    let to = scene.by_pod(BASE, route, port).await?;
    Ok(calls(&caller, to, "/").await == format!("{CALLS}× {CLOSED}"))
}

/// Calls from outside the mesh.
async fn plain_text(
    scene: &Scene,
    matrix: &mut Matrix,
    scenario: Scenario,
    expected: &str,
) -> Result<()> {
    let outsider = scene.outsider().await?;
    let expected = format!("{CALLS}× {expected}");
    for (direction, route) in [
        (Direction::OutsideToOurs, &ROUTES[0]),
        (Direction::OutsideToPeer, &ROUTES[1]),
    ] {
        let to = scene.by_pod(BASE, route, PORTS[0]).await?;
        matrix
            .cell(scenario, direction, &expected, async || {
                Ok(calls(&outsider, to, "/ip").await)
            })
            .await;
    }
    Ok(())
}

async fn live(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.open(BASE).await?;
    let mut open = Vec::new();
    for route in &ROUTES {
        let to = scene.by_service(BASE, route, PORTS[0]).await?;
        let mut both = [
            scene.client(route).await?.connect(to).await?,
            scene.stranger(route).await?.connect(to).await?,
        ];
        for stream in &mut both {
            exchange(stream).await?;
        }
        open.push((route.direction, both));
    }
    scene
        .mesh
        .apply(FILE, &authorization(BASE, "live", CASES[0].yaml))?;
    for (direction, both) in &mut open {
        let [client, stranger] = both;
        matrix
            .cell(
                LIVE,
                *direction,
                "client cut; stranger goes on",
                async || {
                    let client = if is_cut(client).await { "cut" } else { "open" };
                    let on = exchange(stranger).await.is_ok();
                    let stranger = if on { "goes on" } else { "cut" };
                    Ok(format!("client {client}; stranger {stranger}"))
                },
            )
            .await;
    }
    scene.mesh.delete(FILE)?;
    scene.open(BASE).await
}

/// True if the connection ends though nobody of us ends it.
async fn is_cut(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    let end = tokio::time::timeout(CUT, stream.read(&mut byte)).await;
    matches!(end, Ok(Ok(0) | Err(_)))
}

/// A request and its reply; the connection stays.
async fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream
        .write_all(b"GET /status/204 HTTP/1.1\r\nhost: server\r\n\r\n")
        .await?;
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await?);
    }
    ensure!(seen.starts_with(b"HTTP/1.1 204"), "another reply");
    Ok(())
}

/// Refuses every client, and no stranger.
pub(super) fn deny_clients() -> &'static str {
    CASES[0].yaml
}

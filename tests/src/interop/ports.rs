//! Port rules of NetworkPolicies, inside the tunnel: whoever is the server's node proxy enforces them.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::call::{CALLS, calls};
use super::matrix::{Matrix, Scenario};
use super::scenery::{PORTS, ROUTES, Route, Scene};
use crate::eventually;

const NS: &str = "ports";
const FILE: &str = "ports-policy.yaml";

/// What may be called, of the two ports of a server, by the client and by the stranger.
struct Case {
    scenario: Scenario,
    ingress: &'static str,
    labels: &'static [(&'static str, &'static str)],
    client: [bool; 2],
    stranger: [bool; 2],
}

/// The network plugin lets everybody to the tunnel's port, or the tunnel would not be asked.
const CASES: &[Case] = &[
    Case {
        scenario: Scenario {
            id: "ports_number",
            what: "NetworkPolicy that opens 8080 (and 15008), by number",
        },
        ingress: "  - ports:\n    - port: 8080\n    - port: 15008\n",
        labels: &[],
        client: [false, true],
        stranger: [false, true],
    },
    Case {
        scenario: Scenario {
            id: "ports_range",
            what: "NetworkPolicy that opens 8000 to 9000 (and 15008)",
        },
        ingress: "  - ports:\n    - port: 8000\n      endPort: 9000\n    - port: 15008\n",
        labels: &[],
        client: [false, true],
        stranger: [false, true],
    },
    Case {
        scenario: Scenario {
            id: "ports_from_pods",
            what: "80 is open for the client's pods, 8080 for everybody",
        },
        ingress: "  - from:\n    - namespaceSelector:\n        matchLabels:\n          role: callers\n      podSelector:\n        matchExpressions:\n        - {key: app, operator: In, values: [ours-client, peer-client]}\n    ports:\n    - port: 80\n  - ports:\n    - port: 8080\n    - port: 15008\n",
        labels: &[],
        client: [true, true],
        stranger: [false, true],
    },
    Case {
        scenario: Scenario {
            id: "ports_from_namespace",
            what: "80 is open for the client's namespace, 8080 for nobody",
        },
        ingress: "  - from:\n    - namespaceSelector:\n        matchLabels:\n          role: callers\n    ports:\n    - port: 80\n  - ports:\n    - port: 15008\n",
        labels: &[],
        client: [true, false],
        stranger: [false, false],
    },
    Case {
        scenario: Scenario {
            id: "ports_only_tunnel",
            what: "NetworkPolicy that opens 15008 only: no port behind it",
        },
        ingress: "  - ports:\n    - port: 15008\n",
        labels: &[],
        client: [false, false],
        stranger: [false, false],
    },
    Case {
        scenario: Scenario {
            id: "ports_audit",
            what: "the same, audited only (label `isobar.dev/port-rules: audit`): nobody is refused",
        },
        ingress: "  - ports:\n    - port: 15008\n",
        labels: &[("isobar.dev/port-rules", "audit")],
        client: [true, true],
        stranger: [true, true],
    },
];

fn policy(ingress: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: rules\n  namespace: {NS}\nspec:\n  podSelector: {{}}\n  policyTypes: [Ingress]\n  ingress:\n{ingress}"
    )
}

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.servers(NS, &[]).await?;
    for case in CASES {
        open(scene).await?;
        scene.mesh.apply(FILE, &policy(case.ingress))?;
        if !case.labels.is_empty() {
            // Else it would not be the label that lets everybody pass.
            in_force(scene).await?;
            scene.label(NS, case.labels)?;
        }
        for route in &ROUTES {
            let who = [scene.client(route).await?, scene.stranger(route).await?];
            let at = addresses(scene, route).await?;
            let words = |open: &[bool; 2]| {
                let word = |&open| if open { "200" } else { "closed" };
                let each = PORTS.iter().zip(open.iter().map(word));
                let each: Vec<_> = each.map(|(p, w)| format!("{p} {CALLS}× {w}")).collect();
                each.join(", ")
            };
            let expected = format!(
                "client: {}; stranger: {}",
                words(&case.client),
                words(&case.stranger)
            );
            matrix
                .cell(case.scenario, route.direction, &expected, async || {
                    let mut seen = Vec::new();
                    for caller in &who {
                        let mut each = Vec::new();
                        for to in at {
                            let saw = calls(caller, to, "/").await;
                            each.push(format!("{} {saw}", to.port()));
                        }
                        seen.push(each.join(", "));
                    }
                    Ok(format!("client: {}; stranger: {}", seen[0], seen[1]))
                })
                .await;
        }
        scene.mesh.delete(FILE)?;
        scene.label(NS, &[])?;
    }
    Ok(())
}

/// Waits until every server refuses the stranger, also on its other port.
async fn in_force(scene: &Scene) -> Result<()> {
    for route in &ROUTES {
        let stranger = scene.stranger(route).await?;
        for to in addresses(scene, route).await? {
            eventually(&format!("{to} is closed"), async || {
                let seen = calls(&stranger, to, "/").await;
                ensure!(seen == format!("{CALLS}× closed"), "{seen}");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

async fn addresses(scene: &Scene, route: &Route) -> Result<[SocketAddr; 2]> {
    Ok([
        scene.by_pod(NS, route, PORTS[0]).await?,
        scene.by_pod(NS, route, PORTS[1]).await?,
    ])
}

/// Waits until every port is open to everybody, also from the last case.
async fn open(scene: &Scene) -> Result<()> {
    for route in &ROUTES {
        for caller in [scene.client(route).await?, scene.stranger(route).await?] {
            for to in addresses(scene, route).await? {
                eventually(&format!("{to} is open"), async || {
                    let seen = calls(&caller, to, "/").await;
                    ensure!(seen == format!("{CALLS}× 200"), "{seen}");
                    Ok(())
                })
                .await?;
            }
        }
    }
    Ok(())
}

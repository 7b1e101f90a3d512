//! NetworkPolicies and pods in the mesh.

use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_tests::{Mesh, eventually, eventually_within};

use crate::alone;
use crate::shop::shop;

/// Nothing enters a pod of the namespace.
const DENY_ALL: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: default-deny
  namespace: shop
spec:
  podSelector: {}
  policyTypes: [Ingress]
";

/// Who is asked at his port by the kubelet every second, and not by anybody else.
const LATE: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: late
  namespace: shop
  labels: {app: late}
spec:
  nodeName: node-2
  serviceAccountName: server
  containers:
  - name: main
    image: docker.io/honester/httpbin:latest
    ports: [{name: web, containerPort: 80}]
    readinessProbe: {httpGet: {path: /ip, port: web}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {tcpSocket: {port: web}, periodSeconds: 1, failureThreshold: 1}
";

/// Mutual TLS only: what is not a probe and not of the mesh is refused.
const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: shop
spec:
  mtls:
    mode: STRICT
";

/// Long enough for many probes.
const WATCHED: Duration = Duration::from_secs(5);

async fn is_ready(mesh: &Mesh, pod: &str) -> Result<()> {
    let status = mesh.pod(pod).await?;
    ensure!(status.ready && status.restarts == 0, "{status:?}");
    Ok(())
}

#[test]
fn np5_probes_pass_where_nothing_else_does() {
    alone(async {
        let shop = shop(true).await?;
        let mesh = &shop.mesh;
        mesh.apply("deny-all.yaml", DENY_ALL)?;
        mesh.apply("strict.yaml", STRICT)?;
        let closed = async || {
            let call = shop.caller.get(shop.server, "/ip");
            tokio::time::timeout(Duration::from_millis(500), call).await
        };
        eventually("callers are refused", async || {
            ensure!(!matches!(closed().await, Ok(Ok(_))), "let in");
            Ok(())
        })
        .await?;
        // One that was probed before, and one that starts under the policy.
        mesh.apply("late.yaml", LATE)?;
        let soon = Duration::from_secs(30);
        eventually_within("the late pod is ready", soon, async || {
            is_ready(mesh, "shop/late").await
        })
        .await?;
        mesh.settled("shop/late", "enrolled").await?;
        let end = tokio::time::Instant::now() + WATCHED;
        while tokio::time::Instant::now() < end {
            for pod in ["shop/server", "shop/late"] {
                is_ready(mesh, pod).await?;
            }
            ensure!(!matches!(closed().await, Ok(Ok(_))), "let in");
        }
        // The way of the probes is no way for others: a port without a probe is closed to the node.
        let rules = mesh.exec("shop/late", &["nft", "list", "ruleset"]).await?;
        let open = rules
            .stdout
            .lines()
            .filter(|rule| rule.contains("169.254.7.127"));
        let into = open
            .filter(|rule| rule.contains("saddr"))
            .collect::<Vec<_>>();
        ensure!(into.len() == 1 && into[0].contains("dport 80"), "{into:?}");
        shop.mesh.down()
    });
}

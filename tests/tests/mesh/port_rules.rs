//! Ingress NetworkPolicies hold inside the tunnel: opening 15008 does not open the pod.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_lab::Target;
use isobar_tests::yaml::{Pod, documents, namespace, service, service_account};
use isobar_tests::{Caller, Mesh, eventually};
use tokio::io::AsyncReadExt;

use crate::fixture::{AMBIENT, HELLO_V1, HTTPBIN, client, other, outside, run};

const MODE: &str = "isobar.dev/port-rules";
/// Where a node proxy shows its metrics.
const METRICS: u16 = 15020;
const OPEN: u16 = 8080;
/// What the pod serves besides, and no policy opens.
const CLOSED: u16 = 80;

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: app
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: app
  policyTypes: [Ingress]
  ingress:
  - ports:
    - port: 8080
    - port: 15008
";

/// Pod `app` with two containers, one on each port.
fn app() -> String {
    let pod = Pod {
        namespace: "shop",
        name: "app",
        account: "app",
        node: "node-2",
        image: HELLO_V1,
        port: Some(OPEN),
        labels: &[],
    };
    let second = format!(
        "  - name: second\n    image: {HTTPBIN}\n    ports:\n    - containerPort: {CLOSED}\n"
    );
    documents([service_account("shop", "app", &[]), pod.yaml() + &second])
}

async fn answers(caller: &Caller, to: SocketAddr) -> Result<()> {
    let reply = tokio::time::timeout(Duration::from_secs(1), caller.get(to, "/")).await??;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(())
}

async fn refused(caller: &Caller, to: SocketAddr) -> Result<()> {
    ensure!(answers(caller, to).await.is_err(), "it was let in");
    Ok(())
}

#[test]
fn opening_the_tunnel_opens_no_port_behind_it() {
    run(async {
        let mesh = Mesh::start(&[
            ("ns.yaml", &namespace("shop", &[AMBIENT])),
            ("client.yaml", &client("shop")),
            ("app.yaml", &app()),
            ("outside.yaml", &outside()),
        ])
        .await?;
        for pod in ["shop/client", "shop/app"] {
            mesh.settled(pod, "enrolled").await?;
        }
        let inside = mesh.caller("shop/client").await?;
        let outside = mesh.caller("outside/outsider").await?;
        let ip = mesh.pod_ip("shop/app").await?;
        let (open, closed) = (SocketAddr::new(ip, OPEN), SocketAddr::new(ip, CLOSED));
        for to in [open, closed] {
            mesh.answers(&inside, to, "app", "/").await?;
            eventually("everybody is let in at first", async || {
                answers(&outside, to).await
            })
            .await?;
        }
        let mut live = inside.connect(closed).await?;

        mesh.apply("policy.yaml", POLICY)?;
        eventually("the mesh is kept out of the other port", async || {
            refused(&inside, closed).await
        })
        .await?;
        // Whoever is not in the mesh is the network plugin's to keep out.
        eventually("so is everybody else", async || {
            refused(&outside, closed).await
        })
        .await?;
        for caller in [&inside, &outside] {
            answers(caller, open).await?;
        }
        let mut byte = [0; 1];
        let end = tokio::time::timeout(Duration::from_secs(10), live.read(&mut byte)).await?;
        ensure!(matches!(end, Ok(0) | Err(_)), "an open connection stays");
        let log = mesh.log("ztunnel-node-2").await?;
        let denied = "explicitly denied by: shop/converted_network_policy_app";
        ensure!(log.contains(denied), "the log does not say why:\n{log}");

        let audit = namespace("shop", &[AMBIENT, (MODE, "audit")]);
        mesh.apply("ns.yaml", &audit)?;
        eventually("an audit lets the mesh pass", async || {
            answers(&inside, closed).await
        })
        .await?;
        let node = Target::Node("node-2".into());
        let metrics = mesh.page(node, METRICS, "/metrics").await?;
        let counted = metrics.lines().any(|line| {
            line.starts_with("isobar_dry_run_denials_total")
                && line.contains("shop/converted_network_policy_app")
                && line.contains("policy_denied")
        });
        ensure!(counted, "the audit is not counted:\n{metrics}");
        refused(&outside, closed).await?;

        mesh.apply("ns.yaml", &namespace("shop", &[AMBIENT, (MODE, "off")]))?;
        let config = eventually("nothing is published when it is off", async || {
            let config = mesh.page(Target::Outer, 15014, "/debug/config").await?;
            ensure!(!config.contains("converted_network_policy"), "{config}");
            Ok(config)
        })
        .await?;
        ensure!(config.contains("revision"), "{config}");
        answers(&inside, closed).await?;
        mesh.down()
    });
}

/// The client may come, and the waypoint's pods may.
const ONLY_CLIENT: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: app
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: app
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: client
    ports:
    - port: 8080
    - port: 15008
  - from:
    - podSelector:
        matchLabels:
          gateway.networking.k8s.io/gateway-name: waypoint
    ports:
    - port: 15008
";

#[test]
fn a_waypoint_applies_them_to_its_callers() {
    run(async {
        let mesh = Mesh::start(&[
            ("ns.yaml", &namespace("shop", &[AMBIENT])),
            ("client.yaml", &client("shop")),
            ("other.yaml", &other("shop")),
            ("app.yaml", &app()),
            ("service.yaml", &service("shop", "app", "app", OPEN, false)),
            ("policy.yaml", ONLY_CLIENT),
        ])
        .await?;
        for pod in ["shop/client", "shop/other", "shop/app"] {
            mesh.settled(pod, "enrolled").await?;
        }
        let admitted = mesh.caller("shop/client").await?;
        let stranger = mesh.caller("shop/other").await?;
        let to = SocketAddr::new(mesh.service_ip("shop/app").await?, OPEN);
        mesh.answers(&admitted, to, "app", "/").await?;
        refused(&stranger, to).await?;
        let apply = [
            "waypoint",
            "apply",
            "-n",
            "shop",
            "--enroll-namespace",
            "--wait",
        ];
        mesh.isobar(&apply).await?;
        // What the waypoint lets in, the pod's node proxy takes from it.
        mesh.answers(&admitted, to, "app", "/").await?;
        eventually("the waypoint refuses the other", async || {
            let reply = stranger.get(to, "/").await?;
            ensure!(reply.status == 403, "{reply:?}");
            Ok(())
        })
        .await?;
        mesh.answers(&admitted, to, "app", "/").await?;
        mesh.down()
    });
}

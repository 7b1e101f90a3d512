//! L4 policy: who may connect, and what happens to those who are connected.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use isobar_tests::{Caller, Mesh, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{ambient, client, other, outside, run, server};

const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: shop
spec:
  mtls:
    mode: STRICT
";

const ONLY_CLIENT: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: only-client
  namespace: shop
spec:
  selector:
    matchLabels:
      app: server
  action: ALLOW
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/shop/sa/client
";

const DENY_CLIENT: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-client
  namespace: shop
spec:
  action: DENY
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/shop/sa/client
";

async fn answers(caller: &Caller, to: SocketAddr) -> Result<()> {
    let reply = caller.get(to, "/ip").await?;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(())
}

async fn refused(caller: &Caller, to: SocketAddr) -> Result<()> {
    ensure!(answers(caller, to).await.is_err(), "it was let in");
    Ok(())
}

async fn start() -> Result<Mesh> {
    let mesh = Mesh::start(&[
        ("ns.yaml", &ambient("shop")),
        ("client.yaml", &client("shop")),
        ("other.yaml", &other("shop")),
        ("server.yaml", &server("shop", &[])),
        ("outside.yaml", &outside()),
    ])
    .await?;
    for pod in ["shop/client", "shop/other", "shop/server"] {
        mesh.settled(pod, "enrolled").await?;
    }
    Ok(mesh)
}

#[test]
fn strict_refuses_plaintext() {
    run(async {
        let mesh = start().await?;
        let (inside, outside) = (
            mesh.caller("shop/client").await?,
            mesh.caller("outside/outsider").await?,
        );
        let pod: SocketAddr = (mesh.pod_ip("shop/server").await?, 80).into();
        let service: SocketAddr = (mesh.service_ip("shop/server").await?, 80).into();
        for to in [pod, service] {
            eventually("plaintext is let in at first", async || {
                answers(&outside, to).await
            })
            .await?;
            eventually("the mesh works", async || answers(&inside, to).await).await?;
        }
        mesh.apply("strict.yaml", STRICT)?;
        for to in [pod, service] {
            eventually("plaintext is refused", async || refused(&outside, to).await).await?;
            answers(&inside, to).await?;
        }
        ensure!(
            mesh.pod("shop/server").await?.ready,
            "the node's probe was refused too"
        );
        mesh.delete("strict.yaml")?;
        eventually("plaintext is let in again", async || {
            answers(&outside, pod).await
        })
        .await?;
        mesh.down()
    });
}

#[test]
fn an_allow_for_one_principal_refuses_the_others() {
    run(async {
        let mesh = start().await?;
        let to: SocketAddr = (mesh.service_ip("shop/server").await?, 80).into();
        let client = mesh.caller("shop/client").await?;
        let other = mesh.caller("shop/other").await?;
        let outside = mesh.caller("outside/outsider").await?;
        for caller in [&client, &other, &outside] {
            eventually("everybody is let in at first", async || {
                answers(caller, to).await
            })
            .await?;
        }
        mesh.apply("allow.yaml", ONLY_CLIENT)?;
        eventually("the other is refused", async || refused(&other, to).await).await?;
        refused(&outside, to).await?;
        answers(&client, to).await?;
        mesh.down()
    });
}

#[test]
fn a_new_deny_cuts_live_connections() {
    run(async {
        let mesh = start().await?;
        let to: SocketAddr = (mesh.service_ip("shop/server").await?, 80).into();
        let client = mesh.caller("shop/client").await?;
        let other = mesh.caller("shop/other").await?;
        for caller in [&client, &other] {
            mesh.answers(caller, to, "server", "/ip").await?;
        }
        let mut cut = client.connect(to).await?;
        let mut spared = other.connect(to).await?;
        for stream in [&mut cut, &mut spared] {
            exchange(stream).await?;
        }
        mesh.apply("deny.yaml", DENY_CLIENT)?;
        let written = Instant::now();
        let mut byte = [0; 1];
        let end = tokio::time::timeout(Duration::from_secs(10), cut.read(&mut byte)).await?;
        let took = written.elapsed();
        ensure!(
            matches!(end, Ok(0) | Err(_)),
            "bytes came instead of an end"
        );
        ensure!(took <= Duration::from_secs(1), "it took {took:?}");
        exchange(&mut spared).await?;
        refused(&client, to).await?;
        eventually("the log says why", async || {
            let log = mesh.log("ztunnel-node-2").await?;
            ensure!(log.contains("policy_withdrawn"), "no such reason in it");
            Ok(())
        })
        .await?;
        mesh.down()
    });
}

/// One keep-alive request and its reply, byte by byte, so that the connection stays ours.
async fn exchange(stream: &mut tokio::net::TcpStream) -> Result<()> {
    stream
        .write_all(b"GET /status/204 HTTP/1.1\r\nhost: server\r\n\r\n")
        .await?;
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await?);
    }
    ensure!(
        seen.starts_with(b"HTTP/1.1 204"),
        "{}",
        String::from_utf8_lossy(&seen)
    );
    Ok(())
}

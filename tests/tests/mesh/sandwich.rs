//! A waypoint that somebody else runs, behind the node proxies of its pods: it gets what came out of
//! tunnels, and who called in a PROXY protocol header.

use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_hbone::ProxyHeader;
use isobar_runtime::Scope;
use isobar_tests::eventually;
use isobar_tests::yaml::{Pod, documents, service, service_account};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{HTTPBIN, run, server, shop};

const PORT: u16 = 15088;

const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: theirs
  namespace: shop
  annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}
spec:
  gatewayClassName: somebody-elses
  listeners: [{name: in, port: 15088, protocol: istio.io/PROXY}]
status:
  addresses: [{type: Hostname, value: theirs.shop.svc.cluster.local}]
";

/// Its pod and its Service, which does not list the port of tunnels.
fn waypoint() -> String {
    let pod = Pod {
        namespace: "shop",
        name: "theirs",
        account: "theirs",
        node: "node-2",
        image: HTTPBIN,
        port: Some(80),
        labels: &[("gateway.networking.k8s.io/gateway-name", "theirs")],
    };
    documents([
        service_account("shop", "theirs", &[]),
        pod.yaml(),
        service("shop", "theirs", "theirs", PORT, false),
    ])
}

/// Answers each request with what the header before it says.
async fn answers(listener: TcpListener, scope: &Scope) {
    let life = scope.lifetime();
    loop {
        let accepted = tokio::select! {
            () = life.draining() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else { continue };
        scope.spawn("connection", async move {
            // How it ends is for the caller to see.
            let _ = answer(tcp).await;
        });
    }
}

async fn answer(mut tcp: TcpStream) -> Result<()> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(tcp.read_u8().await?);
        // The header's signature has such bytes of its own.
        if ProxyHeader::parse(&seen).is_err() && seen.ends_with(b"\r\n\r\n") {
            seen.push(tcp.read_u8().await?);
        }
    }
    let body = match ProxyHeader::parse(&seen) {
        Ok((header, _)) => format!(
            "{} calls {}",
            header.identity.unwrap_or_default(),
            header.destination
        ),
        Err(error) => error.to_string(),
    };
    let length = body.len();
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    tcp.write_all(format!("{text}{body}").as_bytes()).await?;
    Ok(())
}

#[test]
fn a_waypoint_behind_node_proxies_is_told_who_called_in_a_header() {
    run(async {
        let shop = shop(&[("theirs.yaml", &waypoint())]).await?;
        let mesh = &shop.mesh;
        mesh.settled("shop/theirs", "enrolled").await?;
        let scope = Scope::new("waypoint");
        let listener = mesh.caller("shop/theirs").await?.listen(PORT)?;
        let check = async {
            mesh.apply("gateway.yaml", GATEWAY)?;
            let label = "kind: Service\nmetadata:\n  labels:\n    istio.io/use-waypoint: theirs\n";
            let bound = server("shop", &[]).replace("kind: Service\nmetadata:\n", label);
            mesh.apply("server.yaml", &bound)?;
            let wanted = format!("spiffe://cluster.local/ns/shop/sa/client calls {}", shop.to);
            eventually("the waypoint knows who calls whom", async || {
                let reply = shop.caller.get(shop.to, "/ip").await?;
                ensure!(reply.body == wanted, "{reply:?}");
                Ok(())
            })
            .await
        };
        let ended = tokio::select! {
            ended = check => ended,
            () = answers(listener, &scope) => Ok(()),
        };
        scope.shutdown(Duration::ZERO).await;
        ended?;
        shop.mesh.down()
    });
}

//! Calls out of pods: where they may go, and how many there may be.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::yaml::namespace;
use isobar_tests::{Caller, Mesh, eventually};

use crate::fixture::{AMBIENT, Shop, ambient, run, shop};

const EGRESS: &str = "isobar.dev/outbound-traffic-policy";
/// The control plane's pages: an address that the mesh knows nothing about.
const ELSEWHERE: ([u8; 4], u16) = ([172, 30, 0, 1], 15014);

const ONE_CONNECTION: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: server
  namespace: shop
spec:
  host: server
  trafficPolicy:
    connectionPool:
      tcp:
        maxConnections: 1
        connectTimeout: 5s
";

/// The control plane's pages under a name, and the mesh's own server under another.
const ENTRIES: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: fixed, namespace: shop}
spec:
  hosts: [pages.example]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 15014}]
  resolution: STATIC
  endpoints: [{address: 172.30.0.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: named, namespace: shop}
spec:
  hosts: [elsewhere.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
  endpoints: [{address: server.shop.svc.cluster.local}]
";

const AS_IT_IS: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: itself, namespace: shop}
spec:
  hosts: [raw.example]
  addresses: [172.30.0.0/24]
  ports: [{number: 15014, name: http, protocol: HTTP}]
";

/// The address that a host was given, as the node proxy knows it.
async fn given(mesh: &Mesh, host: &str) -> Result<SocketAddr> {
    let page = mesh
        .page(Target::node("node-1"), 15000, "/config_dump")
        .await?;
    let dump: serde_json::Value = serde_json::from_str(&page)?;
    let services = dump["services"].as_array().cloned().unwrap_or_default();
    let service = services.iter().find(|s| s["hostname"] == host);
    let vips = service.and_then(|s| s["vips"].as_array());
    let mut vips = vips.into_iter().flatten().filter_map(|vip| vip.as_str());
    let v4 = vips.find_map(|vip| vip.trim_start_matches('/').parse().ok().filter(is_v4));
    Ok((v4.with_context(|| format!("{host} in {services:?}"))?, 80).into())
}

fn is_v4(ip: &std::net::IpAddr) -> bool {
    ip.is_ipv4()
}

#[test]
fn hosts_of_service_entries_belong_to_the_registry() {
    run(async {
        let Shop { mesh, caller, .. } = shop(&[]).await?;
        let elsewhere = SocketAddr::from(ELSEWHERE);
        let closed = namespace("shop", &[AMBIENT, (EGRESS, "REGISTRY_ONLY")]);
        mesh.apply("ns.yaml", &closed)?;
        eventually("the namespace is kept to the mesh", async || {
            refused(&caller, elsewhere, "/version").await
        })
        .await?;

        mesh.apply("raw.yaml", AS_IT_IS)?;
        eventually("an address that stands for itself is reached", async || {
            answers(&caller, elsewhere, "/version").await
        })
        .await?;
        refused(&caller, SocketAddr::new(elsewhere.ip(), 15012), "/").await?;
        eventually("the log says why", async || {
            let log = mesh.log("ztunnel-node-1").await?;
            ensure!(log.contains("has no port 15012"), "{log}");
            Ok(())
        })
        .await?;
        mesh.delete("raw.yaml")?;
        eventually("it is not reached without its entry", async || {
            refused(&caller, elsewhere, "/version").await
        })
        .await?;

        mesh.apply("entries.yaml", ENTRIES)?;
        eventually("listed endpoints are reached", async || {
            answers(&caller, given(&mesh, "pages.example").await?, "/version").await
        })
        .await?;
        let mut to = given(&mesh, "pages.example").await?;
        to.set_port(81);
        refused(&caller, to, "/version").await?;
        let to = given(&mesh, "elsewhere.example").await?;
        answers(&caller, to, "/ip").await?;

        // The addresses are written down, and stay the same.
        let written = mesh.lab().paths().overlay().join("control-plane");
        let address = to.ip().to_string();
        eventually("the object's status tells the address", async || {
            let all = std::fs::read_dir(&written)?;
            let texts = all.map(|file| Ok(std::fs::read_to_string(file?.path())?));
            let texts = texts.collect::<Result<Vec<_>>>()?;
            ensure!(
                texts.iter().any(|text| text.contains(&address)),
                "{texts:?}"
            );
            Ok(())
        })
        .await?;

        mesh.down()
    });
}

async fn answers(caller: &Caller, to: SocketAddr, path: &str) -> Result<()> {
    let reply = tokio::time::timeout(Duration::from_secs(2), caller.get(to, path)).await??;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(())
}

async fn refused(caller: &Caller, to: SocketAddr, path: &str) -> Result<()> {
    ensure!(answers(caller, to, path).await.is_err(), "it got through");
    Ok(())
}

#[test]
fn a_namespace_may_be_kept_to_the_mesh_and_to_a_number_of_connections() {
    run(async {
        let Shop {
            mesh,
            caller,
            to: inside,
        } = shop(&[]).await?;
        let elsewhere = SocketAddr::from(ELSEWHERE);
        answers(&caller, elsewhere, "/version").await?;

        let closed = namespace("shop", &[AMBIENT, (EGRESS, "REGISTRY_ONLY")]);
        mesh.apply("ns.yaml", &closed)?;
        eventually("the namespace is kept to the mesh", async || {
            refused(&caller, elsewhere, "/version").await
        })
        .await?;
        answers(&caller, inside, "/ip").await?;
        let log = mesh.log("ztunnel-node-1").await?;
        ensure!(
            log.contains("unknown_destination") && log.contains("REGISTRY_ONLY"),
            "the log does not say why:\n{log}"
        );
        mesh.apply("ns.yaml", &ambient("shop"))?;
        eventually("it may go anywhere again", async || {
            answers(&caller, elsewhere, "/version").await
        })
        .await?;

        mesh.apply("rule.yaml", ONE_CONNECTION)?;
        // Nothing passes while one connection is held, as soon as the rule is known.
        eventually("a second connection is refused", async || {
            let held = caller.http(inside).await?;
            let second = refused(&caller, inside, "/ip").await;
            drop(held);
            second
        })
        .await?;
        eventually("one alone passes", async || {
            answers(&caller, inside, "/ip").await
        })
        .await?;
        let log = mesh.log("ztunnel-node-1").await?;
        ensure!(
            log.contains("maxConnections"),
            "the log does not say why:\n{log}"
        );
        mesh.down()
    });
}

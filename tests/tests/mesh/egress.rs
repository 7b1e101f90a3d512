//! Calls out of pods: where they may go, and how many there may be.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::Target;
use isobar_tests::yaml::{namespace, service};
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
pub(crate) async fn given(mesh: &Mesh, host: &str) -> Result<SocketAddr> {
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

/// Hosts behind a waypoint: by address, by name, and by an object of its own.
const THROUGH: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: fixed, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [pages.example]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 15014}]
  resolution: STATIC
  endpoints: [{address: 172.30.0.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: named, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [elsewhere.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
  endpoints: [{address: server-headless.shop.svc.cluster.local}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selecting, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: [machines.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  workloadSelector: {labels: {kind: machine}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: machine, namespace: shop, labels: {kind: machine}}
spec: {address: 172.30.0.1, ports: {http: 15014}}
";

/// A route that tells the endpoint.
fn marked(host: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}, namespace: shop}}
spec:
  hosts: [{host}]
  http:
  - headers: {{response: {{set: {{x-endpoint: \"%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\"}}}}}}
    route: [{{destination: {{host: {host}}}}}]
"
    )
}

#[test]
fn hosts_of_service_entries_have_what_services_have_at_a_waypoint() {
    run(async {
        let headless = service("shop", "server-headless", "server", 80, true);
        let Shop { mesh, caller, .. } = shop(&[("headless.yaml", &headless)]).await?;
        mesh.isobar(&["waypoint", "apply", "-n", "shop", "--wait"])
            .await?;
        let hosts = ["pages.example", "elsewhere.example", "machines.example"];
        let routes = hosts.map(marked).concat();
        mesh.apply("through.yaml", &format!("{THROUGH}{routes}"))?;
        let pod = mesh.pod_ip("shop/server").await?.to_string();
        for (host, path, at) in [
            ("pages.example", "/version", "172.30.0.1"),
            ("elsewhere.example", "/ip", &*pod),
            ("machines.example", "/version", "172.30.0.1"),
        ] {
            eventually("the host is reached through the waypoint", async || {
                let to = given(&mesh, host).await?;
                let reply = caller.get(to, path).await?;
                ensure!(reply.status == 200, "{reply:?}");
                let endpoint = reply.headers.get("x-endpoint");
                ensure!(endpoint.is_some_and(|v| v == at), "{host}: {reply:?}");
                Ok(())
            })
            .await?;
        }
        // The pod is reached as one of the mesh: in a tunnel of the waypoint's identity.
        eventually("the node proxy counts the waypoint's tunnel", async || {
            let page = mesh.page(Target::node("node-2"), 15020, "/metrics").await?;
            let identity = "source_principal=\"spiffe://cluster.local/ns/shop/sa/waypoint\"";
            ensure!(page.contains(identity), "{page}");
            Ok(())
        })
        .await?;
        mesh.down()
    });
}

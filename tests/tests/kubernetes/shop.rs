//! The scenery: a caller on one node, two applications on the other.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use isobar_tests::yaml::{Pod, documents, namespace, service, service_account};
use isobar_tests::{Caller, Load, LoadKind, Mesh, MeshOptions, kube_tools};

const HTTPBIN: &str = "docker.io/honester/httpbin:latest";

/// A mesh with `client` on one node, `server` and `vault` on the other, over a real API server.
pub(crate) struct Shop {
    pub(crate) mesh: Mesh,
    /// Inside the client.
    pub(crate) caller: Caller,
    pub(crate) server: SocketAddr,
    pub(crate) vault: SocketAddr,
}

/// Starts one; with `enrolled` its namespace is in the mesh.
pub(crate) async fn shop(enrolled: bool) -> Result<Shop> {
    let options = MeshOptions {
        api_server: Some(kube_tools()?),
        ..MeshOptions::default()
    };
    shop_with(options, enrolled).await
}

/// As [`shop`], with options.
pub(crate) async fn shop_with(options: MeshOptions, enrolled: bool) -> Result<Shop> {
    let labels: &[(&str, &str)] = match enrolled {
        true => &[("istio.io/dataplane-mode", "ambient")],
        false => &[],
    };
    let pod = |name, node| {
        let pod = Pod {
            namespace: "shop",
            name,
            account: name,
            node,
            image: HTTPBIN,
            port: Some(80),
            labels: &[],
        };
        documents([service_account("shop", name, &[]), pod.yaml()])
    };
    let text = documents([
        namespace("shop", labels),
        pod("client", "node-1"),
        pod("server", "node-2"),
        pod("vault", "node-2"),
        service("shop", "server", "server", 80, false),
        service("shop", "vault", "vault", 80, false),
    ]);
    let mesh = Mesh::start_with(options, &[("shop.yaml", &text)]).await?;
    for pod in ["shop/client", "shop/server", "shop/vault"] {
        mesh.settled(pod, if enrolled { "enrolled" } else { "plain" })
            .await?;
    }
    let caller = mesh.caller("shop/client").await?;
    let address = async |service: &str| -> Result<SocketAddr> {
        let ip = mesh.service_ip(service).await?;
        mesh.answers(&caller, (ip, 80).into(), "server", "/ip")
            .await?;
        Ok((ip, 80).into())
    };
    let (server, vault) = (address("shop/server").await?, address("shop/vault").await?);
    Ok(Shop {
        mesh,
        caller,
        server,
        vault,
    })
}

/// Calls that must all be answered, whatever happens.
pub(crate) struct Calls(Vec<(&'static str, Load)>);

impl Calls {
    pub(crate) fn start(shop: &Shop) -> Self {
        let mut calls = Self::fresh(shop);
        calls.0.extend(Self::kept(shop).0);
        calls
    }

    /// On connections of their own only: binding to a waypoint ends connections that pass it by.
    pub(crate) fn fresh(shop: &Shop) -> Self {
        let fresh = Self::of(shop, "new connections", LoadKind::NewConnections);
        Self(vec![fresh])
    }

    /// On one connection only, which is never opened again.
    pub(crate) fn kept(shop: &Shop) -> Self {
        Self(vec![Self::of(shop, "keep-alive", LoadKind::KeepAlive)])
    }

    fn of(shop: &Shop, name: &'static str, kind: LoadKind) -> (&'static str, Load) {
        let load = Load::start(shop.caller.clone(), shop.server, "server", "/ip", kind, 20);
        (name, load)
    }

    pub(crate) async fn progress(&self) -> Result<()> {
        for (_, load) in &self.0 {
            load.progress(20).await?;
        }
        Ok(())
    }

    pub(crate) async fn all_good(self) -> Result<()> {
        self.progress().await?;
        for (name, load) in self.0 {
            let tally = load.stop().await;
            ensure!(tally.bad.is_empty(), "{name}: {:?}", tally.bad);
            ensure!(tally.good >= 40, "{name}: only {}", tally.good);
        }
        Ok(())
    }
}

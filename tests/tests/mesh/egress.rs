//! Calls out of pods: where they may go, and how many there may be.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_tests::yaml::namespace;
use isobar_tests::{Caller, eventually};

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

//! A second waypoint, by labels and an annotation that kubectl writes.

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{Mesh, eventually};
use serde_json::Value;

use crate::alone;
use crate::shop::{Calls, shop};
use crate::waypoints::{isobar, refusal};

const FIRST: &str = "istio.io/use-waypoint=first";
const SECOND: &str = "istio.io/use-waypoint-canary=second";

fn label(mesh: &Mesh, labels: &[&str]) -> Result<String> {
    let label = ["label", "--overwrite", "-n", "shop", "service", "server"];
    mesh.kubectl(&[&label[..], labels].concat())
}

fn share(mesh: &Mesh, weight: &str) -> Result<String> {
    let annotation = format!("istio.io/use-waypoint-canary-weight={weight}");
    let annotate = ["annotate", "--overwrite", "-n", "shop", "service", "server"];
    mesh.kubectl(&[&annotate[..], &[&annotation]].concat())
}

/// Waits until the Service's status says so, and returns the sentence.
async fn told(mesh: &Mesh, status: &str, reason: &str, word: &str) -> Result<()> {
    eventually(
        &format!("the Service is told {reason}, {word}"),
        async || {
            let get = ["get", "service", "server", "-n", "shop", "-o", "json"];
            let found: Value = serde_json::from_str(&mesh.kubectl(&get)?)?;
            let all = found["status"]["conditions"].as_array();
            let mut all = all.into_iter().flatten();
            let bound = all.find(|one| one["type"] == "istio.io/WaypointBound");
            let bound = bound.with_context(|| format!("{}", found["status"]))?;
            let message = bound["message"].as_str().unwrap_or_default();
            let is_so = bound["status"] == status && bound["reason"] == reason;
            ensure!(is_so && message.contains(word), "{bound}");
            Ok(())
        },
    )
    .await
}

/// Requests to the server that a waypoint has in its log.
async fn seen(mesh: &Mesh, waypoint: &str) -> Result<usize> {
    let log = mesh.log(&format!("shop/{waypoint}")).await?;
    let lines = log.lines();
    Ok(lines.filter(|one| one.contains("\"GET /ip ")).count())
}

/// Waits until a waypoint sees calls.
async fn passes(mesh: &Mesh, waypoint: &str) -> Result<()> {
    let before = seen(mesh, waypoint).await?;
    eventually(&format!("calls pass {waypoint}"), async || {
        let now = seen(mesh, waypoint).await?;
        ensure!(now > before, "{now}");
        Ok(())
    })
    .await
}

#[test]
fn a_second_waypoint_takes_the_share_that_is_written_and_what_is_wrong_is_told() {
    alone(async {
        let shop = shop(true).await?;
        let mesh = &shop.mesh;
        for name in ["first", "second"] {
            let apply = ["waypoint", "apply", "-n", "shop", "--wait", "--name", name];
            isobar(mesh, &apply).await?;
        }
        label(mesh, &[FIRST])?;
        let bound = ("True", "WaypointAccepted");
        told(mesh, bound.0, bound.1, "bound to waypoint shop/first").await?;
        let calls = Calls::fresh(&shop);
        passes(mesh, "first").await?;

        share(mesh, "30")?;
        label(mesh, &[SECOND])?;
        told(mesh, bound.0, bound.1, "30 % of its calls").await?;
        passes(mesh, "second").await?;
        passes(mesh, "first").await?;
        let list = isobar(mesh, &["waypoint", "list", "-n", "shop"]).await?;
        ensure!(list.contains("server (canary, 30 %)"), "{list}");

        share(mesh, "101")?;
        told(mesh, "False", "CanaryInvalidWeight", "0 to 100").await?;
        label(mesh, &["istio.io/use-waypoint-canary=first"])?;
        told(mesh, "False", "CanarySameAsPrimary", "the same waypoint").await?;
        label(mesh, &["istio.io/use-waypoint-canary=nosuch"])?;
        share(mesh, "30")?;
        told(mesh, bound.0, bound.1, "shop/nosuch does not exist").await?;
        passes(mesh, "first").await?;

        label(mesh, &[SECOND])?;
        share(mesh, "100")?;
        told(mesh, bound.0, bound.1, "100 % of its calls").await?;
        passes(mesh, "second").await?;
        calls.all_good().await?;
        let delete = ["waypoint", "delete", "-n", "shop", "second"];
        let said = refusal(mesh, &delete).await?;
        ensure!(said.contains("server (canary, 100 %)"), "{said}");
        shop.mesh.down()
    });
}

//! Labels in the API server enrol and give back, and what it says of a pod is what was observed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use isobar_tests::{Mesh, eventually_within};

use crate::alone;
use crate::shop::{Calls, shop};

const LABEL: &str = "istio.io/dataplane-mode";
const PODS: [&str; 3] = ["client", "server", "vault"];
/// The bar is 2 s on a machine that does nothing else; this one may be busy.
const LIMIT: Duration = Duration::from_secs(6);
/// For rules that somebody removed.
const REPAIR: Duration = Duration::from_secs(10);

/// What the API server says of a pod's redirection.
fn annotation(mesh: &Mesh, pod: &str) -> Result<String> {
    let path = r"jsonpath={.metadata.annotations.ambient\.istio\.io/redirection}";
    mesh.kubectl(&["get", "pod", pod, "-n", "shop", "-o", path])
}

/// True if a pod's namespace has rules that capture.
async fn captures(mesh: &Mesh, pod: &str) -> Result<bool> {
    let pod = format!("shop/{pod}");
    let rules = mesh.exec(&pod, &["nft", "list", "ruleset"]).await?;
    Ok(rules.stdout.contains("15001"))
}

#[test]
fn labels_enrol_and_give_back_under_load() {
    alone(async {
        let shop = shop(false).await?;
        let mesh = &shop.mesh;
        let calls = Calls::start(&shop);
        calls.progress().await?;
        for (label, then) in [
            (format!("{LABEL}=ambient"), "enrolled"),
            (format!("{LABEL}-"), "plain"),
            (format!("{LABEL}=ambient"), "enrolled"),
        ] {
            let is_enrolled = then == "enrolled";
            mesh.kubectl(&["label", "namespace", "shop", &label])?;
            let since = Instant::now();
            for pod in PODS {
                mesh.settled(&format!("shop/{pod}"), then).await?;
            }
            let took = since.elapsed();
            println!("{then} after {took:?}");
            ensure!(took < LIMIT, "{then} only after {took:?}");
            for pod in PODS {
                let said = annotation(mesh, pod)?;
                ensure!(
                    (said == "enabled") == is_enrolled,
                    "{pod}, {then}: {said:?}"
                );
                ensure!(captures(mesh, pod).await? == is_enrolled, "{pod}, {then}");
            }
            calls.progress().await?;
        }
        calls.all_good().await?;
        shop.mesh.down()
    });
}

#[test]
fn rules_that_somebody_removed_are_written_again() {
    alone(async {
        let shop = shop(true).await?;
        let mesh = &shop.mesh;
        let flushed = mesh
            .exec("shop/server", &["nft", "flush", "ruleset"])
            .await?;
        ensure!(flushed.code == 0, "{flushed:?}");
        let ((), took) = eventually_within("the rules are back", REPAIR, async || {
            ensure!(captures(mesh, "server").await?, "no rules");
            Ok(())
        })
        .await?;
        println!("repaired after {took:?}");
        let log = mesh.log("isobar-cni-node-2").await?;
        ensure!(log.contains("writing them again"), "{log}");
        mesh.settled("shop/server", "enrolled").await?;
        ensure!(annotation(mesh, "server")? == "enabled");
        shop.mesh.down()
    });
}

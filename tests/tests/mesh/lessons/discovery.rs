//! Names: what is new, what has no address of its own, what is another name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_tests::yaml::{documents, service};
use isobar_tests::{Answer, App, Mesh, eventually, eventually_within};

use super::{Scene, pod};
use crate::fixture::{run, shop};

/// A page asked for by name from inside the client.
async fn by_name(mesh: &Mesh, url: &str) -> Result<String> {
    let output = mesh.exec("shop/client", &["curl", "-sS", url]).await?;
    ensure!(output.code == 0, "{} {}", output.code, output.stderr);
    Ok(output.stdout)
}

#[test]
fn s077_a_new_service_is_there_by_name_headless_and_aliased_too() {
    run(async {
        let shop = shop(&[]).await?;
        shop.mesh
            .apply("new.yaml", &service("shop", "new", "server", 80, false))?;
        let limit = Duration::from_secs(1);
        eventually_within("the new name answers", limit, async || {
            let text = by_name(&shop.mesh, "http://new/ip").await?;
            ensure!(text.contains("origin"), "{text}");
            Ok(())
        })
        .await?;
        let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\n\
                     spec: {type: ExternalName, externalName: server.shop.svc.cluster.local}\n";
        let headless = service("shop", "headless", "server", 80, true);
        let more = documents([headless.as_str(), alias]);
        shop.mesh.apply("more.yaml", &more)?;
        for name in ["headless", "alias", "headless.shop.svc.cluster.local"] {
            eventually(&format!("{name} answers"), async || {
                let text = by_name(&shop.mesh, &format!("http://{name}/ip")).await?;
                ensure!(text.contains("origin"), "{text}");
                Ok(())
            })
            .await?;
        }
        shop.mesh.down()
    });
}

#[test]
fn s072_an_endpoint_that_is_not_ready_is_not_asked() {
    run(async {
        let scene = Scene::start(&["v1"], &[]).await?;
        let _first = scene.apps(&["v1"]).await?;
        scene.ready("/", 200).await?;
        // The kubelet asks the test's own application whether it is ready.
        let second = pod("v2", 1).replace(
            "{tcpSocket: {port: 80}, periodSeconds: 1}",
            "{httpGet: {path: /ready, port: 7000}, periodSeconds: 1, failureThreshold: 1}",
        );
        scene.mesh.apply("second.yaml", &second)?;
        let healthy = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&healthy);
        let app = eventually("the pod has a network", async || {
            let told = Arc::clone(&told);
            scene
                .app("v2", move |r| match r.path.as_str() {
                    "/ready" if !told.load(Ordering::SeqCst) => Answer::Status(503),
                    _ => Answer::Status(200),
                })
                .await
        })
        .await?;
        scene.mesh.settled("shop/v2", "enrolled").await?;
        let asked = |app: &App| app.arrived().iter().filter(|r| r.path == "/").count();
        eventually("v2 is asked too", async || {
            scene.tally("/", 20, 2).await?;
            ensure!(asked(&app) > 0, "not yet");
            Ok(())
        })
        .await?;
        healthy.store(false, Ordering::SeqCst);
        eventually("the kubelet has noticed", async || {
            let status = scene.mesh.pod("shop/v2").await?;
            ensure!(!status.ready, "{status:?}");
            Ok(())
        })
        .await?;
        eventually_within("v2 is left out", Duration::from_secs(1), async || {
            let before = asked(&app);
            scene.tally("/", 40, 2).await?;
            ensure!(asked(&app) == before, "v2 is still asked");
            Ok(())
        })
        .await?;
        scene.mesh.down()
    });
}

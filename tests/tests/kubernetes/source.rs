//! Objects as an API server tells them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_kubernetes::{KubernetesSource, SourceOptions};
use isobar_objects::{Kind, ObjectSource as _, Published};
use isobar_runtime::Scope;
use isobar_tests::{ApiServer, eventually};
use tokio::sync::watch::Receiver;

use crate::definitions::define;
use crate::run;

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: NAME, namespace: shop},
    spec: {nodeName: node-1, containers: [{name: c, image: i}]}}";

const ROUTE: &str = "{apiVersion: networking.istio.io/v1, kind: VirtualService,
    metadata: {name: r, namespace: shop},
    spec: {hosts: [x.example], http: [{route: [{destination: {host: x.example}}]}]}}";

async fn pod(server: &ApiServer, name: &str) -> Result<()> {
    server.apply(&POD.replace("NAME", name)).await
}

fn follow(server: &ApiServer, scope: &Scope, options: SourceOptions) -> Receiver<Arc<Published>> {
    let source = KubernetesSource::new(server.cluster(), options);
    let objects = source.subscribe();
    scope.spawn("source", Box::new(source).run(scope.lifetime()));
    objects
}

/// Waits until the objects are as wanted, and returns them.
async fn until(
    objects: &mut Receiver<Arc<Published>>,
    what: &str,
    check: impl Fn(&Published) -> bool,
) -> Result<Arc<Published>> {
    let found = tokio::time::timeout(
        Duration::from_secs(30),
        objects.wait_for(|published| check(published)),
    );
    let found = found.await.map(|found| found.map(|found| found.clone()));
    match found {
        Ok(found) => Ok(found?),
        Err(_) => anyhow::bail!("{what}: {:?}", objects.borrow()),
    }
}

#[test]
fn nothing_is_said_before_every_kind_was_listed() {
    run(async |server| {
        server.namespace("shop").await?;
        for name in ["a", "b"] {
            pod(server, name).await?;
        }
        let scope = Scope::new("test");
        let mut objects = follow(server, &scope, SourceOptions::default());
        ensure!(!objects.borrow().synced);
        objects.changed().await?;
        // The very first word is complete, though six kinds are not served at all.
        let first = objects.borrow_and_update().clone();
        ensure!(first.synced && first.objects.pods.len() == 2, "{first:?}");
        ensure!(first.objects.namespaces.get("", "shop").is_some());
        let held = first.objects.pods.get("shop", "a");
        ensure!(held.is_some_and(|pod| pod.metadata.managed_fields.is_none()));

        server.kubectl(&["label", "ns", "shop", "a=b"]).await?;
        until(&mut objects, "the label", |published| {
            let shop = published.objects.namespaces.get("", "shop");
            shop.is_some_and(|shop| {
                shop.metadata
                    .labels
                    .as_ref()
                    .is_some_and(|l| l.contains_key("a"))
            })
        })
        .await?;
        server
            .kubectl(&["delete", "pod", "a", "-n", "shop", "--force"])
            .await?;
        until(&mut objects, "one pod", |published| {
            published.objects.pods.len() == 1
        })
        .await?;
        scope.shutdown(Duration::ZERO).await;
        Ok(())
    });
}

#[test]
fn a_kind_is_picked_up_when_it_appears_and_judged_as_in_files() {
    run(async |server| {
        server.namespace("shop").await?;
        let scope = Scope::new("test");
        let mut objects = follow(server, &scope, SourceOptions::default());
        until(&mut objects, "synced", |published| published.synced).await?;
        define(server).await?;
        eventually("the route is taken", async || server.apply(ROUTE).await).await?;
        let published = until(&mut objects, "the route", |published| {
            !published.objects.virtual_services.is_empty()
        })
        .await?;
        ensure!(
            published.findings.iter().all(|one| !one.is_error()),
            "{:?}",
            published.findings
        );
        // What files would refuse is refused here: the last good version stays in force.
        server
            .apply(&ROUTE.replace("spec: {", "spec: {htp: [], "))
            .await?;
        let published = until(&mut objects, "the finding", |published| {
            published.findings.iter().any(|one| one.field == "spec.htp")
        })
        .await?;
        ensure!(published.objects.virtual_services.len() == 1);
        scope.shutdown(Duration::ZERO).await;
        Ok(())
    });
}

#[test]
fn an_outage_loses_nothing_and_a_compacted_history_is_listed_anew() {
    run(async |server| {
        server.namespace("shop").await?;
        for name in ["stays", "goes"] {
            pod(server, name).await?;
        }
        let scope = Scope::new("test");
        let mut objects = follow(server, &scope, SourceOptions::default());
        until(&mut objects, "both", |p| p.objects.pods.len() == 2).await?;
        objects.borrow_and_update();

        // What happens meanwhile is in no history of the server that comes back: the watch cannot
        // be taken up where it ended.
        server.pause();
        let second = server.second().await?;
        pod(&second, "new").await?;
        second
            .kubectl(&["delete", "pod", "goes", "-n", "shop", "--force"])
            .await?;
        drop(second);
        ensure!(!objects.has_changed()?, "nothing may be said meanwhile");
        server.resume().await?;
        let mut seen = objects.clone();
        let back = tokio::time::Instant::now();
        until(&mut objects, "both changes", |published| {
            let pods = &published.objects.pods;
            pods.get("shop", "new").is_some() && pods.get("shop", "goes").is_none()
        })
        .await?;
        ensure!(
            back.elapsed() < Duration::from_secs(5),
            "{:?}",
            back.elapsed()
        );
        ensure!(
            seen.borrow_and_update()
                .objects
                .pods
                .get("shop", "stays")
                .is_some()
        );
        scope.shutdown(Duration::ZERO).await;
        Ok(())
    });
}

#[test]
fn a_node_reads_only_what_is_its_own() {
    run(async |server| {
        server.namespace("shop").await?;
        pod(server, "here").await?;
        let elsewhere = POD.replace("NAME", "there").replace("node-1", "node-2");
        server.apply(&elsewhere).await?;
        let scope = Scope::new("test");
        let options = SourceOptions {
            kinds: vec![Kind::Namespace, Kind::Pod],
            node: Some("node-1".to_owned()),
            ..SourceOptions::default()
        };
        let mut objects = follow(server, &scope, options);
        let published = until(&mut objects, "synced", |published| published.synced).await?;
        ensure!(published.objects.pods.len() == 1 && published.objects.services.is_empty());
        ensure!(published.objects.pods.get("shop", "here").is_some());
        scope.shutdown(Duration::ZERO).await;
        Ok(())
    });
}

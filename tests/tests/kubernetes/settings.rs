//! Settings of a mesh that runs: a MeshConfig that is not valid over restarts, other control planes, and
//! the class of waypoints.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_tests::{ApiServer, eventually, eventually_within};
use serde_json::Value;

use crate::definitions::define;
use crate::isobard::Isobard;
use crate::run;

const RECORD: [&str; 5] = [
    "delete",
    "configmap/isobar-last-valid",
    "-n",
    "istio-system",
    "--wait",
];
/// The keeper writes as soon as it leads, which takes a lease.
const KEPT: Duration = Duration::from_secs(30);
/// In which the class would be there again twice over: it is made a second after it has gone.
const MADE: Duration = Duration::from_secs(4);

async fn prepared(server: &ApiServer) -> Result<()> {
    server.namespace("istio-system").await?;
    server.namespace("elsewhere").await?;
    define(server).await
}

fn mesh(text: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data: {{mesh: \"{text}\"}}\n"
    )
}

/// Names of what node proxies are told of the way out, and of the trust domain's other names.
async fn served(isobard: &Isobard) -> Result<Vec<String>> {
    let page = isobard.json("/debug/config").await?;
    let outbound = page["outbound"].as_object().context("outbound")?;
    Ok(outbound.keys().cloned().collect())
}

/// Everything that is told, as one text.
async fn told(isobard: &Isobard) -> Result<String> {
    Ok(isobard.json("/debug/findings").await?.to_string())
}

#[test]
fn a_mesh_config_that_is_not_valid_changes_nothing_over_a_restart() {
    const GOOD: &str =
        "{trustDomainAliases: [old.example], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}";
    const BAD: &str =
        "{trustDomainAliases: [old.example], outboundTrafficPolicy: {mode: ANYWHERE}}";
    run(async |server| {
        prepared(server).await?;
        server.apply(&mesh(GOOD)).await?;
        let first = Isobard::start(server, "first", &[]).await?;
        eventually("it is in force", async || {
            let served = served(&first).await?;
            ensure!(served == ["egress/", "trust/"], "{served:?}");
            Ok(())
        })
        .await?;
        server.apply(&mesh(BAD)).await?;
        eventually_within("the good version is kept", KEPT, async || {
            let get = ["get", "configmap/isobar-last-valid", "-n", "istio-system"];
            let kept = server
                .kubectl(&[&get[..], &["-o", "json"]].concat())
                .await?;
            ensure!(kept.contains("REGISTRY_ONLY"), "{kept}");
            Ok(())
        })
        .await?;
        first.end().await?;

        // From its first answer on, another life goes by the version that was valid.
        let second = Isobard::start(server, "second", &[]).await?;
        let now = served(&second).await?;
        ensure!(now == ["egress/", "trust/"], "{now:?}");
        let said = told(&second).await?;
        ensure!(said.contains("ANYWHERE"), "{said}");
        second.end().await?;

        // Who knows no valid version lets nobody out, and takes nothing else of it.
        server.kubectl(&RECORD).await?;
        let third = Isobard::start(server, "third", &[]).await?;
        let now = served(&third).await?;
        ensure!(now == ["egress/"], "{now:?}");
        server.apply(&mesh("{}")).await?;
        eventually("a valid one opens the way out", async || {
            let now = served(&third).await?;
            ensure!(now.is_empty(), "{now:?}");
            Ok(())
        })
        .await
    });
}

fn control_plane(namespace: &str, arguments: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment,
           metadata: {{name: isobard, namespace: {namespace}, labels: {{app.kubernetes.io/name: isobard}}}},
           spec: {{selector: {{matchLabels: {{app: isobard}}}},
                   template: {{metadata: {{labels: {{app: isobard}}}},
                     spec: {{containers: [{{name: isobard, image: i, args: [{arguments}]}}]}}}}}}}}"
    )
}

#[test]
fn another_control_plane_that_has_what_names_nobody_is_told_of_while_it_is_there() {
    const WORDS: &str = "looks like another control plane";
    run(async |server| {
        prepared(server).await?;
        let own = control_plane("istio-system", "--kubernetes");
        server.apply(&own).await?;
        let isobard = Isobard::start(server, "isobard", &[]).await?;
        let named = control_plane("elsewhere", "--kubernetes, --revision=canary");
        server.apply(&named).await?;
        let says = async |is_told: bool| {
            eventually("it is told, or not", async || {
                let said = told(&isobard).await?;
                let about = said.contains(WORDS) && said.contains("elsewhere");
                ensure!(about == is_told, "{said}");
                Ok(())
            })
            .await
        };
        let tagged = "--kubernetes, --revision=canary, --revision-tag=default";
        for (arguments, is_told) in [(tagged, true), ("--revision=canary", false), ("", true)] {
            server.apply(&control_plane("elsewhere", arguments)).await?;
            says(is_told).await?;
        }
        let gone = ["delete", "deployment", "isobard", "-n", "elsewhere"];
        server.kubectl(&gone).await?;
        says(false).await?;
        let said = isobard.said();
        ensure!(said.contains(WORDS), "the log says nothing of it: {said}");
        Ok(())
    });
}

const CLASS: [&str; 3] = ["gatewayclass", "isobar-waypoint", "--ignore-not-found"];

async fn class(server: &ApiServer) -> Result<String> {
    let get = [&["get"][..], &CLASS, &["-o", "name"]].concat();
    server.kubectl(&get).await
}

async fn deployment(server: &ApiServer) -> Result<Value> {
    let get = ["get", "deployment", "wp", "-n", "elsewhere", "-o", "json"];
    Ok(serde_json::from_str(&server.kubectl(&get).await?)?)
}

#[test]
fn a_class_that_was_deleted_comes_back_only_where_that_is_wanted() {
    const THERE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
                         metadata: {name: isobar-waypoint}\n\
                         spec: {controllerName: isobar.dev/control-plane}\n";
    const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
                           metadata: {name: wp, namespace: elsewhere}\n\
                           spec: {gatewayClassName: isobar-waypoint, \
                           listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
    run(async |server| {
        prepared(server).await?;
        server.apply(THERE).await?;
        server.apply(GATEWAY).await?;
        let keeps = Isobard::start(server, "keeps", &[]).await?;
        let uid = eventually("its waypoint is made", async || {
            let found = deployment(server).await?;
            let uid = found["metadata"]["uid"].as_str();
            Ok(uid.context("a UID")?.to_owned())
        })
        .await?;
        let delete = [&["delete"][..], &CLASS].concat();
        server.kubectl(&delete).await?;
        eventually("the class is there again", async || {
            ensure!(!class(server).await?.is_empty());
            Ok(())
        })
        .await?;
        keeps.end().await?;

        // The same mesh goes on with the setting.
        let _leaves = Isobard::start(server, "leaves", &["--gateway-class=false"]).await?;
        eventually_within("it leads", KEPT, async || {
            let holder = "jsonpath={.spec.holderIdentity}";
            let lease = ["get", "lease", "isobar-control-plane", "-n", "istio-system"];
            let holder = server
                .kubectl(&[&lease[..], &["-o", holder]].concat())
                .await?;
            ensure!(!holder.is_empty(), "nobody does");
            Ok(())
        })
        .await?;
        server.kubectl(&delete).await?;
        let waited = eventually_within("nobody makes it", MADE, async || {
            ensure!(!class(server).await?.is_empty(), "it is gone");
            Ok(())
        });
        ensure!(waited.await.is_err(), "the class is there again");
        let now = deployment(server).await?;
        ensure!(
            now["metadata"]["uid"] == *uid,
            "the waypoint was made anew: {now}"
        );
        Ok(())
    });
}

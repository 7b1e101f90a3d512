//! What keeps a mesh from being uninstalled, and what is left when it is.

use anyhow::{Result, ensure};
use isobar_tests::{ApiServer, eventually};
use serde_json::json;

use crate::install::{bad, good, names};
use crate::run;

/// Everything that is left of a mesh: objects of its programs' own, and maps of roots.
const LEFT: &str = "configmap,lease,daemonset,deployment,secret";

fn gateway(name: &str, class: &str, listener: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway,
           metadata: {{name: {name}, namespace: shop}},
           spec: {{gatewayClassName: {class}, listeners: [{listener}]}}}}"
    )
}

/// Writes as the control plane does.
async fn write_as_isobar(server: &ApiServer, object: &serde_json::Value) -> Result<()> {
    let file = server.folder().join("as-isobar.json");
    std::fs::write(&file, object.to_string())?;
    let file = file.to_string_lossy();
    let apply = ["apply", "--server-side", "--force-conflicts"];
    let how = ["--field-manager=isobar", "-f", &file];
    server.kubectl(&[&apply[..], &how].concat()).await?;
    Ok(())
}

fn roots(namespace: &str, name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": namespace, "labels": { "istio.io/config": "true" } },
        "data": { "root-cert.pem": "ours" },
    })
}

async fn delete(server: &ApiServer, what: &[&str]) -> Result<()> {
    let all = [&["delete", "-n", "shop", "--now"][..], what].concat();
    server.kubectl(&all).await.map(drop)
}

#[test]
fn whatever_is_served_keeps_a_mesh_installed() {
    run(async |server| {
        server.namespace("shop").await?;
        let classes = "control-plane.waypointClasses={isobar-waypoint,istio-waypoint}";
        let whole = ["--set", "crds.gatewayApi=true", "--set", classes];
        good(server, &[&["install", "--no-wait"][..], &whole].concat()).await?;
        let mesh = "{name: mesh, port: 15008, protocol: HBONE}";
        let http = "{name: web, port: 80, protocol: HTTP}";
        for (name, class, listener) in [
            ("wp", "istio-waypoint", mesh),
            ("edge", "isobar", http),
            ("theirs", "nginx", http),
        ] {
            server.apply(&gateway(name, class, listener)).await?;
        }
        server
            .apply(
                "{apiVersion: v1, kind: ServiceAccount, metadata: {name: pods, namespace: shop}}
---
{apiVersion: v1, kind: Pod,
                  metadata: {name: one, namespace: shop, labels: {istio.io/dataplane-mode: ambient}},
                  spec: {serviceAccountName: pods, automountServiceAccountToken: false,
                         containers: [{name: c, image: none}]}}",
            )
            .await?;
        for (users, goes) in [
            (
                &["Pod shop/one", "shop/wp", "shop/edge"][..],
                &["pod/one"][..],
            ),
            (
                &["shop/wp (class istio-waypoint)", "shop/edge"],
                &["gateway/wp"],
            ),
            (&["shop/edge (class isobar)"], &["gateway/edge"]),
        ] {
            let said = bad(server, &["uninstall"]).await?;
            for user in users {
                ensure!(said.contains(user), "{user}: {said}");
            }
            ensure!(!said.contains("theirs"), "{said}");
            delete(server, goes).await?;
        }
        server.apply(&gateway("wp", "istio-waypoint", mesh)).await?;
        let said = good(server, &["uninstall", "--force"]).await?;
        let told = said.lines().find(|line| line.starts_with("note: "));
        ensure!(told.is_some_and(|told| told.contains("shop/wp")), "{said}");
        Ok(())
    });
}

#[test]
fn waypoints_alone_go_whatever_another_mesh_serves() {
    run(async |server| {
        server
            .apply(
                "{apiVersion: v1, kind: Namespace,
                  metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}",
            )
            .await?;
        let clean = names(server, LEFT).await?;
        let place = ["--mesh-namespace", "waypoints"];
        let alone = [
            "install",
            "--no-wait",
            "--set",
            "crds.gatewayApi=true,control-plane.waypointsOnly=true",
        ];
        good(server, &[&alone[..], &place].concat()).await?;
        let wp = gateway(
            "wp",
            "isobar-waypoint",
            "{name: mesh, port: 15008, protocol: HBONE}",
        );
        server.apply(&wp).await?;
        for namespace in ["default", "shop", "waypoints"] {
            write_as_isobar(server, &roots(namespace, "isobar-ca-root-cert")).await?;
        }
        // Another mesh's, and one of ours on which somebody else wrote.
        server
            .apply(&roots("shop", "istio-ca-root-cert").to_string())
            .await?;
        let annotate = ["annotate", "configmap", "isobar-ca-root-cert", "a=b"];
        let there = ["-n", "default"];
        server.kubectl(&[&annotate[..], &there].concat()).await?;

        let uninstall = [&["uninstall"][..], &place].concat();
        let said = bad(server, &uninstall).await?;
        ensure!(said.contains("shop/wp"), "{said}");
        ensure!(!said.contains("namespace shop"), "{said}");
        delete(server, &["gateway/wp"]).await?;
        good(server, &uninstall).await?;
        let left = names(server, LEFT).await?;
        let mut more: Vec<_> = left.lines().filter(|line| !clean.contains(*line)).collect();
        more.sort_unstable();
        ensure!(
            more == [
                "configmap/isobar-ca-root-cert",
                "configmap/istio-ca-root-cert"
            ],
            "{more:?}"
        );
        // Nothing serves any more, so nothing is in the way of the rest.
        good(server, &[&uninstall[..], &["--purge"]].concat()).await?;
        // The API server takes a definition away some time after it was told to.
        eventually("no definition is left", async || {
            let left = names(server, "crd").await?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
        .await
    });
}

#[test]
fn a_control_plane_with_a_name_leaves_nothing_of_that_name() {
    run(async |server| {
        let clean = names(server, LEFT).await?;
        let named = [
            "--set",
            "control-plane.revision=blue,control-plane.revisionTags={default}",
        ];
        let lost = [&["install", "--no-wait"][..], &named].concat();
        let said = bad(server, &lost).await?;
        let to = "https://isobard-blue.istio-system.svc:15012";
        let mut whole = lost.clone();
        let ways = ["xdsAddress", "caAddress"].map(|one| format!("node.ztunnel.{one}={to}"));
        for way in &ways {
            ensure!(said.contains(&format!("--set {way}")), "{said}");
            whole.extend(["--set", way]);
        }
        ensure!(names(server, LEFT).await? == clean, "half an installation");
        let said = bad(server, &[&["manifest", "generate"][..], &named].concat()).await?;
        ensure!(said.contains(to), "{said}");
        good(server, &whole).await?;

        for (kind, name, labels) in [
            (
                "ConfigMap",
                "isobar-last-valid-blue",
                json!({ "isobar.dev/keeps": "last-valid-versions" }),
            ),
            // Somebody's own, which only is called so.
            ("ConfigMap", "isobar-last-valid", json!({})),
            ("Lease", "isobar-control-plane-blue", json!({})),
        ] {
            let api_version = match kind {
                "Lease" => "coordination.k8s.io/v1",
                _ => "v1",
            };
            let head = json!({ "name": name, "namespace": "istio-system", "labels": labels });
            let object = json!({ "apiVersion": api_version, "kind": kind, "metadata": head });
            write_as_isobar(server, &object).await?;
        }
        good(server, &["uninstall"]).await?;
        let left = names(server, LEFT).await?;
        let more: Vec<_> = left.lines().filter(|line| !clean.contains(*line)).collect();
        ensure!(more == ["configmap/isobar-last-valid"], "{more:?}");
        Ok(())
    });
}

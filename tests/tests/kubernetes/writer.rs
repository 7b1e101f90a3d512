//! Writing to an API server.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use isobar_kubernetes::KubernetesWriter;
use isobar_objects::{Kind, ObjectRef, ObjectWriter as _, read_value};
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use kube::Api;
use serde_json::{Value, json};

use crate::definitions::established;
use crate::run;

const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop},
    spec: {ports: [{port: 80}], selector: {app: cart}}}";

fn condition(kind: &str) -> Value {
    json!({
        "type": kind, "status": "True", "reason": "Because", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn conditions(service: &Service) -> Vec<String> {
    let conditions = service.status.iter().flat_map(|s| &s.conditions).flatten();
    conditions.map(|one| one.type_.clone()).collect()
}

#[test]
fn conditions_stand_beside_those_of_others() {
    run(async |server| {
        server.namespace("shop").await?;
        server.apply(SERVICE).await?;
        let services: Api<Service> = Api::namespaced(server.cluster().client(), "shop");
        let other = KubernetesWriter::new(server.cluster(), "other");
        let ours = KubernetesWriter::new(server.cluster(), "isobar");
        let cart = ObjectRef::new(Kind::Service, "shop", "cart");
        let status = |kind: &str| json!({"conditions": [condition(kind)]});
        other
            .patch_status(&cart, &status("example.org/Other"))
            .await?;
        let annotations = json!({"metadata": {"annotations": {"isobar.dev/x": "y", "gone": null}}});
        ours.patch(&cart, &annotations).await?;
        ours.patch_status(&cart, &status("istio.io/WaypointBound"))
            .await?;
        let now = services.get("cart").await?;
        ensure!(
            conditions(&now) == ["example.org/Other", "istio.io/WaypointBound"],
            "{now:?}"
        );

        // The same again is no change.
        let version = now.metadata.resource_version.clone();
        ours.patch(&cart, &annotations).await?;
        ours.patch_status(&cart, &status("istio.io/WaypointBound"))
            .await?;
        ensure!(services.get("cart").await?.metadata.resource_version == version);

        ours.delete(&cart).await?;
        let now = services.get("cart").await?;
        ensure!(conditions(&now) == ["example.org/Other"], "{now:?}");
        ensure!(
            now.metadata
                .annotations
                .is_none_or(|all| !all.contains_key("isobar.dev/x"))
        );
        Ok(())
    });
}

/// Istio's own definitions do not tell conditions apart, unlike those of our chart.
#[test]
fn conditions_of_others_stay_where_istio_defined_the_kind() {
    run(async |server| {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/charts/crds/files");
        let ours = std::fs::read_to_string(files.join("istio.yaml"))?;
        let lines = ours
            .lines()
            .filter(|line| !line.contains("x-kubernetes-list-"));
        let theirs: Vec<&str> = lines.collect();
        ensure!(theirs.len() < ours.lines().count());
        server.apply(&theirs.join("\n")).await?;
        established(server, &["crd/virtualservices.networking.istio.io"]).await?;
        server.namespace("shop").await?;
        let route = "{apiVersion: networking.istio.io/v1, kind: VirtualService,
            metadata: {name: cart, namespace: shop},
            spec: {hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}}";
        server.apply(route).await?;
        let other = KubernetesWriter::new(server.cluster(), "istiod");
        let ours = KubernetesWriter::new(server.cluster(), "isobar");
        let cart = ObjectRef::new(Kind::VirtualService, "shop", "cart");
        let told = async || {
            let path = "-o=jsonpath={.status.conditions[*].type}";
            server
                .kubectl(&["get", "virtualservice", "cart", "-n", "shop", path])
                .await
        };
        let status = |kind: &str| json!({"conditions": [condition(kind)]});
        ours.patch_status(&cart, &status("isobar.dev/Accepted"))
            .await?;
        ensure!(told().await? == "isobar.dev/Accepted");
        // As a controller that knows nothing of others.
        other.patch_status(&cart, &status("Reconciled")).await?;
        ours.patch_status(&cart, &status("isobar.dev/Accepted"))
            .await?;
        ensure!(
            told().await? == "Reconciled isobar.dev/Accepted",
            "{}",
            told().await?
        );
        ours.patch_status(&cart, &status("isobar.dev/Other"))
            .await?;
        ensure!(
            told().await? == "Reconciled isobar.dev/Other",
            "{}",
            told().await?
        );
        ours.delete(&cart).await?;
        ensure!(told().await? == "Reconciled", "{}", told().await?);
        Ok(())
    });
}

/// Somebody who follows a pod that is gone may write late, when another pod has its name.
#[test]
fn what_is_meant_for_one_object_does_not_reach_the_next_of_its_name() {
    const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop},
        spec: {containers: [{name: c, image: i}]}}";
    run(async |server| {
        server.namespace("shop").await?;
        let pods: Api<Pod> = Api::namespaced(server.cluster().client(), "shop");
        let writer = KubernetesWriter::new(server.cluster(), "isobar");
        let db = ObjectRef::new(Kind::Pod, "shop", "db-0");
        let patch = json!({
            "metadata": {"annotations": {"isobar.dev/x": "y"}},
            "status": {"conditions": [condition("isobar.dev/Redirected")]},
        });
        let uid = async || pods.get("db-0").await?.metadata.uid.context("a uid");
        let told = async || {
            let pod = pods.get("db-0").await?;
            let has = pod.metadata.annotations.unwrap_or_default();
            let status = pod.status.and_then(|status| status.conditions);
            let conditions = status.unwrap_or_default();
            let says = conditions
                .iter()
                .any(|one| one.type_ == "isobar.dev/Redirected");
            anyhow::Ok((has.contains_key("isobar.dev/x"), says))
        };
        server.apply(POD).await?;
        let first = uid().await?;
        writer.patch_exactly(&db, &first, &patch).await?;
        ensure!(told().await? == (true, true));

        let delete = ["delete", "pod", "db-0", "-n", "shop", "--force"];
        server.kubectl(&delete).await?;
        writer.patch_exactly(&db, &first, &patch).await?;
        server.apply(POD).await?;
        let second = uid().await?;
        ensure!(first != second);
        writer.patch_exactly(&db, &first, &patch).await?;
        ensure!(told().await? == (false, false), "{:?}", told().await?);
        writer.patch_exactly(&db, &second, &patch).await?;
        writer.delete_exactly(&db, &first).await?;
        ensure!(told().await? == (true, true), "{:?}", told().await?);
        writer.delete_exactly(&db, &second).await?;
        ensure!(told().await? == (false, false), "{:?}", told().await?);
        // What the server refuses for another reason is told.
        let odd = json!({"metadata": {"annotations": {"no key": "y"}}});
        ensure!(writer.patch_exactly(&db, &second, &odd).await.is_err());
        Ok(())
    });
}

#[test]
fn what_is_to_be_new_replaces_nothing() {
    run(async |server| {
        server.namespace("shop").await?;
        server.apply(SERVICE).await?;
        let services: Api<Service> = Api::namespaced(server.cluster().client(), "shop");
        let writer = KubernetesWriter::new(server.cluster(), "isobar");
        let named = |name: &str| {
            let value = json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "shop"},
                "spec": {"ports": [{"port": 81}], "selector": {"app": "other"}},
            });
            read_value(&value).0.context("an object")
        };
        let taken = writer.create(&named("cart")?).await;
        let error = taken.expect_err("the name is taken");
        ensure!(error.to_string().contains("already exists"), "{error}");
        let now = services.get("cart").await?.spec.context("a spec")?;
        ensure!(now.ports.context("ports")?[0].port == 80);
        writer.create(&named("new")?).await?;
        let now = services.get("new").await?.spec.context("a spec")?;
        ensure!(now.ports.context("ports")?[0].port == 81);
        Ok(())
    });
}

#[test]
fn a_patch_makes_no_object_and_an_apply_does() {
    run(async |server| {
        server.namespace("shop").await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(server.cluster().client(), "shop");
        let writer: Arc<dyn isobar_objects::ObjectWriter> =
            Arc::new(KubernetesWriter::new(server.cluster(), "isobar"));
        let missing = ObjectRef::new(Kind::ServiceAccount, "shop", "waypoint");
        let patch = json!({"metadata": {"annotations": {"a": "b"}}});
        writer.patch(&missing, &patch).await?;
        ensure!(accounts.get_opt("waypoint").await?.is_none());

        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "waypoint", "namespace": "shop", "labels": {"l": "1"}},
        });
        let (object, findings) = read_value(&account);
        writer
            .apply(&object.with_context(|| format!("{findings:?}"))?)
            .await?;
        let made = accounts.get("waypoint").await?;
        ensure!(
            made.metadata
                .labels
                .is_some_and(|all| all.contains_key("l"))
        );
        // A label that is not wanted any more goes.
        let (object, _) = read_value(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "waypoint", "namespace": "shop", "labels": {"m": "1"}},
        }));
        writer.apply(&object.context("an account")?).await?;
        let labels = accounts.get("waypoint").await?.metadata.labels;
        let labels = labels.unwrap_or_default();
        ensure!(labels.keys().eq(["m"]), "{labels:?}");
        writer.delete(&missing).await?;
        ensure!(accounts.get_opt("waypoint").await?.is_none());
        writer.delete(&missing).await?;
        Ok(())
    });
}

#[test]
fn a_port_with_the_name_of_ours_gives_way() {
    run(async |server| {
        server.namespace("shop").await?;
        let services: Api<Service> = Api::namespaced(server.cluster().client(), "shop");
        let writer = KubernetesWriter::new(server.cluster(), "isobar");
        let wanted = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "waypoint", "namespace": "shop", "labels": {"l": "1"}},
            "spec": {"selector": {"a": "b"}, "ports": [
                {"name": "status-port", "port": 15021}, {"name": "mesh", "port": 15008}]},
        });
        let (object, findings) = read_value(&wanted);
        let object = object.with_context(|| format!("{findings:?}"))?;
        writer.apply(&object).await?;
        // Somebody moves a port of ours, and adds one.
        let moved = json!([
            {"name": "status-port", "port": 15021}, {"name": "mesh", "port": 9999},
            {"name": "debug", "port": 9000},
        ]);
        let patch = json!({"spec": {"ports": moved}}).to_string();
        let merge = [
            "patch",
            "service",
            "waypoint",
            "-n",
            "shop",
            "--type=merge",
            "-p",
            &patch,
        ];
        server.kubectl(&merge).await?;
        writer.apply(&object).await?;
        let spec = services.get("waypoint").await?.spec.unwrap_or_default();
        let ports = spec.ports.unwrap_or_default().into_iter();
        let mut ports: Vec<(String, i32)> = ports
            .map(|port| (port.name.unwrap_or_default(), port.port))
            .collect();
        ports.sort_unstable();
        let named = |name: &str, port| (name.to_owned(), port);
        let all = [
            named("debug", 9000),
            named("mesh", 15008),
            named("status-port", 15021),
        ];
        ensure!(ports == all, "{ports:?}");
        // In a Service of somebody else nothing is taken away.
        let theirs = wanted
            .to_string()
            .replace("waypoint", "theirs")
            .replace("15008", "9999");
        server.apply(&theirs).await?;
        let wanted = wanted.to_string().replace("waypoint", "theirs");
        let (object, _) = read_value(&serde_json::from_str(&wanted)?);
        let refused = writer.apply(&object.context("a Service")?).await;
        ensure!(refused.is_err(), "somebody else's port went");
        Ok(())
    });
}

//! Taking an installation away again.

use std::time::Instant;

use anyhow::bail;
use isobar_kubernetes::Installer;
use serde_json::{Value, json};

use super::plan::{DEFINITION, installed};
use super::report::{Change, Report};
use crate::arguments::Uninstall;

/// Who wrote the roots and the lease.
const CONTROL_PLANE: &str = "isobar";
/// The lease of the replica that writes.
const LEASE: &str = "isobar-control-plane";
/// The authority's key.
const SECRET: &str = "istio-ca-secret";
/// Class whose Gateways are waypoints of the mesh.
const CLASS: &str = "isobar-waypoint";

/// `isobar uninstall`.
pub(super) async fn run(
    installer: &Installer,
    namespace: &str,
    what: &Uninstall,
    report: &mut Report,
) -> anyhow::Result<()> {
    let found = installed(installer).await?;
    let (definitions, objects): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|object| object["kind"] == DEFINITION.1);
    if objects.is_empty() && !what.purge {
        bail!("nothing is installed that `isobar install` made");
    }
    if !what.force {
        refuse_in_use(installer).await?;
    }
    let is_program = |object: &Value| {
        ["DaemonSet", "Deployment", "HorizontalPodAutoscaler"]
            .iter()
            .any(|kind| object["kind"] == *kind)
    };
    // An API server that asks programs that are gone would refuse what others write meanwhile.
    let (asking, objects): (Vec<_>, Vec<_>) = objects
        .into_iter()
        .partition(|object| object["kind"] == "ValidatingWebhookConfiguration");
    for object in &asking {
        remove(installer, object, what, report).await?;
    }
    let (programs, rest): (Vec<_>, Vec<_>) = objects.into_iter().partition(is_program);
    for object in &programs {
        remove(installer, object, what, report).await?;
    }
    // While they end they still need their rights: agents take their rules off the nodes.
    if !what.dry_run {
        ended(installer, namespace, what, report).await?;
    }
    for object in &rest {
        remove(installer, object, what, report).await?;
    }
    for object in left_behind(installer, namespace, what).await? {
        remove(installer, &object, what, report).await?;
    }
    for definition in &definitions {
        if !what.purge || has_objects(installer, definition).await? {
            report.change(Change::Kept, definition)?;
            continue;
        }
        remove(installer, definition, what, report).await?;
    }
    Ok(())
}

/// Ends the command while the mesh is in use.
async fn refuse_in_use(installer: &Installer) -> anyhow::Result<()> {
    let mut users = Vec::new();
    for label in ["istio.io/dataplane-mode", "dataplane-mode"] {
        let found = installer
            .list("v1", "Namespace", &format!("{label}=ambient"))
            .await?;
        users.extend(
            found
                .iter()
                .map(|one| format!("namespace {} ({label})", name(one))),
        );
    }
    let gateways = installer
        .list("gateway.networking.k8s.io/v1", "Gateway", "")
        .await?;
    let gateways = gateways
        .iter()
        .filter(|one| one["spec"]["gatewayClassName"] == CLASS);
    users.extend(gateways.map(|one| {
        let namespace = one["metadata"]["namespace"].as_str().unwrap_or_default();
        format!("waypoint {namespace}/{}", name(one))
    }));
    if !users.is_empty() {
        bail!(
            "the mesh is in use: {}. Remove the labels and the waypoints first; with --force their \
             traffic stops",
            users.join(", ")
        );
    }
    Ok(())
}

/// What the control plane wrote by itself.
async fn left_behind(
    installer: &Installer,
    namespace: &str,
    what: &Uninstall,
) -> anyhow::Result<Vec<Value>> {
    let roots = installer
        .list("v1", "ConfigMap", "istio.io/config=true")
        .await?;
    let is_ours = |map: &Value| {
        let managers = map["metadata"]["managedFields"].as_array();
        let mut managers = managers.into_iter().flatten();
        name(map) == "istio-ca-root-cert" && managers.any(|one| one["manager"] == CONTROL_PLANE)
    };
    let mut found: Vec<Value> = roots.into_iter().filter(is_ours).collect();
    let mut named = vec![("coordination.k8s.io/v1", "Lease", LEASE)];
    if what.purge {
        named.push(("v1", "Secret", SECRET));
    }
    for (api_version, kind, name) in named {
        let like = json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": { "name": name, "namespace": namespace },
        });
        found.extend(installer.get(&like).await?);
    }
    Ok(found)
}

/// True if there is an object of the kind that it defines.
async fn has_objects(installer: &Installer, definition: &Value) -> anyhow::Result<bool> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut versions = spec["versions"].as_array().into_iter().flatten();
    let stored = versions.find(|version| version["storage"] == true);
    let version = stored.map_or(String::new(), |version| text(&version["name"]));
    let api_version = format!("{}/{version}", text(&spec["group"]));
    let kind = text(&spec["names"]["kind"]);
    Ok(!installer.list(&api_version, &kind, "").await?.is_empty())
}

async fn remove(
    installer: &Installer,
    object: &Value,
    what: &Uninstall,
    report: &mut Report,
) -> anyhow::Result<()> {
    if what.dry_run || installer.delete(object).await? {
        report.change(Change::Removed, object)?;
    }
    Ok(())
}

/// Waits until the mesh's own pods have ended.
async fn ended(
    installer: &Installer,
    namespace: &str,
    what: &Uninstall,
    report: &mut Report,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut told = usize::MAX;
    loop {
        let selector = "app in (isobard, ztunnel, isobar-cni)";
        let pods = installer.list("v1", "Pod", selector).await?;
        let left = pods
            .iter()
            .filter(|pod| pod["metadata"]["namespace"] == namespace);
        let left: Vec<&str> = left.map(name).collect();
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > what.timeout {
            let seconds = what.timeout.as_secs();
            bail!(
                "pods that have not ended after {seconds} s: {}",
                left.join(", ")
            );
        }
        if left.len() != told {
            told = left.len();
            report.progress(&format!("waiting: {told} pods are ending"))?;
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

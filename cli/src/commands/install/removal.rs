//! Taking an installation away again.

use std::time::Instant;

use anyhow::bail;
use isobar_kubernetes::Installer;
use serde_json::{Value, json};

use super::place::Place;
use super::plan::{DEFINITION, installed};
use super::report::{Change, Report, label};
use super::{CHART, MANAGED, REVISION, SECRET, names, roots};
use crate::arguments::Uninstall;

/// The lease of the replica that writes.
const LEASE: &str = "isobar-control-plane";
/// Class whose Gateways are waypoints of the mesh.
const CLASS: &str = "isobar-waypoint";

/// `isobar uninstall`.
pub(super) async fn run(
    installer: &Installer,
    place: &Place,
    what: &Uninstall,
    report: &mut Report,
) -> anyhow::Result<()> {
    let found = installed(installer, &place.selector()).await?;
    let (definitions, objects): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|object| object["kind"] == DEFINITION.1);
    if objects.is_empty() && !what.purge {
        bail!("{place}: nothing is installed that `isobar install` made");
    }
    let others = beside(installer, place).await?;
    if !what.force {
        match &place.revision {
            Some(name) => refuse_named(installer, place, name, &names::tags(&objects)).await?,
            None if !others.is_empty() => bail!(
                "the nodes' parts are also those of revision {}: uninstall that first (--revision); with \
                 --force its control plane stays, without nodes",
                others.join(", ")
            ),
            None => refuse_in_use(installer).await?,
        }
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
        ended(installer, place, what, report).await?;
    }
    for object in &rest {
        remove(installer, object, what, report).await?;
    }
    for object in left_behind(installer, place, what, &others).await? {
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

/// Names of control planes beside this one.
async fn beside(installer: &Installer, place: &Place) -> anyhow::Result<Vec<String>> {
    let selector = format!("{}={},{CHART},{REVISION}", MANAGED.0, MANAGED.1);
    let found = installer.list("apps/v1", "Deployment", &selector).await?;
    let names = found
        .iter()
        .filter_map(|one| one["metadata"]["labels"][REVISION].as_str());
    let others = names.filter(|name| Some(*name) != place.revision.as_deref());
    Ok(others.map(str::to_owned).collect())
}

/// Ends the command while something is the control plane's of this name, or of one of its `tags`.
async fn refuse_named(
    installer: &Installer,
    place: &Place,
    name: &str,
    tags: &[&str],
) -> anyhow::Result<()> {
    let all = [&[name][..], tags].concat();
    let selector = format!("istio.io/rev in ({})", all.join(","));
    let mut users = Vec::new();
    for (api_version, kind) in [
        ("v1", "Namespace"),
        ("gateway.networking.k8s.io/v1", "Gateway"),
    ] {
        let found = installer.list(api_version, kind, &selector).await?;
        users.extend(found.iter().map(label));
    }
    let address = format!("{}.{}.svc", place.suffixed("isobard"), place.namespace);
    let nodes = installer
        .list("apps/v1", "DaemonSet", "app=ztunnel")
        .await?;
    let nodes = nodes
        .iter()
        .filter(|one| one["spec"].to_string().contains(&address));
    users.extend(nodes.map(label));
    if !users.is_empty() {
        bail!(
            "{place} is in use: {}. Give them to another control plane first (label istio.io/rev, \
             node.ztunnel.xdsAddress); with --force nobody looks after them",
            users.join(", ")
        );
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
    place: &Place,
    what: &Uninstall,
    others: &[String],
) -> anyhow::Result<Vec<Value>> {
    let maps = installer
        .list("v1", "ConfigMap", "istio.io/config=true")
        .await?;
    // Roots and key are those of all control planes together.
    let is_last = others.is_empty() && place.revision.is_none();
    let roots = maps
        .into_iter()
        .filter(|map| is_last && roots::is_only_ours(map));
    let mut found: Vec<Value> = roots.collect();
    let lease = place.suffixed(LEASE);
    let mut named = vec![("coordination.k8s.io/v1", "Lease", &*lease)];
    if what.purge && is_last {
        named.push(("v1", "Secret", SECRET));
    }
    for (api_version, kind, name) in named {
        let like = json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": { "name": name, "namespace": place.namespace },
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
    place: &Place,
    what: &Uninstall,
    report: &mut Report,
) -> anyhow::Result<()> {
    let own = place.suffixed("isobard");
    let selector = match place.revision {
        None => "app in (isobard, ztunnel, isobar-cni)".to_owned(),
        Some(_) => format!("app={own}"),
    };
    let begun = Instant::now();
    let mut told = usize::MAX;
    loop {
        let pods = installer.list("v1", "Pod", &selector).await?;
        let left = pods
            .iter()
            .filter(|pod| pod["metadata"]["namespace"] == place.namespace);
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

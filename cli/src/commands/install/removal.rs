//! Taking an installation away again.

use std::time::Instant;

use anyhow::bail;
use isobar_kubernetes::{Installer, LastValid};
use serde_json::{Value, json};

use super::in_use::{self, Serving};
use super::place::Place;
use super::plan::{DEFINITION, installed};
use super::report::{Change, Report};
use super::{CHART, MANAGED, REVISION, SECRET, names, roots};
use crate::arguments::Uninstall;

/// The lease of the replica that writes; behind it the name that a control plane has.
const LEASE: &str = "isobar-control-plane";
/// The map of last valid versions that it keeps; behind it the name as well.
const LAST_VALID: &str = "isobar-last-valid";

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
    let serving = Serving::of(&objects);
    let gateways = serving.gateways(installer, place, &others).await?;
    if !what.force {
        let refused = serving.refuse(installer, place, &others, &gateways);
        refused.await?;
    }
    let suffix = names::suffix(&objects).map_or_else(|| place.suffixed(""), str::to_owned);
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
        ended(installer, place, &suffix, what, report).await?;
    }
    for object in &rest {
        remove(installer, object, what, report).await?;
    }
    for object in left_behind(installer, place, &suffix, what, &others).await? {
        remove(installer, &object, what, report).await?;
    }
    for definition in &definitions {
        if !what.purge || has_objects(installer, definition).await? {
            report.change(Change::Kept, definition)?;
            continue;
        }
        remove(installer, definition, what, report).await?;
    }
    // Without --force there are none.
    if let Some(note) = in_use::note_of_left(&gateways) {
        report.note(&note)?;
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

/// What the control plane wrote by itself.
async fn left_behind(
    installer: &Installer,
    place: &Place,
    suffix: &str,
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
    found.extend(last_valid(installer, place, suffix).await?);
    let lease = format!("{LEASE}{suffix}");
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

/// The map with whole objects of users that it kept while those were not valid.
async fn last_valid(
    installer: &Installer,
    place: &Place,
    suffix: &str,
) -> anyhow::Result<Option<Value>> {
    let selector = format!("{}={}", LastValid::LABEL.0, LastValid::LABEL.1);
    let mut found = installer.list("v1", "ConfigMap", &selector).await?;
    found.retain(|map| {
        let head = &map["metadata"];
        head["namespace"] == place.namespace && head["name"] == format!("{LAST_VALID}{suffix}")
    });
    Ok(found.pop())
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
    suffix: &str,
    what: &Uninstall,
    report: &mut Report,
) -> anyhow::Result<()> {
    let selector = match place.revision {
        None => format!("app in (isobard{suffix}, ztunnel, isobar-cni)"),
        Some(_) => format!("app=isobard{suffix}"),
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

//! What an installation changes, worked out before anything is written.

use anyhow::bail;
use isobar_chart::Values;
use isobar_kubernetes::Installer;
use serde_json::{Value, json};

use super::place::Place;
use super::report::label;
use super::{MANAGED, names, record, roots};
use crate::commands::manifest::render;

/// Kinds that the charts may have objects of, those first that are removed first.
pub(super) const KINDS: [(&str, &str); 15] = [
    (
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
    ),
    ("apps/v1", "DaemonSet"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("gateway.networking.k8s.io/v1", "GatewayClass"),
    ("v1", "Service"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("v1", "ServiceAccount"),
    ("v1", "ConfigMap"),
    (DEFINITION.0, DEFINITION.1),
];
/// What makes a kind known to an API server.
pub(super) const DEFINITION: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
/// Namespaces in which pods may do what those of a node must.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// An object to write.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) object: Value,
    /// As it is now.
    pub(super) live: Option<Value>,
}

/// Everything that is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// In this order.
    pub(super) writes: Vec<Write>,
    /// Installed earlier, and not wanted any more.
    pub(super) removals: Vec<Value>,
    /// What a user should know.
    pub(super) notes: Vec<String>,
}

impl Plan {
    /// Renders the charts and looks at what is there.
    pub(super) async fn make(
        installer: &Installer,
        place: &Place,
        values: &Values,
    ) -> anyhow::Result<Self> {
        let mut plan = Self::default();
        let mut strangers = Vec::new();
        let namespace = &place.namespace;
        if place.revision.is_none()
            && let Some(made) = namespace_object(installer, namespace).await?
        {
            plan.writes.push(made);
        }
        let mut wanted = vec![record::object(place, values)];
        let values = place.values(values)?;
        for chart in place.charts(&values)? {
            for mut manifest in render(&chart, namespace, &values)? {
                place.mark(&mut manifest.value, chart.name());
                wanted.push(manifest.value);
            }
        }
        names::refuse_lost_nodes(&wanted, namespace)?;
        let doubtful = names::refuse_second_default(installer, place, &wanted).await?;
        plan.notes.extend(doubtful);
        plan.notes
            .extend(roots::refuse_others(installer, place, &wanted).await?);
        // Definitions first: others are of the kinds they define.
        wanted.sort_by_key(|object| object["kind"] != DEFINITION.1);
        let mut kept = 0;
        for object in wanted {
            if !plan.is_known(installer, &object).await? {
                plan.notes.push(format!(
                    "{} is left out: the cluster does not have the Gateway API, which waypoints need. \
                     Install it and run this again, or say --set crds.gatewayApi=true for the part of \
                     it that the mesh uses",
                    label(&object)
                ));
                continue;
            }
            let live = installer.get(&object).await?;
            match &live {
                Some(live) if !place.has(live) && object["kind"] == DEFINITION.1 => kept += 1,
                Some(live) if !place.has(live) => strangers.push(stranger(live)),
                _ => plan.writes.push(Write { object, live }),
            }
        }
        if !strangers.is_empty() {
            bail!(
                "these are there and were not installed by this command: {}; nothing was changed",
                strangers.join(", ")
            );
        }
        if kept > 0 {
            let text = "definitions of kinds are in the cluster already and stay as they are";
            plan.notes.push(format!("{kept} {text}"));
        }
        plan.find_removals(installer, place).await?;
        Ok(plan)
    }

    /// Objects whose pods must become ready.
    pub(super) fn workloads(&self) -> Vec<Value> {
        let is_workload =
            |object: &Value| object["kind"] == "Deployment" || object["kind"] == "DaemonSet";
        let objects = self.writes.iter().map(|write| &write.object);
        objects
            .filter(|object| is_workload(object))
            .cloned()
            .collect()
    }

    /// Ends the command where it would take the nodes' parts away: only `uninstall` asks who uses them.
    pub(super) fn refuse_without_nodes(&self) -> anyhow::Result<()> {
        let removed = self.removals.iter();
        let nodes: Vec<String> = removed
            .filter(|one| one["kind"] == "DaemonSet")
            .map(label)
            .collect();
        if !nodes.is_empty() {
            bail!(
                "{} would go, and what they carry be plain; nothing was changed. A control plane for \
                 waypoints only has a namespace of its own (--mesh-namespace, \
                 control-plane.waypointsOnly), and `isobar uninstall` takes a mesh away; with --force \
                 they go",
                nodes.join(", ")
            );
        }
        Ok(())
    }

    /// False for a kind that the server does not have and this plan does not define.
    async fn is_known(&self, installer: &Installer, object: &Value) -> anyhow::Result<bool> {
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        if installer.has(text("apiVersion"), text("kind")).await? {
            return Ok(true);
        }
        Ok(self.writes.iter().any(|write| {
            write.object["kind"] == DEFINITION.1
                && write.object["spec"]["names"]["kind"] == object["kind"]
        }))
    }

    async fn find_removals(&mut self, installer: &Installer, place: &Place) -> anyhow::Result<()> {
        let namespace = &place.namespace;
        for live in installed(installer, &place.selector()).await? {
            let elsewhere = live["metadata"]["namespace"].as_str();
            if let Some(elsewhere) = elsewhere.filter(|elsewhere| elsewhere != namespace) {
                bail!("the mesh is installed in {elsewhere}: say --mesh-namespace {elsewhere}");
            }
            let is_wanted = self.writes.iter().any(|write| {
                write.object["kind"] == live["kind"]
                    && write.object["metadata"]["name"] == live["metadata"]["name"]
            });
            // A definition takes all objects of its kind with it.
            if !is_wanted && live["kind"] != DEFINITION.1 {
                self.removals.push(live);
            }
        }
        Ok(())
    }
}

/// Everything of a selector that was installed, in the order in which it is removed.
pub(super) async fn installed(installer: &Installer, selector: &str) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    for (api_version, kind) in KINDS {
        found.extend(installer.list(api_version, kind, selector).await?);
    }
    Ok(found)
}

fn stranger(live: &Value) -> String {
    let who = match live["metadata"]["labels"][MANAGED.0].as_str() {
        Some("Helm") => " (Helm's: use helm upgrade)",
        _ => "",
    };
    format!("{}{who}", label(live))
}

/// The namespace, if it is to be made or is ours. Somebody else's stays as it is.
async fn namespace_object(installer: &Installer, namespace: &str) -> anyhow::Result<Option<Write>> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": namespace,
            "labels": {
                "app.kubernetes.io/part-of": "isobar",
                POD_SECURITY: "privileged",
                MANAGED.0: MANAGED.1,
            },
        },
    });
    let live = installer.get(&object).await?;
    let is_others = live
        .as_ref()
        .is_some_and(|live| live["metadata"]["labels"][MANAGED.0] != MANAGED.1);
    Ok((!is_others).then_some(Write { object, live }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_the_charts_is_found_again() {
        let mut values = Values::default();
        let all = "control-plane.autoscaleEnabled=true,control-plane.networkPolicy.enabled=true";
        values.set(all).unwrap();
        values.set("crds.gatewayApi=true").unwrap();
        let named = |revision: Option<&str>| Place {
            namespace: "istio-system".to_owned(),
            revision: revision.map(str::to_owned),
        };
        let parts = |place: &Place, other: &Place| -> BTreeSet<(String, String)> {
            let values = place.values(&values).unwrap();
            let mut names = BTreeSet::new();
            for chart in place.charts(&values).unwrap() {
                for mut manifest in render(&chart, &place.namespace, &values).unwrap() {
                    let kind = (manifest.api_version(), manifest.kind());
                    assert!(KINDS.contains(&kind), "{kind:?}");
                    names.insert((manifest.kind().to_owned(), manifest.name().to_owned()));
                    assert!(!place.has(&manifest.value));
                    place.mark(&mut manifest.value, chart.name());
                    assert!(place.has(&manifest.value) && !other.has(&manifest.value));
                }
            }
            let record = record::object(place, &values);
            assert!(place.has(&record) && !other.has(&record));
            names
        };
        let (first, second) = (named(None), named(Some("canary")));
        let (names, others) = (parts(&first, &second), parts(&second, &first));
        assert!(
            names.is_disjoint(&others) && !others.is_empty(),
            "{others:?}"
        );
        assert!(KINDS.contains(&("v1", "ConfigMap")));
    }
}

//! Whose traffic would stop if an installation went away.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use isobar_kubernetes::Installer;
use isobar_objects::enrolment::{self, Enrolment, EnrolmentRules};
use isobar_objects::{Namespace, Pod};
use isobar_types::labels;
use serde_json::Value;

use super::names;
use super::place::Place;
use super::report::label;

/// Label by which objects name a control plane.
const REV: &str = "istio.io/rev";
/// What is named by whoever names nobody.
const DEFAULT: &str = "default";
/// How many users are named.
const NAMED: usize = 10;

/// What an installation serves, as its own programs say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Serving {
    /// Classes of the Gateways that it runs; none without a control plane.
    classes: BTreeSet<String>,
    /// Further names of its control plane.
    tags: Vec<String>,
    /// True where its own node proxies carry what pods say.
    has_nodes: bool,
}

impl Serving {
    /// That of the installed `objects`.
    pub(super) fn of(objects: &[Value]) -> Self {
        let mut classes = BTreeSet::new();
        for own in objects.iter().filter(|one| names::is_control_plane(one)) {
            let given = names::given(own, "--waypoint-class=");
            if given.is_empty() {
                classes.insert(labels::WAYPOINT_CLASS.to_owned());
            }
            classes.extend(given.into_iter().map(str::to_owned));
            classes.insert(labels::GATEWAY_CLASS.to_owned());
        }
        let tags = names::tags(objects).into_iter().map(str::to_owned);
        Self {
            classes,
            tags: tags.collect(),
            has_nodes: objects.iter().any(|one| one["kind"] == "DaemonSet"),
        }
    }

    /// The Gateways that its control plane runs programs for, `others` being control planes beside it.
    pub(super) async fn gateways(
        &self,
        installer: &Installer,
        place: &Place,
        others: &[String],
    ) -> anyhow::Result<Vec<Value>> {
        if self.classes.is_empty() {
            return Ok(Vec::new());
        }
        let found = installer.list("gateway.networking.k8s.io/v1", "Gateway", "");
        let mut found = found.await?;
        let namespaces = installer.list("v1", "Namespace", REV).await?;
        found.retain(|gateway| self.runs(gateway, &namespaces, place, others));
        Ok(found)
    }

    fn runs(
        &self,
        gateway: &Value,
        namespaces: &[Value],
        place: &Place,
        others: &[String],
    ) -> bool {
        let is_of_class = class(gateway).is_some_and(|one| self.classes.contains(one));
        let rev = |object: &Value| {
            object["metadata"]["labels"][REV]
                .as_str()
                .map(str::to_owned)
        };
        let own = gateway["metadata"]["namespace"].as_str();
        let mut around = namespaces.iter().filter(|one| Some(name(one)) == own);
        let rev = rev(gateway).or_else(|| around.find_map(rev));
        let rev = rev.as_deref().unwrap_or(DEFAULT);
        is_of_class
            && match &place.revision {
                None => !others.iter().any(|other| other == rev),
                Some(own) => own == rev || self.tags.iter().any(|tag| tag == rev),
            }
    }

    /// Ends the command while something needs it: `gateways` that it runs, `others` that use its nodes, or
    /// what these carry.
    pub(super) async fn refuse(
        &self,
        installer: &Installer,
        place: &Place,
        others: &[String],
        gateways: &[Value],
    ) -> anyhow::Result<()> {
        match &place.revision {
            Some(name) => self.refuse_named(installer, place, name, gateways).await,
            None if !others.is_empty() => bail!(
                "the nodes' parts are also those of revision {}: uninstall that first (--revision); with \
                 --force its control plane stays, without nodes",
                others.join(", ")
            ),
            None => self.refuse_in_use(installer, place, gateways).await,
        }
    }

    async fn refuse_in_use(
        &self,
        installer: &Installer,
        place: &Place,
        gateways: &[Value],
    ) -> anyhow::Result<()> {
        let mut users = match self.has_nodes {
            true => enrolled(installer, place).await?,
            false => Vec::new(),
        };
        users.extend(gateways.iter().map(with_class));
        if !users.is_empty() {
            bail!(
                "the mesh is in use: {}. Remove the labels and the Gateways first; with --force their \
                 traffic stops",
                listed(&users)
            );
        }
        Ok(())
    }

    /// The same for a control plane of this `name`, which has no nodes but may be that of some.
    async fn refuse_named(
        &self,
        installer: &Installer,
        place: &Place,
        name: &str,
        gateways: &[Value],
    ) -> anyhow::Result<()> {
        let tags = self.tags.iter().map(String::as_str);
        let all: Vec<&str> = std::iter::once(name).chain(tags).collect();
        let selector = format!("{REV} in ({})", all.join(","));
        let found = installer.list("v1", "Namespace", &selector).await?;
        let mut users: Vec<String> = found.iter().map(label).collect();
        users.extend(gateways.iter().map(with_class));
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
                listed(&users)
            );
        }
        Ok(())
    }
}

/// What stays of the Gateways of an installation that is gone.
pub(super) fn note_of_left(gateways: &[Value]) -> Option<String> {
    let all: Vec<String> = gateways.iter().map(with_class).collect();
    (!all.is_empty()).then(|| {
        format!(
            "{}: what was made for them (Deployments, Services, accounts) stays, looked after by nobody, \
             until they are deleted",
            listed(&all)
        )
    })
}

/// Namespaces and pods that are in the mesh by a label of their own, each with the key.
async fn enrolled(installer: &Installer, place: &Place) -> anyhow::Result<Vec<String>> {
    let keys = [labels::DATAPLANE_MODE, labels::DATAPLANE_MODE_PLAIN];
    let mut users = Vec::new();
    for key in keys {
        let selector = format!("{key}={}", labels::MODE_AMBIENT);
        let found = installer.list("v1", "Namespace", &selector).await?;
        let found = found.iter().filter(|one| is_ambient(one));
        users.extend(found.map(|one| format!("namespace {} ({key})", name(one))));
    }
    let rules = EnrolmentRules {
        system_namespace: place.namespace.clone(),
        ..EnrolmentRules::default()
    };
    let mut pods = BTreeMap::new();
    for key in keys {
        let selector = format!("{key}={}", labels::MODE_AMBIENT);
        let found = installer.list("v1", "Pod", &selector).await?;
        let found = found.iter().filter(|one| is_carried(one, &rules));
        for pod in found {
            pods.entry(label(pod)).or_insert(key);
        }
    }
    users.extend(pods.iter().map(|(pod, key)| format!("{pod} ({key})")));
    Ok(users)
}

/// True for a namespace that is in the mesh; what cannot be read counts as being in it.
fn is_ambient(namespace: &Value) -> bool {
    let read = serde_json::from_value::<Namespace>(namespace.clone());
    read.map_or(true, |read| {
        enrolment::mode(&read) == Some(labels::MODE_AMBIENT)
    })
}

/// True for a pod that is in the mesh by its own label; what cannot be read counts as being in it.
fn is_carried(pod: &Value, rules: &EnrolmentRules) -> bool {
    let read = serde_json::from_value::<Pod>(pod.clone());
    read.map_or(true, |read| {
        enrolment::decide(&read, None, rules) == Enrolment::ByPodLabel
    })
}

/// The first ones, and how many more there are.
fn listed(users: &[String]) -> String {
    let first = users[..users.len().min(NAMED)].join(", ");
    match users.len() - users.len().min(NAMED) {
        0 => first,
        more => format!("{first}, and {more} more"),
    }
}

fn with_class(gateway: &Value) -> String {
    format!(
        "{} (class {})",
        label(gateway),
        class(gateway).unwrap_or_default()
    )
}

fn class(gateway: &Value) -> Option<&str> {
    gateway["spec"]["gatewayClassName"].as_str()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is installed with these values, beside the first one if it has a revision.
    fn serving(revision: Option<&str>, set: &str) -> (Place, Serving) {
        let place = Place {
            namespace: "istio-system".to_owned(),
            revision: revision.map(str::to_owned),
        };
        let mut values = isobar_chart::Values::default();
        values.set(set).unwrap();
        let values = place.values(&values).unwrap();
        let charts = place.charts(&values).unwrap();
        let all = charts.iter().flat_map(|chart| {
            crate::commands::manifest::render(chart, &place.namespace, &values).unwrap()
        });
        let objects: Vec<Value> = all.map(|one| one.value).collect();
        let serving = Serving::of(&objects);
        (place, serving)
    }

    fn gateway(class: &str, rev: Option<&str>) -> Value {
        json!({
            "kind": "Gateway",
            "metadata": { "name": "wp", "namespace": "shop", "labels": { REV: rev } },
            "spec": { "gatewayClassName": class },
        })
    }

    #[test]
    fn gateways_of_every_class_that_it_runs_are_its_own() {
        let both = "control-plane.waypointClasses={isobar-waypoint,istio-waypoint}";
        for (set, class, expected) in [
            ("global.tag=x", "isobar-waypoint", true),
            ("global.tag=x", "isobar", true),
            ("global.tag=x", "istio-waypoint", false),
            ("global.tag=x", "istio", false),
            (both, "istio-waypoint", true),
            (both, "isobar-waypoint", true),
            ("control-plane.waypointsOnly=true", "isobar-waypoint", true),
        ] {
            let (place, serving) = serving(None, set);
            let runs = serving.runs(&gateway(class, None), &[], &place, &[]);
            assert_eq!(runs, expected, "{set}: {class}");
        }
        assert_eq!(Serving::of(&[]), Serving::default());
    }

    #[test]
    fn only_node_proxies_of_its_own_carry_pods() {
        assert!(serving(None, "global.tag=x").1.has_nodes);
        assert!(
            !serving(None, "control-plane.waypointsOnly=true")
                .1
                .has_nodes
        );
        assert!(!serving(Some("canary"), "global.tag=x").1.has_nodes);
    }

    #[test]
    fn a_gateway_is_whose_name_it_or_its_namespace_has() {
        let others = ["canary".to_owned()];
        let (first, unnamed) = serving(None, "global.tag=x");
        let (second, canary) = serving(Some("canary"), "control-plane.revisionTags={stable}");
        let (third, tagged) = serving(Some("blue"), "control-plane.revisionTags={default}");
        let around = [json!({ "metadata": { "name": "shop", "labels": { REV: "canary" } } })];
        for (rev, namespaces, expected) in [
            (None, &[][..], [true, false, true]),
            (Some("canary"), &[], [false, true, false]),
            (Some("stable"), &[], [true, true, false]),
            (Some("blue"), &[], [true, false, true]),
            (None, &around, [false, true, false]),
            (Some("default"), &around, [true, false, true]),
        ] {
            let gateway = gateway("isobar-waypoint", rev);
            let runs = [
                unnamed.runs(&gateway, namespaces, &first, &others),
                canary.runs(&gateway, namespaces, &second, &[]),
                tagged.runs(&gateway, namespaces, &third, &[]),
            ];
            assert_eq!(runs, expected, "{rev:?} {namespaces:?}");
        }
    }

    #[test]
    fn a_pod_is_carried_by_its_own_label_while_it_runs() {
        let pod = |labels: Value, phase: &str| {
            let pod = json!({
                "metadata": { "name": "p", "namespace": "shop", "labels": labels },
                "status": { "phase": phase },
            });
            is_carried(&pod, &EnrolmentRules::default())
        };
        assert!(pod(
            json!({ "istio.io/dataplane-mode": "ambient" }),
            "Running"
        ));
        assert!(pod(json!({ "dataplane-mode": "ambient" }), "Pending"));
        assert!(!pod(json!({ "dataplane-mode": "ambient" }), "Succeeded"));
        let out = json!({ "dataplane-mode": "ambient", "istio.io/dataplane-mode": "none" });
        assert!(!pod(out.clone(), "Running"));
        assert!(!is_ambient(
            &json!({ "metadata": { "name": "shop", "labels": out } })
        ));
    }

    #[test]
    fn many_users_are_counted() {
        let all: Vec<String> = (0..13).map(|n| format!("u{n}")).collect();
        assert!(listed(&all).ends_with("u9, and 3 more"));
        assert_eq!(listed(&all[..2]), "u0, u1");
        assert_eq!(note_of_left(&[]), None);
    }
}

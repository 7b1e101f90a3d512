//! What control planes are called, as their Deployments say.

use anyhow::bail;
use isobar_kubernetes::Installer;
use serde_json::{Value, json};

use super::place::Place;
use super::report::label;

/// Selects the Deployments of control planes, whoever installed them.
const CONTROL_PLANES: &str = "app.kubernetes.io/name=isobard";
/// Control planes' objects are called so, or begin so with a `-` after it.
const ROLE: &str = "isobard";
/// Variables that tell a node proxy where the control plane is, and the values that they come from.
const ADDRESSES: [(&str, &str); 2] = [
    ("XDS_ADDRESS", "node.ztunnel.xdsAddress"),
    ("CA_ADDRESS", "node.ztunnel.caAddress"),
];
/// Whoever is called so has what names nobody; one without a name is.
const DEFAULT: &str = "default";

/// Further names of the control planes among these objects.
pub(super) fn tags(objects: &[Value]) -> Vec<&str> {
    let deployments = objects.iter().filter(|one| one["kind"] == "Deployment");
    deployments
        .flat_map(|one| given(one, "--revision-tag="))
        .collect()
}

/// What stands behind `isobard` in the names of the control plane among these objects.
pub(super) fn suffix(objects: &[Value]) -> Option<&str> {
    let labels = objects.iter().map(|one| &one["metadata"]["labels"]);
    let mut own = labels.filter(|labels| labels["app.kubernetes.io/name"] == ROLE);
    own.find_map(|labels| labels["app"].as_str()?.strip_prefix(ROLE))
}

/// Ends where node proxies in `wanted` would look for a control plane without a name, which nothing
/// there makes.
pub(crate) fn refuse_lost_nodes(wanted: &[Value], namespace: &str) -> anyhow::Result<()> {
    let Some(own) = wanted.iter().find(|one| is_control_plane(one)) else {
        return Ok(());
    };
    let own = own["metadata"]["name"].as_str().unwrap_or_default();
    if own == ROLE {
        return Ok(());
    }
    let address = |name: &str| format!("https://{name}.{namespace}.svc:15012");
    let nodes = || wanted.iter().filter(|one| one["kind"] == "DaemonSet");
    let lost = ADDRESSES.iter().filter(|(variable, _)| {
        let has = json!({ "name": variable, "value": address(ROLE) });
        nodes().flat_map(environment).any(|one| *one == has)
    });
    let to = address(own);
    let ways: Vec<String> = lost
        .map(|(_, value)| format!("--set {value}={to}"))
        .collect();
    if ways.is_empty() {
        return Ok(());
    }
    bail!(
        "control-plane.revision calls the control plane {own}, and node proxies would look for {ROLE}, \
         which is not there then: say {}",
        ways.join(" ")
    );
}

/// The environment of the pods of `workload`.
fn environment(workload: &Value) -> impl Iterator<Item = &Value> {
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array();
    let all = containers.into_iter().flatten();
    all.filter_map(|one| one["env"].as_array()).flatten()
}

/// Ends where the control plane in `wanted` would have what names nobody beside one that has it: both
/// would write the same waypoints, over and over. Returns what only looks like one: whoever may make a
/// Deployment can give it any label, but no right in the cluster.
pub(super) async fn refuse_second_default(
    installer: &Installer,
    place: &Place,
    wanted: &[Value],
) -> anyhow::Result<Vec<String>> {
    let Some(own) = wanted.iter().find(|one| is_default(one)) else {
        return Ok(Vec::new());
    };
    let standing = installer
        .list("apps/v1", "Deployment", CONTROL_PLANES)
        .await?;
    let rivals: Vec<&Value> = rivals(own, &standing).collect();
    if rivals.is_empty() {
        return Ok(Vec::new());
    }
    let bindings = installer.list("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "");
    // Without the right to look there is no telling.
    let bindings = bindings.await.unwrap_or_default();
    let Some(first) = rivals.iter().find(|one| is_bound(one, &bindings)) else {
        return Ok(rivals.into_iter().map(looks_like_one).collect());
    };
    let why = match has_no_name(first) {
        true => "has no name",
        false => "has the tag default",
    };
    let there = first["metadata"]["namespace"].as_str().unwrap_or_default();
    let first = label(first);
    if place.revision.is_some() {
        bail!(
            "{place} cannot have the tag default: {first} {why} and so has what names nobody, and both \
             would write the same waypoints. Leave the tag out (--reset-values, or --set \
             control-plane.revisionTags=null) and label Gateways or their namespaces istio.io/rev"
        );
    }
    bail!(
        "{place} would have what names nobody, and {first} has it, as it {why}: both would write the \
         same waypoints. If that one is meant, say --mesh-namespace {there}. If not, uninstall it or take \
         the tag from it first, or put this one beside it under a name (with Helm: --set revision=NAME, without the tag default)"
    );
}

fn looks_like_one(deployment: &Value) -> String {
    format!(
        "{} looks like another control plane that has what names nobody; no ClusterRoleBinding of one \
         names an account of its namespace, so it is not in the way. If it is one, uninstall it",
        label(deployment)
    )
}

/// True where an account of its namespace has a control plane's role in the cluster.
fn is_bound(deployment: &Value, bindings: &[Value]) -> bool {
    let namespace = &deployment["metadata"]["namespace"];
    let of_ours = |binding: &&Value| {
        let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
        role.strip_prefix(ROLE)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let subjects = bindings.iter().filter(of_ours);
    let mut subjects = subjects.flat_map(|one| one["subjects"].as_array().into_iter().flatten());
    subjects.any(|one| one["kind"] == "ServiceAccount" && one["namespace"] == *namespace)
}

/// What seems to have what names nobody beside `own`.
fn rivals<'a>(own: &Value, standing: &'a [Value]) -> impl Iterator<Item = &'a Value> + use<'a> {
    let place = |one: &Value| {
        let text = |key: &str| one["metadata"][key].as_str().map(str::to_owned);
        (text("namespace"), text("name"))
    };
    let own = place(own);
    let others = standing.iter().filter(move |one| place(one) != own);
    others.filter(|one| is_default(one))
}

/// True for the Deployment of a control plane.
pub(super) fn is_control_plane(object: &Value) -> bool {
    object["kind"] == "Deployment" && object["metadata"]["labels"]["app.kubernetes.io/name"] == ROLE
}

/// True for the Deployment of a control plane that has what names nobody.
fn is_default(deployment: &Value) -> bool {
    is_control_plane(deployment)
        && (has_no_name(deployment) || given(deployment, "--revision-tag=").contains(&DEFAULT))
}

fn has_no_name(deployment: &Value) -> bool {
    given(deployment, "--revision=")
        .iter()
        .all(|name| *name == DEFAULT)
}

/// Values of an argument of its pods.
pub(super) fn given<'a>(deployment: &'a Value, argument: &str) -> Vec<&'a str> {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array();
    let all = containers.into_iter().flatten();
    let all = all.filter_map(|container| container["args"].as_array());
    let all = all.flatten().filter_map(Value::as_str);
    all.filter_map(|one| one.strip_prefix(argument)).collect()
}

#[cfg(test)]
mod tests {
    use isobar_chart::Values;

    use super::*;
    use crate::commands::manifest::render;

    #[test]
    fn nodes_do_not_look_for_a_control_plane_of_another_name() {
        let refused = |revision: Option<&str>, set: &str| -> Option<String> {
            let all = rendered(revision, set);
            let refused = refuse_lost_nodes(&all, "istio-system");
            refused.err().map(|error| error.to_string())
        };
        let lost = refused(None, "control-plane.revision=blue").unwrap();
        for flag in ["xdsAddress", "caAddress"] {
            let way =
                format!("--set node.ztunnel.{flag}=https://isobard-blue.istio-system.svc:15012");
            assert!(lost.contains(&way), "{lost}");
        }
        let there = "https://isobard-blue.istio-system.svc:15012";
        let half = format!("control-plane.revision=blue,node.ztunnel.xdsAddress={there}");
        let lost = refused(None, &half).unwrap();
        assert!(
            !lost.contains("xdsAddress") && lost.contains("caAddress"),
            "{lost}"
        );
        let whole = format!("{half},node.ztunnel.caAddress={there}");
        for set in [
            &*whole,
            "global.tag=x",
            "control-plane.revision=default",
            "control-plane.revision=blue,control-plane.waypointsOnly=true",
        ] {
            assert_eq!(refused(None, set), None, "{set}");
        }
        assert_eq!(refused(Some("canary"), "global.tag=x"), None);
        // By the same name what it left behind is found again, its Deployment or not.
        let mut blue = rendered(None, &whole);
        assert_eq!(suffix(&blue), Some("-blue"));
        blue.retain(|one| one["kind"] == "ServiceAccount");
        assert_eq!(suffix(&blue), Some("-blue"));
        assert_eq!(suffix(&rendered(None, "global.tag=x")), Some(""));
        assert_eq!(suffix(&[]), None);
    }

    fn rendered(revision: Option<&str>, more: &str) -> Vec<Value> {
        let place = Place {
            namespace: "istio-system".to_owned(),
            revision: revision.map(str::to_owned),
        };
        let mut values = Values::default();
        values.set(more).unwrap();
        let values = place.values(&values).unwrap();
        let charts = place.charts(&values).unwrap();
        let all = charts
            .iter()
            .flat_map(|chart| render(chart, &place.namespace, &values).unwrap());
        all.map(|manifest| manifest.value).collect()
    }

    #[test]
    fn a_deployment_says_what_its_control_plane_is_called() {
        let unnamed = |objects: &[Value]| {
            let name = "app.kubernetes.io/name";
            let mut all = objects.iter();
            let one = all.find(|one| {
                one["kind"] == "Deployment" && one["metadata"]["labels"][name] == "isobard"
            });
            has_no_name(one.unwrap())
        };
        let first = rendered(None, "global.tag=x");
        assert!(unnamed(&first) && tags(&first).is_empty());
        let tagged = "control-plane.revisionTags={stable,default}";
        let second = rendered(Some("canary"), tagged);
        assert!(!unnamed(&second));
        assert_eq!(tags(&second), ["stable", "default"]);
        // Whoever has what names nobody stands in the way of whoever else would.
        let own = |objects: &[Value]| objects.iter().find(|one| is_default(one)).cloned();
        let (first, tagged) = (own(&first).unwrap(), own(&second).unwrap());
        assert!(own(&rendered(Some("canary"), "global.tag=x")).is_none());
        let mut elsewhere = first.clone();
        elsewhere["metadata"]["namespace"] = "mesh".into();
        assert_eq!(rivals(&first, std::slice::from_ref(&first)).count(), 0);
        for other in [&elsewhere, &tagged] {
            assert_eq!(rivals(&first, std::slice::from_ref(other)).count(), 1);
        }
        let all = [tagged.clone(), first.clone()];
        assert_eq!(rivals(&tagged, &all).count(), 1);
        // Only with the role that the chart gives it.
        let standing = rendered(None, "global.tag=x");
        let is_binding = |one: &&Value| one["kind"] == "ClusterRoleBinding";
        let bindings: Vec<Value> = standing.iter().filter(is_binding).cloned().collect();
        assert!(is_bound(&first, &bindings));
        assert!(!is_bound(&elsewhere, &bindings) && !is_bound(&first, &[]));
    }
}

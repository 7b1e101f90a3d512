//! What control planes are called, as their Deployments say.

use anyhow::bail;
use isobar_kubernetes::Installer;
use serde_json::Value;

use super::place::Place;
use super::report::label;

/// Selects the Deployments of control planes, whoever installed them.
const CONTROL_PLANES: &str = "app.kubernetes.io/name=isobard";
/// Whoever is called so has what names nobody; one without a name is.
const DEFAULT: &str = "default";

/// Further names of the control planes among these objects.
pub(super) fn tags(objects: &[Value]) -> Vec<&str> {
    let deployments = objects.iter().filter(|one| one["kind"] == "Deployment");
    deployments
        .flat_map(|one| given(one, "--revision-tag="))
        .collect()
}

/// Ends where the control plane in `wanted` would have what names nobody beside one that has it: both
/// would write the same waypoints, over and over.
pub(super) async fn refuse_second_default(
    installer: &Installer,
    place: &Place,
    wanted: &[Value],
) -> anyhow::Result<()> {
    let Some(own) = wanted.iter().find(|one| is_default(one)) else {
        return Ok(());
    };
    let standing = installer
        .list("apps/v1", "Deployment", CONTROL_PLANES)
        .await?;
    let Some(first) = rival(own, &standing) else {
        return Ok(());
    };
    let why = match has_no_name(first) {
        true => "has no name",
        false => "has the tag default",
    };
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
         same waypoints. Uninstall that one or take the tag from it first, or put this one beside it \
         under a name (with Helm: --set revision=NAME, without the tag default)"
    );
}

/// The control plane that has what names nobody beside `own`.
fn rival<'a>(own: &Value, standing: &'a [Value]) -> Option<&'a Value> {
    let place = |one: &Value| {
        let text = |key: &str| one["metadata"][key].as_str().map(str::to_owned);
        (text("namespace"), text("name"))
    };
    let others = standing.iter().filter(|one| place(one) != place(own));
    others.into_iter().find(|one| is_default(one))
}

/// True for the Deployment of a control plane that has what names nobody.
fn is_default(deployment: &Value) -> bool {
    let labels = &deployment["metadata"]["labels"];
    deployment["kind"] == "Deployment"
        && labels["app.kubernetes.io/name"] == "isobard"
        && (has_no_name(deployment) || given(deployment, "--revision-tag=").contains(&DEFAULT))
}

fn has_no_name(deployment: &Value) -> bool {
    given(deployment, "--revision=")
        .iter()
        .all(|name| *name == DEFAULT)
}

/// Values of an argument of its pods.
fn given<'a>(deployment: &'a Value, argument: &str) -> Vec<&'a str> {
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
    fn a_deployment_says_what_its_control_plane_is_called() {
        let rendered = |revision: Option<&str>, more: &str| -> Vec<Value> {
            let place = Place {
                namespace: "istio-system".to_owned(),
                revision: revision.map(str::to_owned),
            };
            let mut values = Values::default();
            values.set(more).unwrap();
            let values = place.values(&values).unwrap();
            let charts = place.charts().unwrap();
            let all = charts
                .iter()
                .flat_map(|chart| render(chart, &place.namespace, &values).unwrap());
            all.map(|manifest| manifest.value).collect()
        };
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
        assert!(rival(&first, std::slice::from_ref(&first)).is_none());
        for other in [&elsewhere, &tagged] {
            assert!(rival(&first, std::slice::from_ref(other)).is_some());
        }
        assert!(rival(&tagged, &[tagged.clone(), first]).is_some());
    }
}

//! Which control plane of a cluster is asked about, and how its Deployment starts it.

use std::collections::BTreeSet;

use anyhow::bail;
use isobar_explain::Started;
use isobar_kubernetes::{Cluster, Installer};
use serde_json::Value;

use crate::output::complain;

/// Selects the Deployments of control planes, whoever installed them.
const CONTROL_PLANES: &str = "app.kubernetes.io/name=isobard";
/// Selects those of Istio, which have names among ours: objects are for one of all these.
const ISTIOS: &str = "app=istiod";
const REVISION: &str = "istio.io/rev";

/// How the control plane in `namespace` was started: the one that is called `revision`, or else the one
/// that has what names nobody, or the first. Without a Deployment, as one by itself is.
pub(crate) async fn control_plane(
    cluster: &Cluster,
    namespace: &str,
    revision: Option<&str>,
) -> anyhow::Result<Started> {
    let installer = Installer::new(cluster.clone(), "");
    let all = installer.list("apps/v1", "Deployment", CONTROL_PLANES);
    let istios = installer.list("apps/v1", "Deployment", ISTIOS).await;
    // Who may not look at them is told so where the objects are read.
    let all = all.await.unwrap_or_default();
    let names = istios.ok().and_then(|istios| names(&all, &istios));
    let here = |one: &&Value| one["metadata"]["namespace"] == namespace;
    let mut found = Vec::new();
    for one in all.iter().filter(here) {
        match read(namespace, one) {
            Ok(started) => found.push(started),
            Err(error) => complain(&error.context(format!(
                "Deployment {namespace}/{} is not read: it may be of another version",
                one["metadata"]["name"].as_str().unwrap_or_default()
            ))),
        }
    }
    let chosen = choose(found, namespace, revision)?;
    Ok(match names {
        Some(names) => chosen.among(names),
        None => chosen,
    })
}

/// What all control planes of a cluster are called; `None` where one of them is not known, or none: then
/// the one that is asked about does not run as a Deployment, and others might not either.
fn names(ours: &[Value], istios: &[Value]) -> Option<BTreeSet<String>> {
    let name = |one: &Value| {
        let namespace = one["metadata"]["namespace"].as_str().unwrap_or_default();
        Some(read(namespace, one).ok()?.name().to_owned())
    };
    let label = |one: &Value| {
        let label = one["metadata"]["labels"][REVISION].as_str();
        Some(label.unwrap_or("default").to_owned())
    };
    let istios = istios.iter().map(label);
    let all = ours.iter().map(name).chain(istios).collect();
    if ours.is_empty() { None } else { all }
}

fn choose(
    mut found: Vec<Started>,
    namespace: &str,
    revision: Option<&str>,
) -> anyhow::Result<Started> {
    found.sort_by(|one, other| one.name().cmp(other.name()));
    let names: Vec<String> = found.iter().map(|one| one.name().to_owned()).collect();
    let place = match revision {
        Some(name) => found.iter().position(|one| one.name() == name),
        None => found.iter().position(Started::is_default),
    };
    match (place, revision) {
        (Some(place), _) => Ok(found.swap_remove(place)),
        (None, Some(name)) if found.is_empty() => {
            bail!(
                "no Deployment of a control plane is in namespace {namespace}, so none is called {name}"
            )
        }
        (None, Some(name)) => bail!(
            "no control plane in namespace {namespace} is called {name}; there: {}",
            names.join(", ")
        ),
        (None, None) => {
            if names.len() > 1 {
                complain(&anyhow::anyhow!(
                    "the settings of control plane {} count here; there are {}: explain and analyze take \
                     --revision",
                    names[0],
                    names.join(", ")
                ));
            }
            Ok(found.into_iter().next().unwrap_or_default())
        }
    }
}

fn read(namespace: &str, deployment: &Value) -> anyhow::Result<Started> {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array();
    let mut containers = containers.into_iter().flatten();
    let ours = containers.find(|one| one["name"] == "isobard");
    let ours = ours.unwrap_or(&Value::Null);
    let arguments = ours["args"].as_array().into_iter().flatten();
    let arguments: Vec<&str> = arguments.filter_map(Value::as_str).collect();
    let environment = ours["env"].as_array().into_iter().flatten();
    let environment = environment.filter_map(|one| one["name"].as_str().zip(one["value"].as_str()));
    let environment: Vec<_> = environment.collect();
    Started::by(namespace, &arguments, &environment)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_of_all_control_planes_or_not_known() {
        let ours = |argument: &str| {
            let container =
                json!({ "name": "isobard", "args": ["--kubernetes", "--state-dir=/s", argument] });
            json!({
                "metadata": { "namespace": "mesh" },
                "spec": { "template": { "spec": { "containers": [container] } } },
            })
        };
        let istio = json!({ "metadata": { "labels": { "istio.io/rev": "1-30" } } });
        let named = names(&[ours("--revision=canary")], std::slice::from_ref(&istio));
        let both = ["1-30", "canary"].map(str::to_owned);
        assert_eq!(named, Some(BTreeSet::from(both)));
        assert_eq!(names(&[], &[istio]), None);
        assert_eq!(names(&[ours("--of-another-version")], &[]), None);
    }
}

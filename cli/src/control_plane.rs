//! Which control plane of a cluster is asked about, and how its Deployment starts it.

use anyhow::bail;
use isobar_explain::Started;
use isobar_kubernetes::{Cluster, Installer};
use serde_json::Value;

use crate::output::complain;

/// Selects the Deployments of control planes, whoever installed them.
const CONTROL_PLANES: &str = "app.kubernetes.io/name=isobard";

/// How the control plane in `namespace` was started: the one that is called `revision`, or else the one
/// that has what names nobody, or the first. Without a Deployment, as one by itself is.
pub(crate) async fn control_plane(
    cluster: &Cluster,
    namespace: &str,
    revision: Option<&str>,
) -> anyhow::Result<Started> {
    let installer = Installer::new(cluster.clone(), "");
    let all = installer.list("apps/v1", "Deployment", CONTROL_PLANES);
    // Who may not look at them is told so where the objects are read.
    let all = all.await.unwrap_or_default();
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
    choose(found, namespace, revision)
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

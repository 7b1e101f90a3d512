//! What the node agents of a cluster were told of whose pods take part in the mesh.

use isobar_kubernetes::{Cluster, Installer};
use isobar_objects::enrolment::EnrolmentRules;
use serde_json::Value;

/// Selects the DaemonSets of node agents, whoever installed them.
const AGENTS: &str = "app.kubernetes.io/name=isobar-cni";
/// How an agent is told of namespaces that never take part; the flag counts before the variable.
const FLAG: &str = "--exclude-namespaces";
const VARIABLE: &str = "EXCLUDE_NAMESPACES";

/// The rules of the node agents in `namespace`, or else of others in the cluster. Without any, those of
/// agents that were told nothing.
pub(crate) async fn enrolment(cluster: &Cluster, namespace: &str) -> EnrolmentRules {
    let installer = Installer::new(cluster.clone(), "");
    let all = installer.list("apps/v1", "DaemonSet", AGENTS).await;
    // Who may not look at them is told so where the objects are read.
    let all = all.unwrap_or_default();
    let mut agents = all.iter();
    let here = agents.find(|one| one["metadata"]["namespace"] == namespace);
    here.or(all.first()).map(read).unwrap_or_default()
}

fn read(agent: &Value) -> EnrolmentRules {
    let containers = agent["spec"]["template"]["spec"]["containers"].as_array();
    let mut containers = containers.into_iter().flatten();
    let ours = containers.find(|one| one["name"] == "isobar-cni");
    let ours = ours.unwrap_or(&Value::Null);
    let mut arguments = ours["args"].as_array().into_iter().flatten();
    let mut named = Vec::new();
    while let Some(argument) = arguments.next().and_then(Value::as_str) {
        match argument.strip_prefix(FLAG) {
            Some("") => named.extend(arguments.next().and_then(Value::as_str)),
            Some(rest) => named.extend(rest.strip_prefix('=')),
            None => {}
        }
    }
    if named.is_empty() {
        let mut environment = ours["env"].as_array().into_iter().flatten();
        let found = environment.find(|one| one["name"] == VARIABLE);
        named.extend(found.and_then(|one| one["value"].as_str()));
    }
    if named.is_empty() {
        return EnrolmentRules::default();
    }
    let names = named.iter().flat_map(|names| names.split(','));
    EnrolmentRules {
        excluded_namespaces: names.map(str::to_owned).collect(),
        ..EnrolmentRules::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_count_before_the_environment_and_both_before_nothing() {
        let excluded = |arguments: Value, value: &str| {
            let environment =
                json!([{ "name": "EXCLUDE_NAMESPACES", "value": value }, { "name": "X" }]);
            let container = json!({ "name": "isobar-cni", "args": arguments, "env": environment });
            let containers = json!([{ "name": "other" }, container]);
            let rules =
                read(&json!({ "spec": { "template": { "spec": { "containers": containers } } } }));
            let all: Vec<String> = rules.excluded_namespaces.into_iter().collect();
            all.join(" ")
        };
        let some = json!([
            "--kubernetes",
            "--exclude-namespaces=a,b",
            "--exclude-namespaces",
            "c"
        ]);
        assert_eq!(excluded(some, "d"), "a b c");
        assert_eq!(
            excluded(json!(["--exclude-namespaces-not=a"]), "d,e"),
            "d e"
        );
        assert_eq!(read(&json!({})), EnrolmentRules::default());
    }
}

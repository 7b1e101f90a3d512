//! Names a workload goes by, derived from its labels and owner.

use std::collections::BTreeMap;

use isobar_types::Str;

use super::pods::PodFacts;

/// The name of the thing that owns the pod: its Deployment, Job and so on, or the pod itself.
pub(crate) fn workload_name(pod: &PodFacts<'_>) -> Str {
    if let Some(name) = pod.labels.get("service.istio.io/workload-name") {
        return name.as_str().into();
    }
    let own = pod.key.name.clone();
    let metadata = &pod.pod.metadata;
    let generated = metadata
        .generate_name
        .as_deref()
        .is_some_and(|n| !n.is_empty());
    let owner = metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    let (true, Some(owner)) = (generated, owner) else {
        return own;
    };
    let name = owner.name.as_str();
    let hash = |key: &str| pod.labels.get(key).map(|hash| format!("-{hash}"));
    let stripped = match owner.kind.as_str() {
        "ReplicaSet" => ["rollouts-pod-template-hash", "pod-template-hash"]
            .into_iter()
            .filter_map(hash)
            .find_map(|suffix| name.strip_suffix(&suffix)),
        "ReplicationController" => pod.labels.get("deploymentconfig").map(String::as_str),
        "Job" => cron_job(name),
        _ => None,
    };
    stripped.unwrap_or(name).into()
}

/// A Job made by a CronJob ends in the minute it was scheduled for.
fn cron_job(name: &str) -> Option<&str> {
    let (front, digits) = name.rsplit_once('-')?;
    let minute = (8..=10).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    minute.then_some(front)
}

/// The name telemetry groups workloads by.
pub(crate) fn canonical_name(labels: &BTreeMap<String, String>, workload: &str) -> String {
    [
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ]
    .into_iter()
    .find_map(|key| labels.get(key).cloned())
    .unwrap_or_else(|| workload.to_owned())
}

/// The revision telemetry groups workloads by.
pub(crate) fn canonical_revision(labels: &BTreeMap<String, String>) -> String {
    [
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ]
    .into_iter()
    .find_map(|key| labels.get(key).cloned())
    .unwrap_or_else(|| "latest".to_owned())
}

//! What others want to know about a pod.

mod probed;

use std::collections::BTreeMap;
use std::net::IpAddr;

use isobar_types::{canonical_ip, labels};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::object::ObjectHead;

pub use probed::probed_ports;

/// Addresses of a pod, in order; `status.podIP` counts where `podIPs` is empty. One that cannot be
/// parsed makes the list empty, as Istio drops such pods.
#[must_use]
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let listed = status.pod_ips.iter().flatten().map(|entry| &entry.ip);
    let mut texts: Vec<&String> = listed.collect();
    if texts.is_empty() {
        texts.extend(&status.pod_ip);
    }
    let parsed: Result<Vec<IpAddr>, _> = texts.into_iter().map(|text| text.parse()).collect();
    parsed
        .map(|list| list.into_iter().map(canonical_ip).collect())
        .unwrap_or_default()
}

/// `status.phase`; `Pending` when there is none.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

/// True if the pod will never run again.
#[must_use]
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// True if the pod is being deleted.
#[must_use]
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// True if condition `Ready` is `True` and the pod is not being deleted.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && !is_terminating(pod)
}

/// Service account; `default` when none is named.
#[must_use]
pub fn service_account(pod: &Pod) -> &str {
    account_of(pod.spec.as_ref())
}

/// Service account of a pod or template; `default` when none is named.
#[must_use]
pub fn account_of(spec: Option<&PodSpec>) -> &str {
    let named = spec.and_then(|spec| {
        let names = [&spec.service_account_name, &spec.service_account];
        names.into_iter().flatten().find(|name| !name.is_empty())
    });
    named.map_or("default", String::as_str)
}

/// Node it runs on; empty before it is placed.
#[must_use]
pub fn node(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

/// True if it uses its node's network.
#[must_use]
pub fn uses_host_network(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.host_network).unwrap_or(false)
}

/// True if the pod terminates HBONE itself: label `networking.istio.io/tunnel` lists `http`.
#[must_use]
pub fn terminates_hbone(pod: &Pod) -> bool {
    pod.label(labels::TUNNEL)
        .is_some_and(|list| list.split(',').any(|entry| entry.trim() == "http"))
}

/// The Gateway that the pod is an instance of, if any.
#[must_use]
pub fn gateway(pod: &Pod) -> Option<&str> {
    pod.label(labels::GATEWAY_NAME)
        .filter(|name| !name.is_empty())
}

/// True if the service selects the pod: same namespace, a selector that is not empty, all its
/// labels on the pod, and not of type ExternalName.
#[must_use]
pub fn is_selected(pod: &Pod, service: &Service) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    if spec.type_.as_deref() == Some("ExternalName") || pod.namespace() != service.namespace() {
        return false;
    }
    let Some(selector) = spec.selector.as_ref().filter(|labels| !labels.is_empty()) else {
        return false;
    };
    selector
        .iter()
        .all(|(key, value)| pod.label(key) == Some(value))
}

/// The TCP container port of that name: in containers, then in init containers that keep running.
#[must_use]
pub fn named_port(pod: &Pod, name: &str) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    let keeps_running =
        |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let lasting_init = spec.init_containers.iter().flatten().filter(keeps_running);
    spec.containers
        .iter()
        .chain(lasting_init)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| {
            port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == "TCP"
        })
        .and_then(|port| u16::try_from(port.container_port).ok())
}

/// The port of the pod behind a service port: the number, or the container port of that name.
/// Without a target port it is the service port itself.
#[must_use]
pub fn target_port(pod: &Pod, target: Option<&IntOrString>, service_port: u16) -> Option<u16> {
    match target {
        None => Some(service_port),
        Some(IntOrString::Int(0)) => Some(service_port),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => named_port(pod, name),
    }
}

/// What a pod belongs to: the name users know, and the kind that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// For example `Deployment`; `Pod` for pods on their own.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// The workload a pod belongs to, by Istio's rules: label `service.istio.io/workload-name` wins;
/// then the controlling owner, with ReplicaSets and Jobs traced to what made them.
#[must_use]
pub fn workload(pod: &Pod) -> Workload {
    let found = |kind: &str, name: &str| Workload {
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let owner = controller(pod).filter(|_| pod.metadata.generate_name.is_some());
    let mut workload = owner.map_or_else(
        || found("Pod", pod.name()),
        |owner| trace_owner(pod.labels(), owner),
    );
    if let Some(name) = pod.label("service.istio.io/workload-name") {
        name.clone_into(&mut workload.name);
    }
    workload
}

fn controller(pod: &Pod) -> Option<&OwnerReference> {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners
        .into_iter()
        .find(|owner| owner.controller == Some(true))
}

fn trace_owner(labels: &BTreeMap<String, String>, owner: &OwnerReference) -> Workload {
    let made = |kind: &str, name: &str| Workload {
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let without_hash = |label: &str| {
        let hash = labels.get(label)?;
        owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            if let Some(name) = without_hash("rollouts-pod-template-hash") {
                return made("Rollout", name);
            }
            if let Some(name) = without_hash("pod-template-hash") {
                return made("Deployment", name);
            }
        }
        "ReplicationController" => {
            if let Some(name) = labels.get("deploymentconfig") {
                return made("DeploymentConfig", name);
            }
        }
        "Job" => {
            if let Some((name, number)) = owner.name.rsplit_once('-')
                && (8..=10).contains(&number.len())
                && number.bytes().all(|byte| byte.is_ascii_digit())
            {
                return made("CronJob", name);
            }
        }
        _ => {}
    }
    made(&owner.kind, &owner.name)
}

/// First of labels `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`; else the
/// workload's name.
#[must_use]
pub fn canonical_name(pod: &Pod) -> String {
    first_label(
        pod,
        &[
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ],
    )
    .map_or_else(|| workload(pod).name, str::to_owned)
}

/// First of labels `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`;
/// else `latest`.
#[must_use]
pub fn canonical_revision(pod: &Pod) -> String {
    first_label(
        pod,
        &[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ],
    )
    .unwrap_or("latest")
    .to_owned()
}

fn first_label<'a>(pod: &'a Pod, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| pod.label(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn addresses_fall_back_and_refuse_nonsense() {
        let with = |status: serde_json::Value| {
            addresses(&pod(json!({"metadata": {"name": "p"}, "status": status})))
        };
        assert_eq!(with(json!({"podIP": "10.0.0.1"})).len(), 1);
        assert_eq!(
            with(json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}))
                .len(),
            2
        );
        assert!(with(json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "nonsense"}]})).is_empty());
        assert!(with(json!({})).is_empty());
    }

    #[test]
    fn readiness_ends_with_deletion() {
        let mut pod = pod(json!({"metadata": {"name": "p"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        assert!(is_ready(&pod));
        pod.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(!is_ready(&pod));
    }

    #[test]
    fn services_select_in_their_namespace_and_never_with_an_empty_selector() {
        let pod = pod(json!({"metadata": {"name": "p", "namespace": "a",
            "labels": {"app": "x", "v": "1"}}}));
        let service = |namespace: &str, spec: serde_json::Value| -> Service {
            serde_json::from_value(json!({"metadata": {"name": "s", "namespace": namespace},
                "spec": spec}))
            .unwrap()
        };
        assert!(is_selected(
            &pod,
            &service("a", json!({"selector": {"app": "x"}}))
        ));
        for (namespace, spec) in [
            ("b", json!({"selector": {"app": "x"}})),
            ("a", json!({"selector": {"app": "y"}})),
            ("a", json!({"selector": {}})),
            ("a", json!({})),
            (
                "a",
                json!({"type": "ExternalName", "selector": {"app": "x"}}),
            ),
        ] {
            assert!(!is_selected(&pod, &service(namespace, spec)));
        }
    }

    #[test]
    fn named_ports_are_tcp_and_may_be_in_lasting_init_containers() {
        let pod = pod(json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "ports": [
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"name": "http", "containerPort": 8080}]}],
            "initContainers": [
                {"name": "once", "ports": [{"name": "gone", "containerPort": 1}]},
                {"name": "lasting", "restartPolicy": "Always",
                 "ports": [{"name": "side", "containerPort": 9000}]}]}}));
        assert_eq!(named_port(&pod, "http"), Some(8080));
        assert_eq!(named_port(&pod, "side"), Some(9000));
        assert_eq!(named_port(&pod, "dns"), None);
        assert_eq!(named_port(&pod, "gone"), None);
        assert_eq!(target_port(&pod, None, 80), Some(80));
        assert_eq!(target_port(&pod, Some(&IntOrString::Int(81)), 80), Some(81));
        assert_eq!(
            target_port(&pod, Some(&IntOrString::String("http".into())), 80),
            Some(8080)
        );
    }

    #[test]
    fn owners_are_traced() {
        let owned = |kind: &str, name: &str, labels: serde_json::Value| {
            workload(&pod(
                json!({"metadata": {"name": "p-1", "generateName": "p-",
                "labels": labels,
                "ownerReferences": [{"apiVersion": "x/v1", "kind": kind, "name": name,
                    "uid": "u", "controller": true}]}}),
            ))
        };
        let is = |workload: Workload, kind: &str, name: &str| {
            assert_eq!((&*workload.kind, &*workload.name), (kind, name));
        };
        is(
            owned(
                "ReplicaSet",
                "web-5d4f",
                json!({"pod-template-hash": "5d4f"}),
            ),
            "Deployment",
            "web",
        );
        is(
            owned("ReplicaSet", "web-5d4f", json!({})),
            "ReplicaSet",
            "web-5d4f",
        );
        is(owned("Job", "tick-28400000", json!({})), "CronJob", "tick");
        is(owned("Job", "once", json!({})), "Job", "once");
        is(
            owned(
                "ReplicaSet",
                "x",
                json!({"service.istio.io/workload-name": "named"}),
            ),
            "ReplicaSet",
            "named",
        );
        is(
            workload(&pod(json!({"metadata": {"name": "lone"}}))),
            "Pod",
            "lone",
        );
    }
}

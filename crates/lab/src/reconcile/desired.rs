use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use isobar_objects::{ObjectHead, ObjectSet, Pod, Service, pods_of};
use isobar_types::labels;
use xxhash_rust::xxh64::xxh64;

use crate::kubelet::Kubelet;

/// Namespace and name.
pub(super) type Key = (String, String);

/// A pod that should run.
#[derive(Debug)]
pub(super) struct Desired {
    /// With the labels and annotations of the moment.
    pub(super) pod: Arc<Pod>,
    /// Of everything whose change needs a new pod.
    pub(super) fingerprint: u64,
    /// For pods made from a Deployment.
    pub(super) made: Option<Made>,
}

/// Where a pod that we made comes from.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) deployment: Key,
    /// Hash of its template.
    pub(super) template: String,
    /// As we made it, without what others added since.
    pub(super) pod: Arc<Pod>,
}

/// Every pod the objects ask for; `kubelet` knows which of them we made ourselves.
pub(super) fn pods(objects: &ObjectSet, kubelet: &Kubelet) -> BTreeMap<Key, Desired> {
    let mut found = BTreeMap::new();
    for held in objects.pods.iter() {
        if kubelet.made(held) || kubelet.leaves_out(held) {
            continue;
        }
        let pod = &held.object;
        found.insert(key(pod), desired(pod.clone(), pod, None));
    }
    for deployment in objects.deployments.iter() {
        let by = key(&deployment.object);
        for pod in pods_of(&deployment.object) {
            let key = key(&pod);
            let template = pod
                .label("pod-template-hash")
                .unwrap_or_default()
                .to_owned();
            let now = objects.pods.get(&key.0, &key.1);
            let seen = now.filter(|held| kubelet.made(held));
            if seen.is_some_and(|held| kubelet.leaves_out(held)) {
                continue;
            }
            let current = seen.map_or_else(|| pod.clone(), |held| with_head(&pod, &held.object));
            let made = Made {
                deployment: by.clone(),
                template,
                pod: Arc::new(pod.clone()),
            };
            let want = desired(current, &pod, Some(made));
            found.entry(key).or_insert(want);
        }
    }
    found
}

fn key(object: &impl ObjectHead) -> Key {
    (object.namespace().to_owned(), object.name().to_owned())
}

fn desired(pod: Pod, written: &Pod, made: Option<Made>) -> Desired {
    Desired {
        fingerprint: fingerprint(written),
        pod: Arc::new(pod),
        made,
    }
}

/// The pod as we made it, with the labels and annotations it has now.
fn with_head(made: &Pod, seen: &Pod) -> Pod {
    let mut pod = made.clone();
    pod.metadata.labels.clone_from(&seen.metadata.labels);
    pod.metadata
        .annotations
        .clone_from(&seen.metadata.annotations);
    pod
}

/// Labels and annotations may change while a pod runs; its spec may not. The node is our own
/// choice, which comes back with the object.
fn fingerprint(pod: &Pod) -> u64 {
    let mut spec = pod.spec.clone().unwrap_or_default();
    spec.node_name = None;
    let mut text = serde_json::to_vec(&spec).expect("pod specs have string keys only");
    if let Some(command) = pod.annotation(labels::LAB_COMMAND) {
        text.extend_from_slice(command.as_bytes());
    }
    xxh64(&text, 0)
}

/// The address a service wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Headless or an alias.
    None,
    Any,
    This(Ipv4Addr),
}

pub(super) fn address_wish(service: &Service) -> Wish {
    let Some(spec) = &service.spec else {
        return Wish::None;
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Wish::None;
    }
    match spec.cluster_ip.as_deref() {
        None | Some("") => Wish::Any,
        Some("None") => Wish::None,
        Some(text) => text.parse().map_or(Wish::Any, Wish::This),
    }
}

/// What a service asks for and a lab does not do.
pub(super) fn unserved(service: &Service) -> Vec<String> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut say = |what: &str| {
        found.push(format!(
            "Service {}/{}: {what}",
            service.namespace(),
            service.name()
        ));
    };
    let mut ports = spec.ports.iter().flatten();
    let has_node_port = ports.any(|port| port.node_port.is_some_and(|number| number != 0));
    match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") if !has_node_port => {
            say("the lab gives out no node ports: name one (spec.ports[].nodePort)");
        }
        Some("LoadBalancer") => say("the lab has no load balancers, only its node ports"),
        _ => {}
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        say("sessionAffinity is not kept for callers outside the mesh");
    }
    if spec
        .ports
        .iter()
        .flatten()
        .any(|port| port.protocol.as_deref() == Some("SCTP"))
    {
        say("SCTP ports are not served");
    }
    found
}

/// Gateways for which the control plane has not written a Deployment yet.
pub(super) fn gateways_without_deployment(objects: &ObjectSet) -> Vec<String> {
    let has_deployment = |namespace: &str, name: &str| {
        objects
            .deployments
            .in_namespace(namespace)
            .any(|d| d.object.label(labels::GATEWAY_NAME) == Some(name))
    };
    objects
        .gateways
        .iter()
        .filter(|held| {
            let gateway = &held.object;
            gateway.spec.gateway_class_name == labels::WAYPOINT_CLASS
                && !has_deployment(gateway.namespace(), gateway.name())
        })
        .map(|held| format!("{}/{}", held.object.namespace(), held.object.name()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use isobar_objects::{Object, OverlayWriter};
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn relabelling_keeps_a_pod_and_a_new_image_does_not() {
        let with = |labels: serde_json::Value, image: &str| {
            fingerprint(&pod(json!({"metadata": {"name": "p", "labels": labels},
                "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": image}]}})))
        };
        assert_eq!(with(json!({}), "a"), with(json!({"x": "y"}), "a"));
        assert_ne!(with(json!({}), "a"), with(json!({}), "b"));
        let placed = pod(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n",
            "containers": []}}));
        let unplaced = pod(json!({"metadata": {"name": "p"}, "spec": {"containers": []}}));
        assert_eq!(fingerprint(&placed), fingerprint(&unplaced));
    }

    #[test]
    fn pods_of_users_and_of_deployments() {
        let deployment: isobar_objects::Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "a"},
            "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"containers": []}}}}))
        .unwrap();
        let lone = pod(json!({"metadata": {"name": "lone", "namespace": "a"}}));
        let set = ObjectSet::of([Object::from(deployment), Object::from(lone)]);
        let folder = tempfile::tempdir().unwrap();
        let kubelet = Kubelet::Folder(OverlayWriter::new(folder.path()).unwrap());
        let wanted = pods(&set, &kubelet);
        assert_eq!(wanted.len(), 3);
        let made = wanted.values().filter(|w| w.made.is_some()).count();
        assert_eq!(made, 2);
    }

    #[test]
    fn wishes() {
        let of = |spec: serde_json::Value| {
            let service = json!({"metadata": {"name": "s"}, "spec": spec});
            address_wish(&serde_json::from_value(service).unwrap())
        };
        assert_eq!(of(json!({})), Wish::Any);
        assert_eq!(of(json!({"clusterIP": "None"})), Wish::None);
        assert_eq!(of(json!({"type": "ExternalName"})), Wish::None);
        let ip = Ipv4Addr::new(10, 96, 0, 7);
        assert_eq!(of(json!({"clusterIP": "10.96.0.7"})), Wish::This(ip));
    }
}

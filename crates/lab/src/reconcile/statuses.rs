use std::collections::BTreeMap;
use std::net::IpAddr;

use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet, Pod, uid_from};
use serde_json::{Value, json};

use super::desired::Key;
use super::{Entry, Reconciler};
use crate::cluster::{Cluster, ServiceView};
use crate::plan::NodePlan;
use crate::pod::{PodPlan, PodReport};
use crate::protocol::{PodPhase, PodStatus, ServiceStatus};

/// Label every namespace has, for selectors by name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Namespaces that are there without anybody writing them.
const GIVEN: [&str; 3] = ["default", "istio-system", "kube-system"];

impl Reconciler {
    /// Namespaces that always exist, and the label with its name on every one.
    pub(super) async fn write_namespaces(&mut self, objects: &ObjectSet) {
        for name in GIVEN {
            if objects.namespaces.get("", name).is_none() {
                let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                    "name": name, "labels": {NAMESPACE_NAME: name}}});
                let object = ObjectRef::new(Kind::Namespace, "", name);
                if let Err(error) = self.kubelet.put(&object, &value).await {
                    self.findings.push(error);
                }
            }
        }
        let failed = self.kubelet.give_accounts(objects).await;
        self.findings.extend(failed);
        for held in objects.namespaces.iter() {
            let namespace = &held.object;
            if namespace.label(NAMESPACE_NAME).is_none() {
                let patch = json!({"metadata": {"labels": {NAMESPACE_NAME: namespace.name()}}});
                self.patch(&namespace.reference(), &patch).await;
            }
        }
    }

    /// Writes what became of pods. The writer leaves files alone that would not change.
    pub(super) async fn write_statuses(&mut self) {
        let mut failed = Vec::new();
        for entry in self.pods.values() {
            let object = entry.plan.pod.reference();
            let value = pod_value(entry);
            let said = self.kubelet.say(&object, &value, entry.made.is_some());
            failed.extend(said.await.err());
        }
        self.findings.extend(failed);
    }
}

/// What we say about a pod: the whole pod if we made it, else only what we add.
fn pod_value(entry: &Entry) -> Value {
    let plan = &entry.plan;
    let mut value = json!({
        "metadata": {"uid": plan.uid, "deletionTimestamp": entry.ending.map(|t| t.to_string())},
        "spec": {"nodeName": plan.node.plan.name},
        "status": status_value(plan, &entry.seen, entry.ending.is_some()),
    });
    let Some(made) = &entry.made else {
        return value;
    };
    // Not as it is now: what others added lives in their own overlays.
    let mut whole = serde_json::to_value(&*made.pod).expect("pods have string keys only");
    isobar_objects::merge_patch(&mut whole, &value.take());
    whole["apiVersion"] = json!("v1");
    whole["kind"] = json!("Pod");
    whole
}

fn status_value(plan: &PodPlan, report: &PodReport, ending: bool) -> Value {
    let ready = report.ready && !ending;
    let since = report.ready_since.or(report.started);
    let condition = |kind: &str, holds: bool| {
        json!({"type": kind, "status": if holds { "True" } else { "False" },
            "lastTransitionTime": since.map(|t| t.to_string())})
    };
    let mut status = json!({
        "phase": report.phase.to_string(),
        "hostIP": plan.node.plan.address(),
        "startTime": report.started.map(|t| t.to_string()),
        "message": (!report.message.is_empty()).then_some(&report.message),
        "conditions": [condition("PodScheduled", true), condition("ContainersReady", ready),
            condition("Ready", ready)],
    });
    if report.place.is_some() {
        status["podIP"] = json!(plan.ip);
        let all = plan.addresses().into_iter();
        status["podIPs"] = all.map(|ip| json!({"ip": ip})).collect();
    }
    status
}

/// A pod for clients.
pub(super) fn of(plan: &PodPlan, report: &PodReport, ending: bool) -> PodStatus {
    PodStatus {
        ready: report.ready && !ending,
        node: plan.node.plan.name.clone(),
        ip: report.place.is_some().then_some(IpAddr::V4(plan.ip)),
        phase: report.phase,
        restarts: report.restarts,
        mesh: report.mesh.clone(),
        message: if ending {
            "ending".to_owned()
        } else {
            report.message.clone()
        },
        ..bare(plan.pod.namespace(), plan.pod.name(), &plan.uid, &plan.pod)
    }
}

/// A pod that cannot be placed.
pub(super) fn blocked(key: &Key, pod: &Pod, why: String) -> PodStatus {
    PodStatus {
        message: why,
        ..bare(&key.0, &key.1, "", pod)
    }
}

fn bare(namespace: &str, name: &str, uid: &str, pod: &Pod) -> PodStatus {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    PodStatus {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        node: String::new(),
        ip: None,
        phase: PodPhase::Pending,
        ready: false,
        restarts: 0,
        images: containers.filter_map(|c| c.image.clone()).collect(),
        mesh: String::new(),
        message: String::new(),
    }
}

/// Services for clients.
pub(super) fn services(cluster: &Cluster) -> Vec<ServiceStatus> {
    cluster
        .services
        .iter()
        .map(|view| ServiceStatus {
            namespace: view.namespace.clone(),
            name: view.name.clone(),
            cluster_ip: view.ip.map(IpAddr::V4),
            ports: port_words(view),
            endpoints: cluster
                .endpoints(&view.service)
                .map(|pod| IpAddr::V4(pod.ip))
                .collect(),
        })
        .collect()
}

fn port_words(view: &ServiceView) -> Vec<String> {
    let ports = view.service.spec.iter().flat_map(|spec| &spec.ports);
    ports
        .flatten()
        .map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            format!("{}/{protocol}", port.port)
        })
        .collect()
}

/// Labels of every namespace that exists or has objects, its name among them.
pub(super) fn namespace_labels(objects: &ObjectSet) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for held in objects.namespaces.iter() {
        let labels = held.object.labels().clone();
        found.insert(held.object.name().to_owned(), labels);
    }
    let used = objects
        .services
        .iter()
        .map(|s| s.object.namespace().to_owned());
    let pods = objects.pods.iter().map(|p| p.object.namespace().to_owned());
    for name in used.chain(pods).chain(GIVEN.map(str::to_owned)) {
        found.entry(name).or_default();
    }
    for (name, labels) in &mut found {
        labels.insert(NAMESPACE_NAME.to_owned(), name.clone());
    }
    found
}

/// The object of a node, whose kubelet listens at `kubelet` if it has one.
pub(crate) fn node_value(node: &NodePlan, kubelet: Option<u16>) -> Value {
    let mut status = json!({"addresses": [
        {"type": "InternalIP", "address": node.address()},
        {"type": "Hostname", "address": node.name}]});
    if let Some(port) = kubelet {
        status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": port}});
    }
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": node.name,
            "uid": uid_from(&["Node", "", &node.name]),
            "labels": {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"},
        },
        "spec": {"podCIDR": node.pod_cidr(), "podCIDRs": [node.pod_cidr()]},
        "status": status})
}

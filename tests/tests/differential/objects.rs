//! The objects of a configuration, and what the control plane makes of them.

use std::net::SocketAddr;
use std::path::Path;

use isobar_control_plane::{Told, told};
use isobar_objects::{ObjectSet, read_text};
use serde_json::{Value, json};

use crate::scenario::{Backend, Configuration};

/// Where everything lives.
pub(crate) const NAMESPACE: &str = "shop";
/// The waypoint's Gateway and account.
pub(crate) const WAYPOINT: &str = "wp";
const DOMAIN: &str = "svc.cluster.local";

/// One endpoint that runs: its pod's name, what it is, and where it listens.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) pod: String,
    pub(crate) backend: Backend,
    pub(crate) address: SocketAddr,
}

/// What the control plane tells about a configuration.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) told: Told,
}

/// The virtual address of the service of that index.
pub(crate) fn vip(index: usize) -> String {
    format!("10.96.0.{}", index + 1)
}

/// Names of the services of a configuration, in the order of their addresses.
pub(crate) fn services(configuration: &Configuration) -> Vec<String> {
    let mut names = vec!["svc".to_owned()];
    for backend in &configuration.backends {
        if !names.contains(&backend.service) {
            names.push(backend.service.clone());
        }
    }
    names
}

/// The full host name of a service here.
pub(crate) fn hostname(service: &str) -> String {
    format!("{service}.{NAMESPACE}.{DOMAIN}")
}

/// Puts the objects to the control plane's model. Panics where they are wrong: an oracle learns
/// nothing from those. What is not honoured shows in the comparison.
pub(crate) fn resolve(configuration: &Configuration, running: &[Running]) -> Resolved {
    let name = &configuration.name;
    let documents: Vec<String> = all(configuration, running)
        .iter()
        .map(Value::to_string)
        .collect();
    let read = read_text(Path::new("scenario.yaml"), &documents.join("\n---\n"));
    let errors: Vec<String> = read
        .findings
        .iter()
        .filter(|finding| finding.is_error())
        .map(ToString::to_string)
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}");
    let told = told(&ObjectSet::of(read.objects.into_iter().map(|o| o.object)));
    Resolved { told }
}

fn all(configuration: &Configuration, running: &[Running]) -> Vec<Value> {
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"istio.io/use-waypoint": WAYPOINT}}}),
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": WAYPOINT, "namespace": NAMESPACE},
            "spec": {"gatewayClassName": "isobar-waypoint",
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]}}),
    ];
    for (index, service) in services(configuration).iter().enumerate() {
        let ports: Vec<_> = configuration
            .ports
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port, "targetPort": "app"}))
            .collect();
        all.push(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": service, "namespace": NAMESPACE},
            "spec": {"clusterIP": vip(index), "selector": {"app": service}, "ports": ports}}));
    }
    all.extend(running.iter().map(pod));
    let client = ("client".to_owned(), Default::default());
    for (name, caller) in configuration.callers.clone().into_iter().chain([client]) {
        let namespace = caller.namespace.as_deref().unwrap_or(NAMESPACE);
        all.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": format!("u-{name}"),
                "labels": caller.labels},
            "spec": {"serviceAccountName": name, "nodeName": "node-1",
                "containers": [{"name": "main", "image": "caller"}]},
            "status": status("127.0.0.1", true)}));
    }
    if !configuration.http.is_empty() {
        all.push(json!({"kind": "VirtualService", "metadata": {"name": "vs"},
            "spec": {"hosts": ["svc"], "http": configuration.http}}));
    }
    all.push(destination_rule(configuration));
    for (index, policy) in configuration.policies.iter().enumerate() {
        let mut spec = policy.clone();
        spec["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "svc"}]);
        all.push(json!({"kind": "AuthorizationPolicy",
            "metadata": {"name": format!("policy-{index}")}, "spec": spec}));
    }
    all.extend(configuration.objects.iter().cloned());
    for object in &mut all {
        complete(object);
    }
    all
}

fn destination_rule(configuration: &Configuration) -> Value {
    let mut spec = configuration.rule.clone().unwrap_or_else(|| json!({}));
    if spec.get("subsets").is_none() {
        spec["subsets"] = json!([
            {"name": "v1", "labels": {"version": "v1"}},
            {"name": "v2", "labels": {"version": "v2"}}]);
    }
    spec["host"] = json!("svc");
    json!({"kind": "DestinationRule", "metadata": {"name": "dr"}, "spec": spec})
}

/// Fills in version and namespace where a scenario leaves them out.
fn complete(object: &mut Value) {
    let version = match object["kind"].as_str() {
        Some("VirtualService" | "DestinationRule" | "ServiceEntry") => "networking.istio.io/v1",
        Some("HTTPRoute" | "GRPCRoute" | "ReferenceGrant") => "gateway.networking.k8s.io/v1",
        Some("AuthorizationPolicy") => "security.istio.io/v1",
        _ => "v1",
    };
    if object.get("apiVersion").is_none() {
        object["apiVersion"] = json!(version);
    }
    if object["kind"] != "Namespace" && object["metadata"].get("namespace").is_none() {
        object["metadata"]["namespace"] = json!(NAMESPACE);
    }
}

fn pod(running: &Running) -> Value {
    let backend = &running.backend;
    let mut labels = backend.labels.clone();
    if labels.is_empty() {
        labels.insert("version".to_owned(), backend.name.clone());
    }
    labels.insert("app".to_owned(), backend.service.clone());
    let port = json!({"name": "app", "containerPort": running.address.port()});
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": running.pod, "namespace": NAMESPACE,
            "uid": format!("u-{}", running.pod), "labels": labels},
        "spec": {"serviceAccountName": "server", "nodeName": "node-1",
            "containers": [{"name": "main", "image": "server", "ports": [port]}]},
        "status": status(&running.address.ip().to_string(), !backend.unready)})
}

fn status(ip: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": ready}]})
}

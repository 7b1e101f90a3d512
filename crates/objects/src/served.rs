use k8s_openapi::api::core::v1::{
    Container, ContainerPort, GRPCAction, HTTPGetAction, Lifecycle, LifecycleHandler, NodeStatus,
    Pod, PodCondition, PodSpec, PodStatus, Probe, Secret, TCPSocketAction,
};
use serde_json::Value;

use crate::finding::{Finding, Severity};
use crate::invalid::{Invalid, refusal};
use crate::kinds::{Kind, ObjectRef};
use crate::object::Object;
use crate::read::typed;

/// Holds the whole object once more, and changes with every `kubectl apply`.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Conditions that Kubernetes keeps on pods for itself; what comes of them is `Ready`.
const OF_THE_KUBELET: [&str; 4] = [
    "PodScheduled",
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
];

/// One object as an API server has it, judged by the rules that files are judged by.
#[derive(Debug, Clone)]
pub struct ServedObject {
    pub(crate) reference: ObjectRef,
    /// `None` when it is not valid.
    pub(crate) object: Option<Object>,
    pub(crate) findings: Vec<Finding>,
    /// Set when it is not valid.
    pub(crate) rest: Option<Box<Rest>>,
}

/// What is kept of an object that is not valid.
#[derive(Debug, Clone)]
pub(crate) struct Rest {
    pub(crate) invalid: Invalid,
    pub(crate) status: Option<Value>,
    /// What is in force if no version was ever valid.
    pub(crate) refusal: Option<Object>,
}

impl ServedObject {
    /// Reads an object of a known kind. Kubernetes' own kinds were checked by the server that
    /// serves them, and may be newer than this program: what it does not know there is no error.
    #[must_use]
    pub fn read(kind: Kind, value: &Value) -> Self {
        let head = |field: &str| {
            let head = value.get("metadata").and_then(|head| head.get(field));
            head.and_then(Value::as_str).unwrap_or_default()
        };
        let reference = ObjectRef::new(kind, head("namespace"), head("name"));
        let (object, findings) = if kind.is_custom() {
            typed(kind, value)
        } else {
            checked_by_its_server(kind, value)
        };
        let rest = object.is_none().then(|| Rest {
            invalid: Invalid::read(value).because(&findings),
            status: value.get("status").cloned(),
            refusal: refusal(kind, value).map(without_ballast),
        });
        Self {
            object: object.map(without_ballast),
            rest: rest.map(Box::new),
            findings: findings
                .into_iter()
                .map(|finding| finding.about(&reference))
                .collect(),
            reference,
        }
    }

    /// Its identity.
    #[must_use]
    pub const fn reference(&self) -> &ObjectRef {
        &self.reference
    }

    /// The object; `None` if it is not valid.
    #[must_use]
    pub const fn object(&self) -> Option<&Object> {
        self.object.as_ref()
    }

    /// What is wrong with it or worth knowing.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What only matters to whoever runs pods is forgotten: most of a pod's size, and most of what
    /// changes in it, in Nodes and in Deployments. The version goes with it, or nothing that is kept
    /// would ever be as before.
    #[must_use]
    pub fn slim(mut self) -> Self {
        match &mut self.object {
            Some(Object::Pod(pod)) => slim_pod(pod),
            Some(Object::Deployment(deployment)) => deployment.status = None,
            Some(Object::Secret(secret)) => slim_secret(secret),
            Some(Object::Node(node)) => {
                let addresses = node.status.take().and_then(|status| status.addresses);
                node.status = addresses.map(|addresses| NodeStatus {
                    addresses: Some(addresses),
                    ..NodeStatus::default()
                });
            }
            _ => return self,
        }
        if let Some(object) = &mut self.object {
            object.head_mut().resource_version = None;
        }
        self
    }
}

/// Only what cannot be read at all is an error.
fn checked_by_its_server(kind: Kind, value: &Value) -> (Option<Object>, Vec<Finding>) {
    let (object, mut findings) = typed(kind, value);
    // What is in a text is nothing that the server looks at.
    let is_text = |one: &Finding| one.is_error() && one.field.starts_with("data.");
    if object.is_some() || (kind == Kind::ConfigMap && findings.iter().any(is_text)) {
        return (object, findings);
    }
    let strict = crate::strict::Strict::default();
    let object = Object::deserialize(kind, value, &strict);
    if object.is_some() {
        for finding in &mut findings {
            if finding.is_error() {
                finding.severity = Severity::Warning;
            }
        }
    }
    (object, findings)
}

fn without_ballast(mut object: Object) -> Object {
    let head = object.head_mut();
    head.managed_fields = None;
    if let Some(annotations) = &mut head.annotations {
        annotations.remove(LAST_APPLIED);
    }
    object
}

fn slim_pod(pod: &mut Pod) {
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(PodSpec {
            containers: slim_containers(spec.containers),
            init_containers: spec
                .init_containers
                .map(slim_containers)
                .filter(|some| !some.is_empty()),
            host_network: spec.host_network,
            hostname: spec.hostname,
            subdomain: spec.subdomain,
            node_name: spec.node_name,
            service_account: spec.service_account,
            service_account_name: spec.service_account_name,
            ..PodSpec::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(PodStatus {
            phase: status.phase,
            conditions: status.conditions.map(slim_conditions),
            host_ip: status.host_ip,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            start_time: status.start_time,
            ..PodStatus::default()
        });
    }
}

fn slim_conditions(mut conditions: Vec<PodCondition>) -> Vec<PodCondition> {
    conditions.retain(|one| !OF_THE_KUBELET.contains(&one.type_.as_str()));
    conditions.shrink_to_fit();
    conditions
}

/// Only those that are of use to others. An empty one takes 2 KB, which is more than everything else
/// that is kept of most pods.
fn slim_containers(containers: Vec<Container>) -> Vec<Container> {
    let slim = containers.into_iter().filter_map(slim_container);
    let mut kept: Vec<Container> = slim.collect();
    // They were collected in the room that all had.
    kept.shrink_to_fit();
    kept
}

/// Of a Secret only what a listener could show or ask for.
fn slim_secret(secret: &mut Secret) {
    let named = ["tls.crt", "tls.key", "ca.crt", "cert", "key", "cacert"];
    if let Some(data) = &mut secret.data {
        data.retain(|entry, _| named.contains(&entry.as_str()));
    }
    secret.metadata.annotations = None;
}

/// Rules and Services mean ports of containers by their names; the kubelet calls those of probes and
/// hooks.
fn slim_container(container: Container) -> Option<Container> {
    let is_named = |port: &ContainerPort| port.name.as_ref().is_some_and(|name| !name.is_empty());
    let mut ports = container.ports.unwrap_or_default();
    ports.retain(is_named);
    ports.shrink_to_fit();
    let hooks = container.lifecycle.map(|hooks| Lifecycle {
        post_start: hooks.post_start.and_then(slim_hook),
        pre_stop: hooks.pre_stop.and_then(slim_hook),
        ..Lifecycle::default()
    });
    let slim = Container {
        startup_probe: container.startup_probe.and_then(slim_probe),
        readiness_probe: container.readiness_probe.and_then(slim_probe),
        liveness_probe: container.liveness_probe.and_then(slim_probe),
        lifecycle: hooks.filter(|hooks| *hooks != Lifecycle::default()),
        ports: (!ports.is_empty()).then_some(ports),
        ..Container::default()
    };
    (slim != Container::default()).then_some(Container {
        name: container.name,
        restart_policy: container.restart_policy,
        ..slim
    })
}

/// Only where it calls; one that calls no port is nothing to others.
fn slim_probe(probe: Probe) -> Option<Probe> {
    let slim = Probe {
        tcp_socket: called(probe.http_get, probe.tcp_socket),
        grpc: probe.grpc.map(|grpc| GRPCAction {
            port: grpc.port,
            service: None,
        }),
        ..Probe::default()
    };
    (slim != Probe::default()).then_some(slim)
}

fn slim_hook(hook: LifecycleHandler) -> Option<LifecycleHandler> {
    let tcp_socket = Some(called(hook.http_get, hook.tcp_socket)?);
    Some(LifecycleHandler {
        tcp_socket,
        ..LifecycleHandler::default()
    })
}

fn called(http: Option<HTTPGetAction>, tcp: Option<TCPSocketAction>) -> Option<TCPSocketAction> {
    let http = http.map(|http| TCPSocketAction {
        host: http.host,
        port: http.port,
    });
    http.or(tcp)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pods::probed_ports;

    #[test]
    fn a_newer_server_knows_fields_that_we_do_not() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "shop", "newInHead": 1},
            "spec": {"containers": [{"name": "c", "image": "i", "newIn2031": true}]},
        });
        let read = ServedObject::read(Kind::Pod, &pod);
        assert!(read.object.is_some(), "{:?}", read.findings);
        assert!(read.findings.iter().all(|one| !one.is_error()));
        assert_eq!(read.findings.len(), 2);
    }

    #[test]
    fn a_heartbeat_changes_nothing_that_is_kept() {
        let node = |version: &str, time: &str| {
            let value = json!({
                "metadata": {"name": "n", "resourceVersion": version, "labels": {"a": "b"}},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                    "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": time}],
                },
            });
            ServedObject::read(Kind::Node, &value).slim().object
        };
        let first = node("1", "2026-01-01T00:00:00Z");
        assert!(first.is_some());
        assert_eq!(first, node("2", "2026-01-01T00:00:10Z"));
    }

    #[test]
    fn a_policy_is_judged_as_in_a_file() {
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"acton": "DENY"},
        });
        let read = ServedObject::read(Kind::AuthorizationPolicy, &policy);
        assert!(read.object.is_none());
        assert_eq!(read.findings[0].field, "spec.acton");
        assert_eq!(read.findings[0].object.as_ref(), Some(read.reference()));
    }

    #[test]
    fn what_the_kubelet_calls_is_known_of_slim_pods() {
        let pod = json!({
            "metadata": {"name": "a", "namespace": "shop"},
            "spec": {
                "containers": [
                    {"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 80}],
                        "startupProbe": {"httpGet": {"port": "web", "path": "/", "httpHeaders": [
                            {"name": "a", "value": "b"}]}},
                        "readinessProbe": {"exec": {"command": ["true"]}},
                        "livenessProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 3}},
                    {"name": "d", "image": "i", "livenessProbe": {"grpc": {"port": 82, "service": "s"}}},
                    {"name": "e", "image": "i", "lifecycle": {
                        "postStart": {"exec": {"command": ["true"]}},
                        "preStop": {"httpGet": {"port": 83}}}},
                    {"name": "f", "image": "i", "readinessProbe": {
                        "httpGet": {"host": "10.0.0.9", "port": 84}}},
                    {"name": "g", "image": "i", "readinessProbe": {"exec": {"command": ["true"]}}},
                ],
                "initContainers": [
                    {"name": "s", "image": "i", "restartPolicy": "Always",
                        "readinessProbe": {"httpGet": {"port": 85}}},
                ],
            },
        });
        let read = ServedObject::read(Kind::Pod, &pod);
        let pod = |read: ServedObject| match read.object {
            Some(Object::Pod(pod)) => pod,
            _ => panic!("{:?}", read.findings),
        };
        let (whole, slim) = (pod(read.clone()), pod(read.slim()));
        let called = probed_ports(&slim);
        assert_eq!(called, probed_ports(&whole));
        assert_eq!(called, [80, 81, 82, 83, 85].into());
        let containers = slim.spec.unwrap().containers;
        let names: Vec<&str> = containers.iter().map(|one| &*one.name).collect();
        assert_eq!(names, ["c", "d", "e", "f"]);
        let probe = containers[0].startup_probe.as_ref().unwrap();
        assert_eq!(
            (&probe.http_get, &containers[0].readiness_probe),
            (&None, &None)
        );
    }

    #[test]
    fn ballast_is_dropped_and_what_the_mesh_needs_stays() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "shop",
                "labels": {"app": "a"},
                "annotations": {LAST_APPLIED: "{}", "x": "y"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {
                "nodeName": "n", "serviceAccountName": "s",
                "containers": [{
                    "name": "c", "image": "i", "env": [{"name": "A", "value": "b"}],
                    "ports": [{"containerPort": 9}, {"name": "http", "containerPort": 80}],
                }, {"name": "other", "image": "i", "ports": [{"containerPort": 9}]}],
                "initContainers": [{"name": "once", "image": "i"}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [],
                "conditions": [
                    {"type": "PodScheduled", "status": "True"},
                    {"type": "Ready", "status": "True"},
                    {"type": "acme.io/Warm", "status": "True"},
                ],
            },
        });
        let read = ServedObject::read(Kind::Pod, &pod).slim();
        let Some(Object::Pod(pod)) = read.object else {
            panic!("{:?}", read.findings)
        };
        assert_eq!(pod.metadata.managed_fields, None);
        assert_eq!(pod.metadata.annotations.unwrap().len(), 1);
        let spec = pod.spec.unwrap();
        assert_eq!(spec.volumes, None);
        let [container] = &spec.containers[..] else {
            panic!("{:?}", spec.containers)
        };
        assert_eq!(
            (container.env.as_ref(), spec.containers.capacity()),
            (None, 1)
        );
        let ports = container.ports.as_ref().unwrap();
        assert_eq!((ports.len(), ports[0].container_port), (1, 80));
        assert_eq!(spec.init_containers, None);
        assert_eq!(spec.service_account_name.as_deref(), Some("s"));
        let status = pod.status.unwrap();
        assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.1"));
        let conditions = status.conditions.unwrap();
        let types: Vec<&str> = conditions.iter().map(|one| &*one.type_).collect();
        assert_eq!(types, ["Ready", "acme.io/Warm"]);
    }
}

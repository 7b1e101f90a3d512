use k8s_openapi::api::core::v1::{Container, NodeStatus, Pod, PodSpec, PodStatus, Secret};
use serde_json::Value;

use crate::finding::{Finding, Severity};
use crate::invalid::{Invalid, refusal};
use crate::kinds::{Kind, ObjectRef};
use crate::object::Object;
use crate::read::typed;

/// Holds the whole object once more, and changes with every `kubectl apply`.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

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
        let slim = |containers: Vec<Container>| -> Vec<Container> {
            containers.into_iter().map(slim_container).collect()
        };
        pod.spec = Some(PodSpec {
            containers: slim(spec.containers),
            init_containers: spec.init_containers.map(slim),
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
            conditions: status.conditions,
            host_ip: status.host_ip,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            start_time: status.start_time,
            ..PodStatus::default()
        });
    }
}

/// Of a Secret only what a listener could show or ask for.
fn slim_secret(secret: &mut Secret) {
    let named = ["tls.crt", "tls.key", "ca.crt", "cert", "key", "cacert"];
    if let Some(data) = &mut secret.data {
        data.retain(|entry, _| named.contains(&entry.as_str()));
    }
    secret.metadata.annotations = None;
}

fn slim_container(container: Container) -> Container {
    Container {
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
                    "ports": [{"name": "http", "containerPort": 80}],
                }],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": []},
        });
        let read = ServedObject::read(Kind::Pod, &pod).slim();
        let Some(Object::Pod(pod)) = read.object else {
            panic!("{:?}", read.findings)
        };
        assert_eq!(pod.metadata.managed_fields, None);
        assert_eq!(pod.metadata.annotations.unwrap().len(), 1);
        let spec = pod.spec.unwrap();
        assert_eq!(spec.volumes, None);
        assert_eq!(spec.containers[0].env, None);
        assert_eq!(spec.containers[0].ports.as_ref().unwrap().len(), 1);
        assert_eq!(spec.service_account_name.as_deref(), Some("s"));
        assert_eq!(pod.status.unwrap().pod_ip.as_deref(), Some("10.0.0.1"));
    }
}

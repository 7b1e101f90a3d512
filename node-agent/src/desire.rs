//! From objects to what is wished of one pod: a pure function.

use isobar_objects::enrolment::{EnrolmentRules, decide};
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_types::labels;

use crate::plan::Wishes;
use crate::pod::machine::Goal;
use crate::sandbox::Sandbox;

/// Annotation: comma list of interfaces whose arriving TCP counts as outbound.
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
/// Longest interface name that Linux knows.
const INTERFACE_MAX: usize = 15;

/// What is wished of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desire {
    /// In the mesh or not.
    pub goal: Goal,
    /// Why, in words.
    pub why: String,
    /// How its rules shall be.
    pub wishes: Wishes,
    /// What in its annotations could not be followed, in words.
    pub problems: Vec<String>,
    /// The annotation says now that it is redirected.
    pub annotated: bool,
}

/// What the node's operator chose.
#[derive(Debug, Clone)]
pub struct NodeDefaults {
    /// Who takes part.
    pub enrolment: EnrolmentRules,
    /// DNS capture of pods that do not say.
    pub dns: bool,
}

impl Default for NodeDefaults {
    fn default() -> Self {
        Self {
            enrolment: EnrolmentRules::default(),
            dns: true,
        }
    }
}

/// What is wished of the pod in this sandbox; `None` while its object is not known, or when the
/// object by that name is another pod.
#[must_use]
pub fn desire(objects: &ObjectSet, sandbox: &Sandbox, node: &NodeDefaults) -> Option<Desire> {
    let pod = objects.pods.get(&sandbox.namespace, &sandbox.name)?;
    if !pod.uid().is_empty() && pod.uid() != sandbox.uid {
        return None;
    }
    let namespace = objects.namespaces.get("", &sandbox.namespace);
    let enrolment = decide(pod, namespace.map(|held| &held.object), &node.enrolment);
    let mut problems = Vec::new();
    let mut switch = |key: &str, default: bool| match pod.annotation(key) {
        Some("true") => true,
        Some("false") => false,
        Some(other) => {
            problems.push(format!(
                "annotation {key}: {other:?} is neither true nor false"
            ));
            default
        }
        None => default,
    };
    let dns = switch(labels::DNS_CAPTURE, node.dns);
    let inbound = !switch(labels::BYPASS_INBOUND, false);
    let reroute = pod
        .annotation(REROUTE)
        .map(|list| interfaces(list, &mut problems))
        .unwrap_or_default();
    Some(Desire {
        goal: if enrolment.is_enrolled() {
            Goal::Enrolled
        } else {
            Goal::Plain
        },
        why: enrolment.to_string(),
        wishes: Wishes {
            dns,
            inbound,
            reroute,
        },
        problems,
        annotated: pod.annotation(labels::REDIRECTION) == Some("enabled"),
    })
}

/// Interface names become text of a rule set, so nothing else may pass.
fn interfaces(list: &str, problems: &mut Vec<String>) -> Vec<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut names = Vec::new();
    for name in list
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        if name.len() <= INTERFACE_MAX && name.chars().all(plain) {
            names.push(name.to_owned());
        } else {
            problems.push(format!(
                "annotation {REROUTE}: {name:?} is no interface name"
            ));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use isobar_objects::{Namespace, Object, Pod};
    use serde_json::{Value, json};

    fn desired(pod: Value) -> Option<Desire> {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop",
            "labels": {"istio.io/dataplane-mode": "ambient"}}}))
        .unwrap();
        let objects = ObjectSet::of([Object::from(pod), Object::from(namespace)]);
        let sandbox = Sandbox {
            uid: "u1".to_owned(),
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            service_account: String::new(),
            netns: "/proc/1/ns/net".into(),
            ips: Vec::new(),
        };
        desire(&objects, &sandbox, &NodeDefaults::default())
    }

    fn pod(uid: &str, annotations: &Value) -> Value {
        json!({"metadata": {"name": "cart", "namespace": "shop", "uid": uid,
            "annotations": annotations}})
    }

    #[test]
    fn the_namespace_enrols_and_annotations_shape_the_rules() {
        let found = desired(pod(
            "u1",
            &json!({"ambient.istio.io/dns-capture": "false",
                "ambient.istio.io/bypass-inbound-capture": "true",
                "istio.io/reroute-virtual-interfaces": "vnet0, bad name,x\"y"}),
        ))
        .unwrap();
        assert_eq!(found.goal, Goal::Enrolled);
        assert_eq!(
            found.wishes,
            Wishes {
                dns: false,
                inbound: false,
                reroute: vec!["vnet0".to_owned()]
            }
        );
        assert_eq!(found.problems.len(), 2);
        assert!(!found.annotated);
    }

    #[test]
    fn a_namesake_is_another_pod() {
        assert_eq!(desired(pod("u2", &json!({}))), None);
        let other = json!({"metadata": {"name": "other", "namespace": "shop"}});
        assert_eq!(desired(other), None);
    }

    #[test]
    fn a_value_that_is_none_keeps_the_default_and_is_told() {
        let found = desired(pod("u1", &json!({"ambient.istio.io/dns-capture": "yes"}))).unwrap();
        assert!(found.wishes.dns);
        assert_eq!(found.problems.len(), 1);
    }
}

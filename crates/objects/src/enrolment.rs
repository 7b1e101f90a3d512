//! Whether a pod belongs to the mesh: one decision for the node agent, the plugin and the control
//! plane.

use std::collections::BTreeSet;
use std::fmt;

use isobar_types::labels::{DATAPLANE_MODE, DATAPLANE_MODE_PLAIN, MODE_AMBIENT, MODE_NONE};
use k8s_openapi::api::core::v1::{Namespace, Pod};

use crate::object::ObjectHead;
use crate::pods;

/// What the operator may change about enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolmentRules {
    /// Namespaces whose pods never take part.
    pub excluded_namespaces: BTreeSet<String>,
    /// Namespace of the mesh's own parts.
    pub system_namespace: String,
}

impl Default for EnrolmentRules {
    fn default() -> Self {
        Self {
            excluded_namespaces: BTreeSet::from(["kube-system".to_owned()]),
            system_namespace: isobar_types::DEFAULT_ROOT_NAMESPACE.to_owned(),
        }
    }
}

/// Whether a pod belongs to the mesh, and why. Display gives the reason as a sentence part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Enrolment {
    /// Its own label says so.
    ByPodLabel,
    /// Its namespace's label says so.
    ByNamespaceLabel,
    /// Neither it nor its namespace asks for it.
    NotAsked,
    /// Its own label opts out.
    OptedOut,
    /// It uses its node's network: there is no network of its own to redirect.
    HostNetwork,
    /// It terminates HBONE itself, as waypoints do.
    OwnTunnel,
    /// It has a sidecar, which wins.
    Sidecar,
    /// It is a node proxy.
    NodeProxy,
    /// Its namespace is excluded by the operator.
    ExcludedNamespace,
    /// It has run to its end.
    Finished,
}

impl Enrolment {
    /// True if the pod's traffic belongs to the mesh.
    #[must_use]
    pub const fn is_enrolled(self) -> bool {
        matches!(self, Self::ByPodLabel | Self::ByNamespaceLabel)
    }
}

impl fmt::Display for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ByPodLabel => "enrolled by the pod's label",
            Self::ByNamespaceLabel => "enrolled by the namespace's label",
            Self::NotAsked => {
                "neither pod nor namespace is labelled istio.io/dataplane-mode=ambient"
            }
            Self::OptedOut => "the pod's label opts out",
            Self::HostNetwork => "the pod uses its node's network",
            Self::OwnTunnel => "the pod terminates HBONE itself",
            Self::Sidecar => "the pod has a sidecar",
            Self::NodeProxy => "the pod is a node proxy",
            Self::ExcludedNamespace => "the namespace is excluded",
            Self::Finished => "the pod has finished",
        })
    }
}

/// Decides. `namespace` is `None` while the namespace is not known: only the pod's label counts.
#[must_use]
pub fn decide(pod: &Pod, namespace: Option<&Namespace>, rules: &EnrolmentRules) -> Enrolment {
    if pods::is_finished(pod) {
        return Enrolment::Finished;
    }
    if pods::uses_host_network(pod) {
        return Enrolment::HostNetwork;
    }
    if rules.excluded_namespaces.contains(pod.namespace()) {
        return Enrolment::ExcludedNamespace;
    }
    if pod.annotation("sidecar.istio.io/status").is_some() {
        return Enrolment::Sidecar;
    }
    if pod.namespace() == rules.system_namespace && pod.label("app") == Some("ztunnel") {
        return Enrolment::NodeProxy;
    }
    if pods::terminates_hbone(pod) {
        return Enrolment::OwnTunnel;
    }
    match mode(pod) {
        Some(MODE_AMBIENT) => Enrolment::ByPodLabel,
        Some(MODE_NONE) => Enrolment::OptedOut,
        _ if namespace.and_then(mode) == Some(MODE_AMBIENT) => Enrolment::ByNamespaceLabel,
        _ => Enrolment::NotAsked,
    }
}

/// Value of the enrolment label; where both keys are present `istio.io/dataplane-mode` wins.
pub fn mode(object: &impl ObjectHead) -> Option<&str> {
    object
        .label(DATAPLANE_MODE)
        .or_else(|| object.label(DATAPLANE_MODE_PLAIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn decided(pod: Value, namespace_labels: &Value) -> Enrolment {
        let mut pod = pod;
        crate::merge_patch(&mut pod, &json!({"metadata": {"name": "p"}}));
        if pod["metadata"].get("namespace").is_none() {
            pod["metadata"]["namespace"] = json!("shop");
        }
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": namespace_labels}}))
                .unwrap();
        decide(&pod, Some(&namespace), &EnrolmentRules::default())
    }

    #[test]
    fn labels_decide_and_the_long_key_wins() {
        let long = json!({"istio.io/dataplane-mode": "ambient"});
        let plain = json!({"dataplane-mode": "ambient"});
        let both = json!({"dataplane-mode": "ambient", "istio.io/dataplane-mode": "none"});
        let labelled = |labels: &Value| json!({"metadata": {"labels": labels}});
        for (pod, namespace, expected) in [
            (json!({}), json!({}), Enrolment::NotAsked),
            (json!({}), long.clone(), Enrolment::ByNamespaceLabel),
            (json!({}), plain.clone(), Enrolment::ByNamespaceLabel),
            (json!({}), both.clone(), Enrolment::NotAsked),
            (labelled(&long), json!({}), Enrolment::ByPodLabel),
            (labelled(&plain), json!({}), Enrolment::ByPodLabel),
            (labelled(&both), long.clone(), Enrolment::OptedOut),
            (
                labelled(&json!({"dataplane-mode": "none"})),
                long.clone(),
                Enrolment::OptedOut,
            ),
            (
                labelled(&json!({"istio.io/dataplane-mode": "other"})),
                long,
                Enrolment::ByNamespaceLabel,
            ),
        ] {
            assert_eq!(decided(pod.clone(), &namespace), expected, "{pod}");
        }
    }

    #[test]
    fn some_pods_never_take_part() {
        let asked = json!({"istio.io/dataplane-mode": "ambient"});
        for (pod, expected) in [
            (
                json!({"spec": {"hostNetwork": true, "containers": []}}),
                Enrolment::HostNetwork,
            ),
            (
                json!({"metadata": {"namespace": "kube-system"}}),
                Enrolment::ExcludedNamespace,
            ),
            (
                json!({"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}}),
                Enrolment::Sidecar,
            ),
            (
                json!({"metadata": {"namespace": "istio-system", "labels": {"app": "ztunnel"}}}),
                Enrolment::NodeProxy,
            ),
            (
                json!({"metadata": {"labels": {"networking.istio.io/tunnel": "tcp, http",
                    "istio.io/dataplane-mode": "ambient"}}}),
                Enrolment::OwnTunnel,
            ),
            (
                json!({"status": {"phase": "Succeeded"}}),
                Enrolment::Finished,
            ),
        ] {
            let decision = decided(pod.clone(), &asked);
            assert_eq!(decision, expected, "{pod}");
            assert!(!decision.is_enrolled());
        }
    }

    #[test]
    fn an_unknown_namespace_leaves_it_to_the_pod() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        let rules = EnrolmentRules::default();
        assert_eq!(decide(&pod, None, &rules), Enrolment::NotAsked);
    }
}

use std::collections::BTreeMap;
use std::net::IpAddr;

use isobar_objects::{ObjectHead, Pod};
use isobar_types::{Identity, NamespacedName, Str, labels};
use k8s_openapi::api::core::v1::Container;

/// What the mesh reads of a pod.
#[derive(Debug)]
pub(crate) struct PodFacts<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// `namespace/name`.
    pub(crate) key: NamespacedName,
    /// Labels.
    pub(crate) labels: &'a BTreeMap<String, String>,
    /// Account it runs as.
    pub(crate) account: Str,
    /// Node; empty before it is scheduled.
    pub(crate) node: &'a str,
    /// Kubernetes UID; empty when it has none.
    pub(crate) uid: &'a str,
    /// Addresses, preferred first; empty before it has any.
    pub(crate) ips: Vec<IpAddr>,
    /// Ready and not being deleted.
    pub(crate) ready: bool,
}

impl<'a> PodFacts<'a> {
    /// Reads a pod; `None` for one that has finished.
    pub(crate) fn read(pod: &'a Pod) -> Option<Self> {
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return None;
        }
        let spec = pod.spec.as_ref();
        let ready = pod.metadata.deletion_timestamp.is_none()
            && status
                .and_then(|s| s.conditions.as_ref())
                .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        Some(Self {
            key: NamespacedName {
                namespace: pod.namespace().into(),
                name: pod.name().into(),
            },
            labels: pod.labels(),
            account: spec
                .and_then(|s| s.service_account_name.as_deref())
                .filter(|name| !name.is_empty())
                .unwrap_or("default")
                .into(),
            node: spec
                .and_then(|s| s.node_name.as_deref())
                .unwrap_or_default(),
            uid: pod.uid(),
            ips: addresses(pod),
            ready,
            pod,
        })
    }

    /// The identity it runs as.
    pub(crate) fn identity(&self, trust_domain: &Str) -> Identity {
        Identity::new(
            trust_domain.clone(),
            self.key.namespace.clone(),
            self.account.clone(),
        )
    }

    /// True if it shares the node's network.
    pub(crate) fn host_network(&self) -> bool {
        self.pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.host_network == Some(true))
    }

    /// True if the node agent has redirected its traffic.
    pub(crate) fn redirected(&self) -> bool {
        self.pod.annotation(labels::REDIRECTION) == Some("enabled")
    }

    /// True if it terminates HBONE itself.
    pub(crate) fn native_tunnel(&self) -> bool {
        self.pod
            .label(labels::TUNNEL)
            .is_some_and(|value| value.split(',').any(|word| word.trim() == "http"))
    }

    /// Number of the TCP container port of that name; sidecar init containers count.
    pub(crate) fn named_port(&self, name: &str) -> Option<u16> {
        let spec = self.pod.spec.as_ref()?;
        let sidecars = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|c| c.restart_policy.as_deref() == Some("Always"));
        spec.containers
            .iter()
            .chain(sidecars)
            .find_map(|container| port_of(container, name))
    }
}

fn port_of(container: &Container, name: &str) -> Option<u16> {
    container
        .ports
        .iter()
        .flatten()
        .find(|port| {
            port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == "TCP"
        })
        .and_then(|port| u16::try_from(port.container_port).ok())
}

/// All addresses in order, or none if one of them is no address.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let many: Vec<&str> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|entry| entry.ip.as_str())
        .collect();
    let texts = if many.is_empty() {
        status.pod_ip.as_deref().into_iter().collect()
    } else {
        many
    };
    texts
        .into_iter()
        .map(|text| text.parse().ok())
        .collect::<Option<Vec<IpAddr>>>()
        .unwrap_or_default()
}

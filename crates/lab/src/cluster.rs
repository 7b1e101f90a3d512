//! What the Kubernetes parts of a lab know about running pods and services; input of the service
//! rules, the NetworkPolicy rules and the cluster's DNS.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use isobar_objects::{Pod, Service, pods};

/// A pod that has an address.
#[derive(Debug, Clone)]
pub(crate) struct PodView {
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ip: Ipv4Addr,
    pub(crate) node: String,
    /// Node-side device of the pod's link.
    pub(crate) device: String,
    pub(crate) ready: bool,
    /// For named ports, host name and subdomain.
    pub(crate) pod: Arc<Pod>,
}

/// A service that the lab serves.
#[derive(Debug, Clone)]
pub(crate) struct ServiceView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// None: headless, or an alias.
    pub(crate) ip: Option<Ipv4Addr>,
    pub(crate) service: Arc<Service>,
}

/// Everything at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    pub(crate) pods: Vec<PodView>,
    pub(crate) services: Vec<ServiceView>,
    /// Labels of each namespace, its name among them.
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// Transport of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// By the word of a Kubernetes port; SCTP is not served.
    pub(crate) fn parse(word: Option<&str>) -> Option<Self> {
        match word.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One port of a service and who answers there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) ip: Ipv4Addr,
    pub(crate) transport: Transport,
    pub(crate) port: u16,
    /// The same at every node's own addresses.
    pub(crate) node_port: Option<u16>,
    pub(crate) endpoints: Vec<(Ipv4Addr, u16)>,
}

impl Cluster {
    /// Pods behind a service that may be sent traffic: ready ones, or all where the service asks
    /// for that.
    pub(crate) fn endpoints(&self, service: &Service) -> impl Iterator<Item = &PodView> {
        let early = service
            .spec
            .as_ref()
            .and_then(|spec| spec.publish_not_ready_addresses)
            .unwrap_or(false);
        self.pods
            .iter()
            .filter(move |pod| (pod.ready || early) && is_selected(pod, service))
    }

    /// Every port of every service that has an address.
    pub(crate) fn forwards(&self) -> Vec<Forward> {
        let mut found = Vec::new();
        for view in &self.services {
            let Some(ip) = view.ip else { continue };
            let ports = view.service.spec.iter().flat_map(|spec| &spec.ports);
            for port in ports.flatten() {
                let Some(transport) = Transport::parse(port.protocol.as_deref()) else {
                    continue;
                };
                let Ok(number) = u16::try_from(port.port) else {
                    continue;
                };
                let endpoints = self
                    .endpoints(&view.service)
                    .filter_map(|pod| {
                        let target =
                            pods::target_port(&pod.pod, port.target_port.as_ref(), number)?;
                        Some((pod.ip, target))
                    })
                    .collect();
                found.push(Forward {
                    ip,
                    transport,
                    port: number,
                    node_port: node_port(&view.service, port.node_port),
                    endpoints,
                });
            }
        }
        found
    }
}

/// The port of a Service of a type that has one; it is as written, none is given out.
fn node_port(service: &Service, written: Option<i32>) -> Option<u16> {
    let spec = service.spec.as_ref()?;
    let has = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let port = u16::try_from(written.filter(|_| has)?).ok()?;
    (port != 0).then_some(port)
}

/// As Kubernetes selects: same namespace, every label of a selector that is not empty.
fn is_selected(pod: &PodView, service: &Service) -> bool {
    let selector = service
        .spec
        .as_ref()
        .filter(|spec| spec.type_.as_deref() != Some("ExternalName"))
        .and_then(|spec| spec.selector.as_ref())
        .filter(|labels| !labels.is_empty());
    service.metadata.namespace.as_deref() == Some(&pod.namespace)
        && selector.is_some_and(|labels| {
            labels
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
        })
}

//! Pods as workloads.

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{Node, ObjectHead};
use isobar_proto::istio::workload as wire;
use isobar_types::{DEFAULT_TRUST_DOMAIN, NamespacedName};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::auto_allow;
use super::gateways::{TrafficKind, instance_of};
use super::labels::{canonical_name, canonical_revision, workload_name};
use super::pods::PodFacts;
use super::selection::{Selected, Selection, Source};
use super::services::{ServicePlan, app_protocol, octets};
use super::settings::Settings;
use super::traversal::{self, ServiceWaypoints};
use super::{peer_authentication, presence};

/// One pod as it is published.
#[derive(Debug, PartialEq)]
pub(crate) struct WorkloadPlan {
    /// The message.
    pub(crate) wire: wire::Workload,
    /// The waypoint it is an instance of.
    pub(crate) instance_of: Option<NamespacedName>,
    /// Waypoints through which alone it may be reached, where a policy has to say so.
    pub(crate) only_through: Option<BTreeSet<NamespacedName>>,
    /// A node proxy serves it, or shall.
    pub(crate) in_mesh: bool,
    /// Names of PeerAuthentications that select it.
    pub(crate) peers: Vec<String>,
}

impl WorkloadPlan {
    /// What is no pod: no waypoint, and nothing that a policy of pods has to say about it.
    pub(crate) const fn elsewhere(wire: wire::Workload) -> Self {
        Self {
            wire,
            instance_of: None,
            only_through: None,
            in_mesh: true,
            peers: Vec::new(),
        }
    }
}

/// As it is told: the usual one is not.
fn trust_domain(settings: &Settings) -> String {
    match &*settings.trust_domain {
        DEFAULT_TRUST_DOMAIN => String::new(),
        other => other.to_owned(),
    }
}

/// The uid of a pod's workload.
pub(crate) fn uid(cluster: &str, key: &NamespacedName) -> String {
    format!("{cluster}//Pod/{}/{}", key.namespace, key.name)
}

/// The Services that a pod is an endpoint of.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    /// Its ports, by `namespace/hostname`.
    pub(crate) ports: BTreeMap<String, wire::PortList>,
    /// Their waypoints.
    pub(crate) waypoints: ServiceWaypoints,
}

impl Membership {
    /// Adds a Service that the pod is an endpoint of.
    pub(crate) fn join(
        &mut self,
        pod: &PodFacts<'_>,
        service: &ServicePlan,
        object: &isobar_objects::Service,
    ) {
        let name = format!("{}/{}", service.key.namespace, service.wire.hostname);
        self.ports.insert(name, ports_of(pod, object));
        self.waypoints.add(service, object);
    }
}

/// The Services of every pod that is an endpoint of one.
pub(crate) type Memberships = BTreeMap<NamespacedName, Membership>;

/// Plans one pod; `None` while it has no address. `policies` are the keys of the policies that
/// select it.
pub(crate) fn plan_workload(
    pod: &PodFacts<'_>,
    services: Membership,
    mut policies: Vec<String>,
    selection: &Selection<'_>,
) -> Option<WorkloadPlan> {
    if pod.ips.is_empty() {
        return None;
    }
    let settings = selection.settings;
    let instance_of = instance_of(pod, selection.gateways, settings).cloned();
    let (selected, source) = match instance_of {
        Some(_) => (Selected::default(), None),
        None => select(pod, selection),
    };
    let only_through = match instance_of {
        Some(_) => None,
        None => traversal::accepted(selection.set, pod, &selected, source, &services.waypoints),
    };
    let through = only_through.as_ref();
    policies.extend(through.map(|accepted| traversal::key(&pod.key.namespace, accepted)));
    if settings.allow_waypoints {
        let behind = waypoints_of(pod, Some(&services), selection);
        policies.extend(auto_allow::keys(&behind, settings));
    }
    policies.sort_unstable();
    let name = workload_name(pod);
    let native = pod.native_tunnel();
    let tunnel = match pod.redirected() || native {
        true => wire::TunnelProtocol::Hbone,
        false => wire::TunnelProtocol::None,
    };
    let status = match pod.ready {
        true => wire::WorkloadStatus::Healthy,
        false => wire::WorkloadStatus::Unhealthy,
    };
    let network_mode = match pod.host_network() {
        true => wire::NetworkMode::HostNetwork,
        false => wire::NetworkMode::Standard,
    };
    let wire = wire::Workload {
        uid: uid(&settings.cluster_id, &pod.key),
        name: pod.key.name.to_string(),
        namespace: pod.key.namespace.to_string(),
        addresses: pod.ips.iter().copied().map(octets).collect(),
        network: settings.network.to_string(),
        tunnel_protocol: tunnel.into(),
        trust_domain: trust_domain(settings),
        service_account: pod.account.to_string(),
        waypoint: selected.address,
        node: pod.node.to_owned(),
        canonical_name: canonical_name(pod.labels, &name),
        canonical_revision: canonical_revision(pod.labels),
        workload_type: wire::WorkloadType::Pod.into(),
        workload_name: name.to_string(),
        native_tunnel: native,
        authorization_policies: policies,
        status: status.into(),
        cluster_id: settings.cluster_id.to_string(),
        services: services.ports,
        locality: locality(selection.set.nodes.get("", pod.node).map(|n| &n.object)),
        network_mode: network_mode.into(),
        application_tunnel: instance_of
            .as_ref()
            .and_then(|key| selection.gateways.get(key)?.foreign.as_ref()?.tunnel()),
        ..wire::Workload::default()
    };
    Some(WorkloadPlan {
        wire,
        instance_of,
        only_through,
        in_mesh: presence::in_mesh(pod, selection.set, settings),
        peers: peer_authentication::selecting(selection.set, pod),
    })
}

/// The waypoints that a pod takes traffic from: its own, and those of its Services. A waypoint's own
/// pods have none.
pub(crate) fn waypoints_of(
    pod: &PodFacts<'_>,
    services: Option<&Membership>,
    selection: &Selection<'_>,
) -> BTreeSet<NamespacedName> {
    if instance_of(pod, selection.gateways, selection.settings).is_some() {
        return BTreeSet::new();
    }
    let mut all = services.map_or_else(BTreeSet::new, |s| s.waypoints.accepted().clone());
    all.extend(select(pod, selection).0.serves);
    all
}

fn select(pod: &PodFacts<'_>, selection: &Selection<'_>) -> (Selected, Option<Source>) {
    let namespace = &pod.key.namespace;
    match selection.for_workload(pod.labels, namespace, &pod.account) {
        Some(reference) => {
            let object = pod.pod.reference();
            let selected = selection.resolve(&reference, TrafficKind::Workload, namespace, object);
            (selected, Some(reference.source))
        }
        None => (Selected::default(), None),
    }
}

/// The ports of a Service as this pod has them; a named port the pod does not have is left out.
fn ports_of(pod: &PodFacts<'_>, service: &isobar_objects::Service) -> wire::PortList {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let ports = ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            let target = match &port.target_port {
                None => u32::try_from(port.port).ok()?,
                Some(IntOrString::Int(number)) => u32::try_from(*number).ok()?,
                Some(IntOrString::String(name)) => match name.parse::<u16>() {
                    Ok(number) => u32::from(number),
                    Err(_) => u32::from(pod.named_port(name)?),
                },
            };
            Some(wire::Port {
                service_port: u32::try_from(port.port).ok()?,
                target_port: target,
                app_protocol: app_protocol(port).into(),
            })
        })
        .collect();
    wire::PortList { ports }
}

fn locality(node: Option<&Node>) -> Option<wire::Locality> {
    let value = |key| node?.label(key).map(str::to_owned);
    let locality = wire::Locality {
        region: value("topology.kubernetes.io/region").unwrap_or_default(),
        zone: value("topology.kubernetes.io/zone").unwrap_or_default(),
        subzone: value("topology.istio.io/subzone").unwrap_or_default(),
    };
    (locality != wire::Locality::default()).then_some(locality)
}

//! Endpoints of ServiceEntries that are no pods of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isobar_objects::istio::{EntryPort, ServiceEntry, WorkloadEntry, WorkloadEntrySpec};
use isobar_objects::{ObjectHead, ObjectRef, Service};
use isobar_proto::istio::workload as wire;
use isobar_types::{DEFAULT_TRUST_DOMAIN, labels};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::gateways::TrafficKind;
use super::super::l7::EndpointLabels;
use super::super::labels::{canonical_name, canonical_revision};
use super::super::pods::PodFacts;
use super::super::selection::{Selected, Selection};
use super::super::services::{app_protocol, octets, protocol, selects};
use super::super::verdict::{Severity, Verdict};
use super::owners::Owners;
use super::{CONDITION, EntryPlan, LeftOut, Problems, key};

/// Service ports by `namespace/hostname`.
type Ports = BTreeMap<String, wire::PortList>;

/// An entry with its hosts.
type Hosts<'a> = (&'a ServiceEntry, Vec<&'a wire::Service>);

/// Endpoints that are no pods, and their labels by uid.
#[derive(Default)]
pub(super) struct Found {
    pub(super) workloads: Vec<wire::Workload>,
    pub(super) labels: EndpointLabels,
}

/// All endpoints of all entries.
pub(super) fn workloads(
    services: &[EntryPlan<'_>],
    (selection, owners, left_out): (&Selection<'_>, &Owners, &LeftOut<'_>),
    problems: &mut Problems,
) -> Found {
    let mut of_entry: BTreeMap<_, Hosts<'_>> = BTreeMap::new();
    let with_room = services.iter();
    for service in with_room.filter(|one| !left_out.entries.contains(&one.key)) {
        let of = of_entry
            .entry(key(service.entry))
            .or_insert_with(|| (service.entry, Vec::new()));
        of.1.push(&service.wire);
    }
    let mut found = Found::default();
    for (entry, services) in of_entry.values() {
        let spec = &entry.spec;
        if spec.workload_selector.is_some() {
            continue;
        }
        if spec.endpoints.is_empty() && spec.resolution.is_dns() {
            // What stands for all of a domain is nothing that a node proxy could look up.
            let known =
                |one: &&&wire::Service| !one.hostname.contains('*') || one.waypoint.is_some();
            for service in services.iter().filter(known) {
                let host = WorkloadEntrySpec {
                    address: service.hostname.clone(),
                    ..WorkloadEntrySpec::default()
                };
                let workload = workload(entry, &host, &[service], selection);
                found.workloads.push(workload);
            }
            continue;
        }
        let mut uids = BTreeSet::new();
        for endpoint in &spec.endpoints {
            if endpoint.address.starts_with("unix://") {
                let text = format!("endpoint {} is left out", endpoint.address);
                problems.add(entry, "UnsupportedValue", text);
                continue;
            }
            let mut workload = workload(entry, endpoint, services, selection);
            if let Some(text) = leave_calls(&mut workload, endpoint, owners, selection) {
                problems.add(entry, "AddressConflict", text);
            }
            let base = workload.uid.clone();
            // The same address again, with other ports.
            let mut again = 1;
            while !uids.insert(workload.uid.clone()) {
                workload.uid = format!("{base}/{again}");
                again += 1;
            }
            let of = (entry.reference(), entry.namespace());
            if let Some(selected) = waypoint(of, endpoint, selection) {
                workload.waypoint = selected.address;
            }
            if !endpoint.labels.is_empty() {
                let labels = endpoint.labels.clone();
                found.labels.insert(workload.uid.clone(), labels);
            }
            found.workloads.push(workload);
        }
    }
    let around = (selection, owners, left_out);
    workload_entries(of_entry.values(), around, (&mut found, problems));
    found
}

/// The WorkloadEntries, as endpoints of these entries and of Services.
fn workload_entries<'a>(
    entries: impl Iterator<Item = &'a Hosts<'a>>,
    (selection, owners, left_out): (&Selection<'_>, &Owners, &LeftOut<'_>),
    (found, problems): (&mut Found, &mut Problems),
) {
    let mut selecting: BTreeMap<&str, Vec<&Hosts<'_>>> = BTreeMap::new();
    for one in entries {
        if one.0.spec.workload_selector.is_some() {
            selecting.entry(one.0.namespace()).or_default().push(one);
        }
    }
    for object in selection.set.workload_entries.iter() {
        let all = selecting.get(object.namespace());
        let all = all.map(Vec::as_slice).unwrap_or_default();
        let mut own = of_its_own(object, all, (selection, left_out));
        let taken = own
            .as_mut()
            .and_then(|(workload, _)| leave_calls(workload, &object.spec, owners, selection));
        problems.told.push(verdict(object, own.as_ref(), taken));
        if let Some((workload, bound)) = own {
            problems.told.extend(bound);
            let labels = object.labels().clone().into_iter();
            let labels = labels.chain(object.spec.labels.clone()).collect();
            found.labels.insert(workload.uid.clone(), labels);
            found.workloads.push(workload);
        }
    }
}

/// A WorkloadEntry, of all hosts of those of `entries`, its namespace's, and of the Services that
/// select it; `None` for what cannot be reached.
fn of_its_own(
    object: &WorkloadEntry,
    entries: &[&Hosts<'_>],
    (selection, left_out): (&Selection<'_>, &LeftOut<'_>),
) -> Option<(wire::Workload, Option<Verdict>)> {
    let spec = &object.spec;
    if spec.address.starts_with("unix://") {
        return None;
    }
    let mut labels = object.labels().clone();
    labels.extend(spec.labels.clone());
    let (namespace, name) = (object.namespace(), object.name());
    let mut ports = Ports::new();
    for (entry, hosts) in entries {
        let selector = entry.spec.workload_selector.as_ref();
        if selector.is_some_and(|selector| selector.selects(&labels)) {
            ports.extend(self::ports(entry, spec, hosts));
        }
    }
    for service in selection.set.services.in_namespace(namespace) {
        if selects(service, &labels) && !left_out.services.contains(&(namespace, service.name())) {
            let host = selection.settings.hostname(namespace, service.name());
            let list = ports_of_service(service, spec);
            ports.insert(format!("{namespace}/{host}"), list);
        }
    }
    let endpoint = WorkloadEntrySpec {
        labels,
        ..spec.clone()
    };
    let uid = format!("networking.istio.io/WorkloadEntry/{namespace}/{name}");
    let mut workload = message((namespace, name, &uid), &endpoint, ports, selection);
    let selected = waypoint((object.reference(), namespace), &endpoint, selection);
    let bound = selected.and_then(|selected| {
        workload.waypoint = selected.address;
        selected.verdict
    });
    Some((workload, bound))
}

/// Leaves calls to an endpoint's own address where they went, if that is the address of somebody else,
/// and says whose: node proxies do not find what is on a host's network by its address.
fn leave_calls(
    workload: &mut wire::Workload,
    endpoint: &WorkloadEntrySpec,
    owners: &Owners,
    selection: &Selection<'_>,
) -> Option<String> {
    if *workload.network != *selection.settings.network {
        return None;
    }
    let text = owners.taken(&workload.namespace, endpoint.address.parse().ok()?)?;
    workload.network_mode = wire::NetworkMode::HostNetwork.into();
    Some(text)
}

/// What becomes of a WorkloadEntry.
fn verdict(
    object: &WorkloadEntry,
    own: Option<&(wire::Workload, Option<Verdict>)>,
    taken: Option<String>,
) -> Verdict {
    let reference = object.reference();
    let Some((workload, _)) = own else {
        let text = format!("{} is left out: nothing reaches it", object.spec.address);
        return Verdict::fails(reference, CONDITION, "UnsupportedValue", text)
            .severity(Severity::Warning);
    };
    if let Some(text) = taken {
        return Verdict::fails(reference, CONDITION, "AddressConflict", text)
            .severity(Severity::Warning);
    }
    let of: Vec<&str> = workload.services.keys().map(String::as_str).collect();
    let text = match &of[..] {
        [] => "known to node proxies; no Service and no ServiceEntry selects it".to_owned(),
        all => format!("known to node proxies as an endpoint of {}", all.join(", ")),
    };
    Verdict::holds(reference, CONDITION, "Accepted", text)
}

/// The ports of a Service as an endpoint that is no pod has them: by name, else by number.
fn ports_of_service(service: &Service, endpoint: &WorkloadEntrySpec) -> wire::PortList {
    let own = |name: &str| endpoint.ports.get(name).copied();
    let ports = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten());
    let ports = ports.filter_map(|port| {
        let number = u32::try_from(port.port).ok()?;
        let by_name = port.name.as_deref().and_then(own);
        let target = match &port.target_port {
            Some(IntOrString::Int(target)) => u32::try_from(*target).ok(),
            Some(IntOrString::String(name)) => own(name),
            None => Some(number),
        };
        Some(wire::Port {
            service_port: number,
            target_port: by_name.or(target)?,
            app_protocol: app_protocol(port).into(),
        })
    });
    wire::PortList {
        ports: ports.collect(),
    }
}

fn workload(
    entry: &ServiceEntry,
    endpoint: &WorkloadEntrySpec,
    services: &[&wire::Service],
    selection: &Selection<'_>,
) -> wire::Workload {
    let (namespace, name) = (entry.namespace(), entry.name());
    let uid = format!(
        "networking.istio.io/ServiceEntry/{namespace}/{name}/{}",
        endpoint.address
    );
    let ports = ports(entry, endpoint, services);
    message((namespace, name, &uid), endpoint, ports, selection)
}

/// The message about an endpoint of this namespace, name and uid within the cluster.
fn message(
    (namespace, name, uid): (&str, &str, &str),
    endpoint: &WorkloadEntrySpec,
    services: Ports,
    selection: &Selection<'_>,
) -> wire::Workload {
    let settings = selection.settings;
    let ip = endpoint.address.parse::<IpAddr>().ok();
    let network = match &*endpoint.network {
        "" => &settings.network,
        other => other,
    };
    let native = endpoint
        .labels
        .get(labels::TUNNEL)
        .is_some_and(|value| value.split(',').any(|word| word.trim() == "http"));
    let tunnel = if native {
        wire::TunnelProtocol::Hbone
    } else {
        wire::TunnelProtocol::None
    };
    let trust_domain = match &*settings.trust_domain {
        DEFAULT_TRUST_DOMAIN => String::new(),
        other => other.to_owned(),
    };
    wire::Workload {
        uid: format!("{}/{uid}", settings.cluster_id),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        addresses: ip.map(octets).into_iter().collect(),
        hostname: match ip {
            Some(_) => String::new(),
            None => endpoint.address.trim_end_matches('.').to_ascii_lowercase(),
        },
        network: network.to_owned(),
        tunnel_protocol: tunnel.into(),
        native_tunnel: native,
        trust_domain,
        service_account: endpoint.service_account.clone(),
        canonical_name: canonical_name(&endpoint.labels, name),
        canonical_revision: canonical_revision(&endpoint.labels),
        workload_type: wire::WorkloadType::Pod.into(),
        workload_name: name.to_owned(),
        status: wire::WorkloadStatus::Healthy.into(),
        cluster_id: settings.cluster_id.to_string(),
        services,
        locality: locality(&endpoint.locality),
        network_mode: wire::NetworkMode::Standard.into(),
        capacity: (endpoint.weight > 0).then_some(endpoint.weight),
        ..wire::Workload::default()
    }
}

/// The waypoint of calls to an endpoint's own address, by the rules for workloads.
fn waypoint(
    (object, namespace): (ObjectRef, &str),
    endpoint: &WorkloadEntrySpec,
    selection: &Selection<'_>,
) -> Option<Selected> {
    let account = match &*endpoint.service_account {
        "" => "default",
        name => name,
    };
    let reference = selection.for_workload(&endpoint.labels, namespace, account)?;
    Some(selection.resolve(&reference, TrafficKind::Workload, namespace, object))
}

fn ports(entry: &ServiceEntry, endpoint: &WorkloadEntrySpec, of: &[&wire::Service]) -> Ports {
    let list = port_list(entry, |port| {
        endpoint
            .ports
            .get(&port.name)
            .and_then(|number| u16::try_from(*number).ok())
    });
    of.iter()
        .map(|service| {
            let name = format!("{}/{}", service.namespace, service.hostname);
            (name, list.clone())
        })
        .collect()
}

/// The ports of an entry as a pod has them: a container port of the same name counts first.
pub(super) fn ports_of_pod(pod: &PodFacts<'_>, entry: &ServiceEntry) -> wire::PortList {
    port_list(entry, |port| pod.named_port(&port.name))
}

fn port_list(entry: &ServiceEntry, own: impl Fn(&EntryPort) -> Option<u16>) -> wire::PortList {
    let ports = entry.spec.ports.iter().filter_map(|port| {
        Some(wire::Port {
            service_port: u16::try_from(port.number).ok()?.into(),
            target_port: own(port).or_else(|| target(port))?.into(),
            app_protocol: protocol(&port.protocol).into(),
        })
    });
    wire::PortList {
        ports: ports.collect(),
    }
}

/// The port at endpoints that say nothing about it.
pub(super) fn target(port: &EntryPort) -> Option<u16> {
    let number = match port.target_port {
        0 => port.number,
        target => target,
    };
    u16::try_from(number).ok()
}

fn locality(text: &str) -> Option<wire::Locality> {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let locality = wire::Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    };
    (locality != wire::Locality::default()).then_some(locality)
}

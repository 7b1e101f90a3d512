//! ServiceEntries: hosts besides those of Services, each a published service, and their endpoints.

mod addresses;
mod endpoints;
mod hosts;
mod owners;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isobar_objects::istio::{Resolution, ServiceEntry};
use isobar_objects::{EntryVisibility, ObjectHead, ObjectSet};
use isobar_proto::istio::workload as wire;
use isobar_types::NamespacedName;

use super::l7::{EndpointLabels, Owner, Served};
use super::pods::PodFacts;
use super::room::{self, Labelled, Room};
use super::selection::{Named, Reference, Selection, fails_open, named, object_reference};
use super::services::{ServicePlan, balancing, distribution, protocol};
use super::settings::Settings;
use super::verdict::{Severity, Verdict};
pub(crate) use addresses::Allocated;
pub(crate) use hosts::refused_hosts;
use owners::{Described, Owners};

/// Condition type for what becomes of it.
const CONDITION: &str = "isobar.dev/Accepted";

/// True if it matters to some entry, or endpoint of one, whose addresses these are.
pub(super) fn concern_entries(set: &ObjectSet, ips: &[IpAddr]) -> bool {
    owners::concern_entries(set, ips)
}

/// Everything that follows from all ServiceEntries.
#[derive(Debug, Default)]
pub(crate) struct Entries<'a> {
    /// One a host.
    pub(crate) services: Vec<EntryPlan<'a>>,
    /// Endpoints that are no pods.
    pub(crate) workloads: Vec<wire::Workload>,
    /// Their labels, by uid.
    pub(crate) labels: EndpointLabels,
    /// Addresses that hosts were given, to be remembered in the objects' status.
    pub(crate) allocated: BTreeMap<NamespacedName, Vec<Allocated>>,
    /// Entries for whose endpoints there is no room: they have none.
    left_out: BTreeSet<NamespacedName>,
}

/// One host as it is published.
#[derive(Debug)]
pub(crate) struct EntryPlan<'a> {
    /// The message.
    pub(crate) wire: wire::Service,
    /// The ServiceEntry's own key.
    pub(crate) key: NamespacedName,
    /// Waypoints that serve it.
    pub(super) waypoints: Vec<NamespacedName>,
    /// That of these which takes a share of the calls at most.
    second: Option<NamespacedName>,
    entry: &'a ServiceEntry,
}

impl EntryPlan<'_> {
    /// As waypoints see it.
    pub(crate) fn served(&self) -> Served<'_> {
        Served {
            wire: &self.wire,
            owner: Owner::Entry(&self.key),
            waypoints: &self.waypoints,
            second: self.second.as_ref(),
            fail_open: fails_open(self.entry.labels()),
        }
    }
}

/// A host that an entry may have.
struct Claim<'a> {
    entry: &'a ServiceEntry,
    host: String,
    visibility: wire::service::Visibility,
}

impl<'a> Entries<'a> {
    /// Reads all of them. `services` have been planned before: what is a Service stays one.
    pub(crate) fn read(
        set: &'a ObjectSet,
        services: &[ServicePlan],
        selection: &Selection<'_>,
        (room, verdicts): (&mut Room, &mut Vec<Verdict>),
    ) -> Self {
        let mut problems = Problems::default();
        let claims = claims(set, selection.settings, services, &mut problems);
        let taken: BTreeSet<&str> = services.iter().map(|s| &*s.wire.hostname).collect();
        let allocated = addresses::allocate(of_few(&claims, &mut problems).into_iter());
        let root = &selection.settings.root_namespace;
        let owners = Owners::of(set, services, root);
        let mut entries = Self::default();
        let mut public: BTreeSet<&str> = taken;
        for claim in &claims {
            let own = allocated.get(&(key(claim.entry), claim.host.clone()));
            let mut plan = plan(
                claim,
                own.map_or(&[], Vec::as_slice),
                &owners,
                selection,
                &mut problems,
            );
            plan.wire.canonical =
                claim.visibility == wire::service::Visibility::Public && public.insert(&claim.host);
            entries.services.push(plan);
        }
        for ((entry, host), addresses) in allocated {
            let of = entries.allocated.entry(entry).or_default();
            of.extend(addresses.into_iter().map(|value| Allocated {
                value,
                host: host.clone(),
            }));
        }
        entries.left_out = without_room(&entries.services, set, room, &mut problems);
        let left_out = LeftOut {
            entries: &entries.left_out,
            services: services
                .iter()
                .filter(|one| one.left_out)
                .map(|one| (&*one.key.namespace, &*one.key.name))
                .collect(),
        };
        let around = (selection, &owners, &left_out);
        let found = endpoints::workloads(&entries.services, around, &mut problems);
        (entries.workloads, entries.labels) = (found.workloads, found.labels);
        verdicts.extend(problems.verdicts(set));
        entries
    }

    /// Pods that entries select, the service as `namespace/hostname`, and its ports there.
    pub(crate) fn of_pods(
        &self,
        pods: &[PodFacts<'_>],
    ) -> Vec<(NamespacedName, String, wire::PortList)> {
        let mut all = Vec::new();
        let with_room = self.services.iter();
        for service in with_room.filter(|one| !self.left_out.contains(&one.key)) {
            let Some(selector) = &service.entry.spec.workload_selector else {
                continue;
            };
            let name = format!("{}/{}", service.wire.namespace, service.wire.hostname);
            let selected = pods.iter().filter(|pod| {
                *pod.key.namespace == *service.wire.namespace && selector.selects(pod.labels)
            });
            all.extend(selected.map(|pod| {
                let ports = endpoints::ports_of_pod(pod, service.entry);
                (pod.key.clone(), name.clone(), ports)
            }));
        }
        all
    }
}

/// What has no endpoints because there is no room for them.
struct LeftOut<'a> {
    entries: &'a BTreeSet<NamespacedName>,
    /// Namespaces and names.
    services: BTreeSet<(&'a str, &'a str)>,
}

/// The newest entries that list more endpoints, of hosts and ports, than there is room for.
fn without_room(
    services: &[EntryPlan<'_>],
    set: &ObjectSet,
    room: &mut Room,
    problems: &mut Problems,
) -> BTreeSet<NamespacedName> {
    let mut order: Vec<(&ServiceEntry, usize)> = Vec::new();
    let mut at: BTreeMap<&NamespacedName, usize> = BTreeMap::new();
    for service in services {
        let (wire, entry) = (&service.wire, service.entry);
        let of_one = room::bytes(&wire.namespace, &wire.hostname, entry.spec.ports.len());
        let index = *at.entry(&service.key).or_insert_with(|| {
            order.push((entry, 0));
            order.len() - 1
        });
        order[index].1 += of_one;
    }
    let mut left_out = BTreeSet::new();
    // Pods and WorkloadEntries of the namespaces where something is selected.
    let mut of_namespace: BTreeMap<&str, [Labelled<'_>; 2]> = BTreeMap::new();
    for (entry, of_each) in order {
        let (spec, namespace) = (&entry.spec, entry.namespace());
        let count = match &spec.workload_selector {
            None => spec.endpoints.len().max(1),
            Some(selector) => {
                let both = of_namespace.entry(namespace).or_insert_with(|| {
                    let entries = Labelled::workload_entries(set, namespace);
                    [Labelled::pods(set, namespace), entries]
                });
                both.iter().map(|some| some.count(&selector.labels)).sum()
            }
        };
        if !room.take(namespace, of_each.saturating_mul(count)) {
            problems.add(entry, room::REASON, room::text());
            left_out.insert(key(entry));
        }
    }
    left_out
}

/// Hosts in the order of their objects' age. Of equal hosts in one namespace the Service stays, then
/// the oldest entry's. Names of the cluster in other namespaces are nobody's.
fn claims<'a>(
    set: &'a ObjectSet,
    settings: &Settings,
    services: &[ServicePlan],
    problems: &mut Problems,
) -> Vec<Claim<'a>> {
    let mut taken: BTreeMap<(String, String), String> = services
        .iter()
        .map(|service| {
            let wire = &service.wire;
            let owner = format!("Service {}", service.key);
            ((wire.namespace.clone(), wire.hostname.clone()), owner)
        })
        .collect();
    let mut entries: Vec<&ServiceEntry> = set.service_entries.iter().map(|e| &e.object).collect();
    entries.sort_by_key(|entry| entry.created());
    let mut claims = Vec::new();
    for entry in entries {
        let asked = visibility(entry, problems);
        let allowed = allowed(entry, set, settings);
        let Some(visibility) = asked.filter(|_| allowed != EntryVisibility::None) else {
            continue;
        };
        let visibility = match allowed {
            EntryVisibility::Namespace => wire::service::Visibility::Namespace,
            _ => visibility,
        };
        for host in &entry.spec.hosts {
            let host = hosts::normal(host);
            let namespace = entry.namespace();
            if let Some(text) = hosts::refused(&host, namespace, &settings.cluster_domain) {
                problems.add(entry, "ForeignHost", text);
                continue;
            }
            let place = (namespace.to_owned(), host.clone());
            if let Some(owner) = taken.get(&place) {
                let text = format!("host {host} belongs to {owner}");
                problems.add(entry, "HostConflict", text);
                continue;
            }
            taken.insert(place, entry.reference().to_string());
            claims.push(Claim {
                entry,
                host,
                visibility,
            });
        }
    }
    claims
}

/// Who may see it at most, as whoever runs the mesh says.
fn allowed(entry: &ServiceEntry, set: &ObjectSet, settings: &Settings) -> EntryVisibility {
    let Some(all) = &settings.entry_visibilities else {
        return EntryVisibility::Public;
    };
    let namespace = set.namespaces.get("", entry.namespace());
    let labels = namespace.map(|namespace| namespace.labels().clone());
    all.of(&labels.unwrap_or_default())
}

/// Who may see it; `None`: nobody. Only "everybody" and "its own namespace" can be told to node
/// proxies: what is between is narrowed, or nobody would have asked for it.
fn visibility(entry: &ServiceEntry, problems: &mut Problems) -> Option<wire::service::Visibility> {
    let all = &entry.spec.export_to;
    if all.is_empty() || all.iter().any(|place| place == "*") {
        return Some(wire::service::Visibility::Public);
    }
    let is_own = |place: &String| place == "." || place == entry.namespace();
    let mut others = all.iter().filter(|place| !is_own(place) && *place != "~");
    let own = all.iter().any(is_own);
    if let Some(other) = others.next() {
        let effect = if own {
            "only its own namespace sees it"
        } else {
            "nobody sees it"
        };
        let text =
            format!("exportTo: single namespaces such as {other} are not supported; {effect}");
        problems.add(entry, "UnsupportedValue", text);
    }
    own.then_some(wire::service::Visibility::Namespace)
}

fn wants_address(claim: &Claim<'_>) -> bool {
    const OPT_OUT: &str = "networking.istio.io/enable-autoallocate-ip";
    let entry = claim.entry;
    entry.spec.addresses.is_empty()
        && entry.spec.resolution != Resolution::None
        && entry.label(OPT_OUT) != Some("false")
        && (!claim.host.contains('*') || entry.spec.resolution == Resolution::DynamicDns)
}

/// Hosts that are given addresses: the oldest of each namespace, so that nobody has all there are.
fn of_few<'c>(
    claims: &'c [Claim<'_>],
    problems: &mut Problems,
) -> Vec<(&'c ServiceEntry, &'c str)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut few = Vec::new();
    for claim in claims.iter().filter(|claim| wants_address(claim)) {
        let count = counts.entry(claim.entry.namespace()).or_default();
        *count += 1;
        if *count <= addresses::OF_NAMESPACE {
            few.push((claim.entry, &*claim.host));
        } else {
            let text = format!(
                "no more than {} hosts of a namespace are given addresses",
                addresses::OF_NAMESPACE
            );
            problems.add(claim.entry, "NoAddress", text);
        }
    }
    few
}

fn plan<'a>(
    claim: &Claim<'a>,
    allocated: &[IpAddr],
    owners: &Owners,
    selection: &Selection<'_>,
    problems: &mut Problems,
) -> EntryPlan<'a> {
    let entry = claim.entry;
    let spec = &entry.spec;
    let network = &selection.settings.network;
    let addresses = if spec.addresses.is_empty() {
        addresses::of_hosts(allocated, network)
    } else {
        let (free, taken) = owners.sort(&Described {
            namespace: entry.namespace(),
            as_they_are: spec.resolution == Resolution::None
                && waypoint_of(entry, selection).is_none(),
            addresses: &spec.addresses,
        });
        for text in taken {
            problems.add(entry, "AddressConflict", text);
        }
        addresses::written(&free, network)
    };
    if addresses.is_empty() {
        let text = format!(
            "host {} has no address: node proxies cannot tell calls to it from others",
            claim.host
        );
        problems.add(entry, "NoAddress", text);
    }
    let mut wire = wire::Service {
        name: entry.name().to_owned(),
        namespace: entry.namespace().to_owned(),
        hostname: claim.host.clone(),
        addresses,
        ports: spec.ports.iter().filter_map(port).collect(),
        subject_alt_names: spec.subject_alt_names.clone(),
        load_balancing: load_balancing(entry, selection.set),
        visibility: claim.visibility.into(),
        ..wire::Service::default()
    };
    let (waypoints, second) = choose_waypoint(&mut wire, entry, selection, problems);
    if claim.host.contains('*') && spec.resolution == Resolution::DynamicDns && waypoints.is_empty()
    {
        let text = format!(
            "host {} needs a waypoint: it finds out which host a call is for",
            claim.host
        );
        problems.add(entry, "NoWaypoint", text);
    }
    EntryPlan {
        wire,
        key: key(entry),
        waypoints,
        second,
        entry,
    }
}

fn port(port: &isobar_objects::istio::EntryPort) -> Option<wire::Port> {
    Some(wire::Port {
        service_port: u16::try_from(port.number).ok()?.into(),
        target_port: endpoints::target(port)?.into(),
        app_protocol: protocol(&port.protocol).into(),
    })
}

fn load_balancing(entry: &ServiceEntry, set: &ObjectSet) -> Option<wire::LoadBalancing> {
    use wire::load_balancing::{HealthPolicy, Mode};

    if entry.spec.resolution == Resolution::None {
        return Some(wire::LoadBalancing {
            mode: Mode::Passthrough.into(),
            health_policy: HealthPolicy::AllowAll.into(),
            ..wire::LoadBalancing::default()
        });
    }
    balancing(distribution(entry, set), false)
}

/// The waypoint in front of it: the entry's own label, else its namespace's. Those that serve it, and
/// that of them which takes a share only.
fn choose_waypoint(
    wire: &mut wire::Service,
    entry: &ServiceEntry,
    selection: &Selection<'_>,
    problems: &mut Problems,
) -> (Vec<NamespacedName>, Option<NamespacedName>) {
    let Some(reference) = waypoint_of(entry, selection) else {
        return (Vec::new(), None);
    };
    let front = selection.in_front(&reference, entry);
    wire.waypoint = front.address;
    wire.weighted_waypoints = front.weighted;
    problems.told.extend(front.verdict);
    (front.serves, front.second)
}

fn waypoint_of(entry: &ServiceEntry, selection: &Selection<'_>) -> Option<Reference> {
    let (namespace, labels) = (entry.namespace(), entry.labels());
    match named(labels, namespace) {
        Named::None => None,
        Named::Waypoint(waypoint) => Some(object_reference(waypoint, labels)),
        Named::Absent => selection.for_namespace(namespace, labels),
    }
}

fn key(entry: &ServiceEntry) -> NamespacedName {
    NamespacedName {
        namespace: entry.namespace().into(),
        name: entry.name().into(),
    }
}

/// What is wrong, by entry; one condition says all of it.
#[derive(Default)]
struct Problems {
    of: BTreeMap<NamespacedName, Vec<(&'static str, String)>>,
    told: Vec<Verdict>,
}

/// Problems of one entry that are told; beyond, the first of each other reason.
const TOLD: usize = 10;

impl Problems {
    fn add(&mut self, entry: &ServiceEntry, reason: &'static str, text: String) {
        let of = self.of.entry(key(entry)).or_default();
        let is_new = of.iter().all(|(_, known)| *known != text);
        if is_new && (of.len() < TOLD || of.iter().all(|(known, _)| *known != reason)) {
            of.push((reason, text));
        }
    }

    fn verdicts(mut self, set: &ObjectSet) -> Vec<Verdict> {
        for entry in set.service_entries.iter() {
            let object = entry.reference();
            let verdict = match self.of.get(&key(entry)) {
                None => Verdict::holds(object, CONDITION, "Accepted", "known to node proxies"),
                Some(problems) => {
                    let reason = problems.first().map_or("Accepted", |(reason, _)| reason);
                    let texts: Vec<&str> = problems.iter().map(|(_, text)| &**text).collect();
                    Verdict::fails(object, CONDITION, reason, texts.join("; "))
                        .severity(Severity::Warning)
                }
            };
            self.told.push(verdict);
        }
        self.told
    }
}

#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as isobar;
use isobar_proto::istio::{security, workload};
use isobar_types::{Identity, NamespacedName, Str};

use super::authorization::L4Policies;
use super::auto_allow;
use super::bindings::{AccountBinding, Bindings};
use super::gateways::{Gateways, WaypointGateway, classes, denied_address, waypoints};
use super::handover::{self, Fronts, Handovers, Host};
use super::ingress;
use super::l7::{self, Hosts, KeptKeys, RouteStatus, Scoping};
use super::mesh_config;
use super::network_policy::{NetworkPolicies, Remedy, Standings};
use super::outbound;
use super::passage;
use super::peer_authentication::PeerAuthentications;
use super::pods::PodFacts;
use super::presence;
use super::room::Room;
use super::selection::Selection;
use super::service_entries::{Allocated, Entries, EntryPlan};
use super::services::{self, ServicePlan};
use super::settings::Settings;
use super::slices;
use super::traversal;
use super::trust;
use super::verdict::Verdict;
use super::workloads::{Memberships, WorkloadPlan, plan_workload};
use crate::ca::{PodRecord, Roster};

/// Everything that follows from one set of objects.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Services, ordered by key.
    pub(crate) services: Vec<ServicePlan>,
    /// Hosts of ServiceEntries, one service each.
    pub(crate) entries: Vec<workload::Service>,
    /// Addresses given to hosts of ServiceEntries, to be kept in the objects' status.
    pub(crate) allocated: BTreeMap<NamespacedName, Vec<Allocated>>,
    /// Workloads.
    pub(crate) workloads: Vec<WorkloadPlan>,
    /// What endpoints list.
    pub(crate) room: Room,
    /// L4 policies.
    pub(crate) authorizations: Vec<security::Authorization>,
    /// Where workloads may go and how many connections they may hold, for node proxies.
    pub(crate) outbound: Vec<isobar::OutboundPolicy>,
    /// What each waypoint is told.
    pub(crate) waypoints: Vec<WaypointPlan>,
    /// Waypoint pods.
    pub(crate) instances: Vec<InstancePlan>,
    /// Waypoints as the controller sees them.
    pub(crate) gateways: Vec<GatewayFacts>,
    /// Who lives where, for the certificate authority.
    pub(crate) roster: Roster,
    /// What accounts say about waypoints, where it is in force.
    pub(crate) accounts: BTreeMap<NamespacedName, AccountBinding>,
    /// Latch annotation each account has to carry; none takes it away.
    pub(crate) latches: BTreeMap<NamespacedName, Option<Str>>,
    /// What to tell about routes of the Gateway API.
    pub(crate) routes: Vec<RouteStatus>,
    /// NetworkPolicies that shut what the mesh needs open, and how they would have to be.
    pub(crate) remedies: Vec<Remedy>,
    /// What pods are to NetworkPolicies.
    pub(crate) standings: Standings,
    /// What to tell about objects, sorted.
    pub(crate) verdicts: Vec<Verdict>,
    /// The waypoints in front of what is bound, once no binding changes any more.
    pub(crate) fronts: Fronts,
    /// Waypoints that can take traffic.
    pub(crate) usable: BTreeSet<Host>,
}

/// What one waypoint is told besides addresses.
#[derive(Debug)]
pub(crate) struct WaypointPlan {
    /// Gateway key.
    pub(crate) key: NamespacedName,
    /// Its own description.
    pub(crate) waypoint: isobar::Waypoint,
    /// Routes of the services it serves.
    pub(crate) routes: Vec<isobar::VirtualService>,
    /// Rules of the services it can reach.
    pub(crate) rules: Vec<isobar::DestinationRule>,
    /// Policies.
    pub(crate) authorizations: Vec<isobar::Authorization>,
    /// What its listeners show to callers: for this one's eyes only.
    pub(crate) credentials: Vec<isobar::Credential>,
    /// Rate limits.
    pub(crate) rate_limits: Vec<isobar::RateLimitPolicy>,
    /// Values of the label keys that are named.
    pub(crate) labels: Vec<isobar::WorkloadLabels>,
    /// The keys.
    pub(crate) label_keys: BTreeSet<String>,
    /// Where it is reached, if somebody else runs it.
    pub(crate) foreign: Option<workload::GatewayAddress>,
}

/// A pod that runs a waypoint.
#[derive(Debug)]
pub(crate) struct InstancePlan {
    /// `namespace/name` of the pod.
    pub(crate) pod: NamespacedName,
    /// Kubernetes UID.
    pub(crate) uid: Str,
    /// Gateway key.
    pub(crate) gateway: NamespacedName,
    /// Identity of the Gateway's pods.
    pub(crate) identity: Identity,
}

/// A waypoint Gateway as the controller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayFacts {
    /// `namespace/name`.
    pub(crate) key: NamespacedName,
    /// A pod of it is ready now.
    pub(crate) ready: bool,
    /// It was Programmed before, or is ready now.
    pub(crate) programmed: bool,
    /// Its listeners, where it stands at the edge of the mesh.
    pub(crate) listeners: Option<Vec<ListenerFacts>>,
}

/// A listener of a Gateway at the edge as the controller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerFacts {
    /// Its name.
    pub(crate) name: String,
    /// The port.
    pub(crate) port: u16,
    /// Kinds of routes that it takes.
    pub(crate) kinds: &'static [&'static str],
    /// Routes that are attached.
    pub(crate) attached: usize,
    /// Callers come in there.
    pub(crate) served: bool,
    /// Why it is not served, or not as written, by a word of the Gateway API and a sentence.
    pub(crate) problem: Option<(&'static str, String)>,
}

/// Plans everything. Pure: the same objects give the same plan. `kept_keys` are label keys that
/// waypoints were served before; they stay, so that a changed subset never finds its new key
/// missing.
pub(crate) fn plan(set: &ObjectSet, settings: &Settings, kept_keys: &KeptKeys) -> Plan {
    plan_during(set, settings, kept_keys, &Handovers::default())
}

/// As [`plan`], while bindings to waypoints change.
pub(crate) fn plan_during(
    set: &ObjectSet,
    settings: &Settings,
    kept_keys: &KeptKeys,
    handovers: &Handovers,
) -> Plan {
    let in_force = settings.in_force(set);
    let named = trust::spelled_out(set, &in_force);
    let mut plan = plan_with(&named, &in_force, kept_keys, handovers);
    plan.outbound.extend(trust::told(&in_force));
    mesh_config::tell(set, settings, &mut plan.verdicts);
    plan.verdicts = once_each(plan.verdicts);
    plan
}

/// As [`plan_during`], with the settings in force, and policies that have every name of the mesh.
fn plan_with(
    set: &ObjectSet,
    settings: &Settings,
    kept_keys: &KeptKeys,
    handovers: &Handovers,
) -> Plan {
    let pods = read_pods(set);
    let gateways = waypoints(set, &pods, settings);
    let mut bindings = Bindings::read(set, &gateways, &handovers.accounts);
    let mut verdicts = first_verdicts(set, settings, &mut bindings);
    let selection = Selection {
        set,
        settings,
        gateways: &gateways,
        bindings: &bindings,
    };
    let members = services::members(set, &pods);
    let (mut services, mut room) = plan_services(set, &members, &selection);
    let mut entries = Entries::read(set, &services, &selection, (&mut room, &mut verdicts));
    let targets = l7::targets(set, places(&services, &entries, &selection));
    verdicts.extend(targets.iter().map(|target| target.verdict.clone()));
    refuse_unprotected(&mut services, &mut entries.services, &targets);
    handovers.keep_serving(&mut services, &mut entries.services, &gateways);
    verdicts.extend(services.iter().flat_map(|service| service.verdicts.clone()));

    let l4 = L4Policies::read(set, &settings.root_namespace, &mut verdicts);
    let peers = PeerAuthentications::tell(set, &settings.root_namespace, &mut verdicts);
    let mut memberships = memberships(set, &pods, &members, &services, &entries);
    handovers.keep_taking(&mut memberships, &pods, &gateways, settings);
    let network = NetworkPolicies::read(&selection, &pods, &memberships, &mut verdicts);
    let policies = Policies::of(&l4, &peers, &network);
    let mut workloads = plan_workloads(&pods, memberships, &policies, &selection);
    let reached = (&workloads[..], &services[..]);
    passage::tell(&l4.wire, reached, &gateways, &mut verdicts);
    presence::tell(set, &workloads, &settings.root_namespace, &mut verdicts);
    let mut authorizations = l4.wire;
    authorizations.extend(peers.policies().into_iter().chain(network.wire));
    authorizations.extend(of_waypoints(&workloads, &gateways, settings));

    let hosts = Hosts::of(&services, &entries.services, &settings.cluster_domain);
    let reached = outbound::Reached(&services, &entries.services);
    let outbound = outbound::policies(set, settings, &hosts, &reached, &mut verdicts);
    let elsewhere = std::mem::take(&mut entries.workloads);
    workloads.extend(elsewhere.into_iter().map(WorkloadPlan::elsewhere));
    workloads.extend(slices::workloads(set, &services, settings));
    let scoping = Scoping::new(
        set,
        places(&services, &entries, &selection),
        &hosts,
        (&pods, &entries.labels),
        &targets,
        &mut verdicts,
    );
    let waypoints = plan_waypoints(&gateways, &scoping, kept_keys, &mut verdicts);
    let (routes, listeners) = scoping.told();
    verdicts.extend(routes.iter().flat_map(RouteStatus::verdicts));
    let fronts = handovers.publish(&mut services, &mut entries.services, &mut workloads);
    Plan {
        fronts,
        usable: handover::usable(&gateways),
        waypoints,
        instances: instances(&workloads, &pods, &gateways),
        gateways: facts_of(&gateways, listeners),
        roster: roster(&pods),
        accounts: bindings.accounts,
        latches: bindings.latches,
        authorizations,
        outbound,
        entries: entries.services.into_iter().map(|e| e.wire).collect(),
        allocated: entries.allocated,
        services,
        workloads,
        room,
        routes,
        remedies: network.remedies,
        standings: network.standings,
        verdicts,
    }
}

fn read_pods(set: &ObjectSet) -> Vec<PodFacts<'_>> {
    let pods = set.pods.iter();
    pods.filter_map(|pod| PodFacts::read(&pod.object)).collect()
}

fn once_each(mut verdicts: Vec<Verdict>) -> Vec<Verdict> {
    verdicts.sort_unstable();
    verdicts.dedup();
    verdicts
}

/// What there is to say before anything else is planned.
fn first_verdicts(set: &ObjectSet, settings: &Settings, bindings: &mut Bindings) -> Vec<Verdict> {
    let told = std::mem::take(&mut bindings.verdicts);
    told.into_iter().chain(classes(set, settings)).collect()
}

fn places<'a>(
    services: &'a [ServicePlan],
    entries: &'a Entries<'a>,
    selection: &Selection<'a>,
) -> l7::Places<'a> {
    l7::Places {
        services,
        entries: &entries.services,
        gateways: selection.gateways,
        settings: selection.settings,
    }
}

fn plan_waypoints(
    gateways: &Gateways<'_>,
    scoping: &Scoping<'_>,
    kept_keys: &KeptKeys,
    verdicts: &mut Vec<Verdict>,
) -> Vec<WaypointPlan> {
    let waypoints: Vec<_> = gateways
        .values()
        .map(|waypoint| l7::plan_waypoint(waypoint, scoping, kept_keys.get(&waypoint.key)))
        .collect();
    verdicts.extend(l7::around(&waypoints, scoping));
    l7::unserved(&waypoints, scoping, verdicts);
    waypoints
}

fn plan_services(
    set: &ObjectSet,
    members: &services::Members<'_>,
    selection: &Selection<'_>,
) -> (Vec<ServicePlan>, Room) {
    let planned = set.services.iter().filter_map(|service| {
        let key = NamespacedName {
            namespace: service.namespace().into(),
            name: service.name().into(),
        };
        let members = members.get(&key).map(Vec::as_slice).unwrap_or_default();
        services::plan_service(service, members, selection)
    });
    let mut services: Vec<ServicePlan> = planned.collect();
    let room = Room::of(&mut services, members, set);
    (services, room)
}

/// A Service or ServiceEntry that a policy is about and that has no waypoint to enforce it refuses.
fn refuse_unprotected(
    services: &mut [ServicePlan],
    entries: &mut [EntryPlan<'_>],
    targets: &[l7::Targets],
) {
    for entry in entries {
        let served = entry.served();
        let unprotected =
            served.wire.waypoint.is_none() && served.waypoints.is_empty() && !served.fail_open;
        let targeted = |t: &l7::Targets| t.restricts && t.chosen.names(served.owner);
        if unprotected && targets.iter().any(targeted) {
            entry.wire.waypoint = Some(denied_address(&entry.key.namespace));
        }
    }
    for service in services {
        let unprotected = service.wire.waypoint.is_none()
            && service.waypoints.is_empty()
            && !service.is_waypoint
            && !service.fail_open;
        let targeted = |t: &l7::Targets| t.restricts && t.chosen.services.contains(&service.key);
        if unprotected && targets.iter().any(targeted) {
            service.wire.waypoint = Some(denied_address(&service.key.namespace));
        }
    }
}

/// Where policies that select pods come from.
struct Policies<'a> {
    l4: &'a L4Policies<'a>,
    peers: &'a PeerAuthentications<'a>,
    network: &'a NetworkPolicies,
}

/// Policies that say who may call what is behind waypoints.
fn of_waypoints(
    workloads: &[WorkloadPlan],
    gateways: &Gateways<'_>,
    settings: &Settings,
) -> Vec<security::Authorization> {
    let mut all = traversal::policies(&only_through(workloads), gateways, settings);
    all.extend(auto_allow::policies(gateways, settings));
    all
}

impl<'a> Policies<'a> {
    const fn of(
        l4: &'a L4Policies<'a>,
        peers: &'a PeerAuthentications<'a>,
        network: &'a NetworkPolicies,
    ) -> Self {
        Self { l4, peers, network }
    }

    fn keys_for(&self, pod: &PodFacts<'_>) -> Vec<String> {
        let mut keys = self.l4.keys_for(pod);
        keys.extend(self.peers.key_for(pod));
        keys.extend(self.network.key_for(pod));
        keys
    }
}

fn only_through(workloads: &[WorkloadPlan]) -> BTreeSet<traversal::Wanted> {
    workloads
        .iter()
        .filter_map(|workload| {
            let accepted = workload.only_through.clone()?;
            Some((workload.wire.namespace.clone(), accepted))
        })
        .collect()
}

/// By pod, the Services and ServiceEntries that it is an endpoint of.
fn memberships(
    set: &ObjectSet,
    pods: &[PodFacts<'_>],
    members: &services::Members<'_>,
    services: &[ServicePlan],
    entries: &Entries<'_>,
) -> Memberships {
    let mut endpoint_of = Memberships::new();
    for (pod, name, ports) in entries.of_pods(pods) {
        endpoint_of
            .entry(pod)
            .or_default()
            .ports
            .insert(name, ports);
    }
    slices::join(set, services, pods, &mut endpoint_of);
    for service in services {
        let object = set.services.get(&service.key.namespace, &service.key.name);
        let (Some(object), Some(pods)) = (object, members.get(&service.key)) else {
            continue;
        };
        for pod in pods.iter().filter(|pod| service.takes(pod)) {
            let of = endpoint_of.entry(pod.key.clone()).or_default();
            of.join(pod, service, object);
        }
    }
    endpoint_of
}

fn plan_workloads(
    pods: &[PodFacts<'_>],
    mut memberships: Memberships,
    policies: &Policies<'_>,
    selection: &Selection<'_>,
) -> Vec<WorkloadPlan> {
    // Made in one piece: while a list this long grows it is there twice.
    let mut all = Vec::with_capacity(pods.len());
    all.extend(pods.iter().filter_map(|pod| {
        let services = memberships.remove(&pod.key).unwrap_or_default();
        plan_workload(pod, services, policies.keys_for(pod), selection)
    }));
    all
}

fn instances(
    workloads: &[WorkloadPlan],
    pods: &[PodFacts<'_>],
    gateways: &Gateways<'_>,
) -> Vec<InstancePlan> {
    let uids: BTreeMap<(&str, &str), &str> = pods
        .iter()
        .map(|pod| ((&*pod.key.namespace, &*pod.key.name), pod.uid))
        .collect();
    let mut all: Vec<InstancePlan> = workloads
        .iter()
        .filter_map(|workload| {
            let gateway = workload.instance_of.as_ref()?;
            let (namespace, name) = (&*workload.wire.namespace, &*workload.wire.name);
            Some(InstancePlan {
                pod: NamespacedName {
                    namespace: namespace.into(),
                    name: name.into(),
                },
                uid: uids
                    .get(&(namespace, name))
                    .copied()
                    .unwrap_or_default()
                    .into(),
                gateway: gateway.clone(),
                identity: gateways.get(gateway)?.identity.clone(),
            })
        })
        .collect();
    let own: BTreeSet<NamespacedName> = all.iter().map(|one| one.pod.clone()).collect();
    // What the Gateway API makes of a pod stays.
    all.extend(ingress::instances(pods, gateways).filter(|one| !own.contains(&one.pod)));
    all
}

/// Objects of the Gateway API that are ours to run; what Istio's Gateways make of pods has none to be told
/// on.
fn facts_of(gateways: &Gateways<'_>, mut listeners: l7::ListenersTold) -> Vec<GatewayFacts> {
    let ours = |one: &&WaypointGateway<'_>| one.gateway.is_some() && one.foreign.is_none();
    let objects = gateways.values().filter(ours);
    let facts = objects.map(|waypoint| GatewayFacts {
        key: waypoint.key.clone(),
        ready: waypoint.ready,
        programmed: waypoint.programmed,
        listeners: listeners.remove(&waypoint.key),
    });
    facts.collect()
}

fn roster(pods: &[PodFacts<'_>]) -> Roster {
    let mut roster = Roster::default();
    for pod in pods {
        roster.insert(&pod.key.namespace, &pod.key.name, record(pod));
    }
    roster
}

/// What the certificate authority has to know of a pod.
pub(super) fn record(pod: &PodFacts<'_>) -> PodRecord {
    PodRecord {
        uid: pod.uid.into(),
        node: pod.node.into(),
        account: pod.account.clone(),
    }
}

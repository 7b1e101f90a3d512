//! Doors that NetworkPolicies leave shut: what the mesh's own connections need and a network plugin
//! drops, and the smallest change that opens it.
//!
//! Policies add up, so a rule is complete if any policy that selects the same pod opens the tunnel for
//! the same callers. A rule that is not gets port 15008 beside its own ports, which stay: callers
//! outside the mesh still use them, and inside the tunnel node proxies hold callers to them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use isobar_objects::{NetworkPolicy, ObjectHead as _, ObjectSet, selectors};
use isobar_types::{NamespacedName, labels, ports};
use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::classes::counted;
use super::index::Bits;
use super::sources::{NAMESPACE_NAME, Neighbours, Sources};
use super::told::through_foreign;
use super::{is_about_ingress, is_member, members};
use crate::model::gateways::instance_of;
use crate::model::pods::PodFacts;
use crate::model::selection::Selection;
use crate::model::verdict::{Severity, Verdict};
use crate::model::workloads::{Memberships, waypoints_of};
use names::NameServer;
use rule::{Rule, Tunnels, rules};

mod names;
pub(super) mod own;
mod probes;
pub(super) mod rule;

/// Condition type of the verdicts.
const CONDITION: &str = "isobar.dev/MeshDoors";
/// Port of name servers.
const DNS: u16 = 53;
/// Pods that a sentence names.
const PODS_NAMED: usize = 3;
/// Doors of a policy that a finding names.
const DOORS_NAMED: usize = 16;
/// Doors of a policy that are told; the change opens all.
const MAX_DOORS: usize = 64;
/// Pods that the doors of a namespace name; after that each door names a few.
const MAX_NAMES: usize = 65_536;
/// Rules that are looked at for a namespace, counted for each sort of pods that they select: about half a
/// second.
const MAX_WORK: usize = 1 << 19;

/// A connection that the mesh needs and a policy does not let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutDoor {
    /// Path of the field that lacks it, `spec.ingress[0].ports`.
    pub field: String,
    /// What is not let through.
    pub missing: Missing,
    /// Whose connections are dropped, as a sentence.
    pub consequence: String,
    /// Some of the pods concerned, `namespace/name`.
    pub pods: BTreeSet<String>,
    /// What the change opens beyond what the policy says, as a sentence.
    pub wider: Option<String>,
}

/// What a policy does not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Missing {
    /// A port.
    Port(u16),
    /// An address that calls.
    Source(IpAddr),
}

/// One policy, what it shuts, and how it would have to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Remedy {
    /// As it is; `None` where a policy of its own is needed.
    pub before: Option<NetworkPolicy>,
    /// As it would have to be.
    pub after: NetworkPolicy,
    /// Why.
    pub doors: Vec<ShutDoor>,
}

/// Everything that NetworkPolicies shut and the mesh needs open, by policy.
pub(crate) fn shut_doors(
    selection: &Selection<'_>,
    pods: &[PodFacts<'_>],
    memberships: &Memberships,
    neighbours: &Neighbours<'_>,
    verdicts: &mut Vec<Verdict>,
) -> Vec<Remedy> {
    let set = selection.set;
    let in_mesh = |pod: &PodFacts<'_>| {
        is_member(selection, pod) || pod.labels.contains_key(labels::GATEWAY_NAME)
    };
    let mut inspection = Inspection {
        selection,
        memberships,
        neighbours,
        in_mesh: neighbours.pods_that(in_mesh),
        servers: names::servers(set, pods),
        policies: Vec::new(),
        remedies: BTreeMap::new(),
        places: HashMap::new(),
        names: 0,
        alike: BTreeSet::new(),
    };
    let namespaces: BTreeSet<&str> = set.network_policies.iter().map(|p| p.namespace()).collect();
    for namespace in namespaces {
        if !inspection.namespace(namespace, pods) {
            verdicts.extend(unfinished(set, namespace));
        }
    }
    inspection.remedies.into_values().collect()
}

/// What there is to say about policies that shut doors.
pub(crate) fn verdicts(remedies: &[Remedy]) -> impl Iterator<Item = Verdict> {
    remedies.iter().filter_map(|remedy| {
        // A policy that is to be made has nobody to tell; what made it necessary is told by them.
        let object = remedy.before.as_ref()?.reference();
        let doors = remedy.doors.iter().take(DOORS_NAMED);
        let mut doors: Vec<String> = doors.map(ToString::to_string).collect();
        if let Some(more) = remedy.doors.len().checked_sub(DOORS_NAMED + 1) {
            doors.push(format!("and {} more", more + 1));
        }
        let text = format!("{}; `isobar netpol fix` shows the change", doors.join("; "));
        let is_port = |door: &ShutDoor| matches!(door.missing, Missing::Port(_));
        let reason = match remedy.doors.iter().any(is_port) {
            true => "DoorShut",
            false => "ProbesShut",
        };
        let verdict = Verdict::fails(object, CONDITION, reason, text);
        Some(verdict.severity(Severity::Warning))
    })
}

impl fmt::Display for ShutDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            missing,
            consequence,
            pods,
            wider: _,
        } = self;
        match missing {
            Missing::Port(port) => write!(f, "{field} lacks port {port}: {consequence} (pods ")?,
            Missing::Source(_) => write!(f, "{field} lacks {missing}: {consequence} (pods ")?,
        }
        for (at, pod) in pods.iter().take(PODS_NAMED).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{pod}")?;
        }
        match pods.len().checked_sub(PODS_NAMED) {
            None | Some(0) => f.write_str(")"),
            Some(more) => write!(f, " and {more} more)"),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "{port}"),
            Self::Source(address) => write!(f, "{}", IpNet::from(*address)),
        }
    }
}

fn size(policy: &NetworkPolicy) -> usize {
    rules::<NetworkPolicyIngressRule>(policy).len() + rules::<NetworkPolicyEgressRule>(policy).len()
}

fn unfinished(set: &ObjectSet, namespace: &str) -> Option<Verdict> {
    let object = set.namespaces.get("", namespace)?.object.reference();
    let text = "its NetworkPolicies have so many rules, for so many sorts of pods, that not all pods \
                were looked at for doors that they shut: write fewer rules";
    let verdict = Verdict::fails(object, CONDITION, "TooManyPeers", text);
    Some(verdict.severity(Severity::Warning))
}

struct Inspection<'a> {
    selection: &'a Selection<'a>,
    memberships: &'a Memberships,
    neighbours: &'a Neighbours<'a>,
    /// Pods that a tunnel may lead to.
    in_mesh: Bits,
    /// Services that look up names.
    servers: Vec<NameServer<'a>>,
    /// Policies of the namespace that is looked at.
    policies: Vec<&'a NetworkPolicy>,
    remedies: BTreeMap<NamespacedName, Remedy>,
    /// Doors that are noted, and where among those of their policy; beyond [`MAX_DOORS`] nowhere.
    places: HashMap<(NamespacedName, String, Missing, String), Option<usize>>,
    /// Pods named so far in the namespace.
    names: usize,
    /// Pods that the same policies select and the same waypoints serve: looked at once for all.
    alike: BTreeSet<String>,
}

impl<'a> Inspection<'a> {
    /// Looks at the pods of a namespace; false if that was too much for some of them.
    fn namespace(&mut self, namespace: &'a str, pods: &'a [PodFacts<'a>]) -> bool {
        let counted = counted(self.selection.set, namespace).filter(|(_, counts)| *counts);
        self.policies = counted.map(|(policy, _)| policy).collect();
        self.names = 0;
        let mut classes: BTreeMap<_, Vec<&PodFacts<'_>>> = BTreeMap::new();
        for pod in members(self.selection, namespace, pods) {
            let policies = self.policies.iter().enumerate();
            let selecting = policies.filter(|(_, policy)| selects(policy, pod));
            let selecting: Vec<usize> = selecting.map(|(at, _)| at).collect();
            if !selecting.is_empty() {
                let own = waypoints_of(pod, self.memberships.get(&pod.key), self.selection);
                classes.entry((selecting, own)).or_default().push(pod);
            }
        }
        let sizes: Vec<usize> = self.policies.iter().map(|policy| size(policy)).collect();
        let mut left = MAX_WORK;
        let mut may = |rules: usize| {
            let rest = left.checked_sub(rules);
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        for ((selecting, _), alike) in &classes {
            let rules: usize = selecting.iter().filter_map(|at| sizes.get(*at)).sum();
            // What probes need is asked for each pod.
            if !may(rules * (2 + alike.len() / 8)) {
                return false;
            }
            self.alike = alike.iter().map(|pod| pod.key.to_string()).collect();
            self.pod(alike[0]);
            for pod in alike {
                self.probes(pod);
            }
        }
        let all: usize = sizes.iter().sum();
        for pod in pods.iter().filter(|pod| *pod.key.namespace == *namespace) {
            let gateway = instance_of(pod, self.selection.gateways, self.selection.settings);
            let is_ours = gateway.is_some() || own::is_part(pod);
            if is_ours && !may(all) {
                return false;
            }
            match gateway {
                Some(gateway) => self.waypoint(namespace, pod, gateway),
                None => self.part(namespace, pod),
            }
        }
        true
    }

    /// The pods that are looked at, as far as there is room to name them.
    fn some_alike(&mut self) -> BTreeSet<String> {
        self.names += self.alike.len();
        let most = if self.names > MAX_NAMES {
            PODS_NAMED
        } else {
            usize::MAX
        };
        self.alike.iter().take(most).cloned().collect()
    }

    /// A pod of the mesh: callers come to, and it calls, port 15008.
    fn pod(&mut self, pod: &PodFacts<'_>) {
        let inbound = self.selecting(pod, is_about_ingress);
        self.open_beside::<NetworkPolicyIngressRule>(
            &inbound,
            "callers in the mesh come on port 15008 and are dropped",
        );
        let own = waypoints_of(pod, self.memberships.get(&pod.key), self.selection);
        for waypoint in &own {
            self.admit::<NetworkPolicyIngressRule>(&inbound, waypoint, "calls through");
        }
        let outbound = self.selecting(pod, is_about_egress);
        self.open_beside::<NetworkPolicyEgressRule>(
            &outbound,
            "what it calls in the mesh is reached on port 15008: its connections are dropped",
        );
        for waypoint in self.waypoints_ahead(&outbound) {
            self.admit::<NetworkPolicyEgressRule>(&outbound, &waypoint, "its calls to");
        }
        self.names(&outbound);
    }

    /// Policies, as they are to become, that select the pod and are about one direction.
    fn selecting(
        &self,
        pod: &PodFacts<'_>,
        about: impl Fn(&NetworkPolicy) -> bool,
    ) -> Vec<NetworkPolicy> {
        let policies = self.policies.iter();
        let policies = policies.filter(|policy| about(policy) && selects(policy, pod));
        policies.map(|policy| self.latest(policy)).collect()
    }

    /// Each rule that opens ports of the application also has to open the tunnel, here or elsewhere.
    fn open_beside<R: Rule>(&mut self, policies: &[NetworkPolicy], consequence: &str) {
        let tunnels = Tunnels::of::<R>(policies);
        for policy in policies {
            for (at, rule) in rules::<R>(policy).iter().enumerate() {
                let is_fine = !rule.opens_tcp() || tunnels.cover(rule);
                if is_fine || !self.leads_into_mesh(policy, rule) {
                    continue;
                }
                let door = ShutDoor {
                    field: format!("spec.{}[{at}].ports", R::FIELD),
                    missing: Missing::Port(ports::HBONE),
                    consequence: consequence.to_owned(),
                    pods: self.some_alike(),
                    wider: None,
                };
                self.note(policy, door, |spec| {
                    if let Some(rule) = R::of_mut(spec).get_mut(at) {
                        rule.add(entry(ports::HBONE, "TCP"));
                    }
                });
            }
        }
    }

    /// False for a rule on the way out that leads to no pod in the mesh: nothing there takes a tunnel.
    /// What is behind an address is not known.
    fn leads_into_mesh<R: Rule>(&self, policy: &NetworkPolicy, rule: &R) -> bool {
        if R::FIELD != NetworkPolicyEgressRule::FIELD {
            return true;
        }
        match self.neighbours.admitted(policy.namespace(), rule.peers()) {
            Sources::Everyone => true,
            Sources::Listed(listed) => {
                !listed.blocks.is_empty() || self.neighbours.taken(&listed).meets(&self.in_mesh)
            }
        }
    }

    /// The pods of a waypoint are let through where anybody is.
    fn admit<R: Rule>(
        &mut self,
        policies: &[NetworkPolicy],
        waypoint: &NamespacedName,
        calls: &str,
    ) {
        let fresh: Vec<NetworkPolicy> = policies.iter().map(|p| self.latest(p)).collect();
        let open = |policy: &NetworkPolicy| {
            let namespace = policy.namespace();
            let mut rules = rules::<R>(policy).iter().filter(|rule| rule.opens_tunnel());
            rules.any(|rule| self.lets(namespace, rule.peers(), waypoint))
        };
        let first = fresh
            .iter()
            .find(|p| rules::<R>(p).iter().any(Rule::opens_tcp));
        // Where nobody is let through, that is what its author wants.
        let Some(first) = first.filter(|_| !fresh.iter().any(open)) else {
            return;
        };
        let at = rules::<R>(first).len();
        let gateway = self.selection.gateways.get(waypoint);
        let foreign = R::FIELD == NetworkPolicyIngressRule::FIELD
            && gateway.is_some_and(|gateway| gateway.foreign.is_some());
        let door = ShutDoor {
            field: format!("spec.{}[{at}]", R::FIELD),
            missing: Missing::Port(ports::HBONE),
            consequence: format!(
                "{calls} its waypoint {waypoint} are dropped: they come from, or go to, the waypoint's pods"
            ),
            pods: self.some_alike(),
            wider: foreign.then(|| through_foreign(waypoint)),
        };
        let peers = Some(vec![pods_of(waypoint)]);
        let rule = R::new(peers, vec![entry(ports::HBONE, "TCP")]);
        self.note(first, door, |spec| R::of_mut(spec).push(rule));
    }

    /// True if a list of peers lets every pod of the waypoint through.
    fn lets(
        &self,
        namespace: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        waypoint: &NamespacedName,
    ) -> bool {
        if peers
            .into_iter()
            .flatten()
            .any(|peer| *peer == pods_of(waypoint))
        {
            return true;
        }
        match self.neighbours.admitted(namespace, peers) {
            Sources::Everyone => true,
            Sources::Listed(listed) => {
                let instances = self.selection.gateways.get(waypoint);
                let keys = instances
                    .map(|gateway| &gateway.pods[..])
                    .unwrap_or_default();
                let neighbours = self.neighbours;
                let mut there = keys.iter().filter_map(|key| neighbours.pod(key)).peekable();
                neighbours.has_namespace(&listed, &waypoint.namespace)
                    || there.peek().is_some()
                        && there.all(|pod| pod.ips.iter().all(|ip| neighbours.has(&listed, *ip)))
            }
        }
    }

    /// Waypoints of the pods that egress rules lead to.
    fn waypoints_ahead(&self, policies: &[NetworkPolicy]) -> BTreeSet<NamespacedName> {
        let mut ahead = self.neighbours.pods_that(|_| false);
        for policy in policies {
            for rule in rules::<NetworkPolicyEgressRule>(policy) {
                match self.neighbours.admitted(policy.namespace(), rule.peers()) {
                    Sources::Everyone => {}
                    Sources::Listed(listed) => ahead.add(&self.neighbours.taken(&listed)),
                }
            }
        }
        let ahead = self.neighbours.pods(&ahead);
        let waypoints = ahead.flat_map(|pod| {
            let members = self.memberships.get(&pod.key);
            waypoints_of(pod, members, self.selection)
        });
        waypoints.collect()
    }

    fn latest(&self, policy: &NetworkPolicy) -> NetworkPolicy {
        let remedy = self.remedies.get(&key(policy));
        remedy.map_or_else(|| policy.clone(), |remedy| remedy.after.clone())
    }

    /// Notes a door of a policy, and how the policy changes the first time it is seen.
    fn note(
        &mut self,
        policy: &NetworkPolicy,
        door: ShutDoor,
        change: impl FnOnce(&mut NetworkPolicySpec),
    ) {
        let (namespace, name) = (policy.namespace(), policy.name());
        let written = self.selection.set.network_policies.get(namespace, name);
        let remedy = self.remedies.entry(key(policy)).or_insert_with(|| Remedy {
            before: written.map(|held| held.object.clone()),
            after: policy.clone(),
            doors: Vec::new(),
        });
        let (field, consequence) = (door.field.clone(), door.consequence.clone());
        match self
            .places
            .entry((key(policy), field, door.missing, consequence))
        {
            Entry::Occupied(known) => {
                let have = known.get().and_then(|at| remedy.doors.get_mut(at));
                if let Some(have) = have {
                    have.pods.extend(door.pods);
                }
            }
            Entry::Vacant(place) => {
                change(remedy.after.spec.get_or_insert_default());
                let at = remedy.doors.len();
                let is_told = at < MAX_DOORS;
                place.insert(is_told.then_some(at));
                if is_told {
                    remedy.doors.push(door);
                }
            }
        }
    }
}

fn key(policy: &NetworkPolicy) -> NamespacedName {
    NamespacedName {
        namespace: policy.namespace().into(),
        name: policy.name().into(),
    }
}

pub(super) fn selects(policy: &NetworkPolicy, pod: &PodFacts<'_>) -> bool {
    let spec = policy.spec.as_ref();
    let selector = spec.and_then(|spec| spec.pod_selector.as_ref());
    selector.is_none_or(|selector| selectors::selects(selector, pod.labels))
}

/// Without `policyTypes` a policy is about egress if it has rules for it.
pub(super) fn is_about_egress(policy: &NetworkPolicy) -> bool {
    policy.spec.as_ref().is_some_and(|spec| {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        match types {
            [] => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
            types => types.iter().any(|word| word == "Egress"),
        }
    })
}

fn is_open(port: &NetworkPolicyPort, number: u16, protocol: &str) -> bool {
    port.protocol.as_deref().unwrap_or("TCP") == protocol
        && match &port.port {
            None => true,
            Some(IntOrString::Int(start)) => {
                (*start..=port.end_port.unwrap_or(*start)).contains(&i32::from(number))
            }
            Some(IntOrString::String(_)) => false,
        }
}

fn entry(port: u16, protocol: &str) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some(protocol.to_owned()),
        end_port: None,
    }
}

fn labelled(key: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
        match_expressions: None,
    }
}

/// The pods of a waypoint, as a peer.
fn pods_of(waypoint: &NamespacedName) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(labelled(NAMESPACE_NAME, &waypoint.namespace)),
        pod_selector: Some(labelled(labels::GATEWAY_NAME, &waypoint.name)),
        ip_block: None,
    }
}

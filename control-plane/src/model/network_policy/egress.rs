//! Egress rules, which only network plugins enforce. To them a call of the mesh is one to port 15008:
//! what opens that opens every port behind it, and behind a waypoint's all that the waypoint serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isobar_objects::{NetworkPolicy, ObjectHead as _, ObjectRef};
use isobar_types::{NamespacedName, Str, labels};
use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::classes::counted;
use super::doors::rule::{Rule as _, rules};
use super::doors::{is_about_egress, selects};
use super::index::Bits;
use super::members;
use super::ports::is_tcp;
use super::sources::{Listed, Neighbours, Sources};
use crate::model::pods::PodFacts;
use crate::model::selection::{Named, Selection, named};
use crate::model::verdict::{Severity, Verdict};
use crate::model::workloads::{Memberships, waypoints_of};

/// Condition type of the verdicts.
const CONDITION: &str = "isobar.dev/EgressRules";

/// Where waypoints lead to: what a rule says of their pods holds for all of that.
pub(super) struct Ways<'a> {
    neighbours: &'a Neighbours<'a>,
    /// Pods of all of them.
    instances: Bits,
    waypoints: BTreeMap<NamespacedName, Way>,
}

#[derive(Default)]
struct Way {
    instances: Bits,
    /// Addresses of these.
    ips: Vec<IpAddr>,
    /// The first and the last address of pods that it serves, of either kind.
    spans: [Option<(IpAddr, IpAddr)>; 2],
    /// Where pods are that it serves. Not which: those come and go.
    namespaces: BTreeSet<Str>,
    /// It serves ServiceEntries, which may be anywhere.
    leads_out: bool,
}

/// A policy's egress rules.
struct Outbound<'a> {
    policy: &'a NetworkPolicy,
    /// The first that lets more through in a tunnel than it says.
    open: Option<usize>,
    /// One of them leads everywhere.
    is_free: bool,
}

impl<'a> Ways<'a> {
    /// Reads what waypoints serve.
    pub(super) fn read(
        selection: &Selection<'_>,
        pods: &[PodFacts<'_>],
        memberships: &Memberships,
        neighbours: &'a Neighbours<'a>,
    ) -> Self {
        let mut all = Self {
            neighbours,
            instances: neighbours.pods_that(|_| false),
            waypoints: BTreeMap::new(),
        };
        if !selection
            .set
            .network_policies
            .iter()
            .any(|policy| is_about_egress(&policy.object))
        {
            return all;
        }
        for pod in pods {
            for key in waypoints_of(pod, memberships.get(&pod.key), selection) {
                if let Some(way) = all.way(&key, selection) {
                    way.namespaces.insert(pod.key.namespace.clone());
                    pod.ips.iter().for_each(|ip| way.serves(*ip));
                }
            }
        }
        for entry in selection.set.service_entries.iter() {
            let (own, namespace) = (entry.labels(), entry.namespace());
            let key = match named(own, namespace) {
                Named::Waypoint(key) => Some(key),
                Named::None => None,
                Named::Absent => selection
                    .for_namespace(namespace, own)
                    .map(|one| one.waypoint),
            };
            if let Some(way) = key.and_then(|key| all.way(&key, selection)) {
                way.leads_out = true;
            }
        }
        all
    }

    fn way(&mut self, key: &NamespacedName, selection: &Selection<'_>) -> Option<&mut Way> {
        if !self.waypoints.contains_key(key) {
            let gateway = selection.gateways.get(key)?;
            let own: BTreeSet<&NamespacedName> = gateway.pods.iter().collect();
            let instances = self.neighbours.pods_that(|pod| own.contains(&pod.key));
            self.instances.add(&instances);
            let ips = self.neighbours.pods(&instances);
            let way = Way {
                ips: ips.flat_map(|pod| pod.ips.iter().copied()).collect(),
                instances,
                ..Way::default()
            };
            self.waypoints.insert(key.clone(), way);
        }
        self.waypoints.get_mut(key)
    }

    /// True if peers take in a waypoint that leads to what they do not name.
    fn lead_further(&self, policy: &NetworkPolicy, rule: &NetworkPolicyEgressRule) -> bool {
        let listed = match self.neighbours.admitted(policy.namespace(), rule.peers()) {
            Sources::Everyone => return false,
            Sources::Listed(listed) => listed,
        };
        let taken = self.neighbours.taken(&listed);
        if listed.blocks.is_empty() && !taken.meets(&self.instances) {
            return false;
        }
        self.waypoints.values().any(|way| {
            let named = |namespace: &Str| self.neighbours.has_namespace(&listed, namespace);
            let is_said = || way.namespaces.iter().all(named) || way.is_within(&listed);
            let is_taken = taken.meets(&way.instances)
                || way.ips.iter().any(|ip| self.neighbours.has(&listed, *ip));
            is_taken && (way.leads_out || !is_said())
        })
    }
}

impl Way {
    fn serves(&mut self, ip: IpAddr) {
        let [v4, v6] = &mut self.spans;
        let span = if ip.is_ipv4() { v4 } else { v6 };
        let (first, last) = span.get_or_insert((ip, ip));
        (*first, *last) = ((*first).min(ip), (*last).max(ip));
    }

    /// True if whole networks on the list hold every pod that it serves.
    fn is_within(&self, listed: &Listed) -> bool {
        let mut spans = self.spans.iter().flatten().peekable();
        spans.peek().is_some()
            && spans.all(|(first, last)| {
                let mut whole = listed.blocks.iter().filter(|(_, except)| except.is_empty());
                whole.any(|(network, _)| network.contains(first) && network.contains(last))
            })
    }
}

/// What there is to say about policies whose egress rules say more than what holds inside tunnels.
pub(super) fn verdicts<'a>(
    selection: &'a Selection<'_>,
    namespace: &'a str,
    pods: &'a [PodFacts<'a>],
    ways: &Ways<'_>,
) -> Vec<Verdict> {
    let policies = counted(selection.set, namespace);
    let policies = policies.filter(|(policy, counts)| *counts && is_about_egress(policy));
    let outbound = policies.map(|(policy, _)| Outbound {
        policy,
        open: open_in(policy, ways),
        is_free: rules(policy).iter().any(leads_everywhere),
    });
    let outbound: Vec<Outbound<'_>> = outbound.collect();
    if outbound.iter().all(|one| one.open.is_none()) {
        return Vec::new();
    }
    let mut told: BTreeMap<ObjectRef, usize> = BTreeMap::new();
    for pod in members(selection, namespace, pods) {
        let selecting = outbound.iter().filter(|one| selects(one.policy, pod));
        let selecting: Vec<_> = selecting.collect();
        // Who may go everywhere by one of them has nothing that could be opened.
        if selecting.iter().any(|one| one.is_free) {
            continue;
        }
        for one in selecting {
            if let Some(rule) = one.open {
                told.insert(one.policy.reference(), rule);
            }
        }
    }
    told.into_iter()
        .map(|(object, rule)| verdict(object, rule))
        .collect()
}

fn verdict(object: ObjectRef, rule: usize) -> Verdict {
    let text = format!(
        "spec.egress[{rule}] opens 15008, the tunnel, and inside it egress rules are not enforced: \
         callers in the mesh reach every port of these peers, and through their waypoints whatever \
         those serve; what they must not reach has to refuse them, by ingress NetworkPolicies or \
         AuthorizationPolicies"
    );
    Verdict::fails(object, CONDITION, "EgressOpen", text).severity(Severity::Warning)
}

/// The first rule that lets more through in a tunnel than it says.
fn open_in(policy: &NetworkPolicy, ways: &Ways<'_>) -> Option<usize> {
    let mut rules = rules::<NetworkPolicyEgressRule>(policy).iter();
    rules.position(|rule| {
        rule.opens_tunnel() && (is_exceeded(rule) || ways.lead_further(policy, rule))
    })
}

fn leads_everywhere(rule: &NetworkPolicyEgressRule) -> bool {
    rule.peers().is_none_or(<[_]>::is_empty) && has_every_port(rule.ports())
}

/// True for a rule that names ports, or waypoints.
fn is_exceeded(rule: &NetworkPolicyEgressRule) -> bool {
    let selectors = rule.peers().into_iter().flatten();
    let mut selectors = selectors.filter_map(|peer| peer.pod_selector.as_ref());
    let names_waypoints = selectors.any(|selector| {
        let labels = selector.match_labels.iter().flatten().map(|(key, _)| key);
        let rules = selector.match_expressions.iter().flatten();
        let mut keys = labels.chain(rules.map(|rule| &rule.key));
        keys.any(|key| key == labels::GATEWAY_NAME)
    });
    names_waypoints || !has_every_port(rule.ports())
}

fn has_every_port(list: Option<&[NetworkPolicyPort]>) -> bool {
    let every = |port: &NetworkPolicyPort| {
        is_tcp(port)
            && match &port.port {
                None => true,
                Some(IntOrString::Int(start)) => {
                    *start <= 1 && port.end_port == Some(i32::from(u16::MAX))
                }
                Some(IntOrString::String(_)) => false,
            }
    };
    list.is_none_or(|list| list.is_empty() || list.iter().any(every))
}

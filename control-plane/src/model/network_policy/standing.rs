//! What single pods are to NetworkPolicies, as numbers: where those stay the same, or are those of
//! other pods too, nothing else follows from a pod's change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use isobar_objects::pods::probed_ports;
use isobar_objects::{ObjectHead as _, selectors};
use isobar_types::NamespacedName;
use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
};
use xxhash_rust::xxh64::xxh64;

use super::doors::own::{PART, is_part};
use super::doors::rule::{Rule, rules};
use super::doors::selects;
use super::{is_member, names_of};
use crate::model::pods::PodFacts;
use crate::model::selection::Selection;

type Waypoints = BTreeSet<NamespacedName>;

/// What a pod is to policies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// As a pod that they select: the same for all that are treated alike. None if none selects it.
    pub(crate) class: Option<u64>,
    /// As a place that egress rules may lead to, in tunnels or through waypoints.
    pub(crate) ways: Option<u64>,
}

/// How many pods there are of each standing.
#[derive(Debug, Default)]
pub(crate) struct Standings {
    /// By what [`Standing`] has.
    pub(crate) counts: HashMap<u64, usize>,
    /// Key of the policy that a class has, by the class; of one that may reach everything there is none.
    pub(crate) keys: HashMap<u64, String>,
}

impl Standings {
    pub(super) fn add(&mut self, standing: &Standing, key: Option<&String>) {
        for number in [standing.class, standing.ways].into_iter().flatten() {
            *self.counts.entry(number).or_default() += 1;
        }
        if let (Some(class), Some(key)) = (standing.class, key) {
            self.keys.entry(class).or_insert_with(|| key.clone());
        }
    }
}

impl Standing {
    /// What a pod with these waypoints is.
    pub(crate) fn of(selection: &Selection<'_>, pod: &PodFacts<'_>, waypoints: &Waypoints) -> Self {
        let (set, namespace) = (selection.set, &pod.key.namespace);
        let member = is_member(selection, pod);
        let ways = (member || !waypoints.is_empty())
            .then(|| number(&("ways", namespace, waypoints, member)));
        let policies = set.network_policies.in_namespace(namespace);
        let policies = policies.map(|policy| &policy.object);
        let selecting: Vec<_> = policies.filter(|policy| selects(policy, pod)).collect();
        if !member {
            let names = || -> Vec<&str> { selecting.iter().map(|policy| policy.name()).collect() };
            let part = is_part(pod) && !selecting.is_empty();
            let class = part.then(|| number(&("part", namespace, pod.labels.get(PART), names())));
            return Self { class, ways };
        }
        let class = (!selecting.is_empty()).then(|| {
            let names: Vec<&str> = selecting.iter().map(|policy| policy.name()).collect();
            let ports = selecting.iter().flat_map(|policy| names_of(policy));
            let ports: BTreeMap<_, _> = ports.map(|name| (name, pod.named_port(name))).collect();
            let kinds = [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|kind| pod.ips.iter().any(kind));
            let probed = probed_ports(pod.pod);
            number(&("class", namespace, names, ports, waypoints, probed, kinds))
        });
        Self { class, ways }
    }
}

/// The peers of rules that mean the pod itself, by its address, with what they would find there.
/// None if there is no such peer: what becomes of the pod is nothing to other pods' policies then.
pub(crate) fn as_peer(
    selection: &Selection<'_>,
    pod: &PodFacts<'_>,
    waypoints: &Waypoints,
) -> Option<u64> {
    let set = selection.set;
    if pod.host_network() || pod.ips.is_empty() {
        return None;
    }
    let none = BTreeMap::new();
    let namespace = set.namespaces.get("", &pod.key.namespace);
    let home = namespace.map_or(&none, |namespace| namespace.labels());
    let mut home = home.clone();
    home.insert(
        super::sources::NAMESPACE_NAME.to_owned(),
        pod.key.namespace.to_string(),
    );
    let mut meant = Vec::new();
    for policy in set.network_policies.iter() {
        let means = |peer: &NetworkPolicyPeer| {
            let selector = peer.pod_selector.as_ref();
            peer.ip_block.is_none()
                && selector.is_some_and(|selector| {
                    !selectors::is_empty(selector) && selectors::selects(selector, pod.labels)
                })
                && match &peer.namespace_selector {
                    None => *policy.namespace() == *pod.key.namespace,
                    Some(selector) => selectors::selects(selector, &home),
                }
        };
        let inbound = rules::<NetworkPolicyIngressRule>(&policy.object);
        let outbound = rules::<NetworkPolicyEgressRule>(&policy.object);
        let peers = inbound.iter().map(Rule::peers);
        let peers = peers.chain(outbound.iter().map(Rule::peers));
        for (rule, peers) in peers.enumerate() {
            if peers.into_iter().flatten().any(means) {
                meant.push((policy.namespace(), policy.name(), rule));
            }
        }
    }
    let member = || is_member(selection, pod);
    let number = || number(&("peer", &pod.ips, &meant, waypoints, member()));
    (!meant.is_empty()).then(number)
}

fn number(of: &impl std::fmt::Debug) -> u64 {
    xxh64(format!("{of:?}").as_bytes(), 0)
}

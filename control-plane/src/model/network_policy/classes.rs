//! What the ingress policies of a namespace open to pods that the same ones select.
//!
//! Everything here is bounded. Whoever may write NetworkPolicies in one namespace decides how many rules there
//! are and, by selectors over all pods of the mesh, how long the lists behind them become, and every node
//! proxy gets them.

use std::borrow::Cow;
use std::collections::HashMap;

use isobar_objects::{NetworkPolicy, ObjectSet, selectors};
use isobar_proto::istio::security as wire;
use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPort,
};

use super::deny::{Opening, Unwritable};
use super::doors::rule::{Rule, rules};
use super::is_about_ingress;
use super::ports::Ports;
use super::sources::{Neighbours, Sources};
use super::told::{Excess, Told};
use crate::model::pods::PodFacts;

/// Peers and ports that the NetworkPolicies of a namespace may name together; a rule without any counts as one.
/// Policies beyond it, in the order of their names, open nothing in tunnels.
pub(super) const MAX_PEERS: usize = 8192;
/// Bytes on the wire, about, of what is written for the pods that the same policies select: the addresses of
/// 100,000 pods (IPv6: 45,000).
pub(super) const MAX_CLASS: usize = 1 << 20;
/// The same of all of a namespace.
pub(super) const MAX_NAMESPACE: usize = 4 << 20;

/// The policies of a namespace, in the order of their names, each with whether it counts.
pub(super) fn counted<'a>(
    set: &'a ObjectSet,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a NetworkPolicy, bool)> {
    let mut left = MAX_PEERS;
    let policies = set.network_policies.in_namespace(namespace);
    policies.map(move |policy| {
        let rest = left.checked_sub(peers(&policy.object));
        left = rest.unwrap_or(left);
        (&policy.object, rest.is_some())
    })
}

fn peers(policy: &NetworkPolicy) -> usize {
    fn of<R: Rule>(policy: &NetworkPolicy) -> usize {
        let count = |rule: &R| {
            let (peers, ports) = (rule.peers(), rule.ports());
            let count = peers.map_or(0, <[_]>::len) + ports.map_or(0, <[_]>::len);
            count.max(1)
        };
        rules::<R>(policy).iter().map(count).sum()
    }
    of::<NetworkPolicyIngressRule>(policy) + of::<NetworkPolicyEgressRule>(policy)
}

/// The ingress policies of a namespace, their sources resolved.
pub(super) struct Policies<'a> {
    neighbours: &'a Neighbours<'a>,
    /// Each once, with the bytes that its list takes.
    sources: Vec<(Sources, usize)>,
    ingress: Vec<Ingress<'a>>,
}

/// An ingress policy.
pub(super) struct Ingress<'a> {
    /// As it is written.
    pub(super) policy: &'a NetworkPolicy,
    /// Its place among the ingress policies of the namespace.
    pub(super) at: usize,
    /// It is one too many: it selects pods and opens nothing.
    pub(super) is_beyond: bool,
    rules: Vec<Resolved<'a>>,
}

struct Resolved<'a> {
    source: usize,
    list: Option<&'a [NetworkPolicyPort]>,
    /// What the list opens on every pod; `None` if that depends on how the pod names its ports.
    ports: Option<Ports>,
}

/// Rules with the same sources: together they open the ports of all.
struct Group<'p> {
    source: usize,
    rules: Vec<(&'p NetworkPolicy, usize, Cow<'p, Ports>)>,
}

impl<'a> Policies<'a> {
    pub(super) fn read(
        set: &'a ObjectSet,
        namespace: &'a str,
        neighbours: &'a Neighbours<'a>,
    ) -> Self {
        let mut sources = Vec::new();
        let mut known: HashMap<Sources, usize> = HashMap::new();
        let policies = counted(set, namespace).filter(|(policy, _)| is_about_ingress(policy));
        let ingress = policies.enumerate().map(|(at, (policy, counts))| {
            let written = rules::<NetworkPolicyIngressRule>(policy);
            let resolved = written.iter().map(|rule| {
                let from = neighbours.admitted(namespace, rule.peers());
                let source = *known.entry(from).or_insert_with_key(|from| {
                    sources.push((from.clone(), neighbours.bytes(from)));
                    sources.len() - 1
                });
                Resolved {
                    source,
                    list: rule.ports(),
                    ports: Ports::fixed(rule.ports()),
                }
            });
            Ingress {
                policy,
                at,
                is_beyond: !counts,
                rules: resolved.take(if counts { usize::MAX } else { 0 }).collect(),
            }
        });
        let ingress = ingress.collect();
        Self {
            neighbours,
            sources,
            ingress,
        }
    }

    /// The policies that select a pod.
    pub(super) fn selecting(&self, pod: &PodFacts<'_>) -> Vec<&Ingress<'a>> {
        let selects = |one: &&Ingress<'_>| {
            let spec = one.policy.spec.as_ref();
            let selector = spec.and_then(|spec| spec.pod_selector.as_ref());
            selector.is_none_or(|selector| selectors::selects(selector, pod.labels))
        };
        self.ingress.iter().filter(selects).collect()
    }

    /// True if a policy lets some callers in and others not, or nobody.
    pub(super) fn limit_callers(&self, one: &Ingress<'_>) -> bool {
        let sources = one
            .rules
            .iter()
            .filter_map(|rule| self.sources.get(rule.source));
        !sources
            .map(|(sources, _)| sources)
            .any(|sources| *sources == Sources::Everyone)
    }

    /// Clauses of one class; `None` if everybody may reach everything. `room` is what is left to the
    /// namespace, in bytes.
    pub(super) fn clauses(
        &self,
        selecting: &[&Ingress<'_>],
        pod: &PodFacts<'_>,
        room: &mut usize,
        told: &mut Told,
    ) -> Option<Vec<wire::Clause>> {
        let mut all = Vec::new();
        let mut own = MAX_CLASS;
        let groups = groups(selecting, pod, told);
        let everybody = |group: &Group<'_>| {
            let (sources, _) = &self.sources[group.source];
            *sources == Sources::Everyone && group.union().is_all()
        };
        if groups.iter().any(everybody) {
            return None;
        }
        for group in &groups {
            let (sources, bytes) = &self.sources[group.source];
            for (ports, rules) in group.parts() {
                let opening = Opening {
                    sources,
                    bytes: *bytes,
                    ports: &ports,
                    neighbours: self.neighbours,
                };
                match opening.clauses(own.min(*room)) {
                    Ok((clauses, bytes)) => {
                        own -= bytes;
                        *room -= bytes;
                        all.extend(clauses);
                    }
                    Err(Unwritable) => {
                        for (policy, at, _) in rules {
                            told.excess(policy, *at, Excess::Callers);
                        }
                    }
                }
            }
        }
        Some(all)
    }
}

/// Rules of policies by their sources, in the order in which those first appear.
fn groups<'p>(
    selecting: &[&'p Ingress<'_>],
    pod: &PodFacts<'_>,
    told: &mut Told,
) -> Vec<Group<'p>> {
    let mut groups: Vec<Group<'p>> = Vec::new();
    let mut places: HashMap<usize, usize> = HashMap::new();
    for one in selecting {
        for (at, rule) in one.rules.iter().enumerate() {
            let opened = || Cow::Owned(Ports::opened(rule.list, pod));
            let ports = rule.ports.as_ref().map_or_else(opened, Cow::Borrowed);
            if let Some(numbers) = ports.excess() {
                told.excess(one.policy, at, Excess::Ports(numbers));
                continue;
            }
            let place = *places.entry(rule.source).or_insert_with(|| {
                groups.push(Group {
                    source: rule.source,
                    rules: Vec::new(),
                });
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(place) {
                group.rules.push((one.policy, at, ports));
            }
        }
    }
    groups
}

/// Ports with the rules that open them.
type Part<'g, 'p> = (
    Cow<'g, Ports>,
    &'g [(&'p NetworkPolicy, usize, Cow<'p, Ports>)],
);

impl<'p> Group<'p> {
    fn union(&self) -> Ports {
        Ports::union(self.rules.iter().map(|(_, _, ports)| &**ports))
    }

    /// What is written as one: all of it, unless that names too many ports.
    fn parts(&self) -> Vec<Part<'_, 'p>> {
        let union = self.union();
        if union.excess().is_none() {
            return vec![(Cow::Owned(union), &self.rules)];
        }
        let single = self.rules.iter().map(|rule| {
            let ports: &Ports = &rule.2;
            (Cow::Borrowed(ports), std::slice::from_ref(rule))
        });
        single.collect()
    }
}

/// Bytes that the name of a class may have: the names of all its policies, while they are few.
const MAX_NAME: usize = 400;

/// A name of bounded length that tells apart what the long one does.
pub(super) fn short(mut name: String) -> String {
    if name.len() > MAX_NAME {
        let hash = xxhash_rust::xxh64::xxh64(name.as_bytes(), 0);
        name.truncate(name.floor_char_boundary(MAX_NAME));
        name.push_str(&format!("~{hash:016x}"));
    }
    name
}

//! Ingress NetworkPolicies inside the tunnel.
//!
//! A network plugin sees every call of the mesh on port 15008, so a policy that opens 15008 opens
//! every port of the pod to the mesh. Node proxies therefore get the same policies once more, as
//! one DENY for each class of pods: callers with an identity that no ingress rule lets in. Never an
//! ALLOW (those are OR-ed with the user's) and never one DENY a policy (policies add up, DENYs
//! intersect).
//!
//! Port 15008 in a list is the tunnel's door and no port behind it: a rule that opens nothing else
//! lets nobody any further. Callers without an identity stay with the network plugin, and the pod's
//! waypoints pass: they apply the same policies to their callers.
//!
//! Egress rules are not carried: which of them the tunnel exceeds is told.

mod classes;
mod deny;
mod doors;
mod egress;
mod index;
mod plugin;
mod ports;
mod sources;
mod standing;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use isobar_objects::enrolment;
use isobar_objects::{NetworkPolicy, ObjectHead, ObjectSet};
use isobar_proto::istio::security as wire;
use isobar_types::{NamespacedName, converted, labels};
use k8s_openapi::api::networking::v1::{NetworkPolicyIngressRule, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pods::PodFacts;
use super::selection::Selection;
use super::settings::PortRules;
use super::verdict::{Severity, Verdict};
use super::workloads::{Memberships, waypoints_of};
use classes::{Ingress, MAX_NAMESPACE, Policies, short};
pub use doors::{Missing, Remedy, ShutDoor};
use egress::Ways;
pub use plugin::{Dropped, End, dropped};
use ports::is_tcp;
use sources::{Neighbours, are_probes};
pub(crate) use standing::{Standing, Standings, as_peer};
use told::Told;

/// Condition type of the verdicts.
const CONDITION: &str = "isobar.dev/PortRules";

/// The policies made, and which pod has which.
#[derive(Debug, Default)]
pub(crate) struct NetworkPolicies {
    /// Messages.
    pub(crate) wire: Vec<wire::Authorization>,
    /// What they shut that the mesh needs open.
    pub(crate) remedies: Vec<Remedy>,
    /// What pods are to them.
    pub(crate) standings: Standings,
    keys: BTreeMap<NamespacedName, String>,
}

/// Pods that share a policy.
struct Class<'p> {
    selecting: Vec<&'p Ingress<'p>>,
    /// One of them.
    pod: &'p PodFacts<'p>,
    waypoints: BTreeSet<NamespacedName>,
}

impl NetworkPolicies {
    /// Converts the policies that select pods of the mesh; tells about each of them.
    pub(crate) fn read(
        selection: &Selection<'_>,
        pods: &[PodFacts<'_>],
        memberships: &Memberships,
        verdicts: &mut Vec<Verdict>,
    ) -> Self {
        let (set, settings) = (selection.set, selection.settings);
        let mut all = Self::default();
        let modes = modes(set, settings.port_rules, verdicts);
        if set.network_policies.is_empty() {
            return all;
        }
        let neighbours = Neighbours::read(set, pods);
        all.remedies = doors::shut_doors(selection, pods, memberships, &neighbours, verdicts);
        verdicts.extend(doors::verdicts(&all.remedies));
        let ways = Ways::read(selection, pods, memberships, &neighbours);
        let mut told = Told::default();
        // Policies that let everybody in everywhere.
        let mut open = BTreeSet::new();
        let namespaces: BTreeSet<&str> =
            set.network_policies.iter().map(|p| p.namespace()).collect();
        for namespace in namespaces {
            verdicts.extend(egress::verdicts(selection, namespace, pods, &ways));
            let mode = modes.get(namespace).copied().unwrap_or(settings.port_rules);
            let policies = Policies::read(set, namespace, &neighbours);
            let classes = all.classes(
                selection,
                (namespace, mode),
                pods,
                memberships,
                &policies,
                &mut told,
            );
            let mut room = MAX_NAMESPACE;
            for (name, class) in &classes {
                tell_of_others(&policies, class, selection, &mut told);
                match policies.clauses(&class.selecting, class.pod, &mut room, &mut told) {
                    Some(clauses) => {
                        let passing = principals(&class.waypoints, selection);
                        let policy = deny::policy(namespace, name, &passing, clauses, mode);
                        all.wire.push(policy);
                    }
                    None => {
                        open.insert(format!("{namespace}/{name}"));
                    }
                }
            }
        }
        all.keys.retain(|_, key| !open.contains(key));
        verdicts.extend(told.verdicts());
        for pod in pods {
            let waypoints = waypoints_of(pod, memberships.get(&pod.key), selection);
            let standing = Standing::of(selection, pod, &waypoints);
            all.standings.add(&standing, all.keys.get(&pod.key));
        }
        all
    }

    /// Pods of a namespace by the name of the policy that they share, which each of them gets the key of.
    fn classes<'p>(
        &mut self,
        selection: &Selection<'_>,
        (namespace, mode): (&'p str, PortRules),
        pods: &'p [PodFacts<'p>],
        memberships: &Memberships,
        policies: &'p Policies<'p>,
        told: &mut Told,
    ) -> BTreeMap<String, Class<'p>> {
        let mut classes: BTreeMap<String, Class<'p>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let here = pods.iter().filter(|pod| *pod.key.namespace == *namespace);
        for pod in here.filter(|pod| is_member(selection, pod)) {
            let selecting = policies.selecting(pod);
            for one in &selecting {
                if seen.insert(one.at) {
                    told.selects(
                        one.policy,
                        mode,
                        opens_only_tunnel(one.policy),
                        one.is_beyond,
                    );
                }
            }
            if selecting.is_empty() || mode == PortRules::Off {
                continue;
            }
            let waypoints = waypoints_of(pod, memberships.get(&pod.key), selection);
            let name = class_name(&selecting, pod, &waypoints);
            self.keys
                .insert(pod.key.clone(), format!("{namespace}/{name}"));
            classes.entry(name).or_insert_with(|| Class {
                selecting,
                pod,
                waypoints,
            });
        }
        classes
    }

    /// The key of the policy that applies to a pod, if one does.
    pub(crate) fn key_for(&self, pod: &PodFacts<'_>) -> Option<String> {
        self.keys.get(&pod.key).cloned()
    }
}

/// A waypoint that somebody else runs passes node proxies like every waypoint of the pods, and may not ask
/// for its callers.
fn tell_of_others(
    policies: &Policies<'_>,
    class: &Class<'_>,
    selection: &Selection<'_>,
    told: &mut Told,
) {
    let is_foreign = |key: &&NamespacedName| {
        let gateway = selection.gateways.get(key);
        gateway.is_some_and(|gateway| gateway.foreign.is_some())
    };
    let Some(waypoint) = class.waypoints.iter().find(is_foreign) else {
        return;
    };
    for one in class
        .selecting
        .iter()
        .filter(|one| policies.limit_callers(one))
    {
        told.passes(one.policy, waypoint);
    }
}

/// What each namespace asks for; a word that is not known asks for nothing.
fn modes<'a>(
    set: &'a ObjectSet,
    default: PortRules,
    verdicts: &mut Vec<Verdict>,
) -> BTreeMap<&'a str, PortRules> {
    let mut modes = BTreeMap::new();
    for namespace in set.namespaces.iter() {
        let Some(word) = namespace.label(labels::PORT_RULES) else {
            continue;
        };
        if let Some(mode) = PortRules::parse(word) {
            modes.insert(namespace.name(), mode);
            continue;
        }
        let text = format!(
            "label {}={word:?} is none of off, audit, enforce; it is {default:?} here, as everywhere",
            labels::PORT_RULES
        );
        let verdict = Verdict::fails(namespace.reference(), CONDITION, "UnsupportedValue", text);
        verdicts.push(verdict.severity(Severity::Warning));
    }
    modes
}

/// Pods of a namespace that take tunnels through a node proxy, or are about to: the policy has to
/// be there before the first tunnel.
fn members<'a>(
    selection: &'a Selection<'_>,
    namespace: &'a str,
    pods: &'a [PodFacts<'a>],
) -> impl Iterator<Item = &'a PodFacts<'a>> {
    pods.iter()
        .filter(move |pod| *pod.key.namespace == *namespace)
        .filter(move |pod| is_member(selection, pod))
}

fn is_member(selection: &Selection<'_>, pod: &PodFacts<'_>) -> bool {
    let namespace = selection.set.namespaces.get("", &pod.key.namespace);
    let namespace = namespace.map(|held| &held.object);
    let rules = &selection.settings.enrolment;
    pod.redirected() || enrolment::decide(pod.pod, namespace, rules).is_enrolled()
}

/// Without `policyTypes` every policy is about ingress.
fn is_about_ingress(policy: &NetworkPolicy) -> bool {
    policy.spec.as_ref().is_some_and(|spec| {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        types.is_empty() || types.iter().any(|word| word == "Ingress")
    })
}

fn rules_of(policy: &NetworkPolicy) -> impl Iterator<Item = &NetworkPolicyIngressRule> {
    policy.spec.iter().flat_map(|s| &s.ingress).flatten()
}

/// True if the rules of a policy open 15008 and nothing else that a mesh could carry.
fn opens_only_tunnel(policy: &NetworkPolicy) -> bool {
    let tcp = |ports: &[NetworkPolicyPort]| {
        let mut numbers = ports.iter().filter(|port| is_tcp(port)).peekable();
        numbers.peek().is_some()
            && numbers.all(|port| {
                let hbone = i32::from(isobar_types::ports::HBONE);
                port.port == Some(IntOrString::Int(hbone))
                    && port.end_port.is_none_or(|end| end == hbone)
            })
    };
    let mut rules = rules_of(policy)
        .filter(|rule| !are_probes(rule.from.as_deref()))
        .peekable();
    rules.peek().is_some() && rules.all(|rule| rule.ports.as_deref().is_some_and(tcp))
}

/// Named ports that the rules of a policy mention.
fn names_of(policy: &NetworkPolicy) -> impl Iterator<Item = &str> {
    let ports = rules_of(policy).flat_map(|rule| &rule.ports).flatten();
    ports
        .filter(|port| is_tcp(port))
        .filter_map(|port| match &port.port {
            Some(IntOrString::String(name)) => Some(name.as_str()),
            _ => None,
        })
}

/// Pods that the same policies select, for which named ports mean the same numbers, and which have
/// the same waypoints, share one policy. It keeps its name while the policies' text or their callers
/// change.
fn class_name(
    selecting: &[&Ingress<'_>],
    pod: &PodFacts<'_>,
    waypoints: &BTreeSet<NamespacedName>,
) -> String {
    let policies: Vec<&str> = selecting.iter().map(|one| one.policy.name()).collect();
    let names: BTreeSet<&str> = selecting
        .iter()
        .flat_map(|one| names_of(one.policy))
        .collect();
    let mut name = format!("{}{}", converted::NETWORK_POLICY, policies.join("+"));
    for port in names {
        let number = pod.named_port(port).unwrap_or_default();
        let _ = write!(name, ",{port}={number}");
    }
    for (index, waypoint) in waypoints.iter().enumerate() {
        let sign = if index == 0 { '@' } else { '+' };
        let _ = write!(name, "{sign}{}.{}", waypoint.namespace, waypoint.name);
    }
    short(name)
}

/// Identities of waypoints: they apply the same policies to their own callers.
fn principals(waypoints: &BTreeSet<NamespacedName>, selection: &Selection<'_>) -> BTreeSet<String> {
    waypoints
        .iter()
        .filter_map(|key| selection.gateways.get(key))
        .flat_map(|gateway| selection.settings.principals(&gateway.identity))
        .collect()
}

#[cfg(test)]
mod tests;

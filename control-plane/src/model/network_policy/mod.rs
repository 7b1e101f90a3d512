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

mod deny;
mod doors;
mod egress;
mod plugin;
mod ports;
mod sources;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use isobar_objects::enrolment;
use isobar_objects::{NetworkPolicy, ObjectHead, ObjectRef, ObjectSet, selectors};
use isobar_proto::istio::security as wire;
use isobar_types::{NamespacedName, converted, labels};
use k8s_openapi::api::networking::v1::{NetworkPolicyIngressRule, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pods::PodFacts;
use super::selection::Selection;
use super::settings::PortRules;
use super::verdict::{Severity, Verdict};
use super::workloads::{Memberships, waypoints_of};
use deny::{Opening, Unwritable};
pub use doors::{Missing, Remedy, ShutDoor};
pub use plugin::{Dropped, End, dropped};
use ports::{MAX_PORTS, Ports, is_tcp};
use sources::{Neighbours, Sources, are_probes};
pub(crate) use standing::{Standing, Standings, as_peer};

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

/// An ingress policy, its sources resolved.
struct Ingress<'a> {
    policy: &'a NetworkPolicy,
    rules: Vec<(Sources, Option<&'a [NetworkPolicyPort]>)>,
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
        all.remedies = doors::shut_doors(selection, pods, memberships);
        verdicts.extend(doors::verdicts(&all.remedies));
        let neighbours = Neighbours::read(set, pods);
        let mut told = Told::default();
        let namespaces: BTreeSet<&str> =
            set.network_policies.iter().map(|p| p.namespace()).collect();
        for namespace in namespaces {
            verdicts.extend(egress::verdicts(selection, namespace, pods));
            let mode = modes.get(namespace).copied().unwrap_or(settings.port_rules);
            let policies = ingress(set, namespace, &neighbours);
            let mut classes: BTreeMap<String, Option<wire::Authorization>> = BTreeMap::new();
            for pod in members(selection, namespace, pods) {
                let selecting: Vec<&Ingress<'_>> =
                    policies.iter().filter(|p| p.selects(pod)).collect();
                if selecting.is_empty() {
                    continue;
                }
                told.pod(&selecting, mode);
                if mode == PortRules::Off {
                    continue;
                }
                let waypoints = waypoints_of(pod, memberships.get(&pod.key), selection);
                let name = class_name(&selecting, pod, &waypoints);
                let key = format!("{namespace}/{name}");
                let policy = classes.entry(name.clone()).or_insert_with(|| {
                    let clauses = clauses(&selecting, pod, &mut told)?;
                    let passing = principals(&waypoints, selection);
                    Some(deny::policy(namespace, &name, &passing, clauses, mode))
                });
                if policy.is_some() {
                    all.keys.insert(pod.key.clone(), key);
                }
            }
            all.wire.extend(classes.into_values().flatten());
        }
        verdicts.extend(told.verdicts());
        for pod in pods {
            let waypoints = waypoints_of(pod, memberships.get(&pod.key), selection);
            let standing = Standing::of(selection, pod, &waypoints);
            all.standings.add(&standing, all.keys.get(&pod.key));
        }
        all
    }

    /// The key of the policy that applies to a pod, if one does.
    pub(crate) fn key_for(&self, pod: &PodFacts<'_>) -> Option<String> {
        self.keys.get(&pod.key).cloned()
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

fn ingress<'a>(
    set: &'a ObjectSet,
    namespace: &'a str,
    neighbours: &Neighbours<'_>,
) -> Vec<Ingress<'a>> {
    set.network_policies
        .in_namespace(namespace)
        .filter(|policy| is_about_ingress(policy))
        .map(|policy| Ingress {
            policy: &policy.object,
            rules: rules_of(&policy.object)
                .map(|rule| {
                    let from = neighbours.admitted(namespace, rule.from.as_deref());
                    (from, rule.ports.as_deref())
                })
                .collect(),
        })
        .collect()
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

impl Ingress<'_> {
    fn selects(&self, pod: &PodFacts<'_>) -> bool {
        let selector = self
            .policy
            .spec
            .as_ref()
            .and_then(|s| s.pod_selector.as_ref());
        selector.is_none_or(|selector| selectors::selects(selector, pod.labels))
    }

    /// True if its rules open 15008 and nothing else that a mesh could carry.
    fn opens_only_tunnel(&self) -> bool {
        let tcp = |ports: &[NetworkPolicyPort]| {
            let mut numbers = ports.iter().filter(|port| is_tcp(port)).peekable();
            numbers.peek().is_some()
                && numbers.all(|port| {
                    let hbone = i32::from(isobar_types::ports::HBONE);
                    port.port == Some(IntOrString::Int(hbone))
                        && port.end_port.is_none_or(|end| end == hbone)
                })
        };
        let mut rules = rules_of(self.policy)
            .filter(|rule| !are_probes(rule.from.as_deref()))
            .peekable();
        rules.peek().is_some() && rules.all(|rule| rule.ports.as_deref().is_some_and(tcp))
    }
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
    name
}

/// Identities of waypoints: they apply the same policies to their own callers.
fn principals(waypoints: &BTreeSet<NamespacedName>, selection: &Selection<'_>) -> BTreeSet<String> {
    waypoints
        .iter()
        .filter_map(|key| selection.gateways.get(key))
        .flat_map(|gateway| selection.settings.principals(&gateway.identity))
        .collect()
}

/// Clauses of one class; `None` if everybody may reach everything.
fn clauses(
    selecting: &[&Ingress<'_>],
    pod: &PodFacts<'_>,
    told: &mut Told,
) -> Option<Vec<wire::Clause>> {
    let mut all = Vec::new();
    for one in selecting {
        for (index, (sources, ports)) in one.rules.iter().enumerate() {
            let opening = Opening {
                sources,
                ports: &Ports::opened(*ports, pod),
            };
            match opening.clauses() {
                Ok(Some(clauses)) => all.extend(clauses),
                Ok(None) => return None,
                Err(Unwritable { numbers }) => told.too_many(one.policy, index, numbers),
            }
        }
    }
    Some(all)
}

/// What there is to say about policies, collected over pods.
#[derive(Default)]
struct Told {
    policies: BTreeMap<ObjectRef, Remarks>,
}

struct Remarks {
    mode: PortRules,
    only_tunnel: bool,
    too_many: BTreeMap<usize, usize>,
}

impl Told {
    fn pod(&mut self, selecting: &[&Ingress<'_>], mode: PortRules) {
        for one in selecting {
            let entry = self.policies.entry(one.policy.reference());
            entry.or_insert_with(|| Remarks {
                mode,
                only_tunnel: one.opens_only_tunnel(),
                too_many: BTreeMap::new(),
            });
        }
    }

    fn too_many(&mut self, policy: &NetworkPolicy, rule: usize, numbers: usize) {
        if let Some(remarks) = self.policies.get_mut(&policy.reference()) {
            remarks.too_many.insert(rule, numbers);
        }
    }

    fn verdicts(self) -> impl Iterator<Item = Verdict> {
        self.policies
            .into_iter()
            .map(|(object, remarks)| remarks.verdict(object))
    }
}

impl Remarks {
    fn verdict(self, object: ObjectRef) -> Verdict {
        let warn = |reason, text: &str| {
            Verdict::fails(object.clone(), CONDITION, reason, text).severity(Severity::Warning)
        };
        if let Some((rule, numbers)) = self.too_many.first_key_value() {
            let text = format!(
                "spec.ingress[{rule}] names {numbers} ports, at most {MAX_PORTS} can be enforced \
                 inside tunnels; the rule opens nothing to callers in the mesh: narrow endPort"
            );
            return Verdict::fails(object, CONDITION, "TooManyPorts", text);
        }
        if self.only_tunnel && self.mode != PortRules::Off {
            return warn(
                "OnlyTunnelPort",
                "it opens 15008, the tunnel, and no port behind it: name the application's ports \
                 beside 15008 to let callers in the mesh reach them",
            );
        }
        let (reason, text) = match self.mode {
            PortRules::Enforce => ("Enforced", "node proxies enforce it inside tunnels"),
            PortRules::Audit => (
                "Audited",
                "node proxies log what it forbids inside tunnels, and let it pass",
            ),
            PortRules::Off => {
                return warn(
                    "NotEnforced",
                    "inside tunnels it is not enforced: port 15008 opens every port of the pod to \
                     callers in the mesh",
                );
            }
        };
        Verdict::holds(object, CONDITION, reason, text)
    }
}

#[cfg(test)]
mod tests;

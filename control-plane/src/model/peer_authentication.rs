//! PeerAuthentication as L4 policies: plaintext is denied by denying peers without an identity.

use std::collections::BTreeMap;

use isobar_objects::istio::{MutualTlsMode, PeerAuthentication};
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::istio::security as wire;

use super::pods::PodFacts;
use super::verdict::{Severity, Verdict};

/// Condition type for what node proxies do with it.
const CONDITION: &str = "ZtunnelAccepted";
/// Name of the policy that denies all plaintext, in the root namespace.
const STRICT_NAME: &str = "istio_converted_static_strict";
/// Prefix of the name of a policy made from a workload-level object.
const CONVERTED_PREFIX: &str = "converted_peer_authentication_";

/// The levels of PeerAuthentication, ready to be asked about pods.
pub(crate) struct PeerAuthentications<'a> {
    root: String,
    mesh: MutualTlsMode,
    namespaces: BTreeMap<&'a str, MutualTlsMode>,
    workloads: BTreeMap<&'a str, Vec<&'a PeerAuthentication>>,
    any: bool,
}

/// What becomes of one object; `levels` has the oldest of each namespace so far.
fn verdict<'a>(
    object: &'a PeerAuthentication,
    root: &str,
    levels: &mut BTreeMap<&'a str, &'a PeerAuthentication>,
) -> Verdict {
    let reference = object.reference();
    let ignored = |reason, text: String| {
        Verdict::fails(reference.clone(), CONDITION, reason, text).severity(Severity::Warning)
    };
    if selector(object).is_some() {
        if object.namespace() == root {
            let text = "selectors do not count in the root namespace: nothing of it is in force; put \
                        it into the namespace of its workloads";
            return ignored("UnsupportedValue", text.to_owned());
        }
    } else if let Some(older) = levels.get(object.namespace()) {
        let text = format!("{} is older, and counts instead", older.reference());
        return ignored("Conflict", text);
    } else {
        levels.insert(object.namespace(), object);
    }
    Verdict::holds(reference, CONDITION, "Accepted", "enforced by node proxies")
}

impl<'a> PeerAuthentications<'a> {
    /// The same, telling which objects count.
    pub(crate) fn tell(set: &'a ObjectSet, root: &str, verdicts: &mut Vec<Verdict>) -> Self {
        let all = set.peer_authentications.iter();
        let mut sorted: Vec<&PeerAuthentication> = all.map(|held| &held.object).collect();
        sorted.sort_by_key(|object| (object.created(), object.name().to_owned()));
        let mut levels: BTreeMap<&str, &PeerAuthentication> = BTreeMap::new();
        for object in sorted {
            verdicts.push(verdict(object, root, &mut levels));
        }
        Self::read(set, root)
    }

    /// Reads all objects; where several are of one level the oldest counts.
    pub(crate) fn read(set: &'a ObjectSet, root: &str) -> Self {
        let mut sorted: Vec<&PeerAuthentication> = set
            .peer_authentications
            .iter()
            .map(|held| &held.object)
            .collect();
        sorted.sort_by_key(|object| (object.created(), object.name().to_owned()));
        let mut all = Self {
            root: root.to_owned(),
            mesh: MutualTlsMode::Unset,
            namespaces: BTreeMap::new(),
            workloads: BTreeMap::new(),
            any: !sorted.is_empty(),
        };
        let mut mesh = None;
        for object in sorted {
            let selective = selector(object).is_some();
            match (object.namespace() == root, selective) {
                (true, true) => {}
                (true, false) => mesh = mesh.or(Some(mode(object))),
                (false, true) => all
                    .workloads
                    .entry(object.namespace())
                    .or_default()
                    .push(object),
                (false, false) => {
                    all.namespaces
                        .entry(object.namespace())
                        .or_insert_with(|| mode(object));
                }
            }
        }
        all.mesh = mesh.unwrap_or_default();
        all
    }

    /// The policies themselves.
    pub(crate) fn policies(&self) -> Vec<wire::Authorization> {
        let mut policies = Vec::new();
        if self.any {
            policies.push(policy(
                &self.root,
                STRICT_NAME,
                vec![rule(vec![plaintext()])],
            ));
        }
        for object in self.workloads.values().flatten() {
            if let Some(rules) = self.converted(object) {
                let name = format!("{CONVERTED_PREFIX}{}", object.name());
                policies.push(policy(object.namespace(), &name, rules));
            }
        }
        policies
    }

    /// The key of the policy that applies to a pod, if plaintext is denied to it anywhere.
    pub(crate) fn key_for(&self, pod: &PodFacts<'_>) -> Option<String> {
        let namespace = &*pod.key.namespace;
        let own = self.workloads.get(namespace).and_then(|all| {
            all.iter()
                .find(|object| selector(object).is_some_and(|s| s.selects(pod.labels)))
        });
        if let Some(object) = own
            && self.converted(object).is_some()
        {
            return Some(format!("{namespace}/{CONVERTED_PREFIX}{}", object.name()));
        }
        let strict = match own {
            Some(object) => self.effective(object) == MutualTlsMode::Strict,
            None => self.inherited(namespace) == MutualTlsMode::Strict,
        };
        strict.then(|| format!("{}/{STRICT_NAME}", self.root))
    }

    fn inherited(&self, namespace: &str) -> MutualTlsMode {
        let own = self.namespaces.get(namespace).copied().unwrap_or_default();
        match (own, self.mesh) {
            (MutualTlsMode::Unset, MutualTlsMode::Unset) => MutualTlsMode::Permissive,
            (MutualTlsMode::Unset, mesh) => mesh,
            (own, _) => own,
        }
    }

    fn effective(&self, object: &PeerAuthentication) -> MutualTlsMode {
        match mode(object) {
            MutualTlsMode::Unset => self.inherited(object.namespace()),
            own => own,
        }
    }

    /// Rules of a workload-level object whose ports differ from its mode. Merged into one policy:
    /// beside the static one an exception would not help, because any matching DENY wins.
    fn converted(&self, object: &PeerAuthentication) -> Option<Vec<wire::Rule>> {
        let ports = |wanted: &[MutualTlsMode]| -> Vec<u32> {
            object
                .spec
                .port_level_mtls
                .iter()
                .filter(|(_, tls)| wanted.contains(&tls.mode))
                .filter_map(|(port, _)| port.parse::<u16>().ok())
                .map(u32::from)
                .collect()
        };
        if self.effective(object) == MutualTlsMode::Strict {
            let exempt = ports(&[MutualTlsMode::Permissive, MutualTlsMode::Disable]);
            let clauses = exempt.iter().map(|port| wire::Match {
                not_destination_ports: vec![*port],
                ..wire::Match::default()
            });
            let all = std::iter::once(plaintext()).chain(clauses).collect();
            (!exempt.is_empty()).then(|| vec![rule(all)])
        } else {
            let strict = ports(&[MutualTlsMode::Strict]);
            let rules = strict.iter().map(|port| {
                rule(vec![wire::Match {
                    destination_ports: vec![*port],
                    ..plaintext()
                }])
            });
            (!strict.is_empty()).then(|| rules.collect())
        }
    }
}

/// True if anything is refused by it.
pub(super) fn refuses(object: &PeerAuthentication) -> bool {
    let mut ports = object.spec.port_level_mtls.values();
    mode(object) == MutualTlsMode::Strict || ports.any(|tls| tls.mode == MutualTlsMode::Strict)
}

/// Names of those of the pod's namespace whose selector takes it.
pub(super) fn selecting(set: &ObjectSet, pod: &PodFacts<'_>) -> Vec<String> {
    let all = set.peer_authentications.in_namespace(&pod.key.namespace);
    let selecting = all.filter(|held| selector(held).is_some_and(|s| s.selects(pod.labels)));
    selecting.map(|held| held.name().to_owned()).collect()
}

pub(super) fn selector(
    object: &PeerAuthentication,
) -> Option<&isobar_objects::istio::WorkloadSelector> {
    object
        .spec
        .selector
        .as_ref()
        .filter(|selector| !selector.match_labels.is_empty())
}

fn mode(object: &PeerAuthentication) -> MutualTlsMode {
    object
        .spec
        .mtls
        .as_ref()
        .map(|tls| tls.mode)
        .unwrap_or_default()
}

/// Matches a peer that shows no identity.
fn plaintext() -> wire::Match {
    wire::Match {
        not_principals: vec![wire::StringMatch {
            match_type: Some(wire::string_match::MatchType::Presence(())),
        }],
        ..wire::Match::default()
    }
}

/// All matches must hold: one clause each.
fn rule(matches: Vec<wire::Match>) -> wire::Rule {
    wire::Rule {
        clauses: matches
            .into_iter()
            .map(|one| wire::Clause { matches: vec![one] })
            .collect(),
    }
}

fn policy(namespace: &str, name: &str, rules: Vec<wire::Rule>) -> wire::Authorization {
    wire::Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: wire::Scope::WorkloadSelector.into(),
        action: wire::Action::Deny.into(),
        rules,
        ..wire::Authorization::default()
    }
}

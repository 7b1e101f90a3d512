//! What there is to say about policies.

use std::collections::BTreeMap;

use isobar_objects::{NetworkPolicy, ObjectHead as _, ObjectRef};

use isobar_types::NamespacedName;

use super::CONDITION;
use super::classes::{MAX_CLASS, MAX_NAMESPACE, MAX_PEERS};
use super::ports::MAX_PORTS;
use crate::model::settings::PortRules;
use crate::model::verdict::{Severity, Verdict};

/// Why a rule opens nothing in tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// It names so many ports.
    Ports(usize),
    /// Its callers and ports, written down, are too long.
    Callers,
}

/// What there is to say, collected over pods.
#[derive(Default)]
pub(super) struct Told {
    policies: BTreeMap<ObjectRef, Remarks>,
}

struct Remarks {
    mode: PortRules,
    only_tunnel: bool,
    is_beyond: bool,
    foreign: Option<NamespacedName>,
    excess: BTreeMap<usize, Excess>,
}

impl Told {
    /// A policy selects pods.
    pub(super) fn selects(
        &mut self,
        policy: &NetworkPolicy,
        mode: PortRules,
        only_tunnel: bool,
        is_beyond: bool,
    ) {
        let remarks = Remarks {
            mode,
            only_tunnel,
            is_beyond,
            foreign: None,
            excess: BTreeMap::new(),
        };
        self.policies.entry(policy.reference()).or_insert(remarks);
    }

    /// A rule opens nothing.
    pub(super) fn excess(&mut self, policy: &NetworkPolicy, rule: usize, excess: Excess) {
        if let Some(remarks) = self.policies.get_mut(&policy.reference()) {
            remarks.excess.insert(rule, excess);
        }
    }

    /// Pods that a policy selects have a waypoint that somebody else runs.
    pub(super) fn passes(&mut self, policy: &NetworkPolicy, waypoint: &NamespacedName) {
        if let Some(remarks) = self.policies.get_mut(&policy.reference()) {
            remarks.foreign.get_or_insert_with(|| waypoint.clone());
        }
    }

    /// What there is to say of each.
    pub(super) fn verdicts(self) -> impl Iterator<Item = Verdict> {
        self.policies
            .into_iter()
            .map(|(object, remarks)| remarks.verdict(object))
    }
}

/// What a waypoint of somebody else's makes of `from`.
pub(super) fn through_foreign(waypoint: &NamespacedName) -> String {
    format!(
        "the waypoint {waypoint} is somebody else's: node proxies let it pass, and whether it keeps `from` for \
         those who call through it is not known"
    )
}

const FOREIGN_WAY_OUT: &str = "ask who runs it, bind the pods and their Services to a waypoint of class \
     isobar-waypoint, or write an AuthorizationPolicy that the waypoint keeps";

impl Excess {
    fn verdict(self, object: ObjectRef, rule: usize) -> Verdict {
        match self {
            Self::Ports(numbers) => {
                let text = format!(
                    "spec.ingress[{rule}] names {numbers} ports, at most {MAX_PORTS} can be enforced \
                     inside tunnels; the rule opens nothing to callers in the mesh: narrow endPort"
                );
                Verdict::fails(object, CONDITION, "TooManyPorts", text)
            }
            Self::Callers => {
                let text = format!(
                    "spec.ingress[{rule}] opens nothing to callers in the mesh: with it, callers and ports in \
                     the policies of one pod take more than {} MiB inside tunnels, or those of the namespace \
                     more than {}; let callers in by namespaceSelector alone or ipBlock instead of podSelector, \
                     or with fewer rules",
                    MAX_CLASS >> 20,
                    MAX_NAMESPACE >> 20,
                );
                Verdict::fails(object, CONDITION, "TooManyPeers", text)
            }
        }
    }
}

impl Remarks {
    fn verdict(self, object: ObjectRef) -> Verdict {
        let warn = |reason, text: &str| {
            Verdict::fails(object.clone(), CONDITION, reason, text).severity(Severity::Warning)
        };
        if self.is_beyond && self.mode != PortRules::Off {
            let text = format!(
                "it opens nothing to callers in the mesh: the NetworkPolicies of a namespace name at most \
                 {MAX_PEERS} peers and ports together, and those with names before this one's take them; \
                 write fewer rules"
            );
            return Verdict::fails(object, CONDITION, "TooManyPeers", text);
        }
        if let Some((rule, excess)) = self.excess.first_key_value() {
            return excess.verdict(object, *rule);
        }
        if self.only_tunnel && self.mode != PortRules::Off {
            return warn(
                "OnlyTunnelPort",
                "it opens 15008, the tunnel, and no port behind it: name the application's ports \
                 beside 15008 to let callers in the mesh reach them",
            );
        }
        if let Some(waypoint) = self.foreign.filter(|_| self.mode != PortRules::Off) {
            let text = format!("{}: {FOREIGN_WAY_OUT}", through_foreign(&waypoint));
            return warn("ForeignWaypoint", &text);
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

//! Waypoints bound to service accounts: when a binding is in force, and that it stays in force.

use std::collections::BTreeMap;

use isobar_objects::{ObjectHead, ObjectSet, ServiceAccount};
use isobar_types::{NamespacedName, Str, labels};

use super::gateways::Gateways;
use super::selection::fails_open;
use super::verdict::{Severity, Verdict};

/// What an account says about the waypoint of the workloads that run as it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AccountBinding {
    /// Opted out: no waypoint, not the namespace's either.
    OptedOut,
    /// In force, whatever has become of the waypoint since.
    Bound {
        /// Gateway key.
        waypoint: NamespacedName,
        /// Traffic passes while the waypoint is away.
        fail_open: bool,
    },
}

/// Bindings of all accounts, and what has to be remembered about them.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    /// In force, by account.
    pub(crate) accounts: BTreeMap<NamespacedName, AccountBinding>,
    /// Value of the latch annotation each labelled or latched account has to carry.
    pub(crate) latches: BTreeMap<NamespacedName, Option<Str>>,
    /// What to tell about accounts.
    pub(crate) verdicts: Vec<Verdict>,
}

/// Condition type of the verdicts.
pub(crate) const BOUND: &str = "istio.io/WaypointBound";

impl Bindings {
    /// Reads every account.
    pub(crate) fn read(set: &ObjectSet, gateways: &Gateways<'_>) -> Self {
        let mut bindings = Self::default();
        for account in set.service_accounts.iter() {
            bindings.add(account, gateways);
        }
        bindings
    }

    /// The binding of an account, if one is in force.
    pub(crate) fn of(&self, namespace: &str, account: &str) -> Option<&AccountBinding> {
        self.accounts.get(&NamespacedName {
            namespace: namespace.into(),
            name: account.into(),
        })
    }

    fn add(&mut self, account: &ServiceAccount, gateways: &Gateways<'_>) {
        let key = NamespacedName {
            namespace: account.namespace().into(),
            name: account.name().into(),
        };
        let latched = account.annotation(labels::WAYPOINT_LATCHED);
        let named = account
            .label(labels::USE_WAYPOINT)
            .filter(|n| !n.is_empty());
        let Some(named) = named else {
            if latched.is_some() {
                self.latches.insert(key, None);
            }
            return;
        };
        if named == "none" {
            self.latches.insert(key.clone(), None);
            self.accounts.insert(key, AccountBinding::OptedOut);
            return;
        }
        let wanted = NamespacedName {
            namespace: key.namespace.clone(),
            name: named.into(),
        };
        let (taken, verdict) = takes_force(account, &wanted, gateways);
        let name = if taken { Some(named) } else { latched };
        self.verdicts.push(verdict);
        self.latches.insert(key.clone(), name.map(Into::into));
        if let Some(name) = name {
            let binding = AccountBinding::Bound {
                waypoint: NamespacedName {
                    namespace: key.namespace.clone(),
                    name: name.into(),
                },
                fail_open: fails_open(account.labels()),
            };
            self.accounts.insert(key, binding);
        }
    }
}

/// Whether the waypoint that an account names may take force now: it has to exist, consent and
/// have been programmed. Once in force, a binding does not ask again.
fn takes_force(
    account: &ServiceAccount,
    wanted: &NamespacedName,
    gateways: &Gateways<'_>,
) -> (bool, Verdict) {
    let object = account.reference();
    let waiting = |reason, message: String| {
        Verdict::fails(object.clone(), BOUND, reason, message).severity(Severity::Warning)
    };
    let Some(waypoint) = gateways.get(wanted) else {
        let text = format!("waypoint {wanted} does not exist");
        return (false, waiting("WaypointIsNotReady", text));
    };
    if waypoint.for_account.as_deref() != Some(account.name()) {
        let text = format!(
            "waypoint {wanted} does not consent: its annotation {} is not {:?}",
            labels::FOR_SERVICE_ACCOUNT,
            account.name()
        );
        return (false, waiting("AttachmentDenied", text));
    }
    if !waypoint.programmed {
        let text = format!("waypoint {wanted} has not been ready yet; the binding waits for it");
        return (false, waiting("WaypointIsNotReady", text));
    }
    let text = format!("bound to waypoint {wanted}");
    (
        true,
        Verdict::holds(object, BOUND, "WaypointAccepted", text),
    )
}

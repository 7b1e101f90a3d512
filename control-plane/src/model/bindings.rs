//! Waypoints bound to service accounts: when a binding is in force, and that it stays in force.

use std::collections::BTreeMap;

use isobar_objects::{ObjectHead, ObjectRef, ObjectSet, ServiceAccount};
use isobar_types::{NamespacedName, Str, labels};

use super::gateways::{Gateways, WaypointGateway};
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
        let mut consenting: Vec<_> = gateways.values().filter_map(Consent::of).collect();
        consenting.sort_by(|a, b| (a.created, &a.object.name).cmp(&(b.created, &b.object.name)));
        for consent in consenting {
            match set
                .service_accounts
                .get(&consent.account.namespace, &consent.account.name)
            {
                Some(account) => bindings.verdicts.extend(unused(&consent, account, set)),
                None => bindings.keep(&consent),
            }
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

    /// An account that is no object any more: pods may still run as it, and whether it was bound was
    /// written on it. Nobody has unbound it, so the waypoint that consents keeps it, if it has ever run.
    fn keep(&mut self, consent: &Consent<'_>) {
        let (waypoint, account) = (&consent.waypoint.key, &consent.account);
        let object = consent.object.clone();
        if !consent.waypoint.programmed {
            let text = format!("waits for ServiceAccount {account}, which does not exist");
            let verdict = Verdict::fails(object, BOUND, "AccountMissing", text);
            self.verdicts.push(verdict.severity(Severity::Warning));
            return;
        }
        let binding = AccountBinding::Bound {
            waypoint: waypoint.clone(),
            fail_open: false,
        };
        let kept = self.accounts.entry(account.clone()).or_insert(binding);
        let by = match kept {
            AccountBinding::Bound { waypoint: by, .. } if by != waypoint => by.to_string(),
            _ => "this waypoint".to_owned(),
        };
        let text = format!(
            "ServiceAccount {account} does not exist: pods that still run as it stay bound to {by}; \
             make it again with the label {}={}, or remove the annotation {} to let them go",
            labels::USE_WAYPOINT,
            waypoint.name,
            labels::FOR_SERVICE_ACCOUNT,
        );
        let verdict = Verdict::holds(object, BOUND, "AccountMissing", text);
        self.verdicts.push(verdict.severity(Severity::Warning));
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

/// A Gateway that consents to be the waypoint of an account.
struct Consent<'a> {
    waypoint: &'a WaypointGateway<'a>,
    object: ObjectRef,
    account: NamespacedName,
    /// Seconds since 1970.
    created: i64,
}

impl<'a> Consent<'a> {
    fn of(waypoint: &'a WaypointGateway<'a>) -> Option<Self> {
        let name = waypoint
            .for_account
            .clone()
            .filter(|name| !name.is_empty())?;
        let gateway = waypoint.gateway?;
        Some(Self {
            waypoint,
            object: gateway.reference(),
            account: NamespacedName {
                namespace: waypoint.key.namespace.clone(),
                name,
            },
            created: gateway.created(),
        })
    }
}

/// Says that a waypoint waits for an account that is there and does not name it: an object that was made
/// anew has neither the label nor what was remembered on it, and its traffic passes the waypoint by.
fn unused(consent: &Consent<'_>, account: &ServiceAccount, set: &ObjectSet) -> Option<Verdict> {
    let (waypoint, name) = (&consent.waypoint.key, &consent.account);
    let says = match account
        .label(labels::USE_WAYPOINT)
        .filter(|n| !n.is_empty())
    {
        None => format!("has no label {}", labels::USE_WAYPOINT),
        Some("none") => return None,
        Some(other) if other == &*waypoint.name => return None,
        Some(other) => format!("names waypoint {other}"),
    };
    let guarded = is_target(&consent.object, set);
    let effect = match guarded {
        true => "its pods' traffic passes by this waypoint and the policies that are for it",
        false => "its pods' traffic passes by this waypoint",
    };
    let text = format!(
        "a waypoint for ServiceAccount {name}, which {says}: {effect}; bind it with \
         `kubectl label -n {} sa {} {}={} --overwrite`, or remove the annotation {}",
        name.namespace,
        name.name,
        labels::USE_WAYPOINT,
        waypoint.name,
        labels::FOR_SERVICE_ACCOUNT,
    );
    let severity = match guarded {
        true => Severity::Error,
        false => Severity::Warning,
    };
    let object = consent.object.clone();
    Some(Verdict::fails(object, BOUND, "AccountNotBound", text).severity(severity))
}

/// True for a Gateway that a policy is about.
fn is_target(gateway: &ObjectRef, set: &ObjectSet) -> bool {
    let names = |object: &ObjectRef, kind: &str, name: &str| {
        object.namespace == gateway.namespace && kind == "Gateway" && name == &*gateway.name
    };
    let mut policies = set.authorization_policies.iter();
    let mut limits = set.rate_limit_policies.iter();
    policies.any(|policy| {
        let mut targets = policy.spec.targets();
        targets.any(|target| names(&policy.reference(), &target.kind, &target.name))
    }) || limits.any(|policy| {
        let mut targets = policy.spec.target_refs.iter();
        targets.any(|target| names(&policy.reference(), &target.kind, &target.name))
    })
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

#[cfg(test)]
mod tests {
    use super::super::golden_tests::{account, gateway, namespace, planned, pod, waypoint_pod};
    use super::*;
    use crate::model::Plan;

    const FOR_CART: &str =
        ", labels: {istio.io/waypoint-for: all}, annotations: {istio.io/for-service-account: cart}";
    const POLICY: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], action: DENY, rules: [{}]}
";

    fn plan(more: &str) -> Plan {
        let cart = pod("cart-1", "cart", "app: cart", true);
        planned(&format!("{}{cart}{more}", namespace("")))
    }

    fn is_bound(plan: &Plan) -> bool {
        let mut all = plan.workloads.iter();
        let cart = all.find(|one| one.wire.name == "cart-1").unwrap();
        cart.wire.waypoint.is_some()
    }

    /// Reason, whether it holds, and how much it matters.
    fn told(plan: &Plan, name: &str) -> Option<(&'static str, bool, Severity)> {
        let object = format!("Gateway shop/{name}");
        let mut all = plan.verdicts.iter();
        let found = all.find(|one| one.object.to_string() == object && one.condition == BOUND)?;
        Some((found.reason, found.holds, found.severity))
    }

    #[test]
    fn an_account_that_is_deleted_stays_bound_while_its_waypoint_consents() {
        let wp = format!("{}{}", gateway("wp", FOR_CART), waypoint_pod("wp", true));
        let there = account("cart", "istio.io/use-waypoint: wp", "");
        let before = plan(&format!("{wp}{there}"));
        assert!(is_bound(&before));
        assert_eq!(told(&before, "wp"), None);
        let gone = plan(&wp);
        assert!(is_bound(&gone));
        let workload = |plan: &Plan| plan.workloads[0].wire.clone();
        assert_eq!(workload(&gone), workload(&before));
        let kept = Some(("AccountMissing", true, Severity::Warning));
        assert_eq!(told(&gone, "wp"), kept);
        assert_eq!(gone.latches.len(), 0, "nothing to write on");
        // Nobody was ever bound to one that has not run, or to one that is for others.
        let new = plan(&gateway("wp", FOR_CART));
        assert!(!is_bound(&new));
        let waits = Some(("AccountMissing", false, Severity::Warning));
        assert_eq!(told(&new, "wp"), waits);
        let other = format!("{}{}", gateway("wp", ""), waypoint_pod("wp", true));
        assert!(!is_bound(&plan(&other)));
        // Of two the first one by age and name; both say so.
        let second = format!(
            "{}{}",
            gateway("wp-2", FOR_CART),
            waypoint_pod("wp-2", true)
        );
        let both = plan(&format!("{wp}{second}"));
        assert_eq!(workload(&both), workload(&before));
        assert_eq!(told(&both, "wp-2"), kept);
    }

    #[test]
    fn an_account_that_is_made_anew_without_its_label_is_told() {
        let wp = format!("{}{}", gateway("wp", FOR_CART), waypoint_pod("wp", true));
        for (labels, policy, expect) in [
            ("", "", Some(Severity::Warning)),
            ("", POLICY, Some(Severity::Error)),
            (
                "istio.io/use-waypoint: other",
                POLICY,
                Some(Severity::Error),
            ),
            ("istio.io/use-waypoint: none", POLICY, None),
            ("istio.io/use-waypoint: wp", POLICY, None),
        ] {
            let plan = plan(&format!("{wp}{policy}{}", account("cart", labels, "")));
            let expect = expect.map(|severity| ("AccountNotBound", false, severity));
            assert_eq!(told(&plan, "wp"), expect, "{labels} {policy}");
        }
    }
}

//! Waypoints bound to service accounts: when a binding is in force, and that it stays in force.

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{ObjectHead, ObjectRef, ObjectSet, ServiceAccount};
use isobar_types::{NamespacedName, Str, labels};

use super::gateways::{Gateways, WaypointGateway};
use super::plan::Plan;
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

/// Bindings that were in force, by account.
pub(super) type Remembered = BTreeMap<NamespacedName, AccountBinding>;

/// The bindings in force by which there are pods to protect. Objects alone do not say that for as long as
/// an account or its waypoint is made anew: label and latch go with the account's object.
pub(super) fn remembered(plan: &Plan) -> Remembered {
    let mut bound = plan.accounts.iter();
    if !bound.any(|(_, binding)| matches!(binding, AccountBinding::Bound { .. })) {
        return Remembered::new();
    }
    let pods = plan.workloads.iter().map(|one| &one.wire);
    let used: BTreeSet<_> = pods
        .map(|wire| (wire.namespace.as_str(), wire.service_account.as_str()))
        .collect();
    let bound = plan.accounts.iter().filter(|(account, binding)| {
        matches!(binding, AccountBinding::Bound { .. })
            && used.contains(&(&*account.namespace, &*account.name))
    });
    bound
        .map(|(account, binding)| (account.clone(), binding.clone()))
        .collect()
}

/// Condition type of the verdicts.
pub(crate) const BOUND: &str = "istio.io/WaypointBound";

impl Bindings {
    /// Reads every account. `before` is what was in force.
    pub(crate) fn read(set: &ObjectSet, gateways: &Gateways<'_>, before: &Remembered) -> Self {
        let mut bindings = Self::default();
        for account in set.service_accounts.iter() {
            bindings.add(account, gateways, before);
        }
        for (account, binding) in before {
            let accounts = &set.service_accounts;
            let is_there = accounts.get(&account.namespace, &account.name).is_some();
            if !is_there && !is_let_go(account, binding, gateways) {
                bindings.accounts.insert(account.clone(), binding.clone());
            }
        }
        let mut consenting: Vec<_> = gateways.values().filter_map(Consent::of).collect();
        consenting.sort_by(|a, b| (a.created, &a.object.name).cmp(&(b.created, &b.object.name)));
        for consent in consenting {
            match set
                .service_accounts
                .get(&consent.account.namespace, &consent.account.name)
            {
                Some(account) => bindings.verdicts.extend(unused(&consent, account, set)),
                None => bindings.keep(&consent, gateways),
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
    fn keep(&mut self, consent: &Consent<'_>, gateways: &Gateways<'_>) {
        let (waypoint, account) = (&consent.waypoint.key, &consent.account);
        let object = consent.object.clone();
        if !consent.waypoint.programmed && !self.accounts.contains_key(account) {
            let text = format!("waits for ServiceAccount {account}, which does not exist");
            let verdict = Verdict::fails(object, BOUND, "AccountMissing", text);
            self.verdicts.push(verdict.severity(Severity::Warning));
            return;
        }
        let binding = AccountBinding::Bound {
            waypoint: waypoint.clone(),
            fail_open: false,
        };
        // One that is gone goes on being waited for only until another is ready to take its place.
        let is_gone = |kept: &AccountBinding| match kept {
            AccountBinding::Bound { waypoint, .. } => !gateways.contains_key(waypoint),
            AccountBinding::OptedOut => false,
        };
        if self.accounts.get(account).is_some_and(is_gone) && consent.waypoint.programmed {
            self.accounts.remove(account);
        }
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

    fn add(&mut self, account: &ServiceAccount, gateways: &Gateways<'_>, before: &Remembered) {
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
        let (taken, mut verdict) = takes_force(account, &wanted, gateways);
        // A new object has no latch, and nobody has unbound it.
        let latched = latched.or_else(|| match before.get(&key) {
            Some(AccountBinding::Bound { waypoint, .. }) => Some(&*waypoint.name),
            _ => None,
        });
        let name = if taken { Some(named) } else { latched };
        if let Some(name) = name.filter(|_| !taken) {
            let more = format!(
                "; until then its pods stay bound to {}/{name}",
                key.namespace
            );
            verdict.message.push_str(&more);
        }
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

/// True if the waypoint of an account that is no object any more has taken its consent back.
fn is_let_go(account: &NamespacedName, binding: &AccountBinding, gateways: &Gateways<'_>) -> bool {
    let AccountBinding::Bound { waypoint, .. } = binding else {
        return true;
    };
    let gateway = gateways.get(waypoint);
    gateway.is_some_and(|gateway| gateway.for_account.as_deref() != Some(&*account.name))
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
    use super::super::golden_tests::{objects, settings};
    use super::super::{Handovers, KeptKeys, plan_during};
    use super::*;

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

    /// The plan after `before`, in one life of a control plane.
    fn after(before: &Plan, more: &str) -> Plan {
        let yaml = format!(
            "{}{}{more}",
            namespace(""),
            pod("cart-1", "cart", "app: cart", true)
        );
        let handovers = Handovers {
            accounts: remembered(before),
            ..Handovers::default()
        };
        plan_during(
            &objects(&yaml),
            &settings(),
            &KeptKeys::default(),
            &handovers,
        )
    }

    #[test]
    fn another_waypoint_that_is_ready_takes_over_from_one_that_is_gone_with_its_account() {
        let wp = format!("{}{}", gateway("wp", FOR_CART), waypoint_pod("wp", true));
        let there = account("cart", "istio.io/use-waypoint: wp", "");
        let bound_to = |plan: &Plan| {
            let account = NamespacedName {
                namespace: "shop".into(),
                name: "cart".into(),
            };
            match plan.accounts.get(&account) {
                Some(AccountBinding::Bound { waypoint, .. }) => waypoint.name.to_string(),
                other => panic!("{other:?}"),
            }
        };
        let before = plan(&format!("{wp}{there}"));
        assert_eq!(bound_to(&before), "wp");
        let starting = gateway("wp-2", FOR_CART);
        let waiting = after(&before, &starting);
        assert_eq!(bound_to(&waiting), "wp", "refused until another is ready");
        let ready = format!("{starting}{}", waypoint_pod("wp-2", true));
        assert_eq!(bound_to(&after(&waiting, &ready)), "wp-2");
        assert_eq!(bound_to(&after(&before, &format!("{wp}{ready}"))), "wp");
    }

    #[test]
    fn a_binding_in_force_outlives_objects_that_are_made_anew() {
        let labelled = account("cart", "istio.io/use-waypoint: wp", "");
        let ready = waypoint_pod("wp", true);
        let before = plan(&format!("{}{ready}{labelled}", gateway("wp", FOR_CART)));
        let way = |plan: &Plan| plan.workloads[0].wire.waypoint.clone();
        assert!(is_bound(&before));
        // The account first or the waypoint first, and both.
        let gone = after(&before, "");
        assert_eq!(way(&gone), way(&before));
        // They come back one by one, and the waypoint is new: it has never been ready.
        for new in [
            gateway("wp", FOR_CART),
            labelled.clone(),
            format!("{}{labelled}", gateway("wp", FOR_CART)),
        ] {
            let back = after(&gone, &new);
            assert_eq!(way(&back), way(&before), "{new}");
            let latch = back.latches.values().next().cloned();
            let latch = latch.map(|latch| latch.unwrap().to_string());
            let has_account = new.contains("ServiceAccount");
            assert_eq!(latch.is_some(), has_account, "{new}");
            let told = told(&back, "wp").map(|(reason, holds, _)| (reason, holds));
            let missing = Some(("AccountMissing", true));
            assert_eq!(told, missing.filter(|_| !has_account), "{new}");
        }
        // Another waypoint takes over once it can.
        let second = account("cart", "istio.io/use-waypoint: wp-2", "");
        let waits = after(&gone, &format!("{}{second}", gateway("wp-2", FOR_CART)));
        assert_eq!(way(&waits), way(&before));
        let message = |plan: &Plan| {
            let mut all = plan.verdicts.iter();
            let of = |one: &&Verdict| one.object.to_string() == "ServiceAccount shop/cart";
            all.find(of).unwrap().message.clone()
        };
        let stays = "; until then its pods stay bound to shop/wp";
        assert!(message(&waits).ends_with(stays), "{}", message(&waits));
    }

    #[test]
    fn what_somebody_ends_is_not_remembered() {
        let labelled = account("cart", "istio.io/use-waypoint: wp", "");
        let wp = format!("{}{}", gateway("wp", FOR_CART), waypoint_pod("wp", true));
        let before = plan(&format!("{wp}{labelled}"));
        // By the label, by the waypoint's consent, or with the last pod.
        for (end, why) in [
            (account("cart", "", ""), "no label"),
            (
                account("cart", "istio.io/use-waypoint: none", ""),
                "opted out",
            ),
            (gateway("wp", ""), "no consent"),
        ] {
            let ended = after(&before, &end);
            assert!(!is_bound(&ended), "{why}");
            assert!(remembered(&ended).is_empty(), "{why}");
        }
        let nobody = planned(&format!("{}{wp}{labelled}", namespace("")));
        assert_eq!(nobody.accounts.len(), 1);
        assert!(remembered(&nobody).is_empty());
    }
}

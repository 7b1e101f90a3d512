//! Whether there is a node proxy for a policy that node proxies enforce: for pods that are not in the mesh
//! nobody does.

use std::collections::{BTreeMap, HashMap};

use isobar_objects::enrolment::decide;
use isobar_objects::{Kind, ObjectHead as _, ObjectSet};
use isobar_types::labels;
use xxhash_rust::xxh64::xxh64;

use super::authorization::CONDITION;
use super::peer_authentication;
use super::pods::PodFacts;
use super::settings::Settings;
use super::verdict::{Severity, Verdict};
use super::workloads::WorkloadPlan;

/// Reason of a condition.
const OUTSIDE: &str = "OutsideMesh";

/// True for a pod that a node proxy serves, or one that shall: by what it asks for, so that nothing is told
/// of one that only starts.
pub(super) fn in_mesh(pod: &PodFacts<'_>, set: &ObjectSet, settings: &Settings) -> bool {
    let namespace = set.namespaces.get("", &pod.key.namespace);
    let namespace = namespace.map(|held| &held.object);
    let asks = || decide(pod.pod, namespace, &settings.enrolment).is_enrolled();
    pod.native_tunnel() || (pod.redirected() || asks()) && !passes_callers(pod)
}

/// True for a pod whose plain callers reach it past its node proxy, as it asks.
fn passes_callers(pod: &PodFacts<'_>) -> bool {
    pod.pod.annotation(labels::BYPASS_INBOUND) == Some("true")
}

/// What a workload has to do with this, as a number; the same for those that have the same. None while
/// there are no policies, and for waypoints' own pods: one of those stands for no other pod.
pub(super) fn relation(workload: &WorkloadPlan, set: &ObjectSet) -> Option<u64> {
    let is_idle = set.authorization_policies.is_empty() && set.peer_authentications.is_empty();
    if is_idle || workload.instance_of.is_some() {
        return None;
    }
    let wire = &workload.wire;
    let of = (&wire.namespace, &wire.authorization_policies);
    let text = format!("in the mesh {:?}", (workload.in_mesh, of, &workload.peers));
    Some(xxh64(text.as_bytes(), 0))
}

/// Pods that a policy is for.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    inside: bool,
    outside: bool,
}

impl Found {
    const fn add(&mut self, in_mesh: bool) {
        self.inside |= in_mesh;
        self.outside |= !in_mesh;
    }
}

#[derive(Default)]
struct Index<'a> {
    everywhere: Found,
    namespaces: BTreeMap<&'a str, Found>,
    /// By the key of an AuthorizationPolicy with a selector.
    selected: HashMap<&'a str, Found>,
    /// By namespace and name of a PeerAuthentication with a selector.
    peers: HashMap<(&'a str, &'a str), Found>,
}

impl<'a> Index<'a> {
    fn of(workloads: &'a [WorkloadPlan]) -> Self {
        let mut all = Self::default();
        for workload in workloads.iter().filter(|one| one.instance_of.is_none()) {
            let (wire, is) = (&workload.wire, workload.in_mesh);
            let namespace = wire.namespace.as_str();
            all.everywhere.add(is);
            all.namespaces.entry(namespace).or_default().add(is);
            for key in &wire.authorization_policies {
                all.selected.entry(key).or_default().add(is);
            }
            for name in &workload.peers {
                all.peers.entry((namespace, name)).or_default().add(is);
            }
        }
        all
    }

    /// Of all pods of a place: those of the root namespace's policies are everywhere.
    fn place(&self, namespace: &str, root: &str) -> Found {
        match namespace == root {
            true => self.everywhere,
            false => self.namespaces.get(namespace).copied().unwrap_or_default(),
        }
    }
}

/// Adds to what is told about policies that pods they are for are not in the mesh: all of them, or, where
/// a selector says which ones are meant, some.
pub(super) fn tell(
    set: &ObjectSet,
    workloads: &[WorkloadPlan],
    root: &str,
    verdicts: &mut [Verdict],
) {
    let of_policies = verdicts
        .iter_mut()
        .filter(|one| one.condition == CONDITION && one.holds && one.reason == "Accepted");
    let mut of_policies = of_policies.peekable();
    if of_policies.peek().is_none() {
        return;
    }
    let index = Index::of(workloads);
    for verdict in of_policies {
        let (namespace, name) = (&*verdict.object.namespace, &*verdict.object.name);
        let (found, selects) = match verdict.object.known() {
            Some(Kind::AuthorizationPolicy) => {
                let policy = set.authorization_policies.get(namespace, name);
                let selects = policy.is_some_and(|policy| policy.spec.selector.is_some());
                let key = format!("{namespace}/{name}");
                match selects {
                    true => (index.selected.get(key.as_str()).copied(), true),
                    false => (Some(index.place(namespace, root)), false),
                }
            }
            Some(Kind::PeerAuthentication) => {
                let object = set.peer_authentications.get(namespace, name);
                let object = object.filter(|one| peer_authentication::refuses(&one.object));
                let Some(object) = object else { continue };
                match peer_authentication::selector(&object.object).is_some() {
                    true => (index.peers.get(&(namespace, name)).copied(), true),
                    false => (Some(index.place(namespace, root)), false),
                }
            }
            _ => continue,
        };
        let Some(found) = found.filter(|found| found.outside) else {
            continue;
        };
        let who = match (found.inside, selects) {
            (false, _) => "no pod that it is for is in the mesh with its callers",
            (true, true) => {
                "some of the pods that it selects are not in the mesh with their callers"
            }
            (true, false) => continue,
        };
        verdict.message = format!("{}; {who}: there no node proxy does", verdict.message);
        verdict.reason = OUTSIDE;
        verdict.severity = Severity::Warning;
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden_tests::{gateway, namespace, objects, planned, pod};
    use super::*;

    /// What is told of the policy.
    fn told(labels: &str, pods: &str, policy: &str) -> (&'static str, String) {
        let plan = planned(&format!("{}{pods}{policy}", namespace(labels)));
        let mut verdicts = plan.verdicts.into_iter();
        let found = verdicts.find(|one| one.condition == CONDITION).unwrap();
        assert!(found.holds, "{found:?}");
        (found.reason, found.message)
    }

    fn object(kind: &str, namespace: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: {kind}\n\
             metadata: {{name: p, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    }

    #[test]
    fn a_policy_for_pods_outside_the_mesh_says_so() {
        let (mesh, select) = (
            "istio.io/dataplane-mode: ambient",
            "selector: {matchLabels: {app: cart}}",
        );
        let strict = "mtls: {mode: STRICT}";
        let cart = pod("cart-1", "cart", "app: cart", true);
        let out = pod(
            "cart-2",
            "cart",
            "app: cart, istio.io/dataplane-mode: none",
            true,
        );
        let both = format!("{cart}{out}");
        // Redirected, but for who calls it.
        let open = cart.replace("metadata: {", "metadata: {annotations: \
             {ambient.istio.io/redirection: enabled, ambient.istio.io/bypass-inbound-capture: 'true'}, ");
        assert_ne!(open, cart);
        let pay = pod("pay-1", "pay", "app: pay", true);
        for (kind, rules) in [
            ("AuthorizationPolicy", "action: DENY, rules: [{}]"),
            ("PeerAuthentication", strict),
        ] {
            let whole = object(kind, "shop", rules);
            let some = object(kind, "shop", &format!("{select}, {rules}"));
            let root = object(kind, "istio-system", rules);
            for (labels, pods, policy, reason) in [
                ("", &cart, &whole, OUTSIDE),
                ("", &cart, &some, OUTSIDE),
                ("", &cart, &root, OUTSIDE),
                (mesh, &cart, &whole, "Accepted"),
                (mesh, &cart, &some, "Accepted"),
                (mesh, &cart, &root, "Accepted"),
                // Whose pods do not take part is often so for a whole namespace, and seldom meant for a
                // selector.
                (mesh, &both, &whole, "Accepted"),
                (mesh, &both, &some, OUTSIDE),
                (mesh, &open, &whole, OUTSIDE),
                (mesh, &open, &some, OUTSIDE),
                // There is nobody to be without it.
                ("", &pay, &some, "Accepted"),
                ("", &String::new(), &whole, "Accepted"),
            ] {
                let (said, text) = told(labels, pods, policy);
                assert_eq!(said, reason, "{labels} {pods} {policy}: {text}");
                let plain = text == "enforced by node proxies";
                assert_eq!(plain, reason == "Accepted", "{text}");
            }
        }
        let open = object("PeerAuthentication", "shop", "mtls: {mode: PERMISSIVE}");
        assert_eq!(told("", &cart, &open).0, "Accepted", "nothing is refused");
    }

    #[test]
    fn a_waypoints_own_pod_does_not_stand_for_the_first_in_the_mesh() {
        let label = "app: cart, gateway.networking.k8s.io/gateway-name: wp";
        let policy = "selector: {matchLabels: {app: cart}}, action: DENY, rules: [{}]";
        let yaml = [
            namespace("istio.io/dataplane-mode: ambient"),
            gateway("wp", ""),
            pod("wp-1", "wp", label, true),
            pod("cart-1", "cart", "app: cart", true),
            object("AuthorizationPolicy", "shop", policy),
        ];
        let set = objects(&yaml.concat());
        let plan = planned(&yaml.concat());
        let related = |name: &str| {
            let mut all = plan.workloads.iter();
            let found = all.find(|one| one.wire.name == name).unwrap();
            relation(found, &set)
        };
        assert!(related("cart-1").is_some());
        assert_eq!(related("wp-1"), None);
    }
}

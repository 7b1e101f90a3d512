use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::claims::{self, Claims, Contender};
use crate::finding::Finding;
use crate::istio::VirtualService;
use crate::kinds::{Kind, ObjectRef};
use crate::object::Object;
use crate::read::Hidden;
use crate::served::ServedObject;
use crate::set::{ObjectSet, Origin};
use crate::source::{Obscured, Published};
use crate::validate::{Extent, validate_set};

/// A set of objects that are told one by one, as an API server does.
///
/// As with files, the last good version of an object stays in force when a later one is not valid,
/// and of two VirtualServices that want one host the one that has it keeps it, else the older.
#[derive(Debug, Default)]
pub struct LiveSet {
    set: ObjectSet,
    /// Last good versions of what may lose its hosts to another; the set has those in force.
    routes: BTreeMap<ObjectRef, VirtualService>,
    findings: BTreeMap<ObjectRef, Vec<Finding>>,
    claims: Claims,
    settled: Vec<Finding>,
    changed: bool,
    routes_changed: bool,
    /// Something that the next two follow from is otherwise than when they were made.
    stale: bool,
    told: Arc<Vec<Finding>>,
    hidden: Obscured,
}

impl LiveSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the present version of an object.
    pub fn put(&mut self, served: ServedObject) {
        let ServedObject {
            reference,
            object,
            findings,
        } = served;
        if findings.is_empty() {
            self.stale |= self.findings.remove(&reference).is_some();
        } else if self.findings.get(&reference) != Some(&findings) {
            self.findings.insert(reference.clone(), findings);
            self.stale = true;
        }
        match object {
            None => {}
            Some(Object::VirtualService(object)) => self.route(reference, *object),
            Some(object) => self.store(object),
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, object: &ObjectRef) {
        self.stale |= self.findings.remove(object).is_some();
        if self.routes.remove(object).is_some() {
            self.routes_changed = true;
        }
        if self.set.contains(object) {
            self.set.remove(object);
            self.changed = true;
            self.stale |= object.known().is_none_or(is_referred_to);
            self.routes_changed |= object.known() == Some(Kind::Service);
        }
    }

    /// These are all objects of a kind: what is not among them is gone.
    pub fn replace(&mut self, kind: Kind, all: Vec<ServedObject>) {
        let present: BTreeSet<ObjectRef> = all.iter().map(|one| one.reference.clone()).collect();
        let changes = self.set.changes_since(&ObjectSet::default());
        let known = changes.into_iter().map(|change| change.object);
        let known = known.chain(self.findings.keys().cloned());
        let gone: Vec<ObjectRef> = known
            .chain(self.routes.keys().cloned())
            .filter(|object| object.known() == Some(kind) && !present.contains(object))
            .collect();
        for object in gone {
            self.remove(&object);
        }
        for served in all {
            self.put(served);
        }
    }

    /// What there is to say if something changed since the last time.
    pub fn publish(&mut self) -> Option<Published> {
        if std::mem::take(&mut self.routes_changed) {
            self.settle();
            self.changed = true;
            self.stale = true;
        }
        if std::mem::take(&mut self.stale) {
            self.tell();
            self.changed = true;
        }
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.set.version += 1;
        Some(Published {
            objects: Arc::new(self.set.clone()),
            hidden: self.hidden.clone(),
            findings: self.told.clone(),
            synced: true,
        })
    }

    /// Collects what there is to say about objects.
    fn tell(&mut self) {
        let mut findings: Vec<Finding> = self.findings.values().flatten().cloned().collect();
        findings.extend(self.settled.iter().cloned());
        findings.extend(validate_set(&self.set, Extent::Mesh));
        findings.sort_by(|a, b| (&a.object, b.severity).cmp(&(&b.object, a.severity)));
        let never_good = self.findings.iter().filter(|(object, findings)| {
            findings.iter().any(Finding::is_error) && !self.set.contains(object)
        });
        let hidden = never_good.map(|(object, _)| Hidden::One(object.clone()));
        self.hidden = Obscured(Arc::new(hidden.collect()));
        self.told = Arc::new(findings);
    }

    fn route(&mut self, reference: ObjectRef, object: VirtualService) {
        if self.routes.get(&reference) != Some(&object) {
            self.routes.insert(reference, object);
            self.routes_changed = true;
        }
    }

    fn store(&mut self, object: Object) {
        let origin = Origin::nowhere();
        if self.set.holds(&object, &origin.file) {
            return;
        }
        self.changed = true;
        let is_good_now = || self.findings.contains_key(&object.reference());
        self.stale |= is_referred_to(object.kind()) || is_good_now();
        // Short host names of routes are resolved against services.
        self.routes_changed |= object.kind() == Kind::Service && !self.routes.is_empty();
        self.set.insert(object, origin);
    }

    /// Settles which VirtualService has which host.
    fn settle(&mut self) {
        let contenders = self
            .routes
            .values()
            .map(|object| Contender { object, order: 0 });
        let settled = claims::settle(contenders.collect(), &self.claims, &self.set);
        let mut claims = settled.claims;
        self.settled.clear();
        let mut refused = BTreeSet::new();
        for (reference, finding) in settled.refused {
            // Its version before the conflict stays, unless that one is in the way too.
            let (namespace, name) = (&reference.namespace, &reference.name);
            let last = self.set.virtual_services.get(namespace, name).cloned();
            let stays = last.is_some_and(|last| claims::reclaim(&last, &mut claims, &self.set));
            if !stays {
                self.set.remove(&reference);
            }
            self.settled.push(finding.about(&reference));
            refused.insert(reference);
        }
        let held = self.set.virtual_services.iter();
        let gone: Vec<ObjectRef> = held
            .map(|held| crate::ObjectHead::reference(&held.object))
            .filter(|object| !self.routes.contains_key(object))
            .collect();
        for object in gone {
            self.set.remove(&object);
        }
        for (reference, object) in self.routes.clone() {
            if !refused.contains(&reference) {
                self.store(object.into());
            }
        }
        self.claims = claims;
    }
}

/// False for kinds that no rule about several objects reads: what changes most.
const fn is_referred_to(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::Pod | Kind::Node | Kind::Deployment | Kind::EndpointSlice
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn namespace(name: &str) -> ServedObject {
        let value = json!({"metadata": {"name": name}});
        ServedObject::read(Kind::Namespace, &value)
    }

    fn route(name: &str, host: &str, created: &str) -> ServedObject {
        let spec = json!({
            "hosts": [host],
            "http": [{"route": [{"destination": {"host": host}}]}],
        });
        with_spec(Kind::VirtualService, name, created, &spec)
    }

    fn with_spec(kind: Kind, name: &str, created: &str, spec: &Value) -> ServedObject {
        let value = json!({
            "apiVersion": kind.api_version(), "kind": kind.as_str(),
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
            "spec": spec,
        });
        ServedObject::read(kind, &value)
    }

    fn names(published: &Published) -> Vec<String> {
        let routes = published.objects.virtual_services.iter();
        routes.map(|one| one.head_name()).collect()
    }

    trait HeadName {
        fn head_name(&self) -> String;
    }

    impl HeadName for Arc<crate::Held<VirtualService>> {
        fn head_name(&self) -> String {
            self.metadata.name.clone().unwrap_or_default()
        }
    }

    #[test]
    fn a_new_list_swaps_a_kind_and_leaves_the_others() {
        let mut live = LiveSet::new();
        live.replace(Kind::Namespace, vec![namespace("a"), namespace("b")]);
        live.put(route("r", "x.example", "2026-01-01T00:00:00Z"));
        let first = live.publish().unwrap();
        assert_eq!((first.objects.len(), first.synced), (3, true));
        assert!(live.publish().is_none());

        live.replace(Kind::Namespace, vec![namespace("a"), namespace("b")]);
        assert!(live.publish().is_none(), "the same list is no change");

        live.replace(Kind::Namespace, vec![namespace("b"), namespace("c")]);
        let second = live.publish().unwrap();
        let changes = second.objects.changes_since(&first.objects);
        let words: Vec<_> = changes
            .iter()
            .map(|change| (change.what, &*change.object.name))
            .collect();
        use crate::ChangeKind::{Added, Removed};
        assert_eq!(words, [(Added, "c"), (Removed, "a")]);
    }

    #[test]
    fn findings_are_made_anew_when_something_they_follow_from_changes() {
        let pod = |node: &str| {
            let value = json!({
                "metadata": {"name": "p", "namespace": "shop"},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
            });
            ServedObject::read(Kind::Pod, &value)
        };
        let service = json!({
            "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {"ports": [{"port": 80}]},
        });
        let mut live = LiveSet::new();
        live.put(route("r", "cart", "2026-01-01T00:00:00Z"));
        live.put(pod("a"));
        let first = live.publish().unwrap();
        assert!(!first.findings.is_empty(), "there is no Service cart");
        live.put(pod("b"));
        let second = live.publish().unwrap();
        assert!(Arc::ptr_eq(&first.findings, &second.findings));
        live.put(ServedObject::read(Kind::Service, &service));
        assert!(live.publish().unwrap().findings.is_empty());
    }

    #[test]
    fn an_invalid_version_leaves_the_last_good_one_in_force() {
        let time = "2026-01-01T00:00:00Z";
        let policy = |spec: Value| with_spec(Kind::AuthorizationPolicy, "p", time, &spec);
        let mut live = LiveSet::new();
        live.put(policy(json!({"acton": "DENY"})));
        let never = live.publish().unwrap();
        let reference = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p");
        assert!(never.may_hide(&reference), "nothing is known of it");

        live.put(policy(json!({"action": "DENY", "rules": [{}]})));
        let good = live.publish().unwrap();
        assert!(good.findings.iter().all(|one| !one.is_error()));
        live.put(policy(json!({"acton": "DENY"})));
        let bad = live.publish().unwrap();
        assert_eq!(bad.objects.authorization_policies.len(), 1);
        assert!(bad.findings.iter().any(Finding::is_error));
        assert!(!bad.may_hide(&reference));

        live.remove(&reference);
        let gone = live.publish().unwrap();
        assert!(gone.objects.authorization_policies.is_empty());
        assert!(gone.findings.is_empty());
    }

    #[test]
    fn the_older_route_has_a_host_and_loses_it_only_by_going() {
        let mut live = LiveSet::new();
        live.put(route("new", "x.example", "2026-01-02T00:00:00Z"));
        live.put(route("old", "x.example", "2026-01-01T00:00:00Z"));
        let both = live.publish().unwrap();
        assert_eq!(names(&both), ["old"]);
        let refused = both.findings.iter().filter(|one| one.is_error());
        assert_eq!(refused.count(), 1);

        live.remove(&ObjectRef::new(Kind::VirtualService, "shop", "old"));
        let one = live.publish().unwrap();
        assert_eq!(names(&one), ["new"]);
        assert!(one.findings.iter().all(|one| !one.is_error()));

        live.put(route("old", "x.example", "2026-01-01T00:00:00Z"));
        assert_eq!(
            names(&live.publish().unwrap()),
            ["new"],
            "who has it keeps it"
        );
    }
}

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::claims::{self, Claims, Contender};
use crate::finding::Finding;
use crate::invalid::{Instead, Invalid, Invalids, with_status};
use crate::istio::VirtualService;
use crate::kinds::{Kind, ObjectRef};
use crate::object::Object;
use crate::read::Hidden;
use crate::served::{Rest, ServedObject};
use crate::set::{ObjectSet, Origin};
use crate::source::{Obscured, Published};
use crate::strangers::Stranger;
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
    /// Versions that are not valid, as their heads say; what counts instead is in `told_invalid`.
    invalid: Invalids,
    told_invalid: Arc<Invalids>,
    /// Of those in the set, the ones that were never valid and refuse everything.
    refusals: BTreeSet<ObjectRef>,
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
            rest,
        } = served;
        if findings.is_empty() {
            self.stale |= self.findings.remove(&reference).is_some();
        } else if self.findings.get(&reference) != Some(&findings) {
            self.findings.insert(reference.clone(), findings);
            self.stale = true;
        }
        let Some(object) = object else {
            if let Some(rest) = rest {
                self.put_invalid(reference, *rest);
            }
            return;
        };
        self.stale |= self.invalid.remove(&reference).is_some();
        self.refusals.remove(&reference);
        match object {
            Object::VirtualService(object) => self.route(reference, *object),
            object => self.store(object),
        }
    }

    /// The last good version stays, and shows what is said about the present one. Where there is none
    /// a policy refuses everything.
    fn put_invalid(&mut self, reference: ObjectRef, rest: Rest) {
        if self.invalid.get(&reference) != Some(&rest.invalid) {
            self.invalid.insert(reference.clone(), rest.invalid);
            self.stale = true;
        }
        let held = self.set.object(&reference);
        let held = held.filter(|_| !self.refusals.contains(&reference));
        match (held, rest.refusal) {
            // What is told of these depends on who has which host.
            (Some(Object::VirtualService(_)), _) => {}
            (Some(held), _) => {
                if let Some(shown) = with_status(&held, rest.status.as_ref()) {
                    self.store(shown);
                }
            }
            (None, Some(refusal)) => {
                self.refusals.insert(reference);
                self.store(refusal);
            }
            // What never was valid and now is wrong in another way may refuse nothing any more.
            (None, None) => {
                if self.refusals.remove(&reference) {
                    self.set.remove(&reference);
                    self.changed = true;
                    self.stale = true;
                }
            }
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, object: &ObjectRef) {
        self.stale |= self.findings.remove(object).is_some();
        self.stale |= self.invalid.remove(object).is_some();
        self.refusals.remove(object);
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

    /// There is an object of a kind that has no effect.
    pub fn put_stranger(&mut self, kind: Stranger, object: ObjectRef) {
        let finding = kind.finding().about(&object);
        self.stale |= self.findings.insert(object, vec![finding]).is_none();
    }

    /// These are all objects of such a kind.
    pub fn replace_strangers(&mut self, kind: Stranger, all: Vec<ObjectRef>) {
        let known = self.findings.keys();
        let known = known.filter(|one| *one.group == *kind.group && *one.kind == *kind.kind);
        let gone: Vec<ObjectRef> = known.filter(|one| !all.contains(one)).cloned().collect();
        for object in gone {
            self.remove(&object);
        }
        for object in all {
            self.put_stranger(kind, object);
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
            invalid: self.told_invalid.clone(),
        })
    }

    /// Collects what there is to say about objects.
    fn tell(&mut self) {
        let mut findings: Vec<Finding> = self.findings.values().flatten().cloned().collect();
        findings.extend(self.settled.iter().cloned());
        findings.extend(validate_set(&self.set, Extent::Mesh));
        findings.sort_by(|a, b| (&a.object, b.severity).cmp(&(&b.object, a.severity)));
        let never_good = self.findings.iter().filter(|(object, findings)| {
            findings.iter().any(Finding::is_error)
                && (!self.set.contains(object) || self.refusals.contains(object))
        });
        let hidden = never_good.map(|(object, _)| Hidden::One(object.clone()));
        self.hidden = Obscured(Arc::new(hidden.collect()));
        self.told = Arc::new(findings);
        self.told_invalid = Arc::new(self.invalid_now());
    }

    /// Versions that are not in force: those that are not valid, and routes that have not got their hosts.
    fn invalid_now(&self) -> Invalids {
        let refused = self.settled.iter().filter_map(|finding| {
            let object = finding.object.clone().filter(|_| finding.is_error())?;
            let head = &self.routes.get(&object)?.metadata;
            let known = Invalid {
                generation: head.generation,
                labels: head.labels.clone().unwrap_or_default(),
                ..Invalid::default()
            };
            Some((object, known.because([finding])))
        });
        let all = self.invalid.clone().into_iter().chain(refused);
        all.map(|(object, invalid)| {
            let instead = if self.refusals.contains(&object) {
                Instead::Refusal
            } else if self.set.contains(&object) {
                Instead::LastGood
            } else {
                Instead::Nothing
            };
            (object, invalid.instead(instead))
        })
        .collect()
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
    use crate::istio::Action;

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
        let refuses = |published: &Published| {
            let all = published.objects.authorization_policies.iter();
            let all = all.map(|one| (one.spec.action, one.spec.rules.len()));
            all.collect::<Vec<_>>() == [(Action::Deny, 1)]
        };
        assert!(refuses(&never), "nothing is known of it");
        let told = |published: &Published| {
            let told = published.invalid.get(&reference);
            told.map(|told| (told.instead, told.message.clone()))
        };
        let why = "spec.acton: unknown field \"acton\"".to_owned();
        assert_eq!(told(&never), Some((Instead::Refusal, why.clone())));

        live.put(policy(json!({"acton": "DENY", "action": "AUDIT"})));
        let audit = live.publish().unwrap();
        assert!(audit.objects.authorization_policies.is_empty());
        assert_eq!(
            told(&audit),
            Some((Instead::Nothing, why.clone())),
            "it would refuse nothing"
        );

        live.put(policy(json!({"action": "ALLOW", "rules": [{}]})));
        let good = live.publish().unwrap();
        assert!(good.invalid.is_empty() && !refuses(&good));
        assert!(good.findings.iter().all(|one| !one.is_error()));
        live.put(policy(json!({"acton": "DENY"})));
        let bad = live.publish().unwrap();
        assert_eq!(bad.objects.authorization_policies.len(), 1);
        assert!(bad.findings.iter().any(Finding::is_error));
        assert!(!bad.may_hide(&reference) && !refuses(&bad));
        assert_eq!(told(&bad), Some((Instead::LastGood, why)));

        live.remove(&reference);
        let gone = live.publish().unwrap();
        assert!(gone.objects.authorization_policies.is_empty());
        assert!(gone.findings.is_empty() && gone.invalid.is_empty());
    }

    #[test]
    fn what_has_no_effect_is_told_as_long_as_it_is_there() {
        let kind = Stranger::find("telemetry.istio.io", "Telemetry").unwrap();
        let object = kind.object("shop", "t");
        let mut live = LiveSet::new();
        live.replace_strangers(kind, vec![object.clone()]);
        let told = live.publish().unwrap();
        assert_eq!(told.findings[0].object.as_ref(), Some(&object));
        assert_eq!(told.findings[0].code, crate::code::Code::NOT_HONOURED);
        assert!(told.invalid.is_empty() && told.objects.is_empty());
        live.put_stranger(kind, object.clone());
        assert!(live.publish().is_none(), "nothing new");
        live.replace_strangers(kind, Vec::new());
        assert!(live.publish().unwrap().findings.is_empty());
        live.put_stranger(kind, object.clone());
        live.remove(&object);
        assert!(live.publish().unwrap().findings.is_empty());
    }

    #[test]
    fn a_version_that_is_not_valid_brings_its_generation_and_status() {
        let policy = |generation: i64, action: &str, status: Value| {
            let value = json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "shop", "generation": generation},
                "spec": {"action": action}, "status": status,
            });
            ServedObject::read(Kind::AuthorizationPolicy, &value)
        };
        let reference = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p");
        let mut live = LiveSet::new();
        live.put(policy(1, "ALLOW", json!({"a": 1})));
        live.put(policy(2, "ALOW", json!({"a": 2})));
        let second = live.publish().unwrap();
        assert_eq!(second.invalid[&reference].generation, Some(2));
        let held = second.objects.authorization_policies.get("shop", "p");
        let held = &held.unwrap().object;
        assert_eq!(held.spec.action, Action::Allow, "the last good one");
        assert_eq!(held.status, Some(json!({"a": 2})));
        live.put(policy(3, "ALOW", json!({"a": 2})));
        let third = live.publish().unwrap();
        assert_eq!(third.invalid[&reference].generation, Some(3));
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

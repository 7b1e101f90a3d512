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

/// Last valid versions that somebody kept, each a version of the object with its UID.
pub type Recalled = BTreeMap<ObjectRef, Object>;

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
    /// Versions that are not valid; what counts instead is in `told_invalid`.
    invalid: BTreeMap<ObjectRef, Rest>,
    recalled: Recalled,
    told_invalid: Arc<Invalids>,
    /// Of those in the set, the ones that were never valid and refuse everything.
    refusals: BTreeSet<ObjectRef>,
    /// Lists that are on their way.
    listings: BTreeMap<Kind, Listing>,
}

/// The part of a list that has come.
#[derive(Debug, Default)]
struct Listing {
    /// What is known as it is.
    same: Vec<ObjectRef>,
    others: Vec<ServedObject>,
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
        if let Some(rest) = &rest
            && self.has_another(&reference, rest)
        {
            self.remove(&reference);
        }
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
        let before = self.invalid.insert(reference.clone(), rest.clone());
        self.stale |= before.is_none_or(|before| before.invalid != rest.invalid);
        let held = self.set.object(&reference);
        let held = held.filter(|_| !self.refusals.contains(&reference));
        if held.is_none()
            && let Some(kept) = self.recalled(&reference, &rest)
        {
            self.refusals.remove(&reference);
            self.stale = true;
            match kept {
                Object::VirtualService(route) => self.route(reference, *route),
                kept => self.store(kept),
            }
            return;
        }
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

    /// What was kept of the very object that is not valid now, with what is said about it.
    fn recalled(&self, reference: &ObjectRef, rest: &Rest) -> Option<Object> {
        if self.routes.contains_key(reference) {
            return None;
        }
        let kept = self.recalled.get(reference)?;
        let is_it = rest.invalid.uid.is_some() && kept.head().uid == rest.invalid.uid;
        let kept = is_it.then_some(kept)?;
        with_status(kept, rest.status.as_ref())
    }

    /// True if what is known by the name was another object, which is gone.
    fn has_another(&self, reference: &ObjectRef, rest: &Rest) -> bool {
        let route = self.routes.get(reference).map(|route| &route.metadata);
        let known = match (route, self.set.object(reference)) {
            (Some(head), _) => head.uid.clone(),
            (None, Some(held)) => held.head().uid.clone(),
            (None, None) => None,
        };
        known.is_some() && rest.invalid.uid.is_some() && known != rest.invalid.uid
    }

    /// Last valid versions that were kept elsewhere: each counts while its object is not valid and no
    /// valid version of that was seen here.
    pub fn recall(&mut self, kept: Recalled) {
        let invalid = self.invalid.iter();
        let invalid = invalid.filter(|(object, _)| kept.contains_key(*object));
        let invalid: Vec<_> = invalid
            .map(|(object, rest)| (object.clone(), rest.clone()))
            .collect();
        self.recalled = kept;
        for (object, rest) in invalid {
            self.put_invalid(object, rest);
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

    /// A part of all objects of a kind, which counts for nothing before [`LiveSet::replace`]. What is
    /// known as it is is let go at once: a second copy of all pods would be the most that is ever in
    /// memory.
    pub fn list(&mut self, kind: Kind, part: Vec<ServedObject>) {
        let mut listing = self.listings.remove(&kind).unwrap_or_default();
        for served in part {
            match self.is_known(&served) {
                true => listing.same.push(served.reference),
                false => listing.others.push(served),
            }
        }
        self.listings.insert(kind, listing);
    }

    /// Forgets the parts of a list that broke off.
    pub fn unlist(&mut self, kind: Kind) {
        self.listings.remove(&kind);
    }

    /// True if taking it in would change nothing. Routes are in the set only while they have their hosts.
    fn is_known(&self, served: &ServedObject) -> bool {
        let reference = &served.reference;
        let object = served.object.as_ref();
        served.findings.is_empty()
            && !self.findings.contains_key(reference)
            && !self.invalid.contains_key(reference)
            && !self.refusals.contains(reference)
            && object.is_some_and(|object| {
                object.kind() != Kind::VirtualService
                    && self.set.holds(object, &Origin::nowhere().file)
            })
    }

    /// These, and the parts that came before, are all objects of a kind: what is not among them is gone.
    pub fn replace(&mut self, kind: Kind, rest: Vec<ServedObject>) {
        self.list(kind, rest);
        let Listing { same, others } = self.listings.remove(&kind).unwrap_or_default();
        let present = others.iter().map(|one| one.reference.clone());
        let present: BTreeSet<ObjectRef> = present.chain(same).collect();
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
        for served in others {
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
        let known = self.invalid.iter();
        let known = known.map(|(object, rest)| (object.clone(), rest.invalid.clone()));
        let all = known.chain(refused);
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
mod tests;

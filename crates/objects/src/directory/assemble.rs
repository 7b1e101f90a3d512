use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::last_good::{LastGood, Recalled};
use super::scan::{FileChange, FileId, Scan};
use crate::claims::{self, Claims, Contender};
use crate::code::Code;
use crate::finding::Finding;
use crate::invalid::{Instead, Invalid, Invalids, refusal};
use crate::kinds::{Kind, ObjectRef};
use crate::merge::merge_patch;
use crate::object::Object;
use crate::overlay::PATCH_SUFFIX;
use crate::read::{Hidden, RawObject, typed};
use crate::set::{ObjectSet, Origin};
use crate::source::{Obscured, Published};
use crate::validate::{Extent, validate_set};

/// Makes one set of objects out of files: merges overlays, keeps last good versions, settles who
/// gets what two want.
#[derive(Debug)]
pub(super) struct Assembler {
    extent: Extent,
    files: BTreeMap<FileId, FileState>,
    directory_findings: Vec<Finding>,
    /// Base roots whose files were listed once, in this life of the process or an earlier one.
    known_roots: BTreeSet<usize>,
    /// Every base root is among them.
    is_complete: bool,
    /// A base file or root cannot be read.
    is_blind: bool,
    last_good: Option<(LastGood, Vec<PathBuf>)>,
    /// Something came in since the last publication.
    is_stale: bool,
    built: BTreeMap<ObjectRef, Built>,
    claims: Claims,
    set: ObjectSet,
    published: Published,
}

#[derive(Debug)]
struct FileState {
    objects: Vec<Arc<RawObject>>,
    findings: Vec<Finding>,
    hidden: Vec<Hidden>,
    is_overlay: bool,
    is_missing: bool,
}

/// What the files say about one object.
#[derive(Debug, Clone, Default, PartialEq)]
struct Inputs {
    /// Base versions, the one that counts first.
    base: Vec<Arc<RawObject>>,
    /// Overlays, whole objects before patches, in the order they are merged.
    overlays: Vec<Arc<RawObject>>,
}

/// One object as it was last made.
#[derive(Debug, Default)]
struct Built {
    inputs: Inputs,
    /// Last base that was valid by itself.
    good_base: Option<Arc<RawObject>>,
    /// Last version of each overlay file that was valid when merged.
    good_overlays: Vec<Arc<RawObject>>,
    object: Option<(Object, Arc<RawObject>)>,
    /// The object is what stands in for one that was never good.
    is_refusal: bool,
    findings: Vec<Finding>,
    /// Place among all objects, in the order of files.
    order: usize,
}

impl Assembler {
    /// An assembler that has seen nothing yet of what has that extent.
    pub(super) fn new(extent: Extent) -> Self {
        Self {
            extent,
            files: BTreeMap::new(),
            directory_findings: Vec::new(),
            known_roots: BTreeSet::new(),
            is_complete: false,
            is_blind: false,
            last_good: None,
            is_stale: false,
            built: BTreeMap::new(),
            claims: Claims::default(),
            set: ObjectSet::default(),
            published: Published::default(),
        }
    }

    /// Starts from what an earlier life of the process found good, as if it had just read it. What
    /// is good from here on is kept in `last_good`; `roots` are the base roots by place.
    pub(super) fn recall(&mut self, recalled: Recalled, last_good: LastGood, roots: Vec<PathBuf>) {
        for (id, objects) in recalled.files {
            let file = FileState {
                objects: objects.into_iter().map(Arc::new).collect(),
                findings: Vec::new(),
                hidden: Vec::new(),
                is_overlay: false,
                is_missing: false,
            };
            self.files.insert(id, file);
        }
        self.known_roots = recalled.roots;
        self.last_good = Some((last_good, roots));
        self.build();
    }

    /// Takes in what a scan found.
    pub(super) fn take(&mut self, scan: Scan) {
        self.is_stale |= !scan.changed.is_empty()
            || self.directory_findings != scan.findings
            || self.is_blind != scan.is_blind;
        self.is_blind = scan.is_blind;
        self.known_roots.extend(&scan.listed);
        self.is_complete |= scan.unlisted.is_subset(&self.known_roots);
        self.directory_findings = scan.findings;
        for (id, change) in scan.changed {
            match change {
                FileChange::Removed => {
                    self.files.remove(&id);
                }
                FileChange::Missing => {
                    if let Some(file) = self.files.get_mut(&id) {
                        file.is_missing = true;
                    }
                }
                FileChange::Read { text, is_overlay } => {
                    let before = self.files.remove(&id);
                    let before = before.into_iter().flat_map(|file| file.objects);
                    let mut objects: Vec<_> = text.objects.into_iter().map(Arc::new).collect();
                    let mut nameless = text.nameless;
                    for old in before.filter(|old| old.nameless.is_none()) {
                        let is_hidden = text.hidden.iter().any(|one| one.covers(&old.reference));
                        let is_new = objects.iter().any(|raw| raw.reference == old.reference);
                        if is_hidden && !is_new {
                            // It may be what has no name now, and is still in force.
                            nameless.retain(|raw| raw.kind != old.kind);
                            objects.push(old);
                        }
                    }
                    objects.extend(nameless.into_iter().map(Arc::new));
                    let file = FileState {
                        objects,
                        findings: text.findings,
                        hidden: text.hidden,
                        is_overlay,
                        is_missing: false,
                    };
                    self.files.insert(id, file);
                }
            }
        }
    }

    /// The last publication.
    pub(super) fn published(&self) -> Published {
        self.published.clone()
    }

    /// Makes the set anew; true if objects or findings differ from the last publication.
    pub(super) fn publish(&mut self) -> bool {
        if self.published.synced && !std::mem::take(&mut self.is_stale) {
            return false;
        }
        self.build();
        self.keep_good();
        let claim_findings = self.settle_and_store();
        let hidden = self.hidden();
        let mut findings = self.directory_findings.clone();
        if let Some((last_good, _)) = &self.last_good {
            findings.extend(last_good.findings(!hidden.is_empty()));
        }
        findings.extend(self.files.values().flat_map(|file| file.findings.clone()));
        findings.extend(self.built.values().flat_map(|built| built.findings.clone()));
        findings.extend(claim_findings);
        findings.extend(self.cross_findings());
        findings.sort_by(|a, b| {
            (&a.file, a.line, std::cmp::Reverse(a.severity)).cmp(&(
                &b.file,
                b.line,
                std::cmp::Reverse(b.severity),
            ))
        });
        let invalid = self.built.iter();
        let invalid = invalid.filter_map(|(object, one)| Some((object.clone(), one.invalid()?)));
        let invalid: Invalids = invalid.collect();
        let differs = self.published.synced != self.is_complete
            || *self.published.invalid != invalid
            || self.published.objects.version != self.set.version
            || *self.published.hidden.0 != hidden
            || *self.published.findings != findings;
        if differs {
            self.published = Published {
                objects: Arc::new(self.set.clone()),
                findings: Arc::new(findings),
                synced: self.is_complete,
                hidden: Obscured(Arc::new(hidden)),
                invalid: Arc::new(invalid),
            };
        }
        differs
    }

    /// Keeps what is good now for a later life of the process, before anybody hears of it.
    fn keep_good(&mut self) {
        let Some((last_good, roots)) = &mut self.last_good else {
            return;
        };
        // What is not known is not nothing: an earlier record stays.
        if !self.is_complete {
            return;
        }
        let known = roots.iter().enumerate();
        let known = known.filter(|(place, _)| self.known_roots.contains(place));
        let good = self.built.values().filter_map(|one| one.good_base.clone());
        // Keys lie in no second place.
        let good = good.filter(|raw| raw.kind != Kind::Secret);
        last_good.keep(known.map(|(_, root)| root.as_path()), good.collect());
    }

    /// What may be written where nothing could be read.
    fn hidden(&self) -> Vec<Hidden> {
        let base = self.files.values().filter(|file| !file.is_overlay);
        let mut hidden: Vec<Hidden> = base.flat_map(|file| file.hidden.clone()).collect();
        if self.is_blind {
            hidden.push(Hidden::Any);
        }
        let never_good = |(_, built): &(&ObjectRef, &Built)| {
            (built.object.is_none() || built.is_refusal) && !built.inputs.base.is_empty()
        };
        let never_good = self.built.iter().filter(never_good);
        hidden.extend(never_good.map(|(reference, _)| Hidden::One(reference.clone())));
        hidden
    }

    fn collect_inputs(&self) -> Vec<(ObjectRef, Inputs)> {
        let mut places: BTreeMap<&ObjectRef, usize> = BTreeMap::new();
        let mut all: Vec<(ObjectRef, Inputs)> = Vec::new();
        let mut missing: Vec<(usize, Arc<RawObject>)> = Vec::new();
        let mut patches: Vec<(usize, Arc<RawObject>)> = Vec::new();
        for (id, file) in &self.files {
            let is_patch = id.1.to_string_lossy().ends_with(PATCH_SUFFIX);
            for raw in &file.objects {
                let place = *places.entry(&raw.reference).or_insert_with(|| {
                    all.push((raw.reference.clone(), Inputs::default()));
                    all.len() - 1
                });
                let inputs = &mut all[place].1;
                match (file.is_overlay, file.is_missing) {
                    (true, _) if is_patch => patches.push((place, Arc::clone(raw))),
                    (true, _) => inputs.overlays.push(Arc::clone(raw)),
                    (false, false) => inputs.base.push(Arc::clone(raw)),
                    (false, true) => missing.push((place, Arc::clone(raw))),
                }
            }
        }
        for (place, raw) in patches {
            all[place].1.overlays.push(raw);
        }
        // A file that may be on its way out speaks only where nobody else does.
        for (place, raw) in missing {
            let base = &mut all[place].1.base;
            if base.is_empty() {
                base.push(raw);
            }
        }
        all
    }

    fn build(&mut self) {
        let mut before = std::mem::take(&mut self.built);
        for (order, (reference, mut inputs)) in self.collect_inputs().into_iter().enumerate() {
            let mut built = before.remove(&reference).unwrap_or_default();
            // Whoever holds the name keeps it while its file does.
            if let Some(held) = &built.good_base
                && let Some(place) = inputs.base.iter().position(|raw| raw.file == held.file)
            {
                inputs.base[..=place].rotate_right(1);
            }
            if built.inputs != inputs {
                built = Built::make(inputs, built);
            }
            built.order = order;
            self.built.insert(reference, built);
        }
    }

    /// Puts what was built into the set, after settling who gets which host. Returns what the
    /// refused are told.
    fn settle_and_store(&mut self) -> Vec<Finding> {
        let mut next = self.set.clone();
        next.version += 1;
        let mut changed = false;
        let mut gone: Vec<ObjectRef> = Vec::new();
        for (reference, _) in all_objects(&self.set) {
            let stays = self
                .built
                .get(&reference)
                .is_some_and(|built| built.object.is_some());
            if !stays {
                gone.push(reference);
            }
        }
        for reference in gone {
            next.remove(&reference);
            changed = true;
        }
        for built in self.built.values() {
            if let Some((object, raw)) = &built.object
                && object.kind() != Kind::VirtualService
            {
                changed |= store(&mut next, object, raw);
            }
        }
        let contenders = self.built.values().filter_map(|built| match &built.object {
            Some((Object::VirtualService(object), _)) => Some(Contender {
                object,
                order: built.order,
            }),
            _ => None,
        });
        let mut settled = claims::settle(contenders.collect(), &self.claims, &next);
        let mut findings = Vec::new();
        let mut refused: Vec<&ObjectRef> = Vec::new();
        for (reference, finding) in &settled.refused {
            refused.push(reference);
            let Some((_, raw)) = self
                .built
                .get(reference)
                .and_then(|one| one.object.as_ref())
            else {
                continue;
            };
            let mut placed = [finding.clone()];
            raw.place(&mut placed);
            findings.extend(placed);
            // Its version before the conflict stays, unless that one is in the way too.
            let last = self
                .set
                .virtual_services
                .get(&reference.namespace, &reference.name);
            let stays = last.is_some_and(|last| claims::reclaim(last, &mut settled.claims, &next));
            if !stays && last.is_some() {
                next.remove(reference);
                changed = true;
            }
        }
        for (reference, built) in &self.built {
            if let Some((object @ Object::VirtualService(_), raw)) = &built.object
                && !refused.contains(&reference)
            {
                changed |= store(&mut next, object, raw);
            }
        }
        self.claims = settled.claims;
        if changed {
            self.set = next;
        }
        findings
    }

    /// Warnings about objects together, with the lines of their fields.
    fn cross_findings(&self) -> Vec<Finding> {
        let mut findings = validate_set(&self.set, self.extent);
        for finding in &mut findings {
            let built = finding.object.as_ref().and_then(|one| self.built.get(one));
            if let Some((_, raw)) = built.and_then(|built| built.object.as_ref()) {
                raw.place(std::slice::from_mut(finding));
            }
        }
        findings
    }
}

fn all_objects(set: &ObjectSet) -> Vec<(ObjectRef, ())> {
    let changes = set.changes_since(&ObjectSet::default());
    changes
        .into_iter()
        .map(|change| (change.object, ()))
        .collect()
}

/// Puts an object into the set unless an equal one is there; true if it did.
fn store(set: &mut ObjectSet, object: &Object, raw: &RawObject) -> bool {
    if set.holds(object, &raw.file) {
        return false;
    }
    let origin = Origin {
        file: Arc::clone(&raw.file),
        line: raw.line,
    };
    set.insert(object.clone(), origin);
    true
}

impl Built {
    fn make(inputs: Inputs, before: Self) -> Self {
        let mut built = Self {
            good_base: before.good_base,
            good_overlays: before.good_overlays,
            ..Self::default()
        };
        built.judge_base(&inputs);
        built.merge(&inputs);
        if let Some((first, later)) = inputs.base.split_first() {
            for raw in later {
                let message = format!(
                    "is defined twice: {}:{} counts",
                    first.file.display(),
                    first.line
                );
                let finding = Finding::error("metadata.name", message);
                let mut finding = [finding.of(Code::DEFINED_TWICE)];
                raw.place(&mut finding);
                built.findings.extend(finding);
            }
        }
        if built.object.is_none()
            && let Some(raw) = inputs.base.first()
        {
            let refusal = refusal(raw.kind, &raw.value);
            built.object = refusal.map(|object| (object, Arc::clone(raw)));
            built.is_refusal = built.object.is_some();
        }
        built.inputs = inputs;
        built
    }

    /// What is known of the present version if another is in force.
    fn invalid(&self) -> Option<Invalid> {
        let raw = self.inputs.base.first()?;
        let is_good = |good: &Arc<RawObject>| Arc::ptr_eq(good, raw) || good == raw;
        if self.good_base.as_ref().is_some_and(is_good) {
            return None;
        }
        let own = self.findings.iter().chain(&raw.nameless);
        let own = own.filter(|finding| finding.code != Code::DEFINED_TWICE);
        let instead = match (&self.object, self.is_refusal) {
            (_, true) => Instead::Refusal,
            (Some(_), _) => Instead::LastGood,
            (None, _) => Instead::Nothing,
        };
        Some(Invalid::read(&raw.value).because(own).instead(instead))
    }

    /// Judges the base by itself, so that no overlay is blamed for it; the last good one stays.
    fn judge_base(&mut self, inputs: &Inputs) {
        let Some(raw) = inputs.base.first() else {
            self.good_base = None;
            return;
        };
        if raw.nameless.is_some() {
            // Told of its file already.
            return;
        }
        let (object, mut findings) = typed(raw.kind, &raw.value);
        raw.place(&mut findings);
        self.findings = findings;
        if object.is_some() {
            self.good_base = Some(Arc::clone(raw));
        }
    }

    /// Merges overlays onto the base. One that makes the object invalid is left out, or the
    /// version of it that last was good is used.
    fn merge(&mut self, inputs: &Inputs) {
        let has_whole = |raw: &&Arc<RawObject>| !is_patch(raw);
        let Some(origin) = self
            .good_base
            .clone()
            .or_else(|| inputs.overlays.iter().find(has_whole).cloned())
        else {
            self.good_overlays = Vec::new();
            return;
        };
        if !inputs.base.is_empty() && self.good_base.is_none() {
            // A base that was never good: an overlay alone is not what the user asked for.
            self.good_overlays = Vec::new();
            return;
        }
        let start = self
            .good_base
            .as_ref()
            .map_or(Value::Null, |base| base.value.clone());
        let mut value = start.clone();
        for raw in &inputs.overlays {
            merge_patch(&mut value, &raw.value);
        }
        if let (Some(object), _) = typed(origin.kind, &value) {
            self.good_overlays.clone_from(&inputs.overlays);
            self.object = Some((object, origin));
            return;
        }
        self.merge_one_by_one(inputs, start, &origin);
    }

    fn merge_one_by_one(&mut self, inputs: &Inputs, mut value: Value, origin: &Arc<RawObject>) {
        let last_good = std::mem::take(&mut self.good_overlays);
        for raw in &inputs.overlays {
            let mut merged = value.clone();
            merge_patch(&mut merged, &raw.value);
            let (object, mut findings) = typed(raw.kind, &merged);
            if let Some(object) = object {
                value = merged;
                self.good_overlays.push(Arc::clone(raw));
                self.object = Some((object, Arc::clone(origin)));
                continue;
            }
            findings.retain(|finding| finding.is_error() && raw.mentions(&finding.field));
            if findings.is_empty() {
                findings.push(Finding::error(
                    "",
                    "does not fit the object it is merged onto",
                ));
            }
            raw.place(&mut findings);
            self.findings.extend(findings);
            let Some(good) = last_good.iter().find(|good| good.file == raw.file) else {
                continue;
            };
            let mut merged = value.clone();
            merge_patch(&mut merged, &good.value);
            if let (Some(object), _) = typed(raw.kind, &merged) {
                value = merged;
                self.good_overlays.push(Arc::clone(good));
                self.object = Some((object, Arc::clone(origin)));
            }
        }
        if self.object.is_none()
            && let (Some(object), _) = typed(origin.kind, &value)
        {
            self.object = Some((object, Arc::clone(origin)));
        }
    }
}

fn is_patch(raw: &RawObject) -> bool {
    raw.file.to_string_lossy().ends_with(PATCH_SUFFIX)
}

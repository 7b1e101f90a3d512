//! When bindings to waypoints change over: what every proxy has to have confirmed before the next step.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use crate::model::{Front, Fronts, Handover, Handovers, Host, Plan, Step, service_name};
use crate::xds::clients::Clients;

/// A proxy that has not confirmed a step after so long is not waited for: it may be gone and its
/// connection not know it yet. The first step is short, so that a binding changes soon.
const OPENED: Duration = Duration::from_secs(2);
const TURNED: Duration = Duration::from_secs(5);
/// After the last confirmation the old way stays open for so long: for connections that are on their
/// way, and for the proxies of another replica, which may begin to send them the new way as late as
/// [`OPENED`] after this one.
const GRACE: Duration = Duration::from_secs(3);

/// Bindings that change over, and what has to be known to see that one does.
#[derive(Debug, Default)]
pub(crate) struct Changeover {
    /// What stood in front of everything by the objects of the last plan.
    wanted: Fronts,
    handovers: Handovers,
    batches: Vec<Batch>,
}

/// Bindings that began to change in the same plan.
#[derive(Debug)]
struct Batch {
    names: BTreeSet<String>,
    step: Step,
    /// Revision of the catalog with the present step; none before it is published.
    revision: Option<u64>,
    /// When the present step began.
    since: Instant,
    /// When everybody had confirmed the last step.
    confirmed: Option<Instant>,
}

impl Changeover {
    /// The bindings that change now, and what is remembered of others.
    pub(crate) const fn handovers(&self) -> &Handovers {
        &self.handovers
    }

    /// True while a binding changes.
    pub(crate) fn is_active(&self) -> bool {
        !self.batches.is_empty()
    }

    /// How many do.
    pub(crate) fn len(&self) -> usize {
        self.handovers.running.len()
    }

    /// A pod that was planned alone.
    pub(crate) fn put(&mut self, uid: &str, front: Option<Front>) {
        match front.filter(|front| !front.is_bare()) {
            Some(front) => self.wanted.insert(uid.to_owned(), front),
            None => self.wanted.remove(uid),
        };
    }

    /// Compares a plan with the one before it. True if the plan has to be made again, as bindings
    /// begin to change or need not any more.
    pub(crate) fn notice(&mut self, plan: &mut Plan, now: Instant) -> bool {
        self.handovers.remember(plan);
        let fronts = std::mem::take(&mut plan.fronts);
        let before = std::mem::replace(&mut self.wanted, fronts);
        let none = Front::default();
        let changed = before.iter().filter_map(|(name, before)| {
            let now = self.wanted.get(name).unwrap_or(&none);
            (before.hosts() != now.hosts()).then_some((name, before, now))
        });
        let changed: Vec<_> = changed.collect();
        // What has gone altogether, or had nothing in front for a moment only.
        let there = names(plan, changed.is_empty() && !self.is_active());
        let mut begun = BTreeMap::new();
        let mut ended: Vec<String> = Vec::new();
        for (name, last, now) in changed {
            let running = self.handovers.running.get(name);
            let before = match running {
                Some(handover) if handover.step == Step::Opened => &handover.before,
                _ => last,
            };
            if there.contains(name.as_str()) && is_gentle(before, now, &plan.usable) {
                let (before, step) = (before.clone(), Step::Opened);
                begun.insert(name.clone(), Handover { before, step });
            } else if running.is_some() {
                ended.push(name.clone());
            }
        }
        for (name, handover) in &self.handovers.running {
            let gone = !there.contains(name.as_str());
            let back = self.wanted.get(name).unwrap_or(&none).hosts() == handover.before.hosts();
            let left = handover.before.hosts();
            if gone || back || !left.is_subset(&plan.usable) {
                ended.push(name.clone());
            }
        }
        ended.retain(|name| !begun.contains_key(name));
        if begun.is_empty() && ended.is_empty() {
            return false;
        }
        self.forget(ended.iter().chain(begun.keys()).cloned().collect());
        if !begun.is_empty() {
            tracing::info!(bindings = begun.len(), "bindings to waypoints change over");
            self.batches.push(Batch {
                names: begun.keys().cloned().collect(),
                step: Step::Opened,
                revision: None,
                since: now,
                confirmed: None,
            });
            self.handovers.running.extend(begun);
        }
        true
    }

    /// The present step of everything is in the catalog with that revision.
    pub(crate) fn published(&mut self, revision: u64, now: Instant) {
        for batch in self.batches.iter_mut().filter(|b| b.revision.is_none()) {
            (batch.revision, batch.since) = (Some(revision), now);
        }
    }

    /// Takes the steps that may be taken. True if there was one: a plan has to follow.
    pub(crate) fn advance(&mut self, clients: &Clients, now: Instant) -> bool {
        let mut stepped = false;
        let mut over = Vec::new();
        for batch in &mut self.batches {
            let Some(revision) = batch.revision else {
                continue;
            };
            if batch.confirmed.is_none() {
                let waited = now.saturating_duration_since(batch.since);
                let late = clients.behind(revision);
                if !late.is_empty() && waited < limit(batch.step) {
                    continue;
                }
                if !late.is_empty() {
                    let late = late.join(", ");
                    tracing::warn!(
                        late,
                        "proxies have not confirmed a changed binding to a waypoint in time: what \
                         they still send the old way may be refused",
                    );
                }
                if batch.step == Step::Opened {
                    for name in &batch.names {
                        if let Some(handover) = self.handovers.running.get_mut(name) {
                            handover.step = Step::Turned;
                        }
                    }
                    (batch.step, batch.revision) = (Step::Turned, None);
                    stepped = true;
                    continue;
                }
                batch.confirmed = Some(now);
            }
            if batch.confirmed.is_some_and(|at| now >= at + GRACE) {
                over.extend(batch.names.iter().cloned());
            }
        }
        if !over.is_empty() {
            tracing::info!(
                bindings = over.len(),
                "bindings to waypoints have changed over"
            );
            self.forget(over);
            stepped = true;
        }
        stepped
    }

    /// When to look again even if nobody confirms anything; none while nothing changes.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let ends = self.batches.iter().map(|batch| match batch.confirmed {
            Some(at) => at + GRACE,
            None => batch.since + limit(batch.step),
        });
        ends.min()
    }

    fn forget(&mut self, names: Vec<String>) {
        for name in names {
            self.handovers.running.remove(&name);
            for batch in &mut self.batches {
                batch.names.remove(&name);
            }
        }
        self.batches.retain(|batch| !batch.names.is_empty());
    }
}

const fn limit(step: Step) -> Duration {
    match step {
        Step::Opened => OPENED,
        Step::Turned => TURNED,
    }
}

/// True if both ways can be open for a while: a waypoint goes that can take traffic, and what comes
/// refuses nothing.
fn is_gentle(before: &Front, now: &Front, usable: &BTreeSet<Host>) -> bool {
    let (before, now) = (before.hosts(), now.hosts());
    !before.is_subset(&now) && before.is_subset(usable) && now.is_subset(usable)
}

/// Names of everything there is in a plan; nothing if nobody is going to ask.
fn names(plan: &Plan, nobody_asks: bool) -> HashSet<String> {
    if nobody_asks {
        return HashSet::new();
    }
    let services = plan.services.iter().map(|service| &service.wire);
    let services = services.chain(&plan.entries).map(service_name);
    let workloads = plan.workloads.iter().map(|one| one.wire.uid.clone());
    services.chain(workloads).collect()
}

#[cfg(test)]
mod tests;

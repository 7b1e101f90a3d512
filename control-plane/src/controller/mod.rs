//! What the control plane writes back: waypoint deployments, statuses, latches.

mod desired;
mod drift;
mod edge;
mod gateway;
mod listeners;
mod memory;
mod parameters;
mod scaling;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isobar_objects::{Kind, Object, ObjectRef, ObjectSet, ObjectWriter, WriteError};
use isobar_runtime::Lifetime;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::Planned;
use crate::model::{GatewayFacts, Verdict};
use drift::Drift;
pub(crate) use gateway::{OWN_ROOTS, WaypointPods};
pub(crate) use memory::Earlier;
pub(crate) use parameters::Parameters;
pub(crate) use scaling::Scaling;
use status::Transitions;

/// Deployment, Service and account of a waypoint, as the controller would write them.
pub(crate) fn waypoint_objects(
    set: &ObjectSet,
    facts: &GatewayFacts,
    pods: &WaypointPods,
) -> Vec<Object> {
    gateway::render(set, facts, pods).objects
}

/// What a waypoint's Gateway would be told.
pub(crate) fn waypoint_verdicts(
    set: &ObjectSet,
    facts: &GatewayFacts,
    pods: &WaypointPods,
) -> Vec<Verdict> {
    gateway::render(set, facts, pods).verdicts
}

/// Pause after a failed write, before everything is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The same where the server does not take an object: only its rules or a quota may have changed.
const LATER: Duration = Duration::from_secs(15);

/// Objects of which the server does not take what is to be written, and what it says.
pub(crate) type Rejected = BTreeMap<ObjectRef, String>;

/// What one object should carry of ours: the whole of it, or a patch onto somebody else's.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wanted {
    /// An object that is ours.
    pub(crate) object: Option<Object>,
    /// A merge patch; always with the same keys for one object, so that patches replace each other.
    pub(crate) patch: Option<Value>,
}

/// Brings what is written in line with the latest plan, one write at a time.
pub(crate) struct Controller {
    writer: Arc<dyn ObjectWriter>,
    earlier: Earlier,
    leads: watch::Receiver<bool>,
    /// What is known to be written; nothing after others may have written.
    written: Option<BTreeMap<ObjectRef, Wanted>>,
    rejected: watch::Sender<Rejected>,
    drift: Drift,
    /// Something written has to be looked at again soon.
    is_unsettled: bool,
    transitions: Transitions,
    pods: WaypointPods,
    parameters: Option<watch::Receiver<Arc<Parameters>>>,
    /// Waypoints and nothing else: another control plane writes the rest.
    only_waypoints: bool,
}

impl Controller {
    /// Writes through `writer` while `leads` is true: what was left behind `earlier` and nobody wants
    /// any more is taken back.
    pub(crate) fn new(
        writer: Arc<dyn ObjectWriter>,
        earlier: Earlier,
        leads: watch::Receiver<bool>,
        pods: WaypointPods,
    ) -> Self {
        Self {
            writer,
            earlier,
            leads,
            written: None,
            rejected: watch::Sender::default(),
            drift: Drift::default(),
            is_unsettled: false,
            transitions: Transitions::default(),
            pods,
            parameters: None,
            only_waypoints: false,
        }
    }

    /// The same, following what ConfigMaps say about waypoints.
    pub(crate) fn with_parameters(mut self, parameters: watch::Receiver<Arc<Parameters>>) -> Self {
        self.parameters = Some(parameters);
        self
    }

    /// The same, saying what the server does not take to `rejected`.
    pub(crate) fn telling_rejections(mut self, rejected: watch::Sender<Rejected>) -> Self {
        self.rejected = rejected;
        self
    }

    /// The same, writing waypoints and their Gateways only.
    pub(crate) const fn only_waypoints(mut self, only: bool) -> Self {
        self.only_waypoints = only;
        self
    }

    /// Follows plans until `life` ends. Plans that come while it writes are merged: only the latest
    /// counts.
    pub(crate) async fn run(mut self, mut plans: watch::Receiver<Option<Planned>>, life: Lifetime) {
        let mut leads = self.leads.clone();
        let mut parameters = self
            .parameters
            .clone()
            .unwrap_or_else(|| watch::channel(Arc::default()).1);
        loop {
            self.pods.parameters = parameters.borrow_and_update().clone();
            let planned = plans.borrow_and_update().clone();
            let leading = *leads.borrow_and_update();
            let complete = match planned {
                Some(planned) if leading && self.knows_parameters(&planned) => {
                    self.follow(&planned).await
                }
                _ => true,
            };
            if !leading {
                self.written = None;
                self.drift.clear();
                self.is_unsettled = false;
                self.rejected.send_replace(Rejected::new());
            }
            let is_final = complete && self.rejected.borrow().is_empty() && !self.is_unsettled;
            let is_slow = complete && !self.is_unsettled;
            let pause = if is_slow { LATER } else { RETRY };
            tokio::select! {
                () = life.draining() => return,
                changed = plans.changed() => if changed.is_err() { return },
                Ok(()) = leads.changed() => {}
                Ok(()) = parameters.changed() => {}
                () = tokio::time::sleep(pause), if !is_final => {}
            }
        }
    }

    /// False while it is not known yet what the ConfigMaps of a Gateway say: without them its pods
    /// would be made, and then made again.
    fn knows_parameters(&self, planned: &Planned) -> bool {
        let known = &self.pods.parameters.overlays;
        let set = &planned.published.objects;
        let revision = &self.pods.revision;
        let all = planned.plan.gateways.iter().map(|facts| &facts.key);
        let mut ours = all.filter(|key| revision.runs(set, &key.namespace, &key.name));
        self.parameters.is_none() || ours.all(|key| known.contains_key(key))
    }

    /// Writes the difference; false if something has to be tried again.
    async fn follow(&mut self, planned: &Planned) -> bool {
        let mut complete = self.follow_once(planned).await;
        // What the server does not take is told, which is another thing to write.
        let rejected = self.rejected.borrow().clone();
        if rejected != self.pods.rejected {
            self.pods.rejected = rejected;
            complete &= self.follow_once(planned).await;
        }
        complete
    }

    async fn follow_once(&mut self, planned: &Planned) -> bool {
        let now = jiff::Timestamp::now();
        let desired = desired::desired(planned, &self.pods, &mut self.transitions, now);
        let mut wanted = desired.wanted;
        if self.only_waypoints {
            wanted.retain(|object, want| {
                let kind = object.known();
                let is_gateway = matches!(kind, Some(Kind::Gateway | Kind::GatewayClass));
                want.patch.take_if(|_| !is_gateway);
                is_gateway || want.object.is_some()
            });
        }
        let mut written = match self.written.take() {
            Some(written) => written,
            None => {
                let mut found = self.earlier.find(&planned.published.objects);
                found.retain(|_, one| one.object.is_some() || !self.only_waypoints);
                found
            }
        };
        written.retain(|object, _| !desired.of_others.contains(object));
        if self.earlier.is_shared() {
            let set = &planned.published.objects;
            self.is_unsettled = self.drift.look(&mut written, set, Instant::now());
        }
        let complete = self.bring(&mut written, &wanted, &desired.kept).await;
        self.written = Some(written);
        complete
    }

    /// Objects that are `kept` are neither written nor deleted; patches on them are.
    async fn bring(
        &mut self,
        written: &mut BTreeMap<ObjectRef, Wanted>,
        wanted: &BTreeMap<ObjectRef, Wanted>,
        kept: &BTreeSet<ObjectRef>,
    ) -> bool {
        let mut complete = true;
        let mut rejected = Rejected::new();
        for (object, want) in wanted {
            let is_kept = kept.contains(object);
            let before = written.get(object);
            let is_same = match before {
                Some(before) if is_kept => before.patch == want.patch,
                before => before == Some(want),
            };
            if is_same {
                continue;
            }
            if !*self.leads.borrow() {
                return true;
            }
            let was_whole = !is_kept && before.is_some_and(|before| before.object.is_some());
            let replaced = match was_whole && want.object.is_none() {
                // What was ours as a whole is not ours any more: without us it would be gone.
                true => self.writer.delete(object).await,
                false => Ok(()),
            };
            let done = match replaced {
                Ok(()) => self.write(object, want).await,
                Err(error) => Err(error),
            };
            // A half of it may be there, whatever the answer is.
            self.drift.wrote(object, Instant::now());
            match done {
                Ok(()) => {
                    let entry = written.entry(object.clone()).or_default();
                    entry.patch.clone_from(&want.patch);
                    if !is_kept {
                        entry.object.clone_from(&want.object);
                    }
                }
                Err(error) => complete &= self.is_answered(object, error, &mut rejected),
            }
        }
        complete &= self.take_back(written, wanted, kept, &mut rejected).await;
        if *self.leads.borrow() {
            self.rejected.send_replace(rejected);
        }
        complete
    }

    /// Takes back what was written and nobody wants any more.
    async fn take_back(
        &self,
        written: &mut BTreeMap<ObjectRef, Wanted>,
        wanted: &BTreeMap<ObjectRef, Wanted>,
        kept: &BTreeSet<ObjectRef>,
        rejected: &mut Rejected,
    ) -> bool {
        let mut complete = true;
        let gone: Vec<ObjectRef> = written
            .keys()
            .filter(|object| !wanted.contains_key(*object) && !kept.contains(*object))
            .cloned()
            .collect();
        for object in gone {
            if !*self.leads.borrow() {
                return true;
            }
            match self.writer.delete(&object).await {
                Ok(()) => {
                    written.remove(&object);
                }
                Err(error) => complete &= self.is_answered(&object, error, rejected),
            }
        }
        complete
    }

    /// True for an answer that stays the same until the object or the server's rules are others: it is
    /// told once and asked for again later. Other failures are tried again soon.
    fn is_answered(&self, object: &ObjectRef, error: WriteError, rejected: &mut Rejected) -> bool {
        let WriteError::Rejected { message, .. } = error else {
            tracing::error!(%object, %error, "writing an object failed");
            return false;
        };
        if self.rejected.borrow().get(object) != Some(&message) {
            tracing::error!(%object, error = message, "the API server refuses an object");
        }
        rejected.insert(object.clone(), message);
        true
    }

    async fn write(&self, object: &ObjectRef, want: &Wanted) -> Result<(), WriteError> {
        if let Some(whole) = &want.object {
            self.writer.apply(whole).await?;
        }
        match &want.patch {
            Some(patch) => self.writer.patch(object, patch).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;

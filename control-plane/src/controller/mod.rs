//! What the control plane writes back: waypoint deployments, statuses, latches.

mod desired;
mod gateway;
mod memory;
mod status;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar_objects::{Object, ObjectRef, ObjectSet, ObjectWriter, WriteError};
use isobar_runtime::Lifetime;
use serde_json::Value;
use tokio::sync::watch;

use crate::engine::Planned;
use crate::model::GatewayFacts;
use status::Transitions;

/// Deployment, Service and account of a waypoint, as the controller would write them.
pub(crate) fn waypoint_objects(set: &ObjectSet, facts: &GatewayFacts, image: &str) -> Vec<Object> {
    gateway::render(set, facts, image).objects
}

/// Pause after a failed write, before everything is tried again.
const RETRY: Duration = Duration::from_secs(1);

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
    written: BTreeMap<ObjectRef, Wanted>,
    transitions: Transitions,
    image: String,
}

impl Controller {
    /// Writes through `writer`, whose files are in `dir`: what an earlier life of this process left
    /// there and nobody wants any more is taken back.
    pub(crate) fn new(writer: Arc<dyn ObjectWriter>, dir: &Path, image: String) -> Self {
        Self {
            writer,
            written: memory::left_behind(dir),
            transitions: Transitions::default(),
            image,
        }
    }

    /// Follows plans until `life` ends. Plans that come while it writes are merged: only the latest
    /// counts.
    pub(crate) async fn run(mut self, mut plans: watch::Receiver<Option<Planned>>, life: Lifetime) {
        loop {
            let planned = plans.borrow_and_update().clone();
            let complete = match planned {
                Some(planned) => self.follow(&planned).await,
                None => true,
            };
            tokio::select! {
                () = life.draining() => return,
                changed = plans.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !complete => {}
            }
        }
    }

    /// Writes the difference; false if something has to be tried again.
    async fn follow(&mut self, planned: &Planned) -> bool {
        let now = jiff::Timestamp::now();
        let wanted = desired::desired(planned, &self.image, &mut self.transitions, now);
        let mut complete = true;
        for (object, want) in &wanted {
            if self.written.get(object) == Some(want) {
                continue;
            }
            let before = self.written.get(object);
            let was_whole = before.is_some_and(|before| before.object.is_some());
            let replaced = match was_whole && want.object.is_none() {
                // What was ours as a whole is not ours any more: without us it would be gone.
                true => self.writer.delete(object).await,
                false => Ok(()),
            };
            let written = match replaced {
                Ok(()) => self.write(object, want).await,
                Err(error) => Err(error),
            };
            match written {
                Ok(()) => {
                    self.written.insert(object.clone(), want.clone());
                }
                Err(error) => {
                    complete = false;
                    tracing::error!(%object, %error, "writing an object failed");
                }
            }
        }
        let gone: Vec<ObjectRef> = self
            .written
            .keys()
            .filter(|object| !wanted.contains_key(*object))
            .cloned()
            .collect();
        for object in gone {
            match self.writer.delete(&object).await {
                Ok(()) => {
                    self.written.remove(&object);
                }
                Err(error) => {
                    complete = false;
                    tracing::error!(%object, %error, "taking back an object failed");
                }
            }
        }
        complete
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

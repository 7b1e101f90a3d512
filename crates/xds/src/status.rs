use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isobar_types::discovery::MORE;
use serde::Serialize;
use tokio::sync::watch;

/// How well this proxy knows the mesh. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SyncStatus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Held for the time of an update or a copy.
    facts: Mutex<Facts>,
    /// The mesh is known well enough to serve.
    synced: watch::Sender<bool>,
    /// The control plane has answered every type.
    answered: watch::Sender<bool>,
}

/// How a discovery stream ended, in Istio's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Termination {
    /// It never stood.
    ConnectionError,
    /// The server ended it with an error.
    Error,
    /// The server went away after it had answered.
    Reconnect,
    /// The server ended it in order.
    Complete,
}

impl Termination {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ConnectionError,
        Self::Error,
        Self::Reconnect,
        Self::Complete,
    ];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

#[derive(Debug, Default)]
struct Facts {
    connected: bool,
    connects: u64,
    terminations: BTreeMap<Termination, u64>,
    last_failure: Option<String>,
    restored: Option<usize>,
    types: BTreeMap<&'static str, TypeFacts>,
}

#[derive(Debug, Default)]
struct TypeFacts {
    optional: bool,
    answered: bool,
    resources: usize,
    messages: u64,
    bytes: u64,
    version: String,
    nonce: String,
    acknowledged: Option<Instant>,
    rejected: BTreeMap<String, String>,
}

/// A copy for admin pages and metrics.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncReport {
    /// A discovery stream is open.
    pub connected: bool,
    /// Streams opened since start.
    pub connects: u64,
    /// Streams that ended, or never stood, since start.
    pub terminations: BTreeMap<Termination, u64>,
    /// Why the last stream could not be opened, or ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// Resources that came from a file at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<usize>,
    /// One entry a type.
    pub types: Vec<TypeReport>,
}

/// What is known about one resource type.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeReport {
    /// Type URL.
    pub type_url: &'static str,
    /// At least one response came.
    pub answered: bool,
    /// Resources held.
    pub resources: usize,
    /// Responses since start.
    pub messages: u64,
    /// Bytes of resource content since start.
    pub bytes: u64,
    /// The server's version of the last response.
    pub version: String,
    /// Nonce of the last response.
    pub nonce: String,
    /// Seconds since the last response was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged_seconds_ago: Option<u64>,
    /// Resources whose newest version is not in force, with the reason.
    pub rejected: BTreeMap<String, String>,
}

/// What one response did.
pub(crate) struct Applied<'a> {
    pub(crate) type_url: &'static str,
    pub(crate) resources: usize,
    pub(crate) bytes: usize,
    pub(crate) version: &'a str,
    pub(crate) nonce: &'a str,
    pub(crate) settled: Vec<&'a str>,
    pub(crate) rejected: &'a [crate::handler::Rejected],
}

impl SyncStatus {
    /// For these types; those that are optional are not waited for.
    pub(crate) fn new(types: impl Iterator<Item = (&'static str, bool)>) -> Self {
        let facts = |optional| TypeFacts {
            optional,
            ..TypeFacts::default()
        };
        let types = types.map(|(t, optional)| (t, facts(optional))).collect();
        Self {
            shared: Arc::new(Shared {
                facts: Mutex::new(Facts {
                    types,
                    ..Facts::default()
                }),
                synced: watch::Sender::new(false),
                answered: watch::Sender::new(false),
            }),
        }
    }

    /// Resolves once every type that is not optional has been answered, or what was saved is to be
    /// used instead. A rejected resource does not hold it up: the others are usable, and the report
    /// tells.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn synced(&self) {
        // The sender lives in this very status, so the wait ends with the state only.
        let _ = self.shared.synced.subscribe().wait_for(|s| *s).await;
    }

    /// True once [`Self::synced`] resolves.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// A copy of what is known now.
    #[must_use]
    pub fn report(&self) -> SyncReport {
        let facts = self.facts();
        SyncReport {
            connected: facts.connected,
            connects: facts.connects,
            terminations: facts.terminations.clone(),
            last_failure: facts.last_failure.clone(),
            restored: facts.restored,
            types: facts
                .types
                .iter()
                .map(|(type_url, f)| TypeReport {
                    type_url,
                    answered: f.answered,
                    resources: f.resources,
                    messages: f.messages,
                    bytes: f.bytes,
                    version: f.version.clone(),
                    nonce: f.nonce.clone(),
                    acknowledged_seconds_ago: f.acknowledged.map(|at| at.elapsed().as_secs()),
                    rejected: f.rejected.clone(),
                })
                .collect(),
        }
    }

    /// Time since the last response of any type was answered; `None` before the first.
    #[must_use]
    pub fn last_update_age(&self) -> Option<Duration> {
        let facts = self.facts();
        let newest = facts.types.values().filter_map(|f| f.acknowledged).max();
        newest.map(|at| at.elapsed())
    }

    /// Resolves once the control plane has answered every type.
    pub(crate) async fn answered(&self) {
        // As in `synced`.
        let _ = self.shared.answered.subscribe().wait_for(|s| *s).await;
    }

    /// Resources came from a file; they do not count until [`Self::use_restored`].
    pub(crate) fn restored(&self, resources: usize) {
        self.facts().restored = Some(resources);
    }

    /// What came from a file, if anything, has to do for now.
    pub(crate) fn use_restored(&self) {
        if self.facts().restored.is_some() && !self.shared.synced.send_replace(true) {
            tracing::info!("no answer from the control plane yet: serving what was saved");
        }
    }

    pub(crate) fn connected(&self) {
        let mut facts = self.facts();
        facts.connected = true;
        facts.connects += 1;
    }

    pub(crate) fn disconnected(&self, why: String, how: Termination) {
        let mut facts = self.facts();
        *facts.terminations.entry(how).or_default() += 1;
        facts.connected = false;
        facts.last_failure = Some(why);
    }

    pub(crate) fn applied(&self, applied: &Applied<'_>) {
        let mut facts = self.facts();
        if let Some(f) = facts.types.get_mut(applied.type_url) {
            f.answered |= !applied.nonce.ends_with(MORE);
            f.resources = applied.resources;
            f.messages += 1;
            f.bytes += applied.bytes as u64;
            f.version = applied.version.to_owned();
            f.nonce = applied.nonce.to_owned();
            f.acknowledged = Some(Instant::now());
            for name in &applied.settled {
                f.rejected.remove(*name);
            }
            for rejected in applied.rejected {
                f.rejected
                    .insert(rejected.name.clone(), rejected.reason.clone());
            }
        }
        let all = facts.types.values().all(|f| f.answered || f.optional);
        drop(facts);
        if all {
            self.shared.answered.send_replace(true);
            self.shared.synced.send_replace(true);
        }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Each update leaves the facts whole, so a poisoned lock is as good as any.
        self.shared
            .facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_types_are_not_waited_for() {
        let status = SyncStatus::new([("needed", false), ("optional", true)].into_iter());
        let answered = |type_url, nonce| {
            status.applied(&Applied {
                type_url,
                resources: 0,
                bytes: 0,
                version: "",
                nonce,
                settled: Vec::new(),
                rejected: &[],
            });
            status.is_synced()
        };
        assert!(!answered("optional", "1"));
        assert!(!answered("needed", "1-2+"), "more follows");
        assert!(answered("needed", "1-3"));
        assert!(answered("needed", "2-4+"), "only the first answer counts");
    }
}

//! What is observed of every pod, for the status page and the metrics.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

/// Where a pod stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Its object is not known yet.
    Unknown,
    /// Not in the mesh, no rule of ours.
    Plain,
    /// On the way in.
    Enrolling,
    /// Redirected, verified, served by a node proxy, published.
    Enrolled,
    /// On the way out: callers are being told.
    Leaving,
    /// On the way out: open connections are waited for.
    Draining,
    /// A step failed; it is tried again.
    Failing,
}

impl Standing {
    /// Every standing.
    pub const ALL: [Self; 7] = [
        Self::Unknown,
        Self::Plain,
        Self::Enrolling,
        Self::Enrolled,
        Self::Leaving,
        Self::Draining,
        Self::Failing,
    ];

    /// Lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Plain => "plain",
            Self::Enrolling => "enrolling",
            Self::Enrolled => "enrolled",
            Self::Leaving => "leaving",
            Self::Draining => "draining",
            Self::Failing => "failing",
        }
    }
}

/// One pod as observed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Kubernetes uid.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Inode of its network namespace, as in `net:[4026531840]`; 0 if it cannot be opened.
    pub netns: u64,
    /// Where it stands.
    pub standing: Standing,
    /// Why it is wished to be in the mesh, or not.
    pub why: String,
    /// Rules as last observed: `absent`, `off`, `on` or `damaged`.
    pub rules: &'static str,
    /// True while the newest node proxy listens inside it.
    pub accepted: bool,
    /// True while callers are told to use HBONE.
    pub published: bool,
    /// Connections that the rules carry.
    pub connections: usize,
    /// Times its rules had to be repaired.
    pub repairs: u64,
    /// What is wrong, in words; empty if nothing is.
    pub problem: String,
    /// When this was last looked at; RFC 3339.
    pub observed: String,
}

/// All pods of the node.
#[derive(Debug, Default)]
pub struct Board {
    // Held while one entry is replaced or all are copied.
    pods: Mutex<BTreeMap<String, PodView>>,
    changes: watch::Sender<u64>,
}

impl Board {
    /// Replaces a pod's entry.
    pub fn show(&self, pod: PodView) {
        self.lock().insert(pod.uid.clone(), pod);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Counts up whenever an entry is replaced.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// One pod's entry.
    #[must_use]
    pub fn find(&self, uid: &str) -> Option<PodView> {
        self.lock().get(uid).cloned()
    }

    /// Removes a pod's entry.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Removes the entries that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| keep(uid));
    }

    /// All entries, by uid.
    #[must_use]
    pub fn all(&self) -> Vec<PodView> {
        self.lock().values().cloned().collect()
    }

    /// Number of pods per standing.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Standing, usize> {
        let mut counts: BTreeMap<_, _> = Standing::ALL.map(|standing| (standing, 0)).into();
        for pod in self.lock().values() {
            *counts.entry(pod.standing).or_default() += 1;
        }
        counts
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PodView>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

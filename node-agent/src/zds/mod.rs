//! Telling node proxies which pods to serve: a Unix socket of whole packets, the pod's network
//! namespace as a descriptor beside the message.
//!
//! Several proxies may be connected while one replaces another. New pods go to the newest only,
//! removals go to all. A proxy counts as the newest once it has said hello; from that moment it
//! gets everything known as a snapshot, and whatever comes later behind it, in order.

mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isobar_net::{NetNs, SeqPacketListener};
use isobar_runtime::{Lifetime, Scope};
use tokio::sync::{mpsc, oneshot, watch};

/// Longest message either side may send, in bytes.
pub const PACKET_MAX: usize = 1024;
/// Longest time for one packet to go or to come.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Requests that may wait for one proxy.
const QUEUE: usize = 100;
/// Between two accepted connections: at most five a second.
const ACCEPT_EVERY: Duration = Duration::from_millis(200);

/// What a proxy is told about a pod.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// Kubernetes uid.
    pub uid: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Its network namespace.
    pub netns: NetNs,
}

/// Why a pod could not be announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// Nobody to tell.
    #[error("no node proxy is connected")]
    NoProxy,
    /// The proxy answered with an error.
    #[error("the node proxy refused the pod: {0}")]
    Refused(String),
    /// The connection ended before an answer.
    #[error("the node proxy went away before it answered")]
    Gone,
}

/// A connected proxy, as the status page shows it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ProxyStatus {
    /// Number of the connection, growing.
    pub connection: u64,
    /// Its process, as far as the kernel tells.
    pub pid: Option<i32>,
    /// True once it has been told everything.
    pub synced: bool,
    /// Pods it serves.
    pub pods: usize,
}

/// The agent's side of the protocol. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Zds {
    // Held for map changes only, never while a packet is under way.
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Announcement>,
    proxies: BTreeMap<u64, Proxy>,
    connections: u64,
}

#[derive(Debug)]
struct Proxy {
    commands: mpsc::Sender<Command>,
    accepted: BTreeSet<String>,
    synced: bool,
    pid: Option<i32>,
}

#[derive(Debug)]
enum Command {
    Add(Announcement, oneshot::Sender<Result<(), AnnounceError>>),
    Delete(String, oneshot::Sender<()>),
}

impl Default for Zds {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Zds {
    /// Counts up whenever a proxy comes, has been told everything, or goes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Adds a pod to what every proxy is told when it connects, without telling anybody now. For
    /// pods that were enrolled before the agent started.
    pub fn adopt(&self, pod: Announcement) {
        self.lock().insert(pod);
    }

    /// Tells the newest proxy and waits until it listens inside the pod.
    ///
    /// # Errors
    /// When there is no proxy, or it refuses, or goes away. The pod stays among those that the next
    /// proxy is told of.
    pub async fn announce(&self, pod: Announcement) -> Result<(), AnnounceError> {
        let (done, answer) = oneshot::channel();
        let newest = {
            let mut state = self.lock();
            state.insert(pod.clone());
            let newest = state.proxies.values().next_back();
            newest.map(|proxy| proxy.commands.clone())
        };
        let newest = newest.ok_or(AnnounceError::NoProxy)?;
        let command = Command::Add(pod, done);
        newest
            .send(command)
            .await
            .map_err(|_| AnnounceError::Gone)?;
        answer.await.map_err(|_| AnnounceError::Gone)?
    }

    /// Tells every proxy to forget the pod, and waits for those that answer.
    pub async fn withdraw(&self, uid: &str) {
        let proxies: Vec<_> = {
            let mut state = self.lock();
            state.pods.remove(uid);
            state.proxies.values().map(|p| p.commands.clone()).collect()
        };
        for proxy in proxies {
            let (done, answer) = oneshot::channel();
            if proxy
                .send(Command::Delete(uid.to_owned(), done))
                .await
                .is_ok()
            {
                // An error means that the proxy went away, and its memory with it.
                let _ = answer.await;
            }
        }
    }

    /// True if the pod is among those that every proxy is told of.
    #[must_use]
    pub fn is_announced(&self, uid: &str) -> bool {
        self.lock().pods.contains_key(uid)
    }

    /// True if the newest proxy listens inside the pod.
    #[must_use]
    pub fn is_accepted(&self, uid: &str) -> bool {
        let state = self.lock();
        let newest = state.proxies.values().next_back();
        newest.is_some_and(|proxy| proxy.accepted.contains(uid))
    }

    /// True if the newest proxy listens inside the pod, and that is in this namespace.
    #[must_use]
    pub fn is_served(&self, uid: &str, netns: &NetNs) -> bool {
        let at = |pod: &Announcement| pod.netns.id() == netns.id();
        self.lock().pods.get(uid).is_some_and(at) && self.is_accepted(uid)
    }

    /// The connected proxies, oldest first.
    #[must_use]
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        let state = self.lock();
        state
            .proxies
            .iter()
            .map(|(connection, proxy)| ProxyStatus {
                connection: *connection,
                pid: proxy.pid,
                synced: proxy.synced,
                pods: proxy.accepted.len(),
            })
            .collect()
    }

    /// Serves proxies until `life` ends.
    pub async fn serve(self, listener: SeqPacketListener, life: Lifetime) {
        let scope = Scope::new("zds");
        loop {
            let accepted = tokio::select! {
                () = life.draining() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(socket) => {
                    let zds = self.clone();
                    scope.spawn("proxy", async move { session::run(zds, socket).await });
                }
                Err(error) => tracing::warn!(%error, "a node proxy could not be accepted"),
            }
            tokio::select! {
                () = life.draining() => break,
                () = tokio::time::sleep(ACCEPT_EVERY) => {}
            }
        }
        scope.shutdown(Duration::ZERO).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl State {
    fn insert(&mut self, pod: Announcement) {
        let moved = self
            .pods
            .get(&pod.uid)
            .is_some_and(|old| old.netns.id() != pod.netns.id());
        if moved {
            // The sandbox was made anew: nobody listens inside the new one yet.
            for proxy in self.proxies.values_mut() {
                proxy.accepted.remove(&pod.uid);
            }
        }
        self.pods.insert(pod.uid.clone(), pod);
    }
}

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::allowance::Allowance;
use super::kind::Kind;
use super::session::Progress;

/// Connected clients and how far each has come; shared by sessions and the debug pages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clients {
    inner: Arc<Mutex<Inner>>,
    progress: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    connected: BTreeMap<u64, ClientState>,
}

/// One connected client.
#[derive(Debug, Clone)]
pub(crate) struct ClientState {
    /// SPIFFE identity, from its token.
    pub(crate) identity: String,
    /// `ztunnel`, `waypoint` or `proxy`.
    pub(crate) kind: &'static str,
    /// Node, from its token.
    pub(crate) node: String,
    /// Namespace of its pod.
    pub(crate) namespace: String,
    /// Pod name, from its token.
    pub(crate) pod: String,
    /// Gateway it is an instance of, `namespace/name`; empty for others.
    pub(crate) gateway: String,
    /// Version of its program, as it says itself; for display only. Empty if it does not say.
    pub(crate) version: String,
    /// Network address it connected from.
    pub(crate) peer: String,
    /// When the stream opened.
    pub(crate) connected: Instant,
    /// The same on the wall clock, RFC 3339.
    pub(crate) connected_at: String,
    /// Revision of the catalog that `kinds` was compared with.
    pub(crate) revision: u64,
    /// Newest revision of which the client has confirmed all addresses.
    pub(crate) confirmed: u64,
    /// One entry for each kind the client is expected to have.
    pub(crate) kinds: Vec<KindState>,
}

/// How far a client has come with one kind.
#[derive(Debug, Clone)]
pub(crate) struct KindState {
    /// Which kind.
    pub(crate) kind: Kind,
    /// How far.
    pub(crate) progress: Progress,
    /// Revision last acknowledged.
    pub(crate) revision: u64,
    /// When it was acknowledged.
    pub(crate) acked: Option<Instant>,
    /// Since when an answer is awaited.
    pub(crate) waiting: Option<Instant>,
    /// Number of resources held.
    pub(crate) held: usize,
    /// What the client refused, in its words.
    pub(crate) error: Option<String>,
}

/// Why a stream is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Crowd {
    /// Of its pod, or of its account where it has none.
    #[error("{0} discovery streams are open from this pod already")]
    Pod(usize),
    /// Of everybody in its namespace who is neither a node proxy nor a waypoint.
    #[error(
        "{0} discovery streams of clients without a Gateway are open from this namespace already"
    )]
    Namespace(usize),
}

/// Keeps a client in the table; dropping it removes the client.
#[derive(Debug)]
pub(crate) struct Registration {
    clients: Clients,
    id: u64,
}

impl Clients {
    /// Adds a client, unless it has as many streams as it may have already.
    pub(crate) fn register(
        &self,
        state: ClientState,
        allowance: Allowance,
    ) -> Result<Registration, Crowd> {
        let mut inner = self.lock();
        let connected = inner.connected.values();
        let same = connected.filter(|one| one.identity == state.identity && one.pod == state.pod);
        if same.count() >= allowance.streams {
            return Err(Crowd::Pod(allowance.streams));
        }
        // Accounts and pods are made at will by whoever has the namespace.
        let connected = inner.connected.values();
        let beside = connected.filter(|o| o.kind == state.kind && o.namespace == state.namespace);
        if beside.count() >= allowance.of_namespace {
            return Err(Crowd::Namespace(allowance.of_namespace));
        }
        inner.next += 1;
        let id = inner.next;
        inner.connected.insert(id, state);
        Ok(Registration {
            clients: self.clone(),
            id,
        })
    }

    /// Everything connected now, in order of connection.
    pub(crate) fn all(&self) -> Vec<ClientState> {
        self.lock().connected.values().cloned().collect()
    }

    /// Names of the mesh's own proxies that have not confirmed that revision.
    pub(crate) fn behind(&self, revision: u64) -> Vec<String> {
        let inner = self.lock();
        let proxies = inner.connected.values().filter(|one| one.kind != "proxy");
        let late = proxies.filter(|one| one.confirmed < revision);
        late.map(|one| format!("{} {}/{}", one.kind, one.namespace, one.pod))
            .collect()
    }

    /// Ends when a client has confirmed something or left, at once if that was since the last call.
    pub(crate) async fn progress(&self) {
        self.progress.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every critical section leaves the table consistent, so a poisoned lock is usable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// Changes the client's entry.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ClientState)) {
        if let Some(state) = self.clients.lock().connected.get_mut(&self.id) {
            change(state);
        }
    }

    /// The client has confirmed all addresses of that revision.
    pub(crate) fn confirm(&self, revision: u64) {
        let mut inner = self.clients.lock();
        let Some(state) = inner.connected.get_mut(&self.id) else {
            return;
        };
        if state.confirmed < revision {
            state.confirmed = revision;
            self.clients.progress.notify_one();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.clients.lock().connected.remove(&self.id);
        self.clients.progress.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(kind: &'static str, namespace: &str, account: usize) -> ClientState {
        ClientState {
            identity: format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"),
            kind,
            node: String::new(),
            namespace: namespace.to_owned(),
            pod: String::new(),
            gateway: String::new(),
            version: String::new(),
            peer: String::new(),
            connected: Instant::now(),
            connected_at: String::new(),
            revision: 0,
            confirmed: 0,
            kinds: Vec::new(),
        }
    }

    #[test]
    fn more_accounts_have_no_more_streams_than_their_namespace() {
        let clients = Clients::default();
        let open = |kind, namespace, account| {
            let node = kind == "ztunnel";
            let allowance = Allowance::of(node, kind == "waypoint");
            clients.register(client(kind, namespace, account), allowance)
        };
        let mut held: Vec<_> = (0..64).map(|n| open("proxy", "a", n).unwrap()).collect();
        let refused = open("proxy", "a", 64).unwrap_err();
        assert_eq!(refused, Crowd::Namespace(64));
        // Others are none the worse for it, and who is a waypoint after all leaves room.
        for (kind, namespace) in [("proxy", "b"), ("waypoint", "a"), ("ztunnel", "a")] {
            assert!(open(kind, namespace, 0).is_ok(), "{kind} of {namespace}");
        }
        held[0].update(|state| state.kind = "waypoint");
        held.push(open("proxy", "a", 64).unwrap());
        assert!(open("proxy", "a", 65).is_err());
        held.pop();
        assert!(open("proxy", "a", 65).is_ok());
    }
}

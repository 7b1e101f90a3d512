//! The open connections of one pod: for dumps, and for taking back what was allowed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use isobar_state::outbound::OutboundCall;
use isobar_state::{
    ConnectionLimits, Peer, Refusal, Service, Snapshot, Workload, authorize, pass_again,
};
use isobar_types::{NamespacedHostname, Reason, Str};
use serde::Serialize;
use tokio::sync::Notify;

use super::ledger::Ending;

/// Start of the error text of a connection refused by policy; Istio's words, people search them.
pub(super) const REJECTED: &str = "connection closed due to policy rejection";
/// Error text of a connection cut by a later policy; Istio's words.
pub(super) const WITHDRAWN: &str = "connection closed due to policy change";

/// Open connections of one pod, on all workers.
#[derive(Debug, Default)]
pub struct Connections {
    // Held to add, remove or list entries; decisions are made without it.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    inbound: BTreeMap<u64, Arc<Inbound>>,
    outbound: BTreeMap<u64, Outbound>,
    /// Connections that count towards the limit of a service.
    to_service: BTreeMap<NamespacedHostname, u32>,
}

/// One open connection, as Istio's dump shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Address of the client.
    pub src: SocketAddr,
    /// What the client asked for.
    pub original_dst: Option<Place>,
    /// Where the proxy went.
    pub actual_dst: Place,
    /// `TCP` or `HBONE`.
    pub protocol: &'static str,
}

/// Where a connection leads; written out only when somebody looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Place {
    /// An address.
    Address(SocketAddr),
    /// A name, perhaps with a port.
    Name(Str),
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<&str> for Place {
    fn from(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::Name(text.into()), Self::Address)
    }
}

/// Connections of both directions.
#[derive(Debug, Default, Serialize)]
pub struct Views {
    /// To the pod.
    pub inbound: Vec<View>,
    /// From the pod.
    pub outbound: Vec<View>,
}

#[derive(Debug)]
struct Inbound {
    peer: Peer,
    destination: SocketAddr,
    /// As known when the connection came; used only once the mesh does not know it any more.
    workload: Arc<Workload>,
    view: View,
    standing: Standing,
}

#[derive(Debug)]
struct Outbound {
    view: View,
    /// What is asked again.
    passed: Option<Arc<Passed>>,
}

/// Whether a connection is still allowed.
#[derive(Debug, Default)]
struct Standing {
    /// Set once, when it is not allowed any more; `cut` tells of it.
    ending: OnceLock<Ending>,
    cut: Notify,
}

impl Standing {
    /// Ends the connection. False if that was done before.
    fn end(&self, ending: Ending) -> bool {
        let first = self.ending.set(ending).is_ok();
        self.cut.notify_waiters();
        first
    }

    async fn ended(&self) -> Ending {
        loop {
            // Registered before looking, so that no change is missed.
            let mut told = pin!(self.cut.notified());
            told.as_mut().enable();
            if let Some(ending) = self.ending.get() {
                return ending.clone();
            }
            told.await;
        }
    }
}

/// A connection of the pod's application to a place outside the mesh, in the clear.
#[derive(Debug)]
pub struct Passed {
    /// As known when the connection came; used only once the mesh does not know it any more.
    source: Arc<Workload>,
    client: SocketAddr,
    destination: SocketAddr,
    standing: Standing,
}

impl Passed {
    /// From `client`, which belongs to `source`, to `destination`.
    #[must_use]
    pub fn new(source: Arc<Workload>, client: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            client,
            destination,
            standing: Standing::default(),
        }
    }

    /// Decides anew. True if that ends the connection.
    fn ask_again(&self, snapshot: &Snapshot, network: &str) -> bool {
        let call = OutboundCall {
            source: snapshot
                .workload_by_uid(&self.source.uid)
                .unwrap_or(&self.source),
            source_ip: self.client.ip(),
            destination: self.destination,
            network,
            crosses_networks: true,
            ejections: None,
        };
        pass_again(snapshot, &call).is_err_and(|refusal| {
            let text = format!("{WITHDRAWN}: {}", refusal.detail);
            let ending = Ending::failed(Reason::PolicyWithdrawn, text);
            self.standing.end(ending.gently())
        })
    }
}

/// Keeps an inbound connection registered; ends that when dropped.
#[derive(Debug)]
pub struct InboundGuard {
    id: u64,
    connections: Arc<Connections>,
    entry: Arc<Inbound>,
}

/// One of the connections that a service's limit allows; gives it back when dropped.
#[derive(Debug)]
pub struct Slot {
    service: NamespacedHostname,
    connections: Arc<Connections>,
}

/// Keeps an outbound connection listed; ends that when dropped.
#[derive(Debug)]
pub struct OutboundGuard {
    id: u64,
    connections: Arc<Connections>,
    passed: Option<Arc<Passed>>,
}

impl Connections {
    /// Registers an inbound connection. Do it before the policy is evaluated, so that no change
    /// between the two is missed.
    #[must_use]
    pub fn inbound(
        self: &Arc<Self>,
        peer: Peer,
        destination: SocketAddr,
        workload: Arc<Workload>,
        view: View,
    ) -> InboundGuard {
        let entry = Arc::new(Inbound {
            peer,
            destination,
            workload,
            view,
            standing: Standing::default(),
        });
        let id = self.with(|open| {
            open.next += 1;
            open.inbound.insert(open.next, entry.clone());
            open.next
        });
        InboundGuard {
            id,
            connections: self.clone(),
            entry,
        }
    }

    /// Lists an outbound connection.
    #[must_use]
    pub fn outbound(self: &Arc<Self>, view: View) -> OutboundGuard {
        self.list(view, None)
    }

    /// As [`Self::outbound`], for a connection that [`Self::recheck`] decides anew about.
    #[must_use]
    pub fn passed_through(self: &Arc<Self>, view: View, passed: Passed) -> OutboundGuard {
        self.list(view, Some(Arc::new(passed)))
    }

    fn list(self: &Arc<Self>, view: View, passed: Option<Arc<Passed>>) -> OutboundGuard {
        let entry = Outbound {
            view,
            passed: passed.clone(),
        };
        let id = self.with(|open| {
            open.next += 1;
            open.outbound.insert(open.next, entry);
            open.next
        });
        OutboundGuard {
            id,
            connections: self.clone(),
            passed,
        }
    }

    /// Takes one of the connections to `service` that `limits` allow.
    ///
    /// # Errors
    /// When all of them are taken.
    pub fn take_slot(
        self: &Arc<Self>,
        service: &Service,
        limits: &ConnectionLimits,
    ) -> Result<Slot, Refusal> {
        self.with(|all| {
            let open = all.to_service.get(&service.key).copied().unwrap_or(0);
            limits.admit(service, open)?;
            all.to_service.insert(service.key.clone(), open + 1);
            Ok(Slot {
                service: service.key.clone(),
                connections: self.clone(),
            })
        })
    }

    /// Decides anew about every inbound connection and every one that was passed through, and cuts those that
    /// are not allowed any more. `network` is the node's. Returns how many were cut.
    pub fn recheck(&self, snapshot: &Snapshot, network: &str) -> usize {
        let (inbound, passed): (Vec<_>, Vec<_>) = self.with(|open| {
            let passed = open.outbound.values().filter_map(|o| o.passed.clone());
            (open.inbound.values().cloned().collect(), passed.collect())
        });
        let again = passed.iter().filter(|p| p.ask_again(snapshot, network));
        let mut cut = again.count();
        for entry in inbound {
            let workload = snapshot
                .workload_by_uid(&entry.workload.uid)
                .unwrap_or(&entry.workload);
            if let Err(denied) = authorize(snapshot, &entry.peer, workload, entry.destination) {
                let ending = Ending::failed(
                    Reason::PolicyWithdrawn,
                    format!("{WITHDRAWN}: {}", denied.detail),
                );
                cut += usize::from(entry.standing.end(ending));
            }
        }
        cut
    }

    /// The open connections.
    #[must_use]
    pub fn views(&self) -> Views {
        self.with(|open| Views {
            inbound: open.inbound.values().map(|e| e.view.clone()).collect(),
            outbound: open.outbound.values().map(|e| e.view.clone()).collect(),
        })
    }

    /// How many the pod's own application has open.
    pub(super) fn outbound_open(&self) -> usize {
        self.with(|open| open.outbound.len())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Open) -> T) -> T {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl InboundGuard {
    /// Resolves when the connection is not allowed any more.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn withdrawn(&self) -> Ending {
        self.entry.standing.ended().await
    }
}

impl OutboundGuard {
    /// Decides anew about a connection that is passed through; nothing for others.
    pub fn ask_again(&self, snapshot: &Snapshot, network: &str) {
        if let Some(passed) = &self.passed {
            passed.ask_again(snapshot, network);
        }
    }

    /// Resolves when the connection is not allowed any more: those that are passed through may end so.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn withdrawn(&self) -> Ending {
        match &self.passed {
            Some(passed) => passed.standing.ended().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for InboundGuard {
    fn drop(&mut self) {
        self.connections.with(|open| open.inbound.remove(&self.id));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.with(|all| {
            let open = all.to_service.get(&self.service).copied().unwrap_or(0);
            if open > 1 {
                all.to_service.insert(self.service.clone(), open - 1);
            } else {
                all.to_service.remove(&self.service);
            }
        });
    }
}

impl Drop for OutboundGuard {
    fn drop(&mut self) {
        self.connections.with(|open| open.outbound.remove(&self.id));
    }
}

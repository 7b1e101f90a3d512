//! The open connections of one pod: for dumps, and for taking back what was allowed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use isobar_state::{ConnectionLimits, Peer, Refusal, Service, Snapshot, Workload, authorize};
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
    outbound: BTreeMap<u64, View>,
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
    /// Set once, when the connection is not allowed any more; `cut` tells of it.
    ending: OnceLock<Ending>,
    cut: Notify,
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
            ending: OnceLock::new(),
            cut: Notify::new(),
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
        let id = self.with(|open| {
            open.next += 1;
            open.outbound.insert(open.next, view);
            open.next
        });
        OutboundGuard {
            id,
            connections: self.clone(),
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

    /// Decides anew about every inbound connection and cuts those that are not allowed any more.
    /// Returns how many were cut.
    pub fn recheck(&self, snapshot: &Snapshot) -> usize {
        let open: Vec<_> = self.with(|open| open.inbound.values().cloned().collect());
        let mut cut = 0;
        for entry in open {
            let workload = snapshot
                .workload_by_uid(&entry.workload.uid)
                .unwrap_or(&entry.workload);
            if let Err(denied) = authorize(snapshot, &entry.peer, workload, entry.destination) {
                let ending = Ending::failed(
                    Reason::PolicyWithdrawn,
                    format!("{WITHDRAWN}: {}", denied.detail),
                );
                cut += usize::from(entry.ending.set(ending).is_ok());
                entry.cut.notify_waiters();
            }
        }
        cut
    }

    /// The open connections.
    #[must_use]
    pub fn views(&self) -> Views {
        self.with(|open| Views {
            inbound: open.inbound.values().map(|e| e.view.clone()).collect(),
            outbound: open.outbound.values().cloned().collect(),
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
        loop {
            // Registered before looking, so that no change is missed.
            let mut told = pin!(self.entry.cut.notified());
            told.as_mut().enable();
            if let Some(ending) = self.entry.ending.get() {
                return ending.clone();
            }
            told.await;
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

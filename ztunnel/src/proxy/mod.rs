//! The data path. One connection lives and dies on one worker thread.
//!
//! ```text
//! outbound    Accepted ─attribute▶ Attributed ─route▶ Routed ─connect▶ Connected ─relay▶ closed
//! inbound     Accepted ─tls▶ VerifiedPeer ─CONNECT▶ Requested ─authorize▶ Permit ─dial▶ 200 ─relay▶ closed
//! SOCKS5      greeting ─▶ as outbound
//! plaintext   Accepted ─attribute▶ Attributed ─authorize▶ Permit ─dial▶ relay ▶ closed
//! ```

mod accept;
mod connections;
mod ejections;
mod inbound;
mod ledger;
mod listeners;
mod neighbour;
mod outbound;
mod plaintext;
mod pod;
mod socks5;
mod target;
mod together;
mod tunnel;
mod way;
mod worker;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use isobar_hbone::Admission;
use isobar_net::{DialOptions, Keepalive, Source};
use isobar_state::{Snapshot, Workload};
use isobar_types::Reason;
use isobar_xds::{CertSource, OnDemand, Store, TooManyAsked};

pub use accept::Descriptors;
pub use connections::{Connections, InboundGuard, Place, View, Views};
pub use ejections::PodEjections;
pub use ledger::{Accounts, Ending, Ledger};
pub use listeners::PodListeners;
pub use neighbour::Neighbours;
pub use pod::{Pod, Stage};
pub use worker::serve_pod;

use crate::config::Config;
use crate::dns;
use crate::metrics::Metrics;

/// How long a connection waits for the control plane to tell who the local pod is. The node agent
/// may announce a pod before the control plane does.
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);
/// What is learnt may name more to ask for: a service its waypoint, that its network's gateway.
const ROUNDS: usize = 4;

/// What all pods share.
pub struct World {
    /// Static configuration.
    pub config: Arc<Config>,
    /// The mesh.
    pub store: Store,
    /// What of the mesh has been asked for, where it is asked for bit by bit.
    pub on_demand: Option<OnDemand>,
    /// Certificates of local workloads.
    pub certificates: Arc<dyn CertSource>,
    /// Counters.
    pub metrics: Metrics,
    /// The DNS proxy of each pod; `None` when switched off.
    pub dns: Option<dns::Resolver>,
    /// Descriptors left for new connections.
    pub descriptors: Descriptors,
    /// The pods of this process.
    pub neighbours: Neighbours,
    /// Limits on callers; see [`Pod::admission`].
    pub admission: Admission,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

/// A connection that is not carried, and why. It is closed before any byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
}

impl Refused {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

impl World {
    /// Our node's name; empty means that every workload counts as local.
    #[must_use]
    pub fn node(&self) -> &str {
        self.config.node_name.as_deref().unwrap_or_default()
    }

    /// The workload of `pod`, waiting a while for the control plane to tell of it.
    pub(crate) async fn workload(&self, pod: &Pod) -> Result<Arc<Workload>, Refused> {
        if let Some(workload) = pod.workload(&self.store.load(), self.node()) {
            return Ok(workload.clone());
        }
        let found = self
            .store
            .wait_for(|snapshot| pod.workload(snapshot, self.node()).cloned());
        tokio::time::timeout(WORKLOAD_WAIT, found)
            .await
            .map_err(|_| {
                let name = pod.display_name();
                Refused::new(
                    Reason::UnknownWorkload,
                    format!(
                        "workload not found: the control plane does not know {name} on this node"
                    ),
                )
            })
    }

    /// The newest snapshot, with all in it that `unknown` wants for its decision: what is missing is
    /// asked for, where the mesh is asked for bit by bit. What still is missing does not exist.
    ///
    /// # Errors
    /// When the control plane does not answer in time. Nothing is decided then: what is taken for
    /// unknown would pass around policies and waypoints.
    pub(crate) async fn learn(
        &self,
        unknown: impl Fn(&Snapshot) -> BTreeSet<String>,
    ) -> Result<Arc<Snapshot>, Refused> {
        let Some(on_demand) = &self.on_demand else {
            return Ok(self.store.load());
        };
        let learn = async {
            for _ in 0..ROUNDS {
                let snapshot = self.store.load();
                let names = unknown(&snapshot).into_iter();
                let names: Vec<_> = names.filter(|n| !on_demand.is_answered(n)).collect();
                if names.is_empty() {
                    return Ok(snapshot);
                }
                let full = |error: TooManyAsked| Refused::new(Reason::Overload, error.to_string());
                on_demand.ask(&names).await.map_err(full)?;
            }
            Ok(self.store.load())
        };
        // Boxed: few connections need it, and all would hold its room.
        let learnt = tokio::time::timeout(WORKLOAD_WAIT, Box::pin(learn)).await;
        learnt.unwrap_or_else(|_| {
            let text =
                format!("the control plane did not say within {WORKLOAD_WAIT:?} what is there");
            Err(Refused::new(Reason::UnknownDestination, text))
        })
    }

    /// Keepalive of plain connections.
    #[must_use]
    pub fn keepalive(&self) -> Option<Keepalive> {
        self.config.keepalive.map(|k| Keepalive {
            time: k.time,
            interval: k.interval,
            retries: k.retries,
            user_timeout: k.user_timeout,
        })
    }

    /// How to connect to the application of `pod` for a client at `client`: with the client's
    /// address, so that the application sees who called.
    pub(crate) fn dial_application(&self, pod: &Pod, client: IpAddr, to: IpAddr) -> DialOptions {
        let wanted = self.config.original_source != Some(false) && client != to && !pod.own;
        DialOptions {
            source: wanted.then_some(Source {
                ip: client,
                required: self.config.original_source == Some(true),
            }),
            ..pod.dial_options(self)
        }
    }
}

/// The workload a plain connection from `ip` comes from; a guess by address, for telemetry only.
fn workload_at(snapshot: &Snapshot, network: &str, ip: IpAddr) -> Option<Arc<Workload>> {
    let address = isobar_types::NetworkAddress::new(network.into(), ip);
    snapshot.workload_by_address(&address).cloned()
}

//! Who calls: by certificate first, the address only chooses among workloads of that identity.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isobar_route::Caller;
use isobar_state::{Snapshot, Workload};
use isobar_types::{Identity, NetworkAddress, Str};

use crate::world::{View, World};

/// How long a caller may wait for what discovery has not brought yet.
pub(crate) const KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// The other end of a connection, as TLS and TCP say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The one identity of its certificate; `None` for plain connections from outside the mesh.
    pub identity: Option<Identity>,
    /// Its address; in-pod proxies dial from the pod, so this is the pod's.
    pub address: SocketAddr,
    /// The caller says it is on another network: its address means nothing here.
    pub foreign: bool,
}

impl Peer {
    /// The namespace its certificate says, or none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.identity.as_ref().map_or("", |own| &*own.namespace)
    }

    fn may_be(&self, workload: &Workload, snapshot: &Snapshot) -> bool {
        let own = self.identity.as_ref();
        own.is_some_and(|own| snapshot.has_identity(workload, own))
    }
}

/// A caller as far as it is known in one view.
#[derive(Debug, Clone, PartialEq)]
pub struct Attributed {
    /// For routes and policies.
    pub caller: Caller,
    /// For telemetry.
    pub workload: Option<Arc<Workload>>,
}

/// Looks the caller up. Workloads at its address count only if they run as its identity; where
/// several do and their labels differ, labels are unknown.
#[must_use]
pub fn attribute(view: &View, network: &Str, peer: &Peer) -> Attributed {
    let at = NetworkAddress::new(network.clone(), peer.address.ip());
    let here = match &peer.identity {
        Some(_) if !peer.foreign => view.snapshot.workloads_at(&at),
        // An address alone says nothing: anybody may write it.
        _ => &[],
    };
    let mut candidates = here.iter().filter(|w| peer.may_be(w, &view.snapshot));
    let first = candidates.next();
    let labels_of = |w: &Arc<Workload>| view.tables.labels(&w.uid);
    let agree = first.is_some_and(|one| candidates.all(|other| labels_of(other) == labels_of(one)));
    let workload = first.filter(|_| agree);
    Attributed {
        caller: Caller {
            identity: peer.identity.clone(),
            ip: at.ip,
            // A known workload without a labels resource has none of the keys that rules name.
            labels: workload.map(|w| labels_of(w).cloned().unwrap_or_default()),
        },
        workload: workload.cloned(),
    }
}

/// As [`attribute`], but a caller whose workload is not known yet waits for discovery, at most a
/// second; then only its certificate counts.
pub async fn attribute_in_time(world: &World, peer: &Peer) -> Attributed {
    let network = &world.own.network;
    let now = attribute(&world.view(), network, peer);
    if now.workload.is_some() || peer.foreign || peer.identity.is_none() {
        return now;
    }
    let at = NetworkAddress::new(network.clone(), peer.address.ip());
    let known = world.store.wait_for(|snapshot| {
        let any = snapshot.workloads_at(&at).iter();
        any.clone().any(|w| peer.may_be(w, snapshot)).then_some(())
    });
    // Late is not an error: identity alone is a full answer.
    let _ = tokio::time::timeout(KNOWN_WITHIN, known).await;
    attribute(&world.view(), network, peer)
}

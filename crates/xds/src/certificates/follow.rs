use std::collections::BTreeSet;

use isobar_runtime::Lifetime;
use isobar_state::{Snapshot, TunnelProtocol};
use isobar_types::Identity;

use super::CertManager;
use crate::store::Store;

impl CertManager {
    /// Keeps exactly the certificates that the workloads of `node` need, until `life` is stopped:
    /// fetched before the first connection, dropped with the last workload of their account. Starts
    /// when `known` resolves: before the mesh is known, what was saved seems to be needed by nobody.
    pub async fn follow_node(
        &self,
        store: Store,
        node: String,
        known: impl Future<Output = ()>,
        life: Lifetime,
    ) {
        tokio::select! {
            () = life.stopped() => return,
            () = known => {}
        }
        let mut versions = store.versions();
        let mut held = self.identities();
        loop {
            versions.borrow_and_update();
            let wanted = needed(&store.load(), &node);
            for identity in wanted.difference(&held) {
                self.prefetch(identity);
            }
            for identity in held.difference(&wanted) {
                self.forget(identity).await;
            }
            held = wanted;
            tokio::select! {
                () = life.stopped() => return,
                changed = versions.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Identities of the node's workloads that speak HBONE. A single-node mesh has no node name: all.
fn needed(snapshot: &Snapshot, node: &str) -> BTreeSet<Identity> {
    let mut identities = BTreeSet::new();
    let mut add = |w: &isobar_state::Workload| {
        if w.tunnel == TunnelProtocol::Hbone || w.native_tunnel {
            identities.insert(w.identity());
        }
    };
    if node.is_empty() {
        snapshot.workloads().for_each(|w| add(w));
    } else {
        snapshot.workloads_on_node(node).for_each(|w| add(w));
    }
    identities
}

//! Follows the mesh: what was allowed is asked again when a policy changes.

use isobar_runtime::Lifetime;
use isobar_xds::Store;

use crate::pods::Pods;

impl Pods {
    /// Asks again about every open inbound connection whenever a decision may have changed. Runs
    /// until `life` is stopped: a drain does not suspend policy.
    pub async fn recheck(self, store: Store, life: Lifetime) {
        let mut versions = store.versions();
        let mut seen = store.load().policy_version();
        loop {
            tokio::select! {
                () = life.stopped() => return,
                changed = versions.changed() => if changed.is_err() {
                    return;
                },
            }
            versions.borrow_and_update();
            let snapshot = store.load();
            if snapshot.policy_version() == seen {
                continue;
            }
            seen = snapshot.policy_version();
            for (uid, info, connections) in self.connections() {
                let cut = connections.recheck(&snapshot);
                if cut > 0 {
                    let pod = format!("{}/{}", info.namespace, info.name);
                    tracing::info!(uid, pod, cut, "connections cut by policy");
                }
            }
        }
    }
}

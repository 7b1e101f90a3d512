use std::sync::Arc;

use arc_swap::ArcSwap;
use isobar_state::Snapshot;
use tokio::sync::watch;

/// The newest snapshot. Cheap to clone; readers never wait.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    version: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new(Snapshot::default())
    }
}

impl Store {
    /// A store that starts with `snapshot`.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        let version = watch::Sender::new(snapshot.version());
        Self {
            shared: Arc::new(Shared {
                snapshot: ArcSwap::from_pointee(snapshot),
                version,
            }),
        }
    }

    /// The newest snapshot. Load once for each decision, so that it sees one version only.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// The version of the newest snapshot; changes after the snapshot is in place.
    #[must_use]
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Waits until `find` gives something on the newest snapshot, and returns that. Waits for ever
    /// if it never does: set a time limit.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn wait_for<T>(&self, mut find: impl FnMut(&Snapshot) -> Option<T>) -> T {
        let mut versions = self.versions();
        loop {
            // Marked before loading: a version published in between wakes the wait below.
            versions.borrow_and_update();
            if let Some(found) = find(&self.load()) {
                return found;
            }
            if versions.changed().await.is_err() {
                // The sender lives in this very store, so this cannot come.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Puts the next snapshot in place. Only one writer may do so: the discovery client, or whoever
    /// stands in for it (a file, a test).
    pub fn publish(&self, snapshot: Snapshot) {
        let version = snapshot.version();
        self.shared.snapshot.store(Arc::new(snapshot));
        self.shared.version.send_replace(version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_see_what_is_published() {
        let store = Store::default();
        let waiter = store.clone();
        let wait = waiter.wait_for(|s| (s.version() == 2).then_some("two"));
        let write = async {
            store.publish(store.load().draft().finish());
            tokio::task::yield_now().await;
            store.publish(store.load().draft().finish());
        };
        let (found, ()) = tokio::join!(wait, write);
        assert_eq!(found, "two");
        assert_eq!(*store.versions().borrow(), 2);
    }
}

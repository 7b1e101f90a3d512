use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Where the newest is in memory.
    newest: AtomicUsize,
    version: watch::Sender<u64>,
    /// Replaced snapshots that somebody may still be looking at. Only the writer drops them: to
    /// free a big one takes longer than a data-path worker may stop.
    retired: Mutex<Vec<Arc<Snapshot>>>,
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
        let snapshot = Arc::new(snapshot);
        Self {
            shared: Arc::new(Shared {
                newest: AtomicUsize::new(Arc::as_ptr(&snapshot).addr()),
                snapshot: ArcSwap::new(snapshot),
                version,
                retired: Mutex::default(),
            }),
        }
    }

    /// The newest snapshot. Load once for each decision, so that it sees one version only.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// True if no newer one than this was there a moment ago: much cheaper than to load it again. Whoever was
    /// told of a newer version gets `false`.
    #[must_use]
    pub fn is_newest(&self, snapshot: &Arc<Snapshot>) -> bool {
        // Whoever asks holds it, so that no other can be in its place.
        self.shared.newest.load(Ordering::Acquire) == Arc::as_ptr(snapshot).addr()
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
        let snapshot = Arc::new(snapshot);
        let place = Arc::as_ptr(&snapshot).addr();
        let old = self.shared.snapshot.swap(snapshot);
        self.shared.newest.store(place, Ordering::Release);
        self.shared.version.send_replace(version);
        self.retire(old);
    }

    /// Takes a snapshot to be dropped when nobody else holds it; call [`Self::reap`] now and then.
    pub(crate) fn retire(&self, snapshot: Arc<Snapshot>) {
        let mut retired = self.retired();
        // Once only: two entries, or an entry and this pointer, would take each other for readers.
        if retired.iter().any(|old| Arc::ptr_eq(old, &snapshot)) {
            drop(snapshot);
        } else {
            retired.push(snapshot);
        }
        drop(retired);
        self.reap();
    }

    /// Drops the replaced snapshots that nobody holds any more. Returns whether some are left.
    /// Call it from control threads only.
    pub fn reap(&self) -> bool {
        let current = self.load();
        let mut retired = self.retired();
        // A replaced snapshot cannot be loaded any more: once it is held here only, it stays so.
        let (free, held) = std::mem::take(&mut *retired)
            .into_iter()
            .filter(|old| !Arc::ptr_eq(old, &current))
            .partition::<Vec<_>, _>(|old| Arc::strong_count(old) == 1);
        let left = !held.is_empty();
        *retired = held;
        drop(retired);
        drop(free);
        left
    }

    fn retired(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Snapshot>>> {
        // A list of pointers is whole whatever happened.
        self.shared
            .retired
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_loaded_is_the_newest_until_another_is_published() {
        let store = Store::default();
        let first = store.load();
        assert!(store.is_newest(&first));
        store.publish(first.draft().finish());
        assert!(!store.is_newest(&first));
        assert!(store.is_newest(&store.load()));
    }

    #[test]
    fn a_replaced_snapshot_is_dropped_by_the_writer_not_by_the_last_reader() {
        let store = Store::default();
        let reader = store.load();
        let watched = Arc::downgrade(&reader);
        store.publish(store.load().draft().finish());
        assert!(store.reap(), "the reader still looks at it");
        drop(reader);
        assert!(watched.upgrade().is_some(), "the reader does not drop it");
        assert!(!store.reap());
        assert!(watched.upgrade().is_none());
        // One that is handed in twice is not taken for its own reader.
        let kept = store.load();
        let watched = Arc::downgrade(&kept);
        store.publish(store.load().draft().finish());
        store.retire(kept);
        assert!(watched.upgrade().is_none());
        // The newest one is never dropped, whoever hands it in.
        store.retire(store.load());
        assert!(!store.reap());
        assert_eq!(store.load().version(), 2);
    }

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

use std::path::Path;
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// What the system tells about the files of some folders.
#[derive(Debug)]
pub(super) struct News {
    heard: Arc<Notify>,
    /// Tells as long as it lives.
    _watcher: Option<RecommendedWatcher>,
}

impl News {
    /// Listens. A folder that cannot be listened to has no news; whoever waits must look at times.
    pub(super) fn of(folders: &[&Path]) -> Self {
        let heard = Arc::new(Notify::new());
        let tell = Arc::clone(&heard);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| matters(&event)) {
                tell.notify_one();
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            for folder in folders {
                watcher.watch(folder, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(%error, "changes of the node's CNI folders are seen by looking only");
        });
        Self {
            heard,
            _watcher: watcher.ok(),
        }
    }

    /// Resolves when something was changed since it resolved last.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub(super) async fn heard(&self) {
        self.heard.notified().await;
    }
}

/// Reading is no news, nor is a draft that has a name no runtime reads. A file being written counts
/// once it is closed.
fn matters(event: &notify::Event) -> bool {
    let is_hidden = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with('.'))
    };
    let is_change = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(kind) => !matches!(kind, notify::event::ModifyKind::Data(_)),
        _ => true,
    };
    is_change && (event.paths.is_empty() || !event.paths.iter().all(|path| is_hidden(path)))
}

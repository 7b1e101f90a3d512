//! Certificate revocation lists from a file that is replaced while the process runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use isobar_runtime::Lifetime;
use isobar_tls::{RevocationLists, Revocations};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// A file is read once its folder has been quiet for this long: Kubernetes swaps it in several steps.
const QUIET: Duration = Duration::from_millis(200);
/// How often the file is looked at when nothing is heard, as where its folder cannot be watched.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A file of lists, PEM or DER, and the lists in force. A file that is missing or cannot be used
/// changes nothing: the lists last read stay in force (as in Istio's ztunnel).
#[derive(Debug)]
pub struct RevocationFile {
    path: PathBuf,
    revocations: Revocations,
    seen: Option<Seen>,
}

/// What the file was when last looked at; the same trouble is told once.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Content(Vec<u8>),
    Unreadable(std::io::ErrorKind),
}

impl RevocationFile {
    /// Reads the file for the first time, so that its lists are in force before any handshake. One
    /// that cannot be read yet is told, and awaited by [`Self::follow`].
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let revocations = Revocations::new(RevocationLists::default());
        let mut file = Self {
            path,
            revocations,
            seen: None,
        };
        let content = std::fs::read(&file.path);
        file.take(content);
        file
    }

    /// The lists in force, for everything that verifies peers.
    #[must_use]
    pub fn revocations(&self) -> Revocations {
        self.revocations.clone()
    }

    /// Puts every new version of the file in force until the process stops.
    pub async fn follow(mut self, life: Lifetime) {
        let (tell, mut told) = mpsc::channel(1);
        let watcher = folder_watcher(&self.path, tell);
        loop {
            tokio::select! {
                () = life.draining() => break,
                heard = told.recv(), if watcher.is_some() => {
                    if heard.is_some() {
                        quiet(&mut told).await;
                    }
                }
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            let content = tokio::fs::read(&self.path).await;
            self.take(content);
        }
    }

    fn take(&mut self, content: std::io::Result<Vec<u8>>) {
        let path = self.path.display();
        let seen = match content {
            Ok(content) => Seen::Content(content),
            Err(error) => {
                let seen = Seen::Unreadable(error.kind());
                if self.seen.as_ref() != Some(&seen) {
                    tracing::warn!(%path, %error, "revocation lists cannot be read; those in force stay");
                }
                self.seen = Some(seen);
                return;
            }
        };
        if self.seen.as_ref() == Some(&seen) {
            return;
        }
        if let Seen::Content(content) = &seen {
            match RevocationLists::parse(content) {
                Ok(lists) => {
                    tracing::info!(%path, lists = lists.len(), "revocation lists in force");
                    self.revocations.replace(lists);
                }
                Err(error) => {
                    tracing::warn!(%path, %error, "revocation lists cannot be used; those in force stay");
                }
            }
        }
        self.seen = Some(seen);
    }
}

/// Tells of anything that happens in the folder of `path`.
fn folder_watcher(path: &Path, tell: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is no news. A full channel has told already.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = tell.try_send(());
        }
    });
    let watched = watcher.and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watched
        .map_err(|error| {
            let folder = folder.display();
            tracing::warn!(%folder, %error, "cannot be watched; revocation lists are read every {LOOK_AGAIN:?}");
        })
        .ok()
}

/// Waits until nothing was told for [`QUIET`], at most ten times that long.
async fn quiet(told: &mut mpsc::Receiver<()>) {
    for _ in 0..10 {
        match tokio::time::timeout(QUIET, told.recv()).await {
            Ok(Some(())) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use isobar_runtime::Lifetime;
use tokio::sync::watch;

use crate::finding::Finding;
use crate::source::{ObjectSource, Published};

/// Where a [`DirectorySource`] reads, and how patient it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryOptions {
    /// Roots with the user's objects, read recursively. The first to name an object wins.
    pub base: Vec<PathBuf>,
    /// Root with what the mesh's parts write, merged onto the base in path order.
    pub overlay: Option<PathBuf>,
    /// How long files must be quiet before they are read. Default 50 ms.
    pub quiet: Duration,
    /// How often everything is looked at without being told. Default 5 s.
    pub rescan: Duration,
}

impl DirectoryOptions {
    /// Reads `base` and `overlay` with the default patience.
    #[must_use]
    pub fn new(base: Vec<PathBuf>, overlay: Option<PathBuf>) -> Self {
        Self {
            base,
            overlay,
            quiet: Duration::from_millis(50),
            rescan: Duration::from_secs(5),
        }
    }
}

/// Objects in directories of YAML and JSON files, followed as they change.
#[derive(Debug)]
pub struct DirectorySource {
    sender: watch::Sender<Arc<Published>>,
}

impl DirectorySource {
    /// Reads everything once, so that the first publication is complete. Missing directories are
    /// findings, not errors; they are waited for.
    ///
    /// # Errors
    /// When the system refuses to watch files at all.
    pub fn open(_options: DirectoryOptions) -> std::io::Result<Self> {
        Ok(Self {
            sender: watch::Sender::new(Arc::default()),
        })
    }
}

impl ObjectSource for DirectorySource {
    fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.sender.subscribe()
    }

    fn run(self: Box<Self>, life: Lifetime) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { life.stopped().await })
    }
}

/// Reads directories (or single files) once, offline: what `isobard --validate` prints.
#[must_use]
pub fn validate_dir(_paths: &[PathBuf]) -> Vec<Finding> {
    Vec::new()
}

//! Objects in directories of YAML and JSON files, followed as they change.

mod assemble;
mod last_good;
mod scan;
mod watch;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use isobar_runtime::Lifetime;

use self::assemble::Assembler;
use self::scan::{Root, Scanner};
use self::watch::Watcher;
use crate::finding::Finding;
use crate::source::{ObjectSource, Published};
use crate::validate::Extent;

/// Where a [`DirectorySource`] reads, and how patient it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryOptions {
    /// Roots with the user's objects. The first to name an object wins. Directories inside are left
    /// alone, as `kubectl apply -f DIR` does, unless `recursive`.
    pub base: Vec<PathBuf>,
    /// Read directories inside the base roots too. Default false.
    pub recursive: bool,
    /// Root with what the mesh's parts write, read with all directories inside and merged onto the
    /// base in path order. Made when missing.
    pub overlay: Option<PathBuf>,
    /// File that keeps the last good version of every base object, so that a restart does not lose
    /// those whose files are broken at that moment. Its directory is made when missing. Default
    /// none: last good versions live as long as the source.
    pub last_good: Option<PathBuf>,
    /// How long files must be quiet before they are read. Default 50 ms.
    pub quiet: Duration,
    /// How long something must be gone from the base before it counts as removed. Default 100 ms.
    pub settle: Duration,
    /// How often everything is looked at without being told. Default 5 s.
    pub rescan: Duration,
}

impl DirectoryOptions {
    /// Reads `base` and `overlay` with the default patience.
    #[must_use]
    pub fn new(base: Vec<PathBuf>, overlay: Option<PathBuf>) -> Self {
        Self {
            base,
            recursive: false,
            overlay,
            last_good: None,
            quiet: Duration::from_millis(50),
            settle: Duration::from_millis(100),
            rescan: Duration::from_secs(5),
        }
    }

    /// With an overlay everything is there that the mesh's parts made.
    fn extent(&self) -> Extent {
        match self.overlay {
            Some(_) => Extent::Mesh,
            None => Extent::Folder,
        }
    }

    fn roots(&self) -> Vec<Root> {
        let base = self.base.iter().map(|path| Root {
            path: path.clone(),
            is_overlay: false,
            is_recursive: self.recursive,
        });
        let overlay = self.overlay.iter().map(|path| Root {
            path: path.clone(),
            is_overlay: true,
            is_recursive: true,
        });
        base.chain(overlay).collect()
    }
}

/// Objects in directories of YAML and JSON files, followed as they change.
///
/// The last good version of an object stays in force when its file or the object itself turns
/// invalid, with [`DirectoryOptions::last_good`] also over restarts; everything else goes in force.
/// While a base root could never be read, in this life or an earlier one, nothing is complete and
/// publications are not `synced`. Files are read by a thread of their own, which ends
/// when the source is dropped or its run ends.
#[derive(Debug)]
pub struct DirectorySource {
    watcher: Watcher,
}

impl DirectorySource {
    /// Reads everything once, so that the first publication is complete. Missing directories are
    /// findings, not errors; they are waited for.
    ///
    /// # Errors
    /// When the system refuses to watch files or to start a thread.
    pub fn open(options: DirectoryOptions) -> std::io::Result<Self> {
        Ok(Self {
            watcher: Watcher::start(options)?,
        })
    }
}

impl ObjectSource for DirectorySource {
    fn subscribe(&self) -> tokio::sync::watch::Receiver<Arc<Published>> {
        self.watcher.subscribe()
    }

    fn run(self: Box<Self>, life: Lifetime) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            life.stopped().await;
            // Ends the thread: it holds no locks and waits at most for one reading of the files.
            drop(self);
        })
    }
}

/// Reads directories (or single files) once, offline: what `isobard --validate` prints.
#[must_use]
pub fn validate_dir(paths: &[PathBuf]) -> Vec<Finding> {
    load(&DirectoryOptions::new(paths.to_vec(), None))
        .findings
        .to_vec()
}

/// Reads everything once.
fn load(options: &DirectoryOptions) -> Published {
    let mut scanner = Scanner::new(options.roots());
    let mut assembler = Assembler::new(options.extent());
    let scan = scanner.scan();
    assembler.take(scan);
    assembler.publish();
    assembler.published()
}

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;

use super::DirectoryOptions;
use super::assemble::Assembler;
use super::last_good::LastGood;
use super::scan::{Scanner, holds_objects, is_hidden};
use crate::source::Published;

/// Longest wait for a writer that never closes its file, or for files that are never quiet.
const PATIENCE: Duration = Duration::from_secs(1);

/// The thread that reads files, and the way to hear from it.
#[derive(Debug)]
pub(super) struct Watcher {
    pulse: Arc<Pulse>,
    sender: watch::Sender<Arc<Published>>,
    thread: Option<JoinHandle<()>>,
}

/// What the system told about files since they were last read.
#[derive(Debug, Default)]
struct Pulse {
    state: Mutex<PulseState>,
    beat: Condvar,
}

#[derive(Debug, Default)]
struct PulseState {
    is_stopped: bool,
    /// First and last event since the last reading.
    events: Option<(Instant, Instant)>,
    /// Files written to and not closed yet.
    open: BTreeSet<PathBuf>,
}

impl Pulse {
    fn lock(&self) -> MutexGuard<'_, PulseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: &notify::Event) {
        let matters = |path: &&PathBuf| {
            // Kubernetes swaps mounted files behind a link whose name starts with two dots.
            let name = path.file_name().map(|name| name.to_string_lossy());
            !is_hidden(path) || name.is_some_and(|name| name.starts_with(".."))
        };
        let paths: Vec<&PathBuf> = event.paths.iter().filter(matters).collect();
        let mut state = self.lock();
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => {
                for path in &paths {
                    state.open.remove(*path);
                }
            }
            // Our own reading is no news.
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_)) => {
                let files = paths.iter().filter(|path| holds_objects(path));
                state.open.extend(files.map(|path| (*path).clone()));
            }
            _ => {}
        }
        if paths.is_empty() && !event.need_rescan() {
            return;
        }
        let now = Instant::now();
        let first = state.events.map_or(now, |(first, _)| first);
        state.events = Some((first, now));
        drop(state);
        self.beat.notify_all();
    }

    /// Waits until it is time to read: files changed and are quiet, or `at_latest`. False to stop.
    fn wait(&self, at_latest: Instant, quiet: Duration) -> bool {
        let mut state = self.lock();
        loop {
            if state.is_stopped {
                return false;
            }
            let now = Instant::now();
            let due = match state.events {
                None => at_latest,
                Some((first, _)) if !state.open.is_empty() => first + PATIENCE,
                Some((first, last)) => (last + quiet).min(first + PATIENCE),
            };
            if now >= due {
                state.events = None;
                state.open.clear();
                return true;
            }
            let waited = self.beat.wait_timeout(state, due - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Watcher {
    pub(super) fn start(options: DirectoryOptions) -> std::io::Result<Self> {
        if let Some(overlay) = &options.overlay {
            // If this fails, the first scan says why.
            let _ = fs::create_dir_all(overlay);
        }
        let pulse = Arc::new(Pulse::default());
        let hearing = Arc::clone(&pulse);
        let notifier =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
                Ok(event) => hearing.hear(&event),
                Err(error) => tracing::debug!(%error, "watching files"),
            })
            .map_err(std::io::Error::other)?;
        let mut reader = Reader {
            watched: Watched::new(notifier, &options),
            scanner: Scanner::new(options.roots()),
            assembler: Assembler::new(options.extent()),
            options,
        };
        reader.recall();
        // Watch before reading, so that nothing written in between is missed.
        reader.watched.renew();
        let mut again = reader.read();
        let first = reader.assembler.published();
        if !first.synced {
            for finding in first.findings.iter().filter(|finding| finding.is_error()) {
                tracing::error!(%finding, "waiting until the objects can be read");
            }
        }
        let sender = watch::Sender::new(Arc::new(first));
        let (reading, telling) = (Arc::clone(&pulse), sender.clone());
        let thread = std::thread::Builder::new()
            .name("objects".to_owned())
            .spawn(move || {
                loop {
                    let patience = match again {
                        Again::Soon => reader.options.settle,
                        Again::Later => reader.options.rescan,
                    };
                    let latest = Instant::now() + patience;
                    if !reading.wait(latest, reader.options.quiet) {
                        break;
                    }
                    reader.watched.renew();
                    let before = reader.assembler.published();
                    again = reader.read();
                    let now = reader.assembler.published();
                    let same = Arc::ptr_eq(&before.findings, &now.findings)
                        && Arc::ptr_eq(&before.objects, &now.objects)
                        && before.synced == now.synced;
                    if !same {
                        telling.send_replace(Arc::new(now));
                    }
                }
            })?;
        Ok(Self {
            pulse,
            sender,
            thread: Some(thread),
        })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.sender.subscribe()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.pulse.lock().is_stopped = true;
        self.pulse.beat.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads objects panicked");
        }
    }
}

struct Reader {
    watched: Watched,
    scanner: Scanner,
    assembler: Assembler,
    options: DirectoryOptions,
}

#[derive(Clone, Copy)]
enum Again {
    /// Something is half gone.
    Soon,
    Later,
}

impl Reader {
    /// Takes up what an earlier life of the process found good.
    fn recall(&mut self) {
        let Some(path) = &self.options.last_good else {
            return;
        };
        let (last_good, remembered) = LastGood::open(path);
        let roots = self.options.roots();
        let recalled = remembered.place(&roots);
        for (id, objects) in &recalled.files {
            let references = objects.iter().map(|raw| raw.reference.clone());
            self.scanner.recall(id.clone(), references.collect());
        }
        let paths = roots.into_iter().filter(|root| !root.is_overlay);
        let paths = paths.map(|root| root.path).collect();
        self.assembler.recall(recalled, last_good, paths);
    }

    fn read(&mut self) -> Again {
        let scan = self.scanner.scan();
        let again = if scan.unsettled {
            Again::Soon
        } else {
            Again::Later
        };
        self.assembler.take(scan);
        self.assembler.publish();
        again
    }
}

struct WatchedRoot {
    path: PathBuf,
    mode: RecursiveMode,
    /// The directory being watched.
    known: Option<(u64, u64)>,
}

/// Roots and what the system watches for them.
struct Watched {
    notifier: RecommendedWatcher,
    roots: Vec<WatchedRoot>,
}

impl Watched {
    fn new(notifier: RecommendedWatcher, options: &DirectoryOptions) -> Self {
        let roots = options.roots().into_iter();
        Self {
            notifier,
            roots: roots
                .map(|root| WatchedRoot {
                    path: root.path,
                    mode: if root.is_recursive {
                        RecursiveMode::Recursive
                    } else {
                        RecursiveMode::NonRecursive
                    },
                    known: None,
                })
                .collect(),
        }
    }

    /// Watches roots that appeared, or that are other directories than before.
    fn renew(&mut self) {
        for root in &mut self.roots {
            let now = identity(&root.path);
            if now == root.known {
                continue;
            }
            if root.known.is_some() {
                // It is not watched any more where the directory itself is gone.
                let _ = self.notifier.unwatch(&root.path);
            }
            root.known = now.filter(|_| {
                let watched = self.notifier.watch(&root.path, root.mode);
                if let Err(error) = &watched {
                    let root = root.path.display();
                    tracing::warn!(%root, %error, "cannot be watched; it is read every few seconds");
                }
                watched.is_ok()
            });
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::code::Code;
use crate::finding::{Finding, Severity};
use crate::read::{self, Hidden, RawText};

/// Larger files are refused: objects are small, and a mistake should not fill the memory.
const LARGEST: u64 = 16 << 20;
/// Directories below each other; more is a loop of links.
const DEEPEST: usize = 32;
/// A file changed this shortly before it was read may have changed again within the clock's grain.
const CLOCK_GRAIN: Duration = Duration::from_secs(2);

/// A directory (or single file) to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) is_overlay: bool,
    /// Directories inside are read too.
    pub(super) is_recursive: bool,
}

impl Root {
    /// True if the file is one this root would list.
    pub(super) fn reaches(&self, file: &Path) -> bool {
        let inside = if self.is_recursive {
            file.starts_with(&self.path)
        } else {
            file.parent() == Some(&self.path)
        };
        inside || file == self.path
    }
}

/// A file: place of its root, then its path. The order of files is the order of precedence.
pub(super) type FileId = (usize, PathBuf);

/// What a scan found since the one before.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) changed: Vec<(FileId, FileChange)>,
    /// What is wrong with directories and files as such; complete, not only what is new.
    pub(super) findings: Vec<Finding>,
    /// Something is gone that may come back within a moment: look again soon.
    pub(super) unsettled: bool,
    /// Places of the base roots whose files could be listed.
    pub(super) listed: BTreeSet<usize>,
    /// Places of the base roots whose files could not be listed.
    pub(super) unlisted: BTreeSet<usize>,
    /// A base root, a directory or a file in one could not be read: anything may be in it.
    pub(super) is_blind: bool,
}

#[derive(Debug)]
pub(super) enum FileChange {
    Read {
        text: RawText,
        is_overlay: bool,
    },
    /// Not there now; its objects stay until it is [`FileChange::Removed`].
    Missing,
    Removed,
}

/// Remembers what files held, to tell what changed.
#[derive(Debug)]
pub(super) struct Scanner {
    roots: Vec<Root>,
    seen: BTreeMap<FileId, Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    stamp: Option<Stamp>,
    /// Nothing if the file was not read in this life of the process.
    bytes: Option<Vec<u8>>,
    objects: BTreeSet<crate::ObjectRef>,
    is_missing: bool,
    /// Content with fewer objects, written in place: believed once it is seen twice.
    shrunk: Option<Vec<u8>>,
}

/// Changes whenever the content may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Too fresh to be told from another change in the same grain of the clock.
    is_fresh: bool,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        let recent = |time: io::Result<SystemTime>| {
            let age = time.ok().map(|time| SystemTime::now().duration_since(time));
            !matches!(age, Some(Ok(age)) if age > CLOCK_GRAIN)
        };
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            is_fresh: recent(meta.modified()),
        }
    }
}

impl Scanner {
    pub(super) fn new(roots: Vec<Root>) -> Self {
        Self {
            roots,
            seen: BTreeMap::new(),
        }
    }

    /// Takes a file for known that held these objects in an earlier life of the process: if it is
    /// gone the next scan says so, and if it is there it is read.
    pub(super) fn recall(&mut self, id: FileId, objects: BTreeSet<crate::ObjectRef>) {
        let seen = Seen {
            stamp: None,
            bytes: None,
            objects,
            is_missing: false,
            shrunk: None,
        };
        self.seen.insert(id, seen);
    }

    pub(super) fn scan(&mut self) -> Scan {
        let mut scan = Scan::default();
        for (place, root) in self.roots.clone().into_iter().enumerate() {
            let mut listing = Listing {
                is_recursive: root.is_recursive,
                ..Listing::default()
            };
            listing.walk(&root.path, 0, true);
            let complete = listing.findings.is_empty();
            if !root.is_overlay {
                scan.is_blind |= !complete;
                match listing.is_root_read {
                    true => scan.listed.insert(place),
                    false => scan.unlisted.insert(place),
                };
            }
            scan.findings.append(&mut listing.findings);
            if listing.files.is_empty() && complete && !root.is_overlay {
                let message = if listing.has_skipped {
                    "holds no YAML or JSON files; directories inside it are not read"
                } else {
                    "holds no YAML or JSON files"
                };
                scan.findings.push(Finding {
                    severity: Severity::Warning,
                    ..about_file(&root.path, message)
                });
            }
            for (path, meta) in &listing.files {
                self.look((place, path.clone()), meta, root.is_overlay, &mut scan);
            }
            // What could not be listed is not gone.
            if complete {
                self.look_for_missing(place, &root, &listing.files, &mut scan);
            }
        }
        scan
    }

    fn look(&mut self, id: FileId, meta: &Metadata, is_overlay: bool, scan: &mut Scan) {
        let stamp = Stamp::of(meta);
        let seen = self.seen.get(&id);
        if seen.is_some_and(|seen| seen.stamp == Some(stamp) && !stamp.is_fresh && !seen.is_missing)
        {
            return;
        }
        let bytes = match read_file(&id.1, meta) {
            Ok(bytes) => bytes,
            // Gone since it was listed; the next scan will see.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                scan.unsettled = true;
                return;
            }
            Err(error) => {
                scan.findings.push(about_file(&id.1, &error.to_string()));
                scan.is_blind |= !is_overlay;
                return;
            }
        };
        let back = seen.is_some_and(|seen| seen.is_missing);
        if seen.is_some_and(|seen| seen.bytes.as_ref() == Some(&bytes)) && !back {
            if let Some(seen) = self.seen.get_mut(&id) {
                seen.stamp = Some(stamp);
                seen.shrunk = None;
            }
            return;
        }
        let text = parse(&id.1, &bytes);
        if !is_overlay && self.is_shrinking(&id, &bytes, &text, stamp) {
            scan.unsettled = true;
            return;
        }
        let objects = text.objects.iter().map(|raw| raw.reference.clone());
        let seen = Seen {
            stamp: Some(stamp),
            objects: objects.collect(),
            bytes: Some(bytes),
            is_missing: false,
            shrunk: None,
        };
        self.seen.insert(id.clone(), seen);
        scan.changed
            .push((id, FileChange::Read { text, is_overlay }));
    }

    /// True if a file written in place has lost objects for the first time: perhaps its writer is
    /// not done. Files replaced by renaming are complete.
    fn is_shrinking(&mut self, id: &FileId, bytes: &[u8], text: &RawText, stamp: Stamp) -> bool {
        let Some(seen) = self.seen.get_mut(id) else {
            return false;
        };
        let same_file = seen
            .stamp
            .is_some_and(|before| (before.device, before.inode) == (stamp.device, stamp.inode));
        let still_there = |object: &crate::ObjectRef| {
            text.objects.iter().any(|raw| raw.reference == *object)
                || text.hidden.iter().any(|hidden| hidden.covers(object))
        };
        if !same_file || seen.objects.iter().all(still_there) {
            return false;
        }
        if seen.shrunk.as_deref() == Some(bytes) {
            return false;
        }
        seen.shrunk = Some(bytes.to_vec());
        true
    }

    fn look_for_missing(
        &mut self,
        place: usize,
        root: &Root,
        listed: &BTreeMap<PathBuf, Metadata>,
        scan: &mut Scan,
    ) {
        let gone: Vec<FileId> = self
            .seen
            .range((place, PathBuf::new())..(place + 1, PathBuf::new()))
            .map(|(id, _)| id)
            .filter(|id| !listed.contains_key(&id.1))
            .cloned()
            .collect();
        for id in gone {
            let Some(seen) = self.seen.get_mut(&id) else {
                continue;
            };
            if root.is_overlay || seen.is_missing {
                self.seen.remove(&id);
                scan.changed.push((id, FileChange::Removed));
            } else {
                seen.is_missing = true;
                scan.unsettled = true;
                scan.changed.push((id, FileChange::Missing));
            }
        }
    }
}

fn read_file(path: &Path, meta: &Metadata) -> io::Result<Vec<u8>> {
    if meta.len() > LARGEST {
        let message = format!("is larger than {} MiB", LARGEST >> 20);
        return Err(io::Error::other(message));
    }
    fs::read(path)
}

fn parse(path: &Path, bytes: &[u8]) -> RawText {
    match std::str::from_utf8(bytes) {
        Ok(text) => read::raw_objects(path, text),
        Err(error) => RawText {
            findings: vec![about_file(path, &format!("is not UTF-8: {error}"))],
            hidden: vec![Hidden::Any],
            ..RawText::default()
        },
    }
}

fn about_file(path: &Path, message: &str) -> Finding {
    Finding {
        file: Some(path.into()),
        ..Finding::error("", message).of(Code::UNREADABLE)
    }
}

/// Files below a root.
#[derive(Debug, Default)]
struct Listing {
    files: BTreeMap<PathBuf, Metadata>,
    findings: Vec<Finding>,
    is_recursive: bool,
    /// Directories were left alone.
    has_skipped: bool,
    /// The root itself is there and could be read.
    is_root_read: bool,
}

impl Listing {
    fn walk(&mut self, path: &Path, depth: usize, is_root: bool) {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            // A link to nothing, or gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_root => return,
            Err(error) => {
                self.findings.push(about_file(path, &error.to_string()));
                return;
            }
        };
        if meta.is_file() {
            // A file given as root is read whatever its name is.
            self.is_root_read |= is_root;
            if is_root || holds_objects(path) {
                self.files.insert(path.to_owned(), meta);
            }
            return;
        }
        if !meta.is_dir() {
            return;
        }
        if !is_root && !self.is_recursive {
            self.has_skipped = true;
            return;
        }
        if depth >= DEEPEST {
            self.findings
                .push(about_file(path, "too many directories below each other"));
            return;
        }
        match fs::read_dir(path) {
            Ok(entries) => {
                self.is_root_read |= is_root;
                for entry in entries.flatten() {
                    if !is_hidden(&entry.path()) {
                        self.walk(&entry.path(), depth + 1, false);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_root => {}
            Err(error) => self.findings.push(about_file(path, &error.to_string())),
        }
    }
}

/// Files of editors and of writers that are not done: dot files, backups, locks.
pub(super) fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    name.is_none_or(|name| name.starts_with(['.', '#']) || name.ends_with('~'))
}

/// True for the endings of YAML and JSON files.
pub(super) fn holds_objects(path: &Path) -> bool {
    let end = path.extension().and_then(|end| end.to_str());
    end.is_some_and(|end| matches!(end, "yaml" | "yml" | "json"))
}

//! The last good version of every base object, kept in a file: what a restart falls back on while
//! the object's own file is broken.
//!
//! The file holds two lines of JSON: a head with the format and a checksum, and the content, which
//! names the roots that were read and each file in them with its objects. It is replaced as a whole.
//! One that is damaged is as good as none.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh64::xxh64;

use super::scan::{FileId, Root};
use crate::finding::Finding;
use crate::read::RawObject;

/// Changes when older programs could not read the file any more.
const FORMAT: u32 = 1;
/// Largest record, in bytes; a mistake should fill neither the disk nor the memory.
const LARGEST: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    /// XXH64 of the content line, in hexadecimal digits.
    checksum: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Content<'a> {
    roots: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Vec<Entry<'a>>>,
}

#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    line: u32,
    object: Cow<'a, Value>,
}

#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("it has no second line")]
    Short,
    #[error("its format is {found}, not {FORMAT}")]
    Format { found: u32 },
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it would have more than {} MiB", LARGEST >> 20)]
    Large,
}

/// The file that keeps last good versions.
#[derive(Debug)]
pub(super) struct LastGood {
    path: PathBuf,
    /// What the file holds, as far as this process has written it.
    kept: Option<Kept>,
    /// Why nothing could be taken from the file at start.
    unread: Option<Finding>,
    /// Why it could not be written last.
    unwritten: Option<Finding>,
}

#[derive(Debug)]
struct Kept {
    roots: BTreeSet<PathBuf>,
    objects: Vec<Arc<RawObject>>,
}

/// What a record held.
#[derive(Default)]
pub(super) struct Remembered(Content<'static>);

/// What an earlier life of the process knew of the roots there are now.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    /// Places of the roots it had read.
    pub(super) roots: BTreeSet<usize>,
    /// Good objects by file.
    pub(super) files: BTreeMap<FileId, Vec<RawObject>>,
}

impl Remembered {
    /// Sorts everything to the roots that would read it; the rest is forgotten.
    pub(super) fn place(self, roots: &[Root]) -> Recalled {
        let base = || {
            let places = roots.iter().enumerate();
            places.filter(|(_, root)| !root.is_overlay)
        };
        let known = base().filter(|(_, root)| self.0.roots.contains(&root.path));
        let mut recalled = Recalled {
            roots: known.map(|(place, _)| place).collect(),
            files: BTreeMap::new(),
        };
        for (file, entries) in self.0.files {
            let Some((place, _)) = base().find(|(_, root)| root.reaches(&file)) else {
                continue;
            };
            let shared: Arc<Path> = file.as_path().into();
            let objects = entries
                .iter()
                .filter_map(|one| RawObject::recalled(Arc::clone(&shared), one.line, &one.object));
            let objects: Vec<_> = objects.collect();
            recalled.files.insert((place, file), objects);
        }
        recalled
    }
}

impl LastGood {
    /// Takes what is in the file, if it is there and whole.
    pub(super) fn open(path: &Path) -> (Self, Remembered) {
        let mut last_good = Self {
            path: path.to_owned(),
            kept: None,
            unread: None,
            unwritten: None,
        };
        let content = match read(path) {
            Ok(content) => content.unwrap_or_default(),
            Err(error) => {
                let message = format!(
                    "the last good versions of objects could not be read: {error}; objects whose \
                     files are broken are not in force"
                );
                tracing::error!(file = %path.display(), %error, "last good versions are ignored");
                last_good.unread = Some(last_good.about(message));
                Content::default()
            }
        };
        (last_good, Remembered(content))
    }

    /// What there is to tell. That nothing could be read matters while something is `broken`.
    pub(super) fn findings(&self, broken: bool) -> impl Iterator<Item = Finding> {
        let unread = self.unread.iter().filter(move |_| broken);
        unread.chain(&self.unwritten).cloned()
    }

    /// Keeps these objects and no others, unless they are what the file holds.
    pub(super) fn keep<'a>(
        &mut self,
        roots: impl Iterator<Item = &'a Path>,
        objects: Vec<Arc<RawObject>>,
    ) {
        let roots: BTreeSet<PathBuf> = roots.map(Path::to_owned).collect();
        let same = |kept: &Kept| {
            kept.roots == roots
                && kept.objects.len() == objects.len()
                && kept
                    .objects
                    .iter()
                    .zip(&objects)
                    .all(|(a, b)| Arc::ptr_eq(a, b))
        };
        if self.kept.as_ref().is_some_and(same) {
            return;
        }
        match self.write(&roots, &objects) {
            Ok(()) => {
                self.unwritten = None;
                self.kept = Some(Kept { roots, objects });
            }
            Err(error) => {
                tracing::error!(file = %self.path.display(), %error, "last good versions are not kept");
                let message = format!(
                    "the last good versions of objects are not kept: {error}; a restart loses those \
                     whose files are broken"
                );
                self.unwritten = Some(self.about(message));
                self.kept = None;
            }
        }
    }

    fn about(&self, message: String) -> Finding {
        Finding {
            file: Some(self.path.as_path().into()),
            ..Finding::error("", message)
        }
    }

    fn write(
        &self,
        roots: &BTreeSet<PathBuf>,
        objects: &[Arc<RawObject>],
    ) -> Result<(), RecordError> {
        let mut content = Content {
            roots: roots.clone(),
            files: BTreeMap::new(),
        };
        // A path that is no text cannot be written down.
        for raw in objects.iter().filter(|raw| raw.file.to_str().is_some()) {
            let file = content.files.entry(raw.file.to_path_buf()).or_default();
            file.push(Entry {
                line: raw.line,
                object: Cow::Borrowed(&raw.value),
            });
        }
        let content = serde_json::to_vec(&content)?;
        if content.len() as u64 >= LARGEST {
            return Err(RecordError::Large);
        }
        let head = serde_json::to_vec(&Head {
            format: FORMAT,
            checksum: checksum(&content),
        })?;
        Ok(replace(&self.path, &[&head, b"\n", &content, b"\n"])?)
    }
}

fn checksum(content: &[u8]) -> String {
    format!("{:016x}", xxh64(content, 0))
}

/// The content of a record; nothing if there is no file.
fn read(path: &Path) -> Result<Option<Content<'static>>, RecordError> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(RecordError::Large);
    }
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let head: Head = serde_json::from_slice(lines.next().unwrap_or_default())?;
    if head.format != FORMAT {
        return Err(RecordError::Format { found: head.format });
    }
    let content = lines.next().ok_or(RecordError::Short)?;
    if head.checksum != checksum(content) {
        return Err(RecordError::Checksum);
    }
    Ok(Some(serde_json::from_slice(content)?))
}

/// Replaces the file as a whole; nobody else may read it.
fn replace(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_data()?;
    fs::rename(&temporary, path)
}

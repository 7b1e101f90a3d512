use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Value, json};
use xxhash_rust::xxh64::xxh64;

use crate::kinds::{Kind, ObjectRef, join_api_version};
use crate::merge::join_patches;
use crate::object::Object;
use crate::writer::{ObjectWriter, WriteError};

/// End of the names of files that hold a patch: without its object a patch is nothing.
pub(crate) const PATCH_SUFFIX: &str = ".patch.json";

/// Writes into one directory below an overlay root, one file per object, each replaced atomically.
///
/// `apply` writes `KIND.NAMESPACE.NAME.json`, `patch` adds to `KIND.NAMESPACE.NAME.patch.json`;
/// a file is not touched when its content would not change.
#[derive(Debug)]
pub struct OverlayWriter {
    dir: PathBuf,
    // One read-change-write at a time, so that patches of one process add up.
    writing: Mutex<()>,
}

/// Longest file name without its ending, in bytes.
const LONGEST_STEM: usize = 240;

static TEMPORARY: AtomicU64 = AtomicU64::new(0);

impl OverlayWriter {
    /// A writer into `dir`, which is created when missing.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(dir: impl Into<PathBuf>) -> Result<Self, WriteError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        Ok(Self {
            dir,
            writing: Mutex::new(()),
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a whole object; the blocking form of [`ObjectWriter::apply`].
    ///
    /// # Errors
    /// When the object has no name or the file cannot be written.
    pub fn put(&self, object: &Object) -> Result<(), WriteError> {
        let reference = object.reference();
        let value = object.to_value().map_err(|error| WriteError::Encode {
            object: reference.clone(),
            error,
        })?;
        self.put_value(&reference, &value)
    }

    /// Writes a whole object given as JSON.
    ///
    /// # Errors
    /// When the object has no name or the file cannot be written.
    pub fn put_value(&self, object: &ObjectRef, value: &Value) -> Result<(), WriteError> {
        let path = self.path(object, ".json")?;
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        replace(&path, value)
    }

    /// Adds to this writer's patch of an object; the blocking form of [`ObjectWriter::patch`].
    ///
    /// # Errors
    /// When the object has no name or the file cannot be written.
    pub fn merge(&self, object: &ObjectRef, patch: &Value) -> Result<(), WriteError> {
        let path = self.path(object, PATCH_SUFFIX)?;
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = object.known();
        let api_version = known.map_or_else(
            || join_api_version(&object.group, "v1"),
            |kind| kind.api_version(),
        );
        let mut whole = read(&path)?.unwrap_or_else(|| json!({}));
        join_patches(&mut whole, patch);
        let mut head = json!({
            "apiVersion": api_version,
            "kind": &*object.kind,
            "metadata": { "name": &*object.name },
        });
        if !object.namespace.is_empty() {
            head["metadata"]["namespace"] = json!(&*object.namespace);
        }
        join_patches(&mut whole, &head);
        replace(&path, &whole)
    }

    /// Forgets this writer's patch of an object and keeps what it applied.
    ///
    /// # Errors
    /// When the object has no name or the file cannot be removed.
    pub fn unmerge(&self, object: &ObjectRef) -> Result<(), WriteError> {
        self.unlink(object, PATCH_SUFFIX)
    }

    /// Takes back everything; the blocking form of [`ObjectWriter::delete`].
    ///
    /// # Errors
    /// When the object has no name or a file cannot be removed.
    pub fn remove(&self, object: &ObjectRef) -> Result<(), WriteError> {
        self.unlink(object, ".json")?;
        self.unlink(object, PATCH_SUFFIX)
    }

    fn unlink(&self, object: &ObjectRef, suffix: &str) -> Result<(), WriteError> {
        let path = self.path(object, suffix)?;
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(()),
        }
    }

    fn path(&self, object: &ObjectRef, suffix: &str) -> Result<PathBuf, WriteError> {
        let parts = [&object.kind, &object.namespace, &object.name];
        // Names come from users: nothing that could leave the directory or hide the file.
        let unsafe_part = |part: &str| part.contains(['/', '\0', '\\']) || part.len() > 253;
        if object.name.is_empty() || parts.into_iter().any(|part| unsafe_part(part)) {
            return Err(WriteError::Name {
                object: object.clone(),
            });
        }
        let kind = match object.known() {
            // Of two kinds of one name the Gateway API's has it.
            Some(Kind::IstioGateway) => "istiogateway".to_owned(),
            _ => object.kind.to_lowercase(),
        };
        let mut stem = if object.namespace.is_empty() {
            format!("{kind}.{}", object.name)
        } else {
            format!("{kind}.{}.{}", object.namespace, object.name)
        };
        // A name of an object alone may be nearly as long as that of a file.
        if stem.len() > LONGEST_STEM {
            let hash = xxh64(stem.as_bytes(), 0);
            let short: String = stem.chars().take(LONGEST_STEM / 4).collect();
            stem = format!("{short}.{hash:016x}");
        }
        Ok(self.dir.join(stem + suffix))
    }
}

#[async_trait]
impl ObjectWriter for OverlayWriter {
    async fn apply(&self, object: &Object) -> Result<(), WriteError> {
        self.put(object)
    }

    async fn patch(&self, object: &ObjectRef, patch: &Value) -> Result<(), WriteError> {
        self.merge(object, patch)
    }

    async fn delete(&self, object: &ObjectRef) -> Result<(), WriteError> {
        self.remove(object)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |error| WriteError::Io { path, error }
}

/// The JSON in a file; `None` without the file, or when it holds no JSON (it is then replaced).
fn read(path: &Path) -> Result<Option<Value>, WriteError> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn replace(path: &Path, value: &Value) -> Result<(), WriteError> {
    let text = format!("{value:#}\n");
    if fs::read(path).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    let unique = TEMPORARY.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".tmp-{}-{unique}", std::process::id()));
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        // Best effort: the write has failed already and says why.
        let _ = fs::remove_file(&temporary);
        at(path)(error)
    })
}

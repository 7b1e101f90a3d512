//! Private folders and sealed files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use prost::Message;
use xxhash_rust::xxh64::Xxh64;

use super::SavedError;

/// Bytes of the seal: magic and format before the content, checksum after it.
const HEAD: usize = 12;
const TAIL: usize = 8;
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// What a file is: eight bytes and the number of its form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) magic: [u8; 8],
    pub(super) format: u32,
    /// Longest file, in bytes.
    pub(super) limit: u64,
}

pub(super) fn system(path: &Path) -> impl FnOnce(io::Error) -> SavedError {
    let path = path.to_owned();
    move |source| SavedError::System { path, source }
}

/// Makes the folder if it is missing, and checks that nobody else can write to it.
pub(super) fn private_folder(path: &Path) -> Result<(), SavedError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(system(path))?;
    let metadata = fs::symlink_metadata(path).map_err(system(path))?;
    // Others may look into the folder (its files are closed to them), but not write.
    if metadata.is_dir() && ours(&metadata) && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(SavedError::NotOurs {
        path: path.to_owned(),
    })
}

fn ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == nix::unistd::geteuid().as_raw()
}

/// The content of a sealed file; `None` if there is no such file.
pub(super) fn read(path: &Path, kind: Kind) -> Result<Option<Vec<u8>>, SavedError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(system(path)(error)),
    };
    let metadata = file.metadata().map_err(system(path))?;
    if !metadata.is_file() || !ours(&metadata) || metadata.mode() & OTHERS != 0 {
        return Err(SavedError::NotOurs {
            path: path.to_owned(),
        });
    }
    let mut bytes = Vec::new();
    file.take(kind.limit + 1)
        .read_to_end(&mut bytes)
        .map_err(system(path))?;
    unseal(path, bytes, kind).map(Some)
}

pub(super) fn unseal(path: &Path, mut bytes: Vec<u8>, kind: Kind) -> Result<Vec<u8>, SavedError> {
    if bytes.len() as u64 > kind.limit {
        return Err(SavedError::TooLarge {
            path: path.to_owned(),
            limit: kind.limit,
        });
    }
    let damaged = |detail: &str| Err(SavedError::damaged(path, detail));
    if bytes.len() < HEAD + TAIL || bytes[..8] != kind.magic {
        return damaged("is not a file of this program");
    }
    if bytes[8..HEAD] != kind.format.to_le_bytes() {
        return damaged("has a form that this version does not know");
    }
    let end = bytes.len() - TAIL;
    if bytes[end..] != checksum(&bytes[..end]).to_le_bytes() {
        return damaged("is damaged: its checksum is wrong");
    }
    bytes.truncate(end);
    bytes.drain(..HEAD);
    Ok(bytes)
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hash = Xxh64::new(0);
    hash.update(bytes);
    hash.digest()
}

/// A sealed file in the making, under a name of its own until it is whole.
pub(super) struct Sealing {
    target: PathBuf,
    draft: PathBuf,
    out: BufWriter<File>,
    hash: Xxh64,
    written: u64,
    limit: u64,
    record: Vec<u8>,
}

impl Sealing {
    pub(super) fn start(target: &Path, kind: Kind) -> Result<Self, SavedError> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // Two processes may serve side by side during an upgrade: no draft is shared.
        let draft = target.with_file_name(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&draft);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(system(&draft))?;
        let mut sealing = Self {
            target: target.to_owned(),
            draft,
            out: BufWriter::with_capacity(1 << 16, file),
            hash: Xxh64::new(0),
            written: 0,
            limit: kind.limit,
            record: Vec::new(),
        };
        sealing.put(&kind.magic)?;
        sealing.put(&kind.format.to_le_bytes())?;
        Ok(sealing)
    }

    /// Adds one message, preceded by its length.
    pub(super) fn message(&mut self, message: &impl Message) -> Result<(), SavedError> {
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        // A Vec grows as needed, so encoding into it cannot fail.
        let _ = message.encode_length_delimited(&mut record);
        let result = self.put(&record);
        self.record = record;
        result
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SavedError> {
        self.written += bytes.len() as u64;
        if self.written + TAIL as u64 > self.limit {
            return Err(SavedError::TooLarge {
                path: self.target.clone(),
                limit: self.limit,
            });
        }
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(system(&self.draft))
    }

    /// Seals the file and puts it in the place of the old one.
    pub(super) fn finish(mut self) -> Result<(), SavedError> {
        let seal = self.hash.digest().to_le_bytes();
        let sealed = (|| {
            self.out.write_all(&seal)?;
            self.out.flush()?;
            self.out.get_ref().sync_data()?;
            fs::rename(&self.draft, &self.target)
        })();
        sealed.map_err(system(&self.target))
    }
}

impl Drop for Sealing {
    fn drop(&mut self) {
        // Renamed if all went well; otherwise nothing of it stays.
        let _ = fs::remove_file(&self.draft);
    }
}

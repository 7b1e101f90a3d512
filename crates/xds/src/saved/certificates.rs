//! Certificates on file, in memory only: a private key is never written to a disk.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use isobar_tls::{PeerTrust, PrivateKey, WorkloadCertificate};
use isobar_types::Identity;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use prost::Message;
use xxhash_rust::xxh64::xxh64;

use super::SavedError;
use super::file::{self, Kind, Sealing, system};

const FOLDER: &str = "certificates";
const KIND: Kind = Kind {
    magic: *b"ISOBARCE",
    format: 1,
    limit: 1 << 20,
};
/// `ramfs`, the other file system that is memory only.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// Identities a node could have; more files than that are not ours.
const MOST: usize = 10_000;

/// One certificate with its key.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Content {
    #[prost(string, tag = "1")]
    identity: String,
    /// Leaf, intermediates; the roots come last, as an authority answers.
    #[prost(string, repeated, tag = "2")]
    parts: Vec<String>,
    #[prost(string, tag = "3")]
    key: String,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Content(..)")
    }
}

/// Where certificates are kept: one file an identity.
#[derive(Debug)]
pub struct SavedCertificates {
    folder: PathBuf,
    peers: PeerTrust,
}

impl SavedCertificates {
    /// Keeps certificates in a folder of its own below `folder`, which is made if missing.
    ///
    /// # Errors
    /// When the folder is not in memory (tmpfs, ramfs), cannot be made, or others may write to it.
    pub fn open(folder: &Path) -> Result<Self, SavedError> {
        file::private_folder(folder)?;
        let folder = folder.join(FOLDER);
        file::private_folder(&folder)?;
        let kind = statfs(&folder)
            .map_err(|errno| system(&folder)(errno.into()))?
            .filesystem_type();
        if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
            // The check comes before any key, so an empty folder is all that stays.
            let _ = fs::remove_dir(&folder);
            return Err(SavedError::OnDisk { path: folder });
        }
        Ok(Self {
            folder,
            peers: PeerTrust::default(),
        })
    }

    /// Peers of the certificates loaded from now on are judged by this.
    #[must_use]
    pub fn with_peer_trust(mut self, peers: PeerTrust) -> Self {
        self.peers = peers;
        self
    }

    /// The certificates that are valid now. What has expired is removed; what cannot be used is
    /// told and left alone.
    #[must_use]
    pub fn load(&self, now: SystemTime) -> Vec<WorkloadCertificate> {
        let files = match fs::read_dir(&self.folder) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(folder = ?self.folder, "saved certificates ignored: {error}");
                return Vec::new();
            }
        };
        let mut all = Vec::new();
        for path in files.flatten().map(|f| f.path()).take(MOST) {
            match read(&path, &self.peers) {
                Ok(cert) if self.path(cert.identity()) != path => {
                    tracing::warn!("saved certificate ignored: {path:?} has a foreign name");
                }
                Ok(cert) if cert.is_valid_at(now) => all.push(cert),
                Ok(cert) => {
                    tracing::info!(identity = %cert.identity(), "saved certificate has expired");
                    let _ = fs::remove_file(&path);
                }
                Err(error) => tracing::warn!("saved certificate ignored: {error}"),
            }
        }
        all
    }

    /// The certificate in these bytes of a file, which a seal goes around or not. For tests of what is read,
    /// without a file.
    ///
    /// # Errors
    /// As for a file that cannot be used.
    pub fn read(bytes: &[u8]) -> Result<WorkloadCertificate, SavedError> {
        let path = Path::new(FOLDER);
        let sealed = file::unseal(path, bytes.to_vec(), KIND);
        let content = sealed.unwrap_or_else(|_| bytes.to_vec());
        restore(path, &PeerTrust::default(), &content)
    }

    /// Keeps a certificate in the place of the identity's earlier one.
    pub(crate) fn save(&self, cert: &WorkloadCertificate) -> Result<(), SavedError> {
        let path = self.path(cert.identity());
        let key = cert.private_key().to_pem();
        let key = key.map_err(|e| SavedError::damaged(&path, e.to_string()))?;
        let mut parts: Vec<_> = cert.chain().iter().map(|c| c.pem.clone()).collect();
        parts.push(cert.roots().iter().map(|c| &*c.pem).collect());
        let mut sealing = Sealing::start(&path, KIND)?;
        sealing.message(&Content {
            identity: cert.identity().to_string(),
            parts,
            key,
        })?;
        sealing.finish()
    }

    /// Removes what is kept of an identity.
    pub(crate) fn remove(&self, identity: &Identity) {
        let path = self.path(identity);
        match fs::remove_file(&path) {
            Ok(()) => tracing::debug!(%identity, "saved certificate removed"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("{path:?}: {error}"),
        }
    }

    /// Names come from outside: the file's is a number made of them.
    fn path(&self, identity: &Identity) -> PathBuf {
        let number = xxh64(identity.to_string().as_bytes(), 0);
        self.folder.join(format!("{number:016x}"))
    }
}

fn read(path: &Path, peers: &PeerTrust) -> Result<WorkloadCertificate, SavedError> {
    let damaged = |detail: String| SavedError::damaged(path, detail);
    let bytes = file::read(path, KIND)?.ok_or_else(|| damaged("is gone".to_owned()))?;
    restore(path, peers, &bytes)
}

fn restore(
    path: &Path,
    peers: &PeerTrust,
    bytes: &[u8],
) -> Result<WorkloadCertificate, SavedError> {
    let damaged = |detail: String| SavedError::damaged(path, detail);
    let content = Content::decode_length_delimited(bytes);
    let content = content.map_err(|e| damaged(e.to_string()))?;
    let identity: Identity = content
        .identity
        .parse()
        .map_err(|_| damaged("names no identity".to_owned()))?;
    let key = PrivateKey::from_pem(&content.key).map_err(|e| damaged(e.to_string()))?;
    WorkloadCertificate::trusting(&identity, &content.parts, &key, peers)
        .map_err(|e| damaged(e.to_string()))
}

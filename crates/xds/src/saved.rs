//! What a proxy keeps on its node, so that a restart while the control plane is away serves what
//! was known: the resources of the mesh and, where the place is memory, certificates.
//!
//! A file is private (0600, ours), replaced as a whole, and sealed by a checksum. One that is
//! damaged, foreign or too old is ignored with a line in the log; it is never half used.

mod certificates;
mod file;
mod mesh;

use std::path::PathBuf;

pub use certificates::SavedCertificates;
pub use mesh::SavedMesh;
pub(crate) use mesh::{Held, KEPT, Restored, Saver};

/// Why something cannot be kept, or what was kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The system refused.
    #[error("{path}: {source}")]
    System {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else could have written it.
    #[error("{path} belongs to somebody else, or others may write to it")]
    NotOurs {
        /// File or folder.
        path: PathBuf,
    },
    /// Private keys stay in memory.
    #[error("{path} is not in memory (tmpfs): private keys are not written to a disk")]
    OnDisk {
        /// Folder.
        path: PathBuf,
    },
    /// The content is not what was written, or was never ours.
    #[error("{path} {detail}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// More than may be kept.
    #[error("{path} would be longer than {limit} bytes")]
    TooLarge {
        /// File.
        path: PathBuf,
        /// Most that is kept, in bytes.
        limit: u64,
    },
}

impl SavedError {
    fn damaged(path: &std::path::Path, detail: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests;

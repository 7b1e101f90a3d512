//! Certificate revocation lists: read from a file's bytes, replaced while connections run.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio::sync::watch;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::provider;

/// Most bytes of a file of lists that are looked at.
const FILE_MAX: usize = 16 * 1024 * 1024;
const PEM_START: &[u8] = b"-----BEGIN";

/// The lists of one file.
#[derive(Default)]
pub struct RevocationLists(Vec<CertRevocationList<'static>>);

/// Why lists cannot be read; those in force stay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// Too much to look at.
    #[error("the file has {0} bytes, more than 16 MiB")]
    Size(usize),
    /// Not PEM.
    #[error("not a PEM file of X509 CRL blocks: {0}")]
    Pem(String),
    /// One list is malformed.
    #[error("list {number} of the file: {detail}")]
    List {
        /// Position in the file, from 1.
        number: usize,
        /// What is wrong.
        detail: String,
    },
}

impl RevocationLists {
    /// Reads any number of PEM blocks, or one list in DER; nothing at all means no list (as Istio's
    /// ztunnel does). An expired list is taken: what it revokes stays revoked.
    ///
    /// # Errors
    /// When anything in it is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, RevocationError> {
        if bytes.len() > FILE_MAX {
            return Err(RevocationError::Size(bytes.len()));
        }
        let bytes = bytes.trim_ascii_start();
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let is_pem = bytes.windows(PEM_START.len()).any(|w| w == PEM_START);
        let lists = if is_pem {
            CertificateRevocationListDer::pem_slice_iter(bytes)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| RevocationError::Pem(error.to_string()))?
        } else {
            vec![CertificateRevocationListDer::from(bytes)]
        };
        let read = |(at, der): (usize, &CertificateRevocationListDer<'_>)| {
            OwnedCertRevocationList::from_der(der.as_ref())
                .map(CertRevocationList::from)
                .map_err(|error| RevocationError::List {
                    number: at + 1,
                    detail: error.to_string(),
                })
        };
        lists
            .iter()
            .enumerate()
            .map(read)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Number of lists.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of `chain`, leaf first, is revoked by a list that its own issuer has signed. What
    /// no list covers counts as good.
    fn revokes(&self, chain: &[CertificateDer<'_>], roots: &RootCertStore) -> bool {
        let lists: Vec<_> = self.0.iter().collect();
        let (Some((leaf, intermediates)), Ok(options)) =
            (chain.split_first(), RevocationOptionsBuilder::new(&lists))
        else {
            return false;
        };
        let options = options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build();
        let Ok(leaf) = EndEntityCert::try_from(leaf) else {
            return false;
        };
        let provider = provider();
        // A leaf may be for one use only; the wrong one hides what we ask for.
        [KeyUsage::client_auth(), KeyUsage::server_auth()]
            .into_iter()
            .any(|usage| {
                let verified = leaf.verify_for_usage(
                    provider.signature_verification_algorithms.all,
                    &roots.roots,
                    intermediates,
                    UnixTime::now(),
                    usage,
                    Some(options),
                    None,
                );
                // Whether it is acceptable otherwise is judged elsewhere: a list that proves
                // nothing must not cut off everybody.
                matches!(verified, Err(webpki::Error::CertRevoked))
            })
    }
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocationLists({})", self.0.len())
    }
}

/// The lists in force, shared by everything that verifies. Cheap to clone. The default is off: it
/// holds nothing and costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Revocations(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    lists: RwLock<Arc<RevocationLists>>,
    changes: watch::Sender<u64>,
}

impl Revocations {
    /// Switched on, with lists to begin with.
    #[must_use]
    pub fn new(lists: RevocationLists) -> Self {
        Self(Some(Arc::new(Shared {
            lists: RwLock::new(Arc::new(lists)),
            changes: watch::Sender::new(0),
        })))
    }

    /// Puts other lists in force, for open connections too. Without effect when switched off.
    pub fn replace(&self, lists: RevocationLists) {
        if let Some(shared) = &self.0 {
            *shared.lists.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(lists);
            shared.changes.send_modify(|version| *version += 1);
        }
    }

    /// Whether lists are looked at at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn revokes(&self, chain: &[CertificateDer<'_>], roots: &RootCertStore) -> bool {
        let Some(shared) = &self.0 else {
            return false;
        };
        let lists = Arc::clone(&shared.lists.read().unwrap_or_else(PoisonError::into_inner));
        !lists.is_empty() && lists.revokes(chain, roots)
    }

    /// Resolves when `chain` is revoked.
    pub(crate) async fn until_revoked(
        &self,
        chain: &[CertificateDer<'static>],
        roots: &RootCertStore,
    ) {
        let Some(shared) = &self.0 else {
            return std::future::pending().await;
        };
        let mut changes = shared.changes.subscribe();
        while !self.revokes(chain, roots) {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

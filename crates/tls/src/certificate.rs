use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use boring::x509::X509;
use isobar_types::Identity;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::mesh::Trust;
use crate::peer::Shown;
use crate::verify::CLOCK_SKEW;
use crate::{CryptoFailure, PeerError, PeerTrust, PrivateKey, ServerTls, pem, provider};

/// A workload's certificate chain, its key and the roots it trusts: all that both ends of HBONE
/// need. Built once per issuance; the expensive parts are shared by all connections.
pub struct WorkloadCertificate {
    identity: Identity,
    not_before: SystemTime,
    not_after: SystemTime,
    chain: Vec<CertificateInfo>,
    roots: Vec<CertificateInfo>,
    private_key: PrivateKey,
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) trust: Trust,
    pub(crate) server: ServerTls,
}

/// One certificate, as dumps show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// One PEM block.
    pub pem: String,
    /// Serial number, decimal.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// Why an issued certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The authority's answer has fewer than two parts.
    #[error("the answer holds {0} parts; a chain and its roots are needed")]
    TooFewParts(usize),
    /// A part is not what it should be.
    #[error("part {part} of the answer: {detail}")]
    Malformed {
        /// Position in the answer, from 0.
        part: usize,
        /// What is wrong.
        detail: String,
    },
    /// The leaf is for somebody else.
    #[error("the certificate is for {found}, asked for {asked}")]
    WrongIdentity {
        /// Identity asked for.
        asked: Identity,
        /// What the leaf names.
        found: String,
    },
    /// The leaf does not belong to the key.
    #[error("the certificate does not belong to the private key")]
    WrongKey,
    /// The leaf cannot be read.
    #[error(transparent)]
    Leaf(#[from] PeerError),
    /// The chain does not lead from the leaf to a root of the answer.
    #[error("the chain is not complete and in order: {0}")]
    Chain(String),
    /// BoringSSL or rustls refuse it.
    #[error(transparent)]
    Crypto(#[from] CryptoFailure),
}

impl WorkloadCertificate {
    /// Takes what an authority answered to `CreateCertificate` (as Istio's ztunnel does): `parts[0]` is the
    /// leaf, the last part the root or roots, those between are intermediates. The leaf must name
    /// exactly `asked` and belong to `private_key`.
    ///
    /// # Errors
    /// When the answer is not of that shape, or is for another identity or key.
    pub fn new(
        asked: &Identity,
        parts: &[String],
        private_key: &PrivateKey,
    ) -> Result<Self, CertificateError> {
        Self::trusting(asked, parts, private_key, &PeerTrust::default())
    }

    /// As [`Self::new`]; peers of this workload must not be revoked by any of the lists in force, and may
    /// show any name of its trust domain.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn trusting(
        asked: &Identity,
        parts: &[String],
        private_key: &PrivateKey,
        peers: &PeerTrust,
    ) -> Result<Self, CertificateError> {
        let [first, .., last] = parts else {
            return Err(CertificateError::TooFewParts(parts.len()));
        };
        let read = |part: usize, text: &str| {
            pem::certificates(text).map_err(|detail| CertificateError::Malformed { part, detail })
        };
        let mut chain = read(0, first)?;
        for (part, text) in parts.iter().enumerate().take(parts.len() - 1).skip(1) {
            chain.extend(read(part, text)?);
        }
        let roots = read(parts.len() - 1, last)?;
        check_leaf(asked, &chain[0], private_key)?;

        let info = |part: usize, list: &[CertificateDer<'_>]| {
            list.iter()
                .map(CertificateInfo::read)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|detail| CertificateError::Malformed { part, detail })
        };
        let chain_info = info(0, &chain)?;
        let root_info = info(parts.len() - 1, &roots)?;

        let provider = provider();
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(CryptoFailure::of("read a root"))?;
        }
        let trust = Trust {
            roots: Arc::new(store),
            revocations: peers.revocations.clone(),
            domains: peers.domains.clone(),
        };
        let chain_verifier: Arc<dyn ClientCertVerifier> =
            WebPkiClientVerifier::builder_with_provider(
                Arc::clone(&trust.roots),
                Arc::clone(&provider),
            )
            .build()
            .map_err(CryptoFailure::of("trust the roots"))?;
        // At a moment at which all of it is valid, if there is one: this is about shape, not time.
        let leaf = &chain_info[0];
        let starts = chain_info.iter().map(|c| c.not_before);
        let moment = starts
            .fold(leaf.not_before, SystemTime::max)
            .min(leaf.not_after);
        let moment = moment.duration_since(SystemTime::UNIX_EPOCH);
        let start = UnixTime::since_unix_epoch(moment.unwrap_or_default());
        chain_verifier
            .verify_client_cert(&chain[0], &chain[1..], start)
            .map_err(|error| CertificateError::Chain(error.to_string()))?;
        let signing = provider
            .key_provider
            .load_private_key(private_key.to_der()?)
            .map_err(CryptoFailure::of("load the key"))?;
        let key = Arc::new(CertifiedKey::new(chain, signing));
        let server = ServerTls::new(asked, Arc::clone(&key), chain_verifier, &trust)?;
        Ok(Self {
            identity: asked.clone(),
            not_before: chain_info[0].not_before,
            not_after: chain_info
                .iter()
                .map(|c| c.not_after)
                .min()
                .unwrap_or(SystemTime::UNIX_EPOCH),
            chain: chain_info,
            roots: root_info,
            private_key: private_key.clone(),
            key,
            trust,
            server,
        })
    }

    /// The identity it proves.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Start of validity of the leaf.
    #[must_use]
    pub const fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// First end of validity along the chain.
    #[must_use]
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Half-way through its validity (as Istio's ztunnel does).
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or(Duration::ZERO);
        self.not_before + life / 2
    }

    /// True from `not_before`, or a minute earlier, to `not_after`: peers allow as much for clocks that
    /// differ.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now + CLOCK_SKEW >= self.not_before && now <= self.not_after
    }

    /// Whether it is on a list that is in force now: no peer would accept it.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        let Trust {
            revocations, roots, ..
        } = &self.trust;
        revocations.revokes(&self.key.cert, roots)
    }

    /// Resolves when it is revoked; never where no lists are in use.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn revoked(&self) {
        let Trust {
            revocations, roots, ..
        } = &self.trust;
        revocations.until_revoked(&self.key.cert, roots).await;
    }

    /// Leaf first, then intermediates.
    #[must_use]
    pub fn chain(&self) -> &[CertificateInfo] {
        &self.chain
    }

    /// The key the leaf belongs to.
    #[must_use]
    pub const fn private_key(&self) -> &PrivateKey {
        &self.private_key
    }

    /// The roots peers are verified against.
    #[must_use]
    pub fn roots(&self) -> &[CertificateInfo] {
        &self.roots
    }
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity.to_string())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn check_leaf(
    asked: &Identity,
    leaf: &CertificateDer<'_>,
    key: &PrivateKey,
) -> Result<(), CertificateError> {
    let shown = Shown::read(leaf)?;
    if shown.identities != [asked.clone()] {
        let found: Vec<_> = shown.identities.iter().map(ToString::to_string).collect();
        let found = if found.is_empty() {
            "nobody".to_owned()
        } else {
            found.join(", ")
        };
        return Err(CertificateError::WrongIdentity {
            asked: asked.clone(),
            found,
        });
    }
    let belongs = X509::from_der(leaf)
        .and_then(|leaf| leaf.public_key())
        .map_err(CryptoFailure::of("read the leaf's key"))?
        .public_eq(key.pkey());
    if belongs {
        Ok(())
    } else {
        Err(CertificateError::WrongKey)
    }
}

impl CertificateInfo {
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        let validity = certificate.validity();
        Ok(Self {
            pem: pem::block(der),
            serial: certificate.serial.to_string(),
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
        })
    }
}

/// Seconds since 1970 as a time; times before it count as 1970.
pub(crate) fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use isobar_types::Identity;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{Revocations, TrustDomains, certificate, names};

/// Characters of a foreign URI that are shown.
const URI_SHOWN: usize = 300;

/// Who is at the other end of a connection whose handshake this crate has verified. There is no
/// other way to get one. Cheap to clone: every stream of a connection holds one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer(Arc<Verified>);

#[derive(Debug, PartialEq, Eq)]
struct Verified {
    identity: Identity,
    serial: String,
    not_after: SystemTime,
    watched: Option<Watched>,
}

/// What it takes to ask again whether a peer is revoked; kept only where lists are in use.
#[derive(Clone)]
pub(crate) struct Watched {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) revocations: Revocations,
}

/// The chain is all that tells peers apart.
impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain
    }
}

impl Eq for Watched {}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched(..)")
    }
}

impl VerifiedPeer {
    /// Resolves when the peer's chain is revoked; never where no lists are in use.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn revoked(&self) {
        match &self.0.watched {
            Some(w) => w.revocations.until_revoked(&w.chain, &w.roots).await,
            None => std::future::pending().await,
        }
    }

    /// Whether the peer's chain is on a list that is in force now.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        let watched = self.0.watched.as_ref();
        watched.is_some_and(|w| w.revocations.revokes(&w.chain, &w.roots))
    }

    /// End of validity of the peer's certificate.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.0.not_after
    }

    /// The identity the certificate proves.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Serial number of the peer's certificate, decimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// Called by [`crate::mesh`] alone, after the handshake in which `rule` was enforced on the
    /// same certificate; applying it again picks the entry that was accepted.
    pub(crate) fn after_handshake(
        leaf: &CertificateDer<'_>,
        rule: &PeerRule,
        watched: Option<Watched>,
    ) -> Result<Self, PeerError> {
        let shown = Shown::read(leaf)?;
        let identity = rule.accept(&shown)?.clone();
        Ok(Self(Arc::new(Verified {
            identity,
            serial: shown.serial,
            not_after: shown.not_after,
            watched,
        })))
    }
}

/// Why a certificate that chains to our roots is still not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No chain, or one beyond 8 certificates or 16 KiB.
    #[error("the peer shows {certificates} certificates of {bytes} bytes, beyond 1 to 8 and 16384")]
    ChainSize {
        /// Certificates shown.
        certificates: usize,
        /// Their bytes together.
        bytes: usize,
    },
    /// The certificate cannot be parsed.
    #[error("the peer's certificate is malformed: {0}")]
    Malformed(String),
    /// No URI in it is a workload identity.
    #[error("the peer's certificate names no workload identity")]
    NoIdentity,
    /// More than one URI in it: nobody could say which of them it proves (SPIFFE X.509-SVID §2).
    #[error("the peer's certificate holds more than one URI: {0}")]
    ManyIdentities(String),
    /// It is not for signing handshakes.
    #[error("the peer's certificate is not for digital signatures")]
    Usage,
    /// A key of the chain is too short to prove anything.
    #[error("the peer's chain holds an RSA key of {0} bits, less than 2048")]
    WeakKey(usize),
    /// The caller's trust domain is not ours.
    #[error("the peer {peer} is not of the trust domain {ours}")]
    TrustDomain {
        /// The identity shown.
        peer: Identity,
        /// Our trust domain.
        ours: String,
    },
    /// The server is not the one expected.
    #[error("the peer shows {shown}, expected {expected}")]
    Unexpected {
        /// Identities shown, joined by `, `.
        shown: String,
        /// Identities expected, joined by `, `.
        expected: String,
    },
}

/// What makes a chained certificate acceptable.
#[derive(Debug, Clone)]
pub(crate) enum PeerRule {
    /// A caller: exactly one identity, of this trust domain or another name of it.
    TrustDomain(isobar_types::Str, TrustDomains),
    /// A server: its identity is one of these, under any name of its mesh.
    OneOf(Arc<[Identity]>, TrustDomains),
}

impl PeerRule {
    pub(crate) fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), PeerError> {
        self.accept(&Shown::read(leaf)?).map(|_| ())
    }

    fn accept<'a>(&self, shown: &'a Shown) -> Result<&'a Identity, PeerError> {
        let identity = match shown.identities.as_slice() {
            [one] if shown.uris.len() == 1 => one,
            _ if shown.uris.len() > 1 => {
                return Err(PeerError::ManyIdentities(shown.uris.join(", ")));
            }
            _ => return Err(PeerError::NoIdentity),
        };
        match self {
            Self::TrustDomain(ours, names) if !names.are_one(ours, &identity.trust_domain) => {
                Err(PeerError::TrustDomain {
                    peer: identity.clone(),
                    ours: ours.to_string(),
                })
            }
            Self::OneOf(expected, names)
                if !expected.iter().any(|one| names.mean_one(one, identity)) =>
            {
                Err(PeerError::Unexpected {
                    shown: identity.to_string(),
                    expected: join(expected),
                })
            }
            _ => Ok(identity),
        }
    }
}

/// What a leaf certificate says of its holder.
pub(crate) struct Shown {
    /// Every URI name, as written (control characters escaped).
    uris: Vec<String>,
    /// Those that are workload identities, spelled in the one way there is.
    pub(crate) identities: Vec<Identity>,
    not_after: SystemTime,
    pub(crate) serial: String,
}

impl Shown {
    pub(crate) fn read(leaf: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let malformed = |error: &dyn fmt::Display| PeerError::Malformed(error.to_string());
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| malformed(&e))?;
        let names = leaf.subject_alternative_name().map_err(|e| malformed(&e))?;
        let signs = leaf
            .key_usage()
            .map_err(|e| malformed(&e))?
            .is_none_or(|usage| usage.value.digital_signature());
        if !signs {
            return Err(PeerError::Usage);
        }
        let mut uris = Vec::new();
        let mut identities = Vec::new();
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            let GeneralName::URI(uri) = name else {
                continue;
            };
            identities.extend(names::spiffe_id(uri));
            uris.push(uri.escape_debug().take(URI_SHOWN).collect());
        }
        Ok(Self {
            uris,
            identities,
            not_after: certificate::system_time(leaf.validity().not_after.timestamp()),
            serial: leaf.serial.to_string(),
        })
    }
}

fn join(identities: &[Identity]) -> String {
    let texts: Vec<_> = identities.iter().map(ToString::to_string).collect();
    if texts.is_empty() {
        "none".to_owned()
    } else {
        texts.join(", ")
    }
}

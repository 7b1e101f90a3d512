use isobar_types::Identity;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Who is at the other end of a connection whose handshake this crate has verified. There is no
/// other way to get one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    identity: Identity,
    serial: String,
}

impl VerifiedPeer {
    /// The identity the certificate proves.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Serial number of the peer's certificate, decimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Called by [`crate::mesh`] alone, after the handshake in which `rule` was enforced on the
    /// same certificate; applying it again picks the entry that was accepted.
    pub(crate) fn after_handshake(
        leaf: &CertificateDer<'_>,
        rule: &PeerRule,
    ) -> Result<Self, PeerError> {
        let shown = Shown::read(leaf)?;
        let identity = rule.accept(&shown)?.clone();
        Ok(Self {
            identity,
            serial: shown.serial,
        })
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
    /// More than one URI in it is a workload identity.
    #[error("the peer's certificate names more than one workload identity: {0}")]
    ManyIdentities(String),
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
    /// A caller: exactly one identity, of this trust domain.
    TrustDomain(isobar_types::Str),
    /// A server: one of its identities is one of these.
    OneOf(std::sync::Arc<[Identity]>),
}

impl PeerRule {
    pub(crate) fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), PeerError> {
        self.accept(&Shown::read(leaf)?).map(|_| ())
    }

    fn accept<'a>(&self, shown: &'a Shown) -> Result<&'a Identity, PeerError> {
        match self {
            Self::TrustDomain(ours) => match shown.identities.as_slice() {
                [] => Err(PeerError::NoIdentity),
                [one] if one.trust_domain == *ours => Ok(one),
                [one] => Err(PeerError::TrustDomain {
                    peer: one.clone(),
                    ours: ours.to_string(),
                }),
                many => Err(PeerError::ManyIdentities(join(many))),
            },
            Self::OneOf(expected) => shown
                .identities
                .iter()
                .find(|identity| expected.contains(identity))
                .ok_or_else(|| PeerError::Unexpected {
                    shown: join(&shown.identities),
                    expected: join(expected),
                }),
        }
    }
}

/// What a leaf certificate says of its holder.
pub(crate) struct Shown {
    pub(crate) identities: Vec<Identity>,
    pub(crate) serial: String,
}

impl Shown {
    pub(crate) fn read(leaf: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let malformed = |error: &dyn std::fmt::Display| PeerError::Malformed(error.to_string());
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| malformed(&e))?;
        let names = leaf.subject_alternative_name().map_err(|e| malformed(&e))?;
        let identities = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => uri.parse().ok(),
                _ => None,
            })
            .collect();
        Ok(Self {
            identities,
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

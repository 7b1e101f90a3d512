//! The signing half of a certificate authority: a root of our own, or an intermediate given by the
//! user, turns requests into workload certificates.

mod files;
mod issue;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use boring::x509::X509;
use isobar_types::Identity;

use crate::control::ServerCertificate;
use crate::{CertificateError, CryptoFailure, PrivateKey, WorkloadCertificate, csr, names};

/// How long a root of our own lives: ten years.
const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);

/// A key that may sign, its certificate and the way up to the roots.
pub struct Authority {
    key: PrivateKey,
    certificate: X509,
    /// The signing certificate and those above it, without the roots; empty if it is the root.
    intermediates: Vec<String>,
    /// PEM blocks.
    roots: String,
}

/// Why there is no authority, or no signature.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The files do not make an authority.
    #[error("{path}: {detail}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The certificate request is not acceptable.
    #[error("the certificate request is refused: {0}")]
    Request(String),
    /// The name is not one that may be certified.
    #[error("{0:?} cannot be certified")]
    Name(String),
    /// BoringSSL failed.
    #[error(transparent)]
    Crypto(#[from] CryptoFailure),
    /// What was issued cannot be used: a fault of this authority's own chain.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Authority {
    /// A new self-signed root (P-256, ten years) kept in memory only.
    ///
    /// # Errors
    /// When BoringSSL fails.
    pub fn generate(organisation: &str) -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let certificate = issue::root(&key, organisation, SystemTime::now(), ROOT_LIFE)?;
        let roots = issue::pem(&certificate)?;
        Ok(Self {
            key,
            certificate,
            intermediates: Vec::new(),
            roots,
        })
    }

    /// The roots that verify what is signed here, as PEM blocks.
    #[must_use]
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// True in the last fifth of the life of a root of our own: time to renew it. Never for an
    /// intermediate, which is the user's.
    #[must_use]
    pub fn is_old(&self, now: SystemTime) -> bool {
        let Some(info) = self.info().filter(|_| self.intermediates.is_empty()) else {
            return false;
        };
        let life = info.not_after.duration_since(info.not_before);
        let left = info.not_after.duration_since(now).unwrap_or_default();
        life.is_ok_and(|life| left < life / 5)
    }

    /// Roots (PEM) that follow those of a root of our own: a new certificate of the same name and key
    /// first, then the others until they end. What was signed before is verified by each of them, and
    /// so is what is signed after: nobody has to change at once.
    ///
    /// # Errors
    /// When BoringSSL fails.
    pub fn renewed_roots(&self, now: SystemTime) -> Result<String, AuthorityError> {
        let name = self.certificate.subject_name();
        let next = issue::root_of(&self.key, name, now, ROOT_LIFE)?;
        let mut roots = issue::pem(&next)?;
        let what = "read the roots";
        for der in crate::pem::certificates(&self.roots).map_err(CryptoFailure::of(what))? {
            let info = crate::CertificateInfo::read(&der).map_err(CryptoFailure::of(what))?;
            if info.not_after > now {
                let one = X509::from_der(&der).map_err(CryptoFailure::of(what))?;
                roots.push_str(&issue::pem(&one)?);
            }
        }
        Ok(roots)
    }

    fn info(&self) -> Option<crate::CertificateInfo> {
        let der = self.certificate.to_der().ok()?;
        crate::CertificateInfo::read(&der.as_slice().into()).ok()
    }

    /// Signs the request for `identity`, whatever name the request itself carries: the caller has
    /// decided who asks. Valid from two minutes ago for `ttl`, but never beyond the authority.
    /// Returns the parts of a `CreateCertificate` answer: leaf, intermediates, roots last.
    ///
    /// # Errors
    /// When the request is malformed, not signed by its own key, or its key is not P-256, P-384 or
    /// RSA of 2048 to 4096 bits; when the identity is not a SPIFFE id.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Vec<String>, AuthorityError> {
        self.sign_at(csr_pem, identity, ttl, SystemTime::now())
    }

    /// As [`Self::sign`], at a given time.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn sign_at(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, AuthorityError> {
        let uri = names::spiffe_uri(identity)
            .ok_or_else(|| AuthorityError::Name(identity.to_string()))?;
        let key = issue::requested_key(csr_pem)?;
        let leaf = issue::Leaf {
            names: &[issue::Name::Uri(uri)],
            key: &key,
            ttl,
            now,
        };
        let leaf = issue::leaf(&self.certificate, &self.key, &leaf)?;
        let mut parts = vec![issue::pem(&leaf)?];
        parts.extend(self.intermediates.iter().cloned());
        parts.push(self.roots.clone());
        Ok(parts)
    }

    /// A certificate for a server of the control plane; each name is a DNS name or an IP address.
    ///
    /// # Errors
    /// When there is no name, or one is neither.
    pub fn issue_server(
        &self,
        names: &[String],
        ttl: Duration,
    ) -> Result<ServerCertificate, AuthorityError> {
        let names = names
            .iter()
            .map(|n| issue::Name::host(n))
            .collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() {
            return Err(AuthorityError::Name(String::new()));
        }
        let key = PrivateKey::generate()?;
        let public = issue::public_half(&key)?;
        let leaf = issue::Leaf {
            names: &names,
            key: &public,
            ttl,
            now: SystemTime::now(),
        };
        let leaf = issue::leaf(&self.certificate, &self.key, &leaf)?;
        let mut chain = issue::pem(&leaf)?;
        self.intermediates
            .iter()
            .for_each(|part| chain.push_str(part));
        Ok(ServerCertificate { chain, key })
    }

    /// Request, signature and certificate in one step, for an identity this process holds itself.
    ///
    /// # Errors
    /// When the identity is not a SPIFFE id or BoringSSL fails.
    pub fn issue_workload(
        &self,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<WorkloadCertificate, AuthorityError> {
        let (request, key) = csr::generate(identity)?;
        let parts = self.sign(&request, identity, ttl)?;
        Ok(WorkloadCertificate::new(identity, &parts, &key)?)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(..)")
    }
}

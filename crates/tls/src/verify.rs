use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::Revocations;
use crate::mesh::Trust;
use crate::peer::{PeerError, PeerRule};

/// Most certificates of a peer's chain, and most bytes of them, looked at.
const CHAIN_CERTIFICATES: usize = 8;
const CHAIN_BYTES: usize = 16 * 1024;
/// Least bits of an RSA key.
const RSA_BITS: usize = 2048;
/// How far our clock and the authority's may be apart.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Accepts callers: chain to our roots for client use, then one SPIFFE identity of our trust domain,
/// under any name of it.
#[derive(Debug)]
pub(crate) struct CallerVerifier {
    pub(crate) chain: Arc<dyn ClientCertVerifier>,
    pub(crate) trust: Trust,
    pub(crate) rule: PeerRule,
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: peers have one certificate, and the hello stays small.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        bounded(leaf, intermediates)?;
        let verified = with_skew(now, |now| {
            self.chain.verify_client_cert(leaf, intermediates, now)
        })?;
        strong(leaf, intermediates)?;
        current(
            leaf,
            intermediates,
            &self.trust.roots,
            &self.trust.revocations,
        )?;
        self.rule.check(leaf).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// What a server's certificate is compared with, once it chains to the roots.
#[derive(Debug)]
pub(crate) enum ServerRule {
    /// One of some SPIFFE identities; no host name.
    Peer(PeerRule),
    /// The host name dialled, or else this alternative.
    Host {
        alternative: Option<ServerName<'static>>,
    },
    /// One of these, host names or URIs, whatever was dialled.
    OneOf(Vec<ServerName<'static>>, Vec<String>),
    /// Nothing: neither roots nor names are looked at, only that the server has the key.
    Anyone,
}

/// Accepts servers: chain to the given roots for server use, then the rule.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) revocations: Revocations,
    pub(crate) rule: ServerRule,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        bounded(leaf, intermediates)?;
        if matches!(self.rule, ServerRule::Anyone) {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(leaf)?;
        with_skew(now, |now| {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )
        })?;
        strong(leaf, intermediates)?;
        current(leaf, intermediates, &self.roots, &self.revocations)?;
        match &self.rule {
            ServerRule::Peer(rule) => rule.check(leaf).map_err(refused)?,
            ServerRule::Host { alternative } => {
                verify_server_name(&parsed, server_name).or_else(|error| match alternative {
                    Some(other) => verify_server_name(&parsed, other),
                    None => Err(error),
                })?;
            }
            ServerRule::OneOf(hosts, uris) => {
                let by_host = || hosts.iter().any(|h| verify_server_name(&parsed, h).is_ok());
                if !by_host() && !shows_one_of(leaf, uris)? {
                    return Err(CertificateError::NotValidForName.into());
                }
            }
            ServerRule::Anyone => {}
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// True if a URI name of the certificate is among `wanted`.
pub(crate) fn shows_one_of(leaf: &CertificateDer<'_>, wanted: &[String]) -> Result<bool, Error> {
    if wanted.is_empty() {
        return Ok(false);
    }
    let malformed = |detail: String| refused(PeerError::Malformed(detail));
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|e| malformed(e.to_string()))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| malformed(e.to_string()))?;
    let mut names = names.iter().flat_map(|names| &names.value.general_names);
    Ok(names.any(|name| match name {
        GeneralName::URI(uri) => wanted.iter().any(|one| one == uri),
        _ => false,
    }))
}

/// Before any parsing: a hostile chain must not cost more than an honest one.
fn bounded(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), Error> {
    let certificates = 1 + rest.len();
    let bytes = leaf.len() + rest.iter().map(|c| c.len()).sum::<usize>();
    if certificates > CHAIN_CERTIFICATES || bytes > CHAIN_BYTES {
        return Err(refused(PeerError::ChainSize {
            certificates,
            bytes,
        }));
    }
    Ok(())
}

/// Verifies as of `now`; if that fails only for time, once more with the clock moved towards the
/// certificate's validity by what clocks may differ.
fn with_skew<T>(now: UnixTime, verify: impl Fn(UnixTime) -> Result<T, Error>) -> Result<T, Error> {
    let error = match verify(now) {
        Ok(verified) => return Ok(verified),
        Err(error) => error,
    };
    let now = Duration::from_secs(now.as_secs());
    let moved = match &error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => now.saturating_sub(CLOCK_SKEW),
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => now + CLOCK_SKEW,
        _ => return Err(error),
    };
    let verified = verify(UnixTime::since_unix_epoch(moved)).map_err(|_| error)?;
    tracing::info!(allowance = ?CLOCK_SKEW, "a peer's certificate is valid only with allowance for clock skew");
    Ok(verified)
}

/// Refuses RSA keys that can be broken; other kinds are those the provider knows, all strong.
fn strong(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), Error> {
    for der in std::iter::once(leaf).chain(rest) {
        let malformed = |detail: String| refused(PeerError::Malformed(detail));
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| malformed(e.to_string()))?;
        let key = certificate
            .public_key()
            .parsed()
            .map_err(|e| malformed(e.to_string()))?;
        if let PublicKey::RSA(key) = key
            && key.key_size() < RSA_BITS
        {
            return Err(refused(PeerError::WeakKey(key.key_size())));
        }
    }
    Ok(())
}

/// Refuses chains that a list in force revokes.
fn current(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &RootCertStore,
    revocations: &Revocations,
) -> Result<(), Error> {
    if !revocations.is_on() {
        return Ok(());
    }
    let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
    if revocations.revokes(&chain, roots) {
        return Err(Error::InvalidCertificate(CertificateError::Revoked));
    }
    Ok(())
}

fn refused(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

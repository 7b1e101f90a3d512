use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use crate::peer::{PeerError, PeerRule};

/// Most certificates of a peer's chain, and most bytes of them, looked at.
const CHAIN_CERTIFICATES: usize = 8;
const CHAIN_BYTES: usize = 16 * 1024;

/// Accepts callers: chain to our roots for client use, then one SPIFFE identity of our trust domain.
#[derive(Debug)]
pub(crate) struct CallerVerifier {
    pub(crate) chain: Arc<dyn ClientCertVerifier>,
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
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        self.rule.check(leaf).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_is_off())
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
}

/// Accepts servers: chain to the given roots for server use, then the rule.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) roots: Arc<RootCertStore>,
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
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        match &self.rule {
            ServerRule::Peer(rule) => rule.check(leaf).map_err(refused)?,
            ServerRule::Host { alternative } => {
                verify_server_name(&parsed, server_name).or_else(|error| match alternative {
                    Some(other) => verify_server_name(&parsed, other),
                    None => Err(error),
                })?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_is_off())
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

fn refused(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn tls12_is_off() -> Error {
    Error::General("TLS 1.2 is not offered".to_owned())
}

//! TLS to an HTTPS server that is no part of the mesh: a Kubernetes API server. TLS 1.3, a server
//! name or address, and a client certificate where there is one.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::control::{connect, server_name};
use crate::provider::key_log;
use crate::verify::{ServerRule, ServerVerifier};
use crate::{ClientStream, CryptoFailure, HandshakeError, PrivateKey, pem, provider};

/// Opens connections that speak HTTP/1.1. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpsClient(Arc<ClientConfig>);

/// A chain and its key, both PEM, that a client shows.
#[derive(Clone, Copy)]
pub struct ClientIdentity<'a> {
    /// Certificates, leaf first.
    pub chain: &'a str,
    /// Key of the leaf.
    pub key: &'a str,
}

impl ClientIdentity<'_> {
    /// What answers a server that asks for a certificate.
    pub(crate) fn shown(
        self,
        provider: &CryptoProvider,
    ) -> Result<Arc<SingleCertAndKey>, CryptoFailure> {
        let chain =
            pem::certificates(self.chain).map_err(CryptoFailure::of("read the client's chain"))?;
        let key = PrivateKey::from_pem(self.key)?;
        let signing = provider
            .key_provider
            .load_private_key(key.to_der()?)
            .map_err(CryptoFailure::of("load the client's key"))?;
        let shown = SingleCertAndKey::from(CertifiedKey::new(chain, signing));
        Ok(Arc::new(shown))
    }
}

/// Trusts the certificates in `roots` (DER); shows `identity` when the server asks for one. The
/// server must be valid for the name dialled or, failing that, for `alternative`.
///
/// # Errors
/// When a root, the chain or the key cannot be read.
pub fn client_config(
    roots: &[Vec<u8>],
    alternative: Option<&str>,
    identity: Option<ClientIdentity<'_>>,
) -> Result<HttpsClient, CryptoFailure> {
    let mut store = RootCertStore::empty();
    for root in roots {
        let added = store.add(CertificateDer::from(root.clone()));
        added.map_err(CryptoFailure::of("read the API server's roots"))?;
    }
    let provider = provider();
    let verifier = ServerVerifier {
        provider: Arc::clone(&provider),
        roots: Arc::new(store),
        revocations: crate::Revocations::default(),
        rule: ServerRule::Host {
            alternative: alternative.map(server_name).transpose()?,
        },
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CryptoFailure::of("configure TLS"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_cert_resolver(identity.shown(&provider)?),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    config.key_log = key_log();
    Ok(HttpsClient(Arc::new(config)))
}

/// The certificates of a PEM text, as [`client_config`] wants them.
///
/// # Errors
/// When there is none.
pub fn roots_of(text: &[u8]) -> Result<Vec<Vec<u8>>, CryptoFailure> {
    let what = "read the API server's roots";
    let text = std::str::from_utf8(text).map_err(CryptoFailure::of(what))?;
    let roots = pem::certificates(text).map_err(CryptoFailure::of(what))?;
    Ok(roots.iter().map(|root| root.to_vec()).collect())
}

impl HttpsClient {
    /// Runs the client's side of the handshake with `host`, a DNS name or an IP address without a
    /// port. The caller sets the time limit.
    ///
    /// # Errors
    /// When the server is not acceptable, breaks the protocol or goes away.
    pub async fn connect<IO>(&self, io: IO, host: &str) -> Result<ClientStream<IO>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        connect(&self.0, io, host).await
    }
}

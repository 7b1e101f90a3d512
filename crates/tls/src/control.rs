//! TLS to and from the control plane (15012): the server shows a certificate with DNS names and
//! addresses, the client proves itself with a token, not with a certificate.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::provider::{key_log, versions};
use crate::verify::{ServerRule, ServerVerifier};
use crate::{ClientStream, CryptoFailure, HandshakeError, PrivateKey, ServerStream, pem, provider};

const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// A server's chain (leaf first, PEM blocks) and its key.
pub struct ServerCertificate {
    /// PEM blocks, leaf first.
    pub chain: String,
    /// The leaf's key.
    pub key: PrivateKey,
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerCertificate(..)")
    }
}

/// Accepts control-plane connections. Cheap to clone; swap it to rotate the certificate.
#[derive(Debug, Clone)]
pub struct ControlServer(Arc<ServerConfig>);

/// Opens control-plane connections. Cheap to clone; rebuild it when the roots change.
#[derive(Debug, Clone)]
pub struct ControlClient(Arc<ClientConfig>);

/// TLS 1.3 unless [`crate::TlsPolicy`] says otherwise, ALPN `h2`, no client certificate asked for.
///
/// # Errors
/// When the chain or the key cannot be used.
pub fn server_config(certificate: &ServerCertificate) -> Result<ControlServer, CryptoFailure> {
    serving(certificate, H2)
}

/// As [`server_config`], for HTTP/1.1.
///
/// # Errors
/// As [`server_config`].
pub fn web_server_config(certificate: &ServerCertificate) -> Result<ControlServer, CryptoFailure> {
    serving(certificate, HTTP_1_1)
}

fn serving(
    certificate: &ServerCertificate,
    protocol: &[u8],
) -> Result<ControlServer, CryptoFailure> {
    let provider = provider();
    let chain = pem::certificates(&certificate.chain)
        .map_err(CryptoFailure::of("read the server's chain"))?;
    let signing = provider
        .key_provider
        .load_private_key(certificate.key.to_der()?)
        .map_err(CryptoFailure::of("load the server's key"))?;
    let key = SingleCertAndKey::from(CertifiedKey::new(chain, signing));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions())
        .map_err(CryptoFailure::of("configure TLS"))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![protocol.to_vec()];
    config.key_log = key_log();
    Ok(ControlServer(Arc::new(config)))
}

/// Trusts the certificates in `roots_pem`. The server must be valid for the host name or address
/// dialled or, failing that, for `alternative`.
///
/// # Errors
/// When the roots cannot be read or the alternative is no host name.
pub fn client_config(
    roots_pem: &str,
    alternative: Option<&str>,
) -> Result<ControlClient, CryptoFailure> {
    let mut roots = RootCertStore::empty();
    let what = "read the control plane's roots";
    for root in pem::certificates(roots_pem).map_err(CryptoFailure::of(what))? {
        roots.add(root).map_err(CryptoFailure::of(what))?;
    }
    let alternative = alternative.map(server_name).transpose()?;
    let provider = provider();
    let verifier = ServerVerifier {
        provider: Arc::clone(&provider),
        roots: Arc::new(roots),
        revocations: crate::Revocations::default(),
        rule: ServerRule::Host { alternative },
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions())
        .map_err(CryptoFailure::of("configure TLS"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.key_log = key_log();
    Ok(ControlClient(Arc::new(config)))
}

impl ControlServer {
    /// Runs the server's side of the handshake. The caller sets the time limit.
    ///
    /// # Errors
    /// When the peer breaks the protocol or goes away.
    pub async fn accept<IO>(&self, io: IO) -> Result<ServerStream<IO>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(Arc::clone(&self.0))
            .accept(io)
            .await
            .map_err(HandshakeError::from_io)
    }
}

impl ControlClient {
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

/// The client's side of a handshake with `host`, a DNS name or an IP address without a port.
pub(crate) async fn connect<IO>(
    config: &Arc<ClientConfig>,
    io: IO,
    host: &str,
) -> Result<ClientStream<IO>, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let name = server_name(host).map_err(|e| HandshakeError::Protocol(e.to_string()))?;
    TlsConnector::from(Arc::clone(config))
        .connect(name, io)
        .await
        .map_err(HandshakeError::from_io)
}

pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, CryptoFailure> {
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    ServerName::try_from(bare.to_owned())
        .map_err(|_| CryptoFailure::new("read a server name", format!("{host:?} is none")))
}

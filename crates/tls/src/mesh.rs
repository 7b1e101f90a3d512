use std::io;
use std::sync::Arc;

use isobar_types::Identity;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError as RustlsCertificateError, ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::peer::{PeerRule, Watched};
use crate::provider::{key_log, versions};
use crate::verify::{CallerVerifier, ServerRule, ServerVerifier};
use crate::{
    ClientStream, CryptoFailure, PeerError, Revocations, ServerStream, TrustDomains, VerifiedPeer,
    WorkloadCertificate, provider,
};

const H2: &[u8] = b"h2";
/// Plaintext rustls may hold before a write has to wait; room for several DATA frames.
const TLS_BUFFER: usize = 300 * 1024;

/// How a workload accepts HBONE connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    rule: PeerRule,
    trust: Trust,
    /// Tunnels are spoken within, and nothing else.
    tunnels: bool,
}

/// How a workload opens HBONE connections to some peers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    rule: PeerRule,
    trust: Trust,
}

/// What chains are judged by.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) revocations: Revocations,
    pub(crate) domains: TrustDomains,
}

/// Why a handshake between workloads failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate chains to our roots but is not acceptable.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The peer's certificate does not chain to our roots, is expired, or there is none.
    #[error("the peer's certificate is not acceptable: {0}")]
    Certificate(String),
    /// The peer's certificate, or one it depends on, is on a revocation list.
    #[error("the peer's certificate is revoked")]
    Revoked,
    /// The peer refused us: its alert.
    #[error("the peer refused the handshake: {0}")]
    Alert(String),
    /// The peer broke the protocol, or is not speaking TLS.
    #[error("TLS: {0}")]
    Protocol(String),
    /// The peer did not agree on HTTP/2.
    #[error("the peer did not negotiate h2")]
    NotHttp2,
    /// The connection ended.
    #[error("the connection ended during the handshake: {0}")]
    Io(#[source] io::Error),
}

/// TLS 1.3 only unless [`crate::TlsPolicy`] says otherwise, ALPN `h2`, a client certificate of the same trust domain, under any
/// name of it, required, no resumption.
#[must_use]
pub fn server_config(certificate: &WorkloadCertificate) -> ServerTls {
    certificate.server.clone()
}

/// TLS 1.3 only unless [`crate::TlsPolicy`] says otherwise, ALPN `h2`, no server name sent, no resumption; the server must show one of
/// `expect`, under any name of its trust domain. An empty `expect` can never succeed.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn client_config(
    certificate: &WorkloadCertificate,
    expect: &[Identity],
) -> Result<ClientTls, CryptoFailure> {
    let rule = PeerRule::OneOf(expect.into(), certificate.trust.domains.clone());
    let provider = provider();
    let verifier = ServerVerifier {
        provider: Arc::clone(&provider),
        roots: Arc::clone(&certificate.trust.roots),
        revocations: certificate.trust.revocations.clone(),
        rule: ServerRule::Peer(rule.clone()),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions())
        .map_err(CryptoFailure::of("configure TLS"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
            &certificate.key,
        ))));
    config.alpn_protocols = vec![H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.key_log = key_log();
    Ok(ClientTls {
        config: Arc::new(config),
        rule,
        trust: certificate.trust.clone(),
    })
}

impl ServerTls {
    pub(crate) fn new(
        identity: &Identity,
        key: Arc<CertifiedKey>,
        chain: Arc<dyn ClientCertVerifier>,
        trust: &Trust,
    ) -> Result<Self, CryptoFailure> {
        let rule = PeerRule::TrustDomain(identity.trust_domain.clone(), trust.domains.clone());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions())
            .map_err(CryptoFailure::of("configure TLS"))?
            .with_client_cert_verifier(Arc::new(CallerVerifier {
                chain,
                trust: trust.clone(),
                rule: rule.clone(),
            }))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![H2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.key_log = key_log();
        Ok(Self {
            config: Arc::new(config),
            rule,
            trust: trust.clone(),
            tunnels: true,
        })
    }

    /// Runs the server's side of the handshake. The caller sets the time limit.
    ///
    /// # Errors
    /// When the peer is not acceptable, breaks the protocol or goes away.
    ///
    /// # Cancel safety
    /// Dropping the future closes `io`.
    pub async fn accept<IO>(
        &self,
        io: IO,
    ) -> Result<(ServerStream<IO>, VerifiedPeer), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
        let mut stream = acceptor
            .accept_with(io, |connection| {
                connection.set_buffer_limit(Some(TLS_BUFFER))
            })
            .await
            .map_err(HandshakeError::from_io)?;
        let (_, connection) = stream.get_mut();
        let peer = match self.tunnels {
            true => verified(connection, &self.rule, &self.trust)?,
            false => identified(connection, &self.rule, &self.trust)?,
        };
        Ok((stream, peer))
    }

    /// The same for callers that come without a tunnel, as proxies beside applications do: of these
    /// protocols (ALPN, the best first) one is agreed on where the caller offers some; without any, none
    /// is, whatever it offers.
    #[must_use]
    pub fn without_tunnels(&self, protocols: &[&[u8]]) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|word| word.to_vec()).collect();
        Self {
            config: Arc::new(config),
            tunnels: false,
            ..self.clone()
        }
    }
}

impl ClientTls {
    /// Runs the client's side of the handshake. The caller sets the time limit. A server that
    /// refuses our certificate says so only on the first read (TLS 1.3).
    ///
    /// # Errors
    /// When the peer is not acceptable, breaks the protocol or goes away.
    ///
    /// # Cancel safety
    /// Dropping the future closes `io`.
    pub async fn connect<IO>(
        &self,
        io: IO,
    ) -> Result<(ClientStream<IO>, VerifiedPeer), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        // Never sent (no SNI) and never compared: the rule looks at identities.
        let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let mut stream = TlsConnector::from(Arc::clone(&self.config))
            .connect_with(name, io, |connection| {
                connection.set_buffer_limit(Some(TLS_BUFFER))
            })
            .await
            .map_err(HandshakeError::from_io)?;
        let (_, connection) = stream.get_mut();
        let peer = verified(connection, &self.rule, &self.trust)?;
        Ok((stream, peer))
    }
}

fn verified<D>(
    connection: &rustls::ConnectionCommon<D>,
    rule: &PeerRule,
    trust: &Trust,
) -> Result<VerifiedPeer, HandshakeError> {
    if connection.alpn_protocol() != Some(H2) {
        return Err(HandshakeError::NotHttp2);
    }
    identified(connection, rule, trust)
}

fn identified<D>(
    connection: &rustls::ConnectionCommon<D>,
    rule: &PeerRule,
    trust: &Trust,
) -> Result<VerifiedPeer, HandshakeError> {
    let chain = connection.peer_certificates();
    let leaf = chain.and_then(<[_]>::first).ok_or(PeerError::ChainSize {
        certificates: 0,
        bytes: 0,
    })?;
    let watched = trust.revocations.is_on().then(|| Watched {
        chain: chain.unwrap_or_default().to_vec(),
        roots: Arc::clone(&trust.roots),
        revocations: trust.revocations.clone(),
    });
    Ok(VerifiedPeer::after_handshake(leaf, rule, watched)?)
}

impl HandshakeError {
    /// Sorts what rustls reports through an I/O error.
    pub(crate) fn from_io(error: io::Error) -> Self {
        let Some(tls) = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>())
        else {
            return Self::Io(error);
        };
        match tls {
            rustls::Error::InvalidCertificate(RustlsCertificateError::Other(other)) => {
                match other.0.downcast_ref::<PeerError>() {
                    Some(peer) => Self::Peer(peer.clone()),
                    None => Self::Certificate(other.to_string()),
                }
            }
            rustls::Error::InvalidCertificate(RustlsCertificateError::Revoked) => Self::Revoked,
            rustls::Error::InvalidCertificate(reason) => Self::Certificate(reason.to_string()),
            rustls::Error::NoCertificatesPresented => {
                Self::Certificate("none was shown".to_owned())
            }
            rustls::Error::AlertReceived(alert) => Self::Alert(format!("{alert:?}")),
            other => Self::Protocol(other.to_string()),
        }
    }
}

//! TLS to servers outside the mesh, as a waypoint begins it for a caller: TLS 1.2 and 1.3, the server
//! verified by roots and names that are given, a client certificate where there is one.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::control::{connect, server_name};
use crate::https::ClientIdentity;
use crate::provider::{key_log, provider_outwards};
use crate::verify::{ServerRule, ServerVerifier};
use crate::{ClientStream, CryptoFailure, HandshakeError, pem};

/// What is spoken within, for the server to choose by (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Not told.
    Anything,
}

/// Opens connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OutwardClient(Arc<[Arc<ClientConfig>; 3]>);

/// Trusts the certificates in `roots` (PEM) and shows `identity` where it is asked for. The server's
/// certificate must have one of `names`, host names, addresses or URIs; without any, the name asked
/// for.
///
/// # Errors
/// When the roots, the chain or the key cannot be read, or a name is none.
pub fn client_config(
    roots: &str,
    names: &[impl AsRef<str>],
    identity: Option<ClientIdentity<'_>>,
) -> Result<OutwardClient, CryptoFailure> {
    let what = "read the roots";
    let mut store = RootCertStore::empty();
    // A system's bundle may hold roots that are unusable here; the others count.
    let (added, _) =
        store.add_parsable_certificates(pem::certificates(roots).map_err(CryptoFailure::of(what))?);
    if added == 0 {
        return Err(CryptoFailure::new(what, "none of them can be used"));
    }
    client(store, rule(names)?, identity)
}

/// As [`client_config`], for whatever server there is: nothing of its certificate is looked at. For those
/// alone who have asked for exactly that.
///
/// # Errors
/// When the chain or the key cannot be read.
pub fn unverified(identity: Option<ClientIdentity<'_>>) -> Result<OutwardClient, CryptoFailure> {
    client(RootCertStore::empty(), ServerRule::Anyone, identity)
}

fn client(
    roots: RootCertStore,
    rule: ServerRule,
    identity: Option<ClientIdentity<'_>>,
) -> Result<OutwardClient, CryptoFailure> {
    let provider = provider_outwards();
    let verifier = ServerVerifier {
        provider: Arc::clone(&provider),
        roots: Arc::new(roots),
        revocations: crate::Revocations::default(),
        rule,
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(CryptoFailure::of("configure TLS"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_cert_resolver(identity.shown(&provider)?),
    };
    config.resumption = Resumption::disabled();
    config.key_log = key_log();
    let with = |alpn: &[&[u8]]| {
        let mut config = config.clone();
        config.alpn_protocols = alpn.iter().map(|word| word.to_vec()).collect();
        Arc::new(config)
    };
    let all = [with(&[b"http/1.1"]), with(&[b"h2"]), with(&[])];
    Ok(OutwardClient(Arc::new(all)))
}

fn rule(names: &[impl AsRef<str>]) -> Result<ServerRule, CryptoFailure> {
    if names.is_empty() {
        return Ok(ServerRule::Host { alternative: None });
    }
    let (hosts, uris) = apart(names)?;
    Ok(ServerRule::OneOf(hosts, uris))
}

/// Host names and addresses, and URIs.
pub(crate) fn apart(
    names: &[impl AsRef<str>],
) -> Result<(Vec<ServerName<'static>>, Vec<String>), CryptoFailure> {
    let (mut hosts, mut uris) = (Vec::new(), Vec::new());
    for name in names {
        let name = name.as_ref();
        if name.contains("://") {
            uris.push(name.to_owned());
        } else {
            hosts.push(server_name(name)?);
        }
    }
    Ok((hosts, uris))
}

impl OutwardClient {
    /// Runs the client's side of the handshake, asking for `host`, a DNS name or an IP address without
    /// a port. The caller sets the time limit.
    ///
    /// # Errors
    /// When the server is not acceptable, breaks the protocol or goes away.
    pub async fn connect<IO>(
        &self,
        io: IO,
        host: &str,
        within: Within,
    ) -> Result<ClientStream<IO>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        connect(&self.0[within as usize], io, host).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::ServerConfig;
    use rustls::server::WebPkiClientVerifier;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio_rustls::TlsAcceptor;

    use rustls::sign::{CertifiedKey, SingleCertAndKey};

    use super::*;
    use crate::ca::Authority;

    const DAY: Duration = Duration::from_secs(86_400);

    /// A server of TLS 1.2 that speaks HTTP/1.1 and asks for a client certificate of `clients`.
    fn old_server(authority: &Authority, clients: &Authority) -> TlsAcceptor {
        let names = ["old.example".to_owned()];
        let own = authority.issue_server(&names, DAY).unwrap();
        let provider = provider_outwards();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(pem::certificates(clients.roots()).unwrap());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider));
        let key = own.key.to_der().unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let chain = pem::certificates(&own.chain).unwrap();
        let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// The protocol that was agreed on, if the handshake succeeds.
    async fn shake(
        client: &OutwardClient,
        server: &TlsAcceptor,
        host: &str,
        within: Within,
    ) -> Option<Vec<u8>> {
        let (near, far) = duplex(64 * 1024);
        let client = async {
            let mut stream = client.connect(near, host, within).await.ok()?;
            let mut byte = [0];
            stream.read_exact(&mut byte).await.ok()?;
            let alpn = stream.get_ref().1.alpn_protocol();
            Some(alpn.unwrap_or_default().to_vec())
        };
        let server = async {
            if let Ok(mut stream) = server.accept(far).await {
                stream.write_all(b"x").await.unwrap();
                stream.flush().await.unwrap();
            }
        };
        tokio::join!(client, server).0
    }

    #[tokio::test]
    async fn old_servers_and_client_certificates_are_served() {
        let authority = Authority::generate("outside").unwrap();
        let clients = Authority::generate("clients").unwrap();
        let server = old_server(&authority, &clients);
        let own = clients.issue_server(&["me".to_owned()], DAY).unwrap();
        let key = own.key.to_pem().unwrap();
        let identity = ClientIdentity {
            chain: &own.chain,
            key: &key,
        };
        let none: [&str; 0] = [];
        let with = client_config(authority.roots(), &none, Some(identity));
        let with = with.unwrap();
        let host = "old.example";
        let agreed = shake(&with, &server, host, Within::Http1).await;
        assert_eq!(agreed.as_deref(), Some(&b"http/1.1"[..]));
        let agreed = shake(&with, &server, host, Within::Anything).await;
        assert_eq!(agreed.as_deref(), Some(&b""[..]));
        assert!(shake(&with, &server, host, Within::Http2).await.is_none());
        assert!(
            shake(&with, &server, "new.example", Within::Http1)
                .await
                .is_none()
        );
        let without = client_config(authority.roots(), &none, None).unwrap();
        assert!(
            shake(&without, &server, host, Within::Http1)
                .await
                .is_none()
        );
        let distrusting = client_config(clients.roots(), &none, None).unwrap();
        assert!(
            shake(&distrusting, &server, host, Within::Http1)
                .await
                .is_none()
        );
    }

    #[tokio::test]
    async fn whoever_asks_for_it_gets_any_server() {
        let authority = Authority::generate("outside").unwrap();
        let clients = Authority::generate("clients").unwrap();
        let server = old_server(&authority, &clients);
        let own = clients.issue_server(&["me".to_owned()], DAY).unwrap();
        let key = own.key.to_pem().unwrap();
        let identity = ClientIdentity {
            chain: &own.chain,
            key: &key,
        };
        let client = unverified(Some(identity)).unwrap();
        let agreed = shake(&client, &server, "new.example", Within::Http1).await;
        assert_eq!(agreed.as_deref(), Some(&b"http/1.1"[..]));
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let none: [&str; 0] = [];
        assert!(client_config("", &none, None).is_err());
        let roots = Authority::generate("a").unwrap();
        assert!(client_config(roots.roots(), &["not a name"], None).is_err());
        assert!(
            client_config(
                roots.roots(),
                &["spiffe://a/b", "a.example", "10.0.0.1"],
                None
            )
            .is_ok()
        );
    }
}

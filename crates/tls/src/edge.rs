//! TLS of callers from outside the mesh, as a gateway ends it: TLS 1.2 and 1.3, one of several
//! certificates by the server name, a client certificate where that is asked for.

use std::fmt;
use std::sync::Arc;

use boring::pkey::Id;
use boring::x509::X509;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::callers::NamedCallers;
use crate::outwards::apart;
use crate::provider::{key_log, provider_outwards};
use crate::{CryptoFailure, HandshakeError, PrivateKey, ServerStream, pem};

/// With a smaller key callers end the handshake, or it cannot sign what they ask for.
const RSA_BITS: u32 = 2048;

/// A chain and its key, ready to be shown. `Debug` shows neither.
#[derive(Clone)]
pub struct EdgeCertificate(Arc<CertifiedKey>);

impl fmt::Debug for EdgeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EdgeCertificate(..)")
    }
}

impl EdgeCertificate {
    /// Reads a chain, leaf first, and the leaf's key, both PEM.
    ///
    /// # Errors
    /// When one of them cannot be read, the key is not the certificate's, or it is too small.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, CryptoFailure> {
        let chain = pem::certificates(chain).map_err(CryptoFailure::of("read the chain"))?;
        let key = PrivateKey::from_pem(key)?;
        let leaf = chain.first().map_or(&[][..], |leaf| leaf.as_ref());
        let public = X509::from_der(leaf).and_then(|leaf| leaf.public_key());
        let public = public.map_err(CryptoFailure::of("read the certificate"))?;
        if !public.public_eq(key.pkey()) {
            let text = "the key is not that of the certificate";
            return Err(CryptoFailure::new("match key and certificate", text));
        }
        if public.id() == Id::RSA && public.bits() < RSA_BITS {
            let text = format!(
                "a key of RSA has {} bits, {RSA_BITS} at least",
                public.bits()
            );
            return Err(CryptoFailure::new("read the certificate", text));
        }
        let provider = provider_outwards();
        let key = provider.key_provider.load_private_key(key.to_der()?);
        let key = key.map_err(CryptoFailure::of("load the key"))?;
        Ok(Self(Arc::new(CertifiedKey::new(chain, key))))
    }

    fn is_for(&self, name: &ServerName<'_>) -> bool {
        let leaf = self.0.end_entity_cert();
        let parsed = leaf.and_then(ParsedCertificate::try_from);
        parsed.is_ok_and(|leaf| rustls::client::verify_server_name(&leaf, name).is_ok())
    }
}

/// Who may call.
#[derive(Debug, Clone, Copy)]
pub struct Clients<'a> {
    /// PEM certificates of whoever signs callers' certificates.
    pub authority: &'a str,
    /// Host names, addresses or URIs of which a caller's certificate must have one; empty: any.
    pub names: &'a [&'a str],
    /// Callers without a certificate are turned away.
    pub required: bool,
}

/// Accepts callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EdgeServer(Arc<ServerConfig>);

/// What is agreed on with callers of the mesh that speak HTTP without a tunnel (ALPN, the best first). The
/// words with `istio` are those that its sidecars offer besides, or instead; the bytes within tell the rest.
pub const MESH_HTTP: [&[u8]; 5] = [b"h2", b"http/1.1", b"istio-h2", b"istio-http/1.1", b"istio"];

/// Shows the first of `certificates` that is for the server name asked for, else the first.
///
/// # Errors
/// When there is no certificate or no version, or the authority of callers cannot be read.
pub fn server_config(
    certificates: Vec<EdgeCertificate>,
    clients: Option<Clients<'_>>,
    (tls13, tls12): (bool, bool),
) -> Result<EdgeServer, CryptoFailure> {
    let what = "configure TLS";
    if certificates.is_empty() {
        return Err(CryptoFailure::new(what, "there is no certificate to show"));
    }
    let mut versions: Vec<&'static SupportedProtocolVersion> = Vec::new();
    versions.extend(tls13.then_some(&rustls::version::TLS13));
    versions.extend(tls12.then_some(&rustls::version::TLS12));
    let provider = provider_outwards();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(CryptoFailure::of(what))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let read = CryptoFailure::of("read the authority of callers");
            let authority = pem::certificates(clients.authority).map_err(read)?;
            let mut roots = RootCertStore::empty();
            for root in authority {
                let read = CryptoFailure::of("read the authority of callers");
                roots.add(root).map_err(read)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if clients.required {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            let chain = verifier.build().map_err(CryptoFailure::of(what))?;
            builder.with_client_cert_verifier(match clients.names {
                [] => chain,
                names => {
                    let (hosts, uris) = apart(names)?;
                    Arc::new(NamedCallers { chain, hosts, uris })
                }
            })
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(certificates)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.key_log = key_log();
    Ok(EdgeServer(Arc::new(config)))
}

#[derive(Debug)]
struct ByName(Vec<EdgeCertificate>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        let name = name.and_then(|name| ServerName::try_from(name).ok());
        let own = name.and_then(|name| self.0.iter().find(|one| one.is_for(&name)));
        own.or(self.0.first()).map(|one| Arc::clone(&one.0))
    }
}

impl EdgeServer {
    /// The same where it is not known what is spoken within: nothing is agreed on (no ALPN).
    #[must_use]
    pub fn opaque(&self) -> Self {
        let mut config = ServerConfig::clone(&self.0);
        config.alpn_protocols.clear();
        Self(Arc::new(config))
    }

    /// Runs the server's side of the handshake. The caller sets the time limit.
    ///
    /// # Errors
    /// When the caller is not acceptable, breaks the protocol or goes away.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::duplex;

    use super::*;
    use crate::ca::Authority;
    use crate::https::ClientIdentity;
    use crate::outwards::{self, Within};

    const DAY: Duration = Duration::from_secs(86_400);

    fn certificate(authority: &Authority, name: &str) -> (String, String) {
        let own = authority.issue_server(&[name.to_owned()], DAY).unwrap();
        (own.chain.clone(), own.key.to_pem().unwrap())
    }

    async fn meet(server: &EdgeServer, client: &outwards::OutwardClient, host: &str) -> bool {
        let (near, far) = duplex(64 * 1024);
        let (served, opened) = tokio::join!(
            server.accept(far),
            client.connect(near, host, Within::Http2)
        );
        served.is_ok() && opened.is_ok()
    }

    #[tokio::test]
    async fn each_server_name_gets_its_certificate() {
        let authority = Authority::generate("test").unwrap();
        let both = ["a.example", "b.example"].map(|name| {
            let (chain, key) = certificate(&authority, name);
            EdgeCertificate::from_pem(&chain, &key).unwrap()
        });
        let server = server_config(both.to_vec(), None, (true, true)).unwrap();
        let none: [&str; 0] = [];
        let client = outwards::client_config(authority.roots(), &none, None).unwrap();
        for (name, good) in [
            ("a.example", true),
            ("b.example", true),
            ("c.example", false),
        ] {
            assert_eq!(meet(&server, &client, name).await, good, "{name}");
        }
    }

    #[test]
    fn a_key_that_is_too_small_is_refused_when_it_is_read() {
        use boring::asn1::Asn1Time;
        use boring::hash::MessageDigest;
        use boring::pkey::PKey;
        use boring::rsa::Rsa;

        let read = |bits| {
            let key = PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap();
            let mut leaf = X509::builder().unwrap();
            let at = |days| Asn1Time::days_from_now(days).unwrap();
            leaf.set_not_before(&at(0)).unwrap();
            leaf.set_not_after(&at(1)).unwrap();
            leaf.set_pubkey(&key).unwrap();
            leaf.sign(&key, MessageDigest::sha256()).unwrap();
            let chain = String::from_utf8(leaf.build().to_pem().unwrap()).unwrap();
            let key = String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap();
            let read = EdgeCertificate::from_pem(&chain, &key);
            read.map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(read(2048), Ok(()));
        let why = read(1024).unwrap_err();
        assert!(why.contains("1024 bits, 2048 at least"), "{why}");
    }

    #[tokio::test]
    async fn callers_without_a_certificate_are_turned_away_where_one_is_asked_for() {
        let authority = Authority::generate("test").unwrap();
        let clients = Authority::generate("clients").unwrap();
        let (chain, key) = certificate(&authority, "a.example");
        let shown = EdgeCertificate::from_pem(&chain, &key).unwrap();
        let rule = |required| {
            let rule = Clients {
                authority: clients.roots(),
                names: &[],
                required,
            };
            // A client of TLS 1.3 is done before it hears of the refusal.
            server_config(vec![shown.clone()], Some(rule), (false, true)).unwrap()
        };
        let none: [&str; 0] = [];
        let plain = outwards::client_config(authority.roots(), &none, None).unwrap();
        let with = |by: &Authority| {
            let (chain, key) = certificate(by, "client.example");
            let identity = ClientIdentity {
                chain: &chain,
                key: &key,
            };
            outwards::client_config(authority.roots(), &none, Some(identity)).unwrap()
        };
        assert!(!meet(&rule(true), &plain, "a.example").await);
        assert!(meet(&rule(false), &plain, "a.example").await);
        assert!(!meet(&rule(false), &with(&authority), "a.example").await);
    }

    #[tokio::test]
    async fn callers_have_one_of_the_names_that_are_asked_for() {
        let authority = Authority::generate("test").unwrap();
        let clients = Authority::generate("clients").unwrap();
        let (chain, key) = certificate(&authority, "a.example");
        let shown = EdgeCertificate::from_pem(&chain, &key).unwrap();
        let server = |names: &[&str]| {
            let rule = Clients {
                authority: clients.roots(),
                names,
                required: false,
            };
            // A client of TLS 1.3 is done before it hears of the refusal.
            server_config(vec![shown.clone()], Some(rule), (false, true))
        };
        let none: [&str; 0] = [];
        let (chain, key) = certificate(&clients, "client.example");
        let identity = ClientIdentity {
            chain: &chain,
            key: &key,
        };
        let caller = outwards::client_config(authority.roots(), &none, Some(identity)).unwrap();
        let nobody = outwards::client_config(authority.roots(), &none, None).unwrap();
        for (names, good) in [
            (&["client.example"][..], true),
            (&["spiffe://a/b", "client.example"], true),
            (&["other.example"], false),
            (&["spiffe://client.example/"], false),
            (&["10.0.0.1"], false),
        ] {
            let server = server(names).unwrap();
            assert_eq!(meet(&server, &caller, "a.example").await, good, "{names:?}");
            assert!(meet(&server, &nobody, "a.example").await, "who shows none");
        }
        assert!(server(&["not a name"]).is_err());
    }

    #[tokio::test]
    async fn versions_of_tls_are_those_that_are_let_in() {
        let authority = Authority::generate("test").unwrap();
        let (chain, key) = certificate(&authority, "a.example");
        let shown = EdgeCertificate::from_pem(&chain, &key).unwrap();
        let none: [&str; 0] = [];
        let client = outwards::client_config(authority.roots(), &none, None).unwrap();
        for (versions, spoken) in [
            ((true, true), rustls::ProtocolVersion::TLSv1_3),
            ((true, false), rustls::ProtocolVersion::TLSv1_3),
            ((false, true), rustls::ProtocolVersion::TLSv1_2),
        ] {
            let server = server_config(vec![shown.clone()], None, versions).unwrap();
            let (near, far) = duplex(64 * 1024);
            let opened = client.connect(near, "a.example", Within::Http2);
            let (served, opened) = tokio::join!(server.accept(far), opened);
            assert!(opened.is_ok());
            let stream = served.unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(spoken));
        }
        assert!(server_config(vec![shown], None, (false, false)).is_err());
    }

    #[test]
    fn a_key_of_another_certificate_is_told() {
        let authority = Authority::generate("test").unwrap();
        let (chain, _) = certificate(&authority, "a.example");
        let (_, other) = certificate(&authority, "a.example");
        assert!(EdgeCertificate::from_pem(&chain, &other).is_err());
        assert!(EdgeCertificate::from_pem("", &other).is_err());
        assert!(server_config(Vec::new(), None, (true, true)).is_err());
    }
}

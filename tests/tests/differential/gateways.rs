//! Gateways for callers of the mesh, and for connections that go on by their server name, beside Envoy's.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_control_plane::{Told, told};
use isobar_objects::{ObjectSet, read_text};
use isobar_runtime::LocalScope;
use isobar_tests::envoy::{Envoy, Export, OfMesh};
use isobar_tls::https::ClientIdentity;
use isobar_tls::outwards::{OutwardClient, Within, client_config};
use isobar_tls::{WorkloadCertificate, server_config};
use isobar_types::Identity;
use isobar_waypoint::edge;
use isobar_waypoint::listener::listen;
use isobar_xds::CertSource;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::ours::{Certificates, gateway};

/// More than anything takes here.
const PATIENCE: Duration = Duration::from_secs(10);

const OBJECTS: &str = include_str!("gateways.yaml");

/// How a connection begins.
struct Dial {
    port: u16,
    /// The account whose certificate is shown; `None`: none is.
    account: Option<&'static str>,
    /// One that another authority has signed.
    forged: bool,
    /// The server name; an address is not told.
    name: &'static str,
    within: Within,
    /// No TLS at all.
    clear: bool,
}

impl Default for Dial {
    fn default() -> Self {
        Self {
            port: 0,
            account: Some("client"),
            forged: false,
            name: "a.example",
            within: Within::Http1,
            clear: false,
        }
    }
}

/// Ports of the gateway's pods, by what they are for.
const REQUESTS: u16 = 8443;
const STREAMS: u16 = 8444;
const BY_NAME: u16 = 15443;

/// Its name, how the connection begins, what is said on it, and what both answer.
type Try = (&'static str, Dial, &'static [u8], &'static str);

impl Dial {
    fn on(port: u16) -> Self {
        Self {
            port,
            ..Self::default()
        }
    }

    /// With another server name.
    fn by(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// With another account's certificate, or none.
    fn shows(self, account: Option<&'static str>) -> Self {
        Self { account, ..self }
    }

    fn forged(self) -> Self {
        let forged = true;
        Self { forged, ..self }
    }

    fn clear(self) -> Self {
        let clear = true;
        Self { clear, ..self }
    }

    /// Without a word on what is within.
    fn silent(self) -> Self {
        let within = Within::Anything;
        Self { within, ..self }
    }
}

/// Requests, at the servers of mode ISTIO_MUTUAL.
fn requests() -> Vec<Try> {
    let get = b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
    let edited = b"GET /edited/x HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
    let port = b"GET / HTTP/1.1\r\nhost: a.example:443\r\nconnection: close\r\n\r\n";
    let none = b"GET / HTTP/1.1\r\nhost: none.example\r\nconnection: close\r\n\r\n";
    let wild = b"GET / HTTP/1.1\r\nhost: x.b.example\r\nconnection: close\r\n\r\n";
    let on = || Dial::on(REQUESTS);
    let named = || on().shows(Some("named"));
    let no = "refused";
    vec![
        ("of the mesh", on(), get, "200 /"),
        ("a rule's edits", on(), edited, "200 /new/x"),
        ("a host with its port", on(), port, "200 /"),
        ("a host without rules", on(), none, "404"),
        ("no certificate", on().shows(None), get, no),
        ("another mesh", on().forged(), get, no),
        ("no TLS", on().clear(), get, no),
        ("no server name", on().by("127.0.0.1"), get, no),
        ("a name of no server", on().by("c.example"), get, no),
        ("a name in capitals", on().by("A.Example"), get, "200 /"),
        ("not one that is named", on().by("x.b.example"), wild, no),
        (
            "one that is named",
            named().by("x.b.example"),
            wild,
            "200 /",
        ),
        ("a pattern's end", named().by("b.example"), wild, no),
        ("any protocol", on().silent(), get, "200 /"),
    ]
}

/// Other bytes, within TLS that ends and by names that say where they go.
fn streams() -> Vec<Try> {
    let (hello, said, no) = (b"hello", "said hello", "refused");
    let ends = || Dial::on(STREAMS).by("db.example").silent();
    let goes = |name| Dial::on(BY_NAME).by(name).silent();
    let host = "outbound_.7000_._.tls.shop.svc.cluster.local";
    let subset = "outbound_.7000_.v1_.tls.shop.svc.cluster.local";
    let no_subset = "outbound_.7000_.v9_.tls.shop.svc.cluster.local";
    let no_port = "outbound_.7001_._.tls.shop.svc.cluster.local";
    let no_host = "outbound_.7000_._.none.shop.svc.cluster.local";
    vec![
        ("bytes", ends(), hello, said),
        ("bytes without a certificate", ends().shows(None), hello, no),
        ("bytes for another name", ends().by("a.example"), hello, no),
        ("by name", goes(host), hello, said),
        ("by name to a subset", goes(subset), hello, said),
        ("a subset that is none", goes(no_subset), hello, no),
        ("a port that is none", goes(no_port), hello, no),
        ("a service that is none", goes(no_host), hello, no),
        (
            "the plain name",
            goes("tls.shop.svc.cluster.local"),
            hello,
            no,
        ),
        ("by no name", goes("127.0.0.1"), hello, no),
        ("by name without TLS", goes("").clear(), hello, no),
    ]
}

/// Certificates of the mesh, and of another one.
struct Trust {
    own: Arc<Certificates>,
    other: Arc<Certificates>,
}

fn pem(certificate: &WorkloadCertificate) -> (String, String, String) {
    let text =
        |all: &[isobar_tls::CertificateInfo]| all.iter().map(|one| one.pem.as_str()).collect();
    let key = certificate.private_key().to_pem().unwrap();
    (text(certificate.chain()), key, text(certificate.roots()))
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

impl Trust {
    async fn client(&self, dial: &Dial) -> OutwardClient {
        let (_, _, roots) = pem(&self.own.fetch(&identity("edge")).await.unwrap());
        let signer = if dial.forged { &self.other } else { &self.own };
        let own = match dial.account {
            Some(account) => Some(pem(&signer.fetch(&identity(account)).await.unwrap())),
            None => None,
        };
        let shown = own
            .as_ref()
            .map(|(chain, key, _)| ClientIdentity { chain, key });
        let servers = ["edge", "server"].map(|account| identity(account).to_string());
        client_config(&roots, &servers, shown).unwrap()
    }

    /// What comes of it, as far as two proxies may be compared.
    async fn attempt(&self, at: SocketAddr, dial: &Dial, said: &[u8]) -> String {
        let tcp = TcpStream::connect(at).await.unwrap();
        let answered = async {
            if dial.clear {
                return exchange(tcp, said).await;
            }
            let client = self.client(dial).await;
            match client.connect(tcp, dial.name, dial.within).await {
                Ok(stream) => exchange(stream, said).await,
                Err(_) => None,
            }
        };
        let answered = tokio::time::timeout(PATIENCE, answered).await;
        let Some(bytes) = answered.expect("it has an end") else {
            return "refused".to_owned();
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match text.strip_prefix("HTTP/1.1 ") {
            Some(response) => {
                let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
                let status = head.split(' ').next().unwrap_or_default();
                format!("{status} {body}").trim_end().to_owned()
            }
            None => text,
        }
    }
}

/// Says it and hears the answer to its end; `None` if there is none.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, said: &[u8]) -> Option<Vec<u8>> {
    stream.write_all(said).await.ok()?;
    stream.flush().await.ok()?;
    let mut heard = Vec::new();
    while let Ok(count) = stream.read_buf(&mut heard).await {
        let is_whole = heard.starts_with(b"said ") && heard.len() == said.len() + 5;
        if count == 0 || is_whole {
            break;
        }
    }
    (!heard.is_empty()).then_some(heard)
}

/// Says what it has heard, within TLS where it has a certificate.
async fn echo(listener: TcpListener, scope: Rc<LocalScope>, own: Option<Arc<WorkloadCertificate>>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let server = own
            .as_ref()
            .map(|own| server_config(own).without_tunnels(&[]));
        scope.spawn("connection", async move {
            match server {
                None => answer(tcp).await,
                // Who does not come in has gone.
                Some(server) => {
                    if let Ok((stream, _)) = server.accept(tcp).await {
                        answer(stream).await;
                    }
                }
            }
        });
    }
}

/// A request is told its path, other bytes are said again.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut heard = Vec::new();
    while stream
        .read_buf(&mut heard)
        .await
        .is_ok_and(|count| count > 0)
    {
        let text = String::from_utf8_lossy(&heard).into_owned();
        let reply = match text.strip_prefix("GET ") {
            Some(_) if !text.contains("\r\n\r\n") => continue,
            Some(rest) => {
                let path = rest.split(' ').next().unwrap_or_default();
                let length = path.len();
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}")
            }
            None => format!("said {text}"),
        };
        heard.clear();
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
        // Whoever has gone needs no answer.
        let _ = stream.flush().await;
    }
}

/// The objects with the ports that back ends have, and what a gateway is told of them.
fn resolve(ports: &BTreeMap<&str, u16>) -> Told {
    let mut text = OBJECTS.to_owned();
    for (name, port) in ports {
        text = text.replace(&format!("PORT_{name}"), &port.to_string());
    }
    let read = read_text(Path::new("gateways.yaml"), &text);
    let errors: Vec<_> = read.findings.iter().filter(|f| f.is_error()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    told(&ObjectSet::of(
        read.objects.into_iter().map(|one| one.object),
    ))
}

async fn compared() {
    let scope = Rc::new(LocalScope::new("oracle"));
    let trust = Trust {
        own: Certificates::new(),
        other: Certificates::new(),
    };
    let mut ports = BTreeMap::new();
    for (at, name) in (1..).zip(["HTTP", "TCP", "TLS"]) {
        let ip = Ipv4Addr::new(127, 65, 0, at);
        let listener = TcpListener::bind(SocketAddr::from((ip, 0))).await.unwrap();
        ports.insert(name, listener.local_addr().unwrap().port());
        let server = match name {
            "TLS" => Some(trust.own.fetch(&identity("server")).await.unwrap()),
            _ => None,
        };
        scope.spawn("back end", echo(listener, scope.clone(), server));
    }
    let told = resolve(&ports);
    let mut all = told.waypoints.iter();
    let found = all.find(|(_, one)| !one.waypoint.listeners.is_empty());
    let (name, own) = found.expect("a gateway");
    let (chain, key, roots) = pem(&trust.own.fetch(&identity("edge")).await.unwrap());
    let of_mesh = OfMesh {
        chain: &chain,
        key: &key,
        roots: &roots,
    };
    let mut export = Export::default();
    export.add_gateway("gateways", &told, name, of_mesh);
    let envoy = Envoy::start("gateways", export).await;
    let envoy = envoy.unwrap_or_else(|error| panic!("{error:#}"));

    let worker = gateway(&told, (name, "edge"), trust.own.clone(), &scope);
    let mut ours = BTreeMap::new();
    let mut open = Vec::new();
    for one in &own.waypoint.listeners {
        let port = u16::try_from(one.port).unwrap();
        if ours.contains_key(&port) {
            continue;
        }
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).unwrap();
        ours.insert(port, listener.local_addr().unwrap());
        let (stop, stopped) = watch::channel(());
        scope.spawn(
            "gateway",
            edge::accept(worker.clone(), listener, port, stopped),
        );
        open.push(stop);
    }
    let mut wrong = Vec::new();
    for (name, dial, said, expected) in requests().into_iter().chain(streams()) {
        let theirs = envoy.address(&format!("gateways|{}", dial.port));
        let theirs = trust.attempt(theirs, &dial, said).await;
        let ours = trust.attempt(ours[&dial.port], &dial, said).await;
        if ours != theirs || ours != expected {
            wrong.push(format!(
                "{name}: ours {ours:?}, Envoy's {theirs:?}, wanted {expected:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn gateways_for_the_mesh_and_by_name_end_as_with_envoy() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, compared());
}

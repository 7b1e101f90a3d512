//! Callers from outside the mesh, at the ports of a gateway.

use std::net::SocketAddr;
use std::time::Duration;

use isobar_proto::isobar::v1 as proto;
use isobar_proto::isobar::v1::listener_tls::ClientCertificate;
use isobar_route::ListenerProtocol;
use isobar_tls::ca::Authority;
use isobar_tls::outwards::{self, Within};
use isobar_waypoint::{edge, listener};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::bed::*;

const NAMED: &str = "edge";

pub(crate) fn listener_of(
    protocol: proto::listener::Protocol,
    port: u16,
    host: &str,
) -> proto::Listener {
    proto::Listener {
        name: NAMED.into(),
        port: u32::from(port),
        service_port: 80,
        protocol: protocol.into(),
        server_names: vec![host.into()],
        virtual_hosts: vec![proto::VirtualHost {
            host: host.into(),
            rules: Some(rules_of(host)),
            https_redirect: false,
        }],
        ..proto::Listener::default()
    }
}

pub(crate) fn rules_of(host: &str) -> proto::ServiceRef {
    proto::ServiceRef {
        namespace: "default".into(),
        hostname: format!("{NAMED}|{host}"),
    }
}

/// A gateway with this listener, on a port of the system's choice; stops when the sender is dropped.
pub(crate) fn open(
    bed: &Bed,
    make: impl FnOnce(u16) -> proto::Listener,
) -> (SocketAddr, watch::Sender<()>) {
    let accepting = listener::listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let at = accepting.local_addr().unwrap();
    describe(bed, make(at.port()));
    let (stop, stopped) = watch::channel(());
    let accept = edge::accept(bed.worker.clone(), accepting, at.port(), stopped);
    bed.scope.spawn("edge", accept);
    (at, stop)
}

fn describe(bed: &Bed, listener: proto::Listener) {
    describe_all(bed, vec![listener]);
}

pub(crate) fn describe_all(bed: &Bed, listeners: Vec<proto::Listener>) {
    bed.tables(|tables| {
        tables
            .set_waypoint(&proto::Waypoint {
                namespace: "default".into(),
                name: "wp".into(),
                traffic: proto::waypoint::Traffic::None.into(),
                listeners,
                ..proto::Waypoint::default()
            })
            .unwrap();
    });
}

/// Everything of host `svc` goes to the service's port.
pub(crate) fn rules(bed: &Bed) {
    rules_for(bed, &["svc"]);
}

pub(crate) fn rules_for(bed: &Bed, hosts: &[&str]) {
    let mut destination = to("", 1);
    if let Some(destination) = &mut destination.destination {
        destination.port = 8080;
    }
    let mut rules = virtual_service(vec![forward("all", vec![destination])]);
    rules.parents = hosts.iter().map(|host| rules_of(host)).collect();
    bed.tables(|tables| tables.upsert_virtual_service(&rules).unwrap());
}

#[test]
fn hosts_without_rules_are_not_there_and_callers_are_nobody() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let (at, _open) = open(&bed, |port| {
            listener_of(proto::listener::Protocol::Http, port, "svc")
        });
        let tcp = TcpStream::connect(at).await.unwrap();
        let mut client = bed.client_over(tcp).await;
        // A host, and no rules for it: the service itself is not for callers from outside.
        assert_eq!(client.get("/").await.status, 404);
        rules(&bed);
        assert_eq!(client.get("/").await.status, 200);
        let other = http::Request::get("/").header("host", "other");
        let other = other.body(http_body_util::Full::default()).unwrap();
        assert_eq!(client.send(other).await.unwrap().status, 404);
        let metrics = bed.registry.encode();
        assert!(
            metrics.contains("source_principal=\"unknown\""),
            "{metrics}"
        );
        let mut only = allow_account("client");
        only.services.clear();
        only.whole_waypoint = true;
        bed.tables(|tables| tables.upsert_policy(&only));
        assert_eq!(client.get("/").await.status, 403);
    });
}

#[test]
fn a_callers_word_about_itself_counts_for_nothing() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let (at, _open) = open(&bed, |port| {
            listener_of(proto::listener::Protocol::Http, port, "svc")
        });
        rules(&bed);
        let tcp = TcpStream::connect(at).await.unwrap();
        let mut client = bed.client_over(tcp).await;
        let claims = [
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=10.0.0.1"),
            ("x-real-ip", "10.0.0.1"),
            ("x-request-id", "mine"),
            ("x-envoy-internal", "true"),
            ("x-forwarded-client-cert", "Hash=1"),
            ("x-forwarded", "for=10.0.0.1"),
            ("x-forwarded-user", "admin"),
            ("x-forwarded-prefix", "/admin"),
            ("x_forwarded_for", "10.0.0.1"),
            ("x_real_ip", "10.0.0.1"),
            ("x-original-uri", "/admin"),
            ("x-original-host", "admin"),
            ("true-client-ip", "10.0.0.1"),
            ("x-cluster-client-ip", "10.0.0.1"),
            ("x-own", "1"),
        ];
        let answer = client.with("/", &claims).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["x-got-x-own"], "1");
        let got = |name: &str| {
            let value = answer.headers.get(format!("x-got-{name}"));
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(got("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert_eq!(got("x-forwarded-proto").as_deref(), Some("http"));
        assert_ne!(got("x-request-id").as_deref(), Some("mine"));
        for gone in [
            "forwarded",
            "x-real-ip",
            "x-envoy-internal",
            "x-forwarded-client-cert",
            "x-forwarded",
            "x-forwarded-user",
            "x-forwarded-prefix",
            "x_forwarded_for",
            "x_real_ip",
            "x-original-uri",
            "x-original-host",
            "true-client-ip",
            "x-cluster-client-ip",
        ] {
            assert_eq!(got(gone), None, "{gone}");
        }
    });
}

#[test]
fn callers_are_sent_to_https() {
    run(|bed| async move {
        let (at, _open) = open(&bed, |port| {
            let mut made = listener_of(proto::listener::Protocol::Http, port, "svc");
            made.virtual_hosts[0].https_redirect = true;
            made
        });
        let tcp = TcpStream::connect(at).await.unwrap();
        let mut client = bed.client_over(tcp).await;
        let answer = client.get("/a?b=c").await;
        assert_eq!(answer.status, 301);
        assert_eq!(answer.headers["location"], "https://svc/a?b=c");
    });
}

fn credential(authority: &Authority, host: &str) -> proto::Credential {
    let day = Duration::from_secs(86_400);
    let issued = authority.issue_server(&[host.to_owned()], day).unwrap();
    proto::Credential {
        namespace: "default".into(),
        name: "page".into(),
        chain: issued.chain.clone(),
        key: issued.key.to_pem().unwrap(),
        authority: String::new(),
    }
}

#[test]
fn a_certificate_is_replaced_between_two_handshakes_and_a_bad_one_changes_nothing() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let (at, _open) = open(&bed, |port| {
            let mut made = listener_of(proto::listener::Protocol::Https, port, "svc");
            made.tls = Some(proto::ListenerTls {
                credentials: vec!["default/page".into()],
                ..proto::ListenerTls::default()
            });
            made
        });
        rules(&bed);
        let (old, new) = (
            Authority::generate("old").unwrap(),
            Authority::generate("new").unwrap(),
        );
        let none: [&str; 0] = [];
        let meet = async |authority: &Authority, host: &str| {
            let client = outwards::client_config(authority.roots(), &none, None).unwrap();
            let tcp = TcpStream::connect(at).await.unwrap();
            client.connect(tcp, host, Within::Http1).await.ok()
        };
        assert!(meet(&old, "svc").await.is_none(), "there is no certificate");
        let credentials = &bed.worker.world.credentials;
        credentials.upsert(&credential(&old, "svc")).unwrap();
        let stream = meet(&old, "svc").await.expect("a handshake");
        let mut client = bed.client_over(stream).await;
        assert_eq!(client.get("/").await.status, 200);
        assert!(meet(&old, "other").await.is_none(), "no such server");
        let mut bad = credential(&new, "svc");
        bad.key = credential(&new, "svc").key;
        assert!(credentials.upsert(&bad).is_err());
        assert!(meet(&old, "svc").await.is_some());
        credentials.upsert(&credential(&new, "svc")).unwrap();
        assert!(meet(&new, "svc").await.is_some());
        assert!(meet(&old, "svc").await.is_none());
        // Who was there before stays.
        assert_eq!(client.get("/").await.status, 200);
    });
}

#[test]
fn a_handshake_for_one_listener_is_none_for_another() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let (wide, admin) = ("*.corp.example", "admin.corp.example");
        let in_tls = |port, host: &str, client: ClientCertificate| {
            let mut made = listener_of(proto::listener::Protocol::Https, port, host);
            made.name = host.into();
            made.tls = Some(proto::ListenerTls {
                credentials: vec!["default/page".into()],
                client: client.into(),
                client_authority: "default/page-cacert".into(),
                ..proto::ListenerTls::default()
            });
            made
        };
        let (at, _open) = open(&bed, |port| in_tls(port, wide, ClientCertificate::None));
        let both = vec![
            in_tls(at.port(), wide, ClientCertificate::None),
            in_tls(at.port(), admin, ClientCertificate::Required),
        ];
        describe_all(&bed, both);
        rules_for(&bed, &[wide, admin]);
        let authority = Authority::generate("any").unwrap();
        let page = credential(&authority, "x.corp.example");
        bed.worker.world.credentials.upsert(&page).unwrap();
        let none: [&str; 0] = [];
        let tls = outwards::client_config(authority.roots(), &none, None).unwrap();
        let tcp = TcpStream::connect(at).await.unwrap();
        let stream = tls.connect(tcp, "x.corp.example", Within::Http1).await;
        let mut client = bed.client_over(stream.unwrap()).await;
        for (host, status) in [
            ("x.corp.example", 200),
            ("y.corp.example:443", 200),
            ("admin.corp.example", 421),
            ("ADMIN.corp.example.:443", 421),
            ("other.example", 404),
        ] {
            let request = http::Request::get("/").header("host", host);
            let request = request.body(http_body_util::Full::default()).unwrap();
            assert_eq!(client.send(request).await.unwrap().status, status, "{host}");
        }
    });
}

#[test]
fn a_port_with_tls_serves_nobody_in_the_clear() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let in_clear = |port| listener_of(proto::listener::Protocol::Http, port, "svc");
        let (at, _open) = open(&bed, in_clear);
        rules(&bed);
        let get = b"GET / HTTP/1.1\r\nhost: svc\r\nconnection: close\r\n\r\n";
        assert!(raw(at, get).await.starts_with("HTTP/1.1 200"));
        let mut in_tls = listener_of(proto::listener::Protocol::Https, at.port(), "svc");
        in_tls.name = "secured".into();
        in_tls.tls = Some(proto::ListenerTls::default());
        describe_all(&bed, vec![in_clear(at.port()), in_tls]);
        assert_eq!(raw(at, get).await, "");
    });
}

/// What comes back for these bytes, until the gateway closes.
async fn raw(at: SocketAddr, bytes: &[u8]) -> String {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    let mut reply = Vec::new();
    // A reset is an end too.
    let _ = tcp.read_to_end(&mut reply).await;
    String::from_utf8_lossy(&reply).into_owned()
}

#[test]
fn what_is_ambiguous_or_no_tls_gets_no_further() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let (at, open_in_clear) = open(&bed, |port| {
            listener_of(proto::listener::Protocol::Http, port, "svc")
        });
        rules(&bed);
        let coded = b"POST / HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: chunked, identity\r\n\
            connection: close\r\n\r\nabc";
        assert!(raw(at, coded).await.starts_with("HTTP/1.1 400"));
        let twice = b"GET / HTTP/1.1\r\nhost: svc\r\nhost: other\r\nconnection: close\r\n\r\n";
        assert!(raw(at, twice).await.starts_with("HTTP/1.1 400"));
        let connect = b"CONNECT svc:80 HTTP/1.1\r\nhost: svc\r\nconnection: close\r\n\r\n";
        assert!(raw(at, connect).await.starts_with("HTTP/1.1 400"));
        drop(open_in_clear);
        let (at, _open) = open(&bed, |port| {
            let mut made = listener_of(proto::listener::Protocol::Https, port, "svc");
            made.tls = Some(proto::ListenerTls::default());
            made
        });
        assert_eq!(raw(at, b"GET / HTTP/1.1\r\nhost: svc\r\n\r\n").await, "");
    });
}

#[test]
fn a_listener_that_is_gone_takes_no_more_requests() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let (at, _open) = open(&bed, |port| {
            listener_of(proto::listener::Protocol::Http, port, "svc")
        });
        rules(&bed);
        let tcp = TcpStream::connect(at).await.unwrap();
        let mut client = bed.client_over(tcp).await;
        assert_eq!(client.get("/").await.status, 200);
        let known = bed.worker.world.feed.load();
        let own = known.waypoint().unwrap();
        assert_eq!(own.listeners[0].protocol, ListenerProtocol::Http);
        bed.describe("");
        let request = http::Request::get("/").header("host", "svc");
        let request = request.body(http_body_util::Full::default()).unwrap();
        // The connection ends by itself; whoever asks before that is told.
        if let Ok(answer) = client.send(request).await {
            assert_eq!(answer.status, 503);
        }
    });
}

/// Less than the time that requests on their way are given.
const SOON: Duration = Duration::from_secs(3);

#[test]
fn connections_that_nobody_could_open_any_more_are_ended() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let secured = |port: u16, client: ClientCertificate| {
            let mut made = listener_of(proto::listener::Protocol::Https, port, "svc");
            made.tls = Some(proto::ListenerTls {
                credentials: vec!["default/page".into()],
                client: client.into(),
                client_authority: "default/page-cacert".into(),
                ..proto::ListenerTls::default()
            });
            made
        };
        let (at, _open) = open(&bed, |port| secured(port, ClientCertificate::None));
        rules(&bed);
        let authority = Authority::generate("any").unwrap();
        let credentials = &bed.worker.world.credentials;
        let page = credential(&authority, "svc");
        credentials.upsert(&page).unwrap();
        let none: [&str; 0] = [];
        let tls = outwards::client_config(authority.roots(), &none, None).unwrap();
        // A connection on which something was asked, and that waits.
        let idle = async || {
            let tcp = TcpStream::connect(at).await.unwrap();
            let mut stream = tls.connect(tcp, "svc", Within::Http1).await.unwrap();
            let request = b"GET / HTTP/1.1\r\nhost: svc\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut seen = Vec::new();
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
            }
            assert!(seen.starts_with(b"HTTP/1.1 200"));
            stream
        };
        let mut waiting = idle().await;
        let mut rest = Vec::new();
        let early = Duration::from_millis(200);
        let end = tokio::time::timeout(early, waiting.read_to_end(&mut rest));
        assert!(end.await.is_err(), "while all is well it stays");
        describe(&bed, secured(at.port(), ClientCertificate::Required));
        let end = tokio::time::timeout(SOON, waiting.read_to_end(&mut rest));
        assert!(end.await.is_ok(), "a certificate is asked for now");

        describe(&bed, secured(at.port(), ClientCertificate::None));
        let mut waiting = idle().await;
        let gone = ["default/page".to_owned()];
        assert!(credentials.handler().apply(&[], &gone).is_empty());
        let end = tokio::time::timeout(SOON, waiting.read_to_end(&mut rest));
        assert!(end.await.is_ok(), "there is no certificate any more");

        credentials.upsert(&page).unwrap();
        let signed_by = |authority: &str| proto::Credential {
            namespace: "default".into(),
            name: "page-cacert".into(),
            authority: Authority::generate(authority).unwrap().roots().to_owned(),
            ..proto::Credential::default()
        };
        credentials.upsert(&signed_by("one")).unwrap();
        describe(&bed, secured(at.port(), ClientCertificate::Optional));
        let mut waiting = idle().await;
        credentials.upsert(&signed_by("another")).unwrap();
        let end = tokio::time::timeout(SOON, waiting.read_to_end(&mut rest));
        assert!(end.await.is_ok(), "callers are to be signed by another");
    });
}

//! Callers of the mesh at a gateway's ports where TLS is spoken: with their certificates, and in tunnels.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use isobar_tls::https::ClientIdentity;
use isobar_tls::outwards::{self, OutwardClient, Within};
use isobar_waypoint::stream::AnyStream;
use isobar_xds::CertSource;
use proto::listener::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::bed::*;
use crate::edge::{describe_all, listener_of, open, rules, rules_for, rules_of};

/// Where what asks for it is served by its own certificate of the mesh.
pub(crate) fn of_mesh(protocol: Protocol, port: u16, host: &str) -> proto::Listener {
    proto::Listener {
        name: host.into(),
        tls: Some(proto::ListenerTls {
            mesh: true,
            ..proto::ListenerTls::default()
        }),
        ..listener_of(protocol, port, host)
    }
}

fn tell_certificates(bed: &Bed) {
    let credentials = &bed.worker.world.credentials;
    credentials.tell_mesh(bed.certificates.clone());
}

/// What a proxy beside an application of that account opens connections with; without one, somebody who
/// only trusts the mesh.
async fn caller(bed: &Bed, account: Option<&str>) -> OutwardClient {
    caller_of(&*bed.certificates, account).await
}

/// The same with certificates from there.
pub(crate) async fn caller_of(source: &dyn CertSource, account: Option<&str>) -> OutwardClient {
    let own = identity(account.unwrap_or("nobody"));
    let own = source.fetch(&own).await.unwrap();
    let chain: String = own.chain().iter().map(|one| one.pem.as_str()).collect();
    let roots: String = own.roots().iter().map(|one| one.pem.as_str()).collect();
    let key = own.private_key().to_pem().unwrap();
    let shown = ClientIdentity {
        chain: &chain,
        key: &key,
    };
    let server = [identity("wp").to_string()];
    outwards::client_config(&roots, &server, account.map(|_| shown)).unwrap()
}

async fn ask(client: &mut Client, host: &str) -> u16 {
    let request = http::Request::get("/").header("host", host);
    let request = request.body(Full::default()).unwrap();
    client.send(request).await.unwrap().status
}

fn only(account: &str) -> proto::Authorization {
    proto::Authorization {
        services: Vec::new(),
        whole_waypoint: true,
        ..allow_account(account)
    }
}

#[test]
fn callers_of_the_mesh_are_who_their_certificates_say() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let (at, _open) = open(&bed, |port| of_mesh(Protocol::Https, port, "svc"));
        rules(&bed);
        let own = caller(&bed, Some("client")).await;
        let tcp = TcpStream::connect(at).await.unwrap();
        assert!(
            own.connect(tcp, "svc", Within::Http1).await.is_err(),
            "there is no certificate to show"
        );
        tell_certificates(&bed);
        bed.tables(|tables| tables.upsert_policy(&only("client")));
        for (account, status) in [("client", 200), ("other", 403)] {
            let own = caller(&bed, Some(account)).await;
            let tcp = TcpStream::connect(at).await.unwrap();
            let stream = own.connect(tcp, "svc", Within::Http1).await.unwrap();
            let mut client = bed.client_over(stream).await;
            assert_eq!(ask(&mut client, "svc").await, status, "{account}");
        }
        let metrics = bed.registry.encode();
        let principal = format!("source_principal=\"{}\"", identity("client"));
        assert!(metrics.contains(&principal), "{metrics}");
        // Whoever shows no certificate learns of it with the first read.
        let nobody = caller(&bed, None).await;
        let tcp = TcpStream::connect(at).await.unwrap();
        if let Ok(mut stream) = nobody.connect(tcp, "svc", Within::Http1).await {
            let _ = stream
                .write_all(b"GET / HTTP/1.1\r\nhost: svc\r\n\r\n")
                .await;
            assert!(stream.read_u8().await.is_err());
        }
        let mut named = of_mesh(Protocol::Https, at.port(), "svc");
        let names = vec![identity("other").to_string()];
        named.tls.as_mut().unwrap().client_names = names;
        describe_all(&bed, vec![named]);
        let tcp = TcpStream::connect(at).await.unwrap();
        let mut stream = own.connect(tcp, "svc", Within::Http1).await.unwrap();
        assert!(stream.read_u8().await.is_err(), "it has not that name");
    });
}

#[test]
fn a_tunnel_is_as_good_as_a_certificate_in_it() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        tell_certificates(&bed);
        let hosts = ["svc", "b.example"];
        let (at, _open) = open(&bed, |port| of_mesh(Protocol::Https, port, "svc"));
        let both = hosts.map(|host| of_mesh(Protocol::Https, at.port(), host));
        describe_all(&bed, both.to_vec());
        rules_for(&bed, &hosts);
        bed.tables(|tables| tables.upsert_policy(&only("client")));
        for (account, status) in [("client", 200), ("other", 403)] {
            let mut client = bed.client_to(account, &at.to_string()).await;
            for host in hosts {
                assert_eq!(ask(&mut client, host).await, status, "{account} {host}");
            }
        }
        let callers_of = |names: [&[&str]; 2]| {
            let all = hosts.into_iter().zip(names).map(|(host, names)| {
                let mut one = of_mesh(Protocol::Https, at.port(), host);
                let names = names.iter().map(|name| identity(name).to_string());
                one.tls.as_mut().unwrap().client_names = names.collect();
                one
            });
            describe_all(&bed, all.collect());
        };
        let seen = async |account| {
            let mut seen = Vec::new();
            for host in hosts {
                let stream = bed.tunnel(account, &at.to_string()).await.unwrap();
                let client = bed.client_over(stream);
                let asked =
                    tokio::time::timeout(STAY, async { ask(&mut client.await, host).await });
                seen.push(asked.await.unwrap());
            }
            seen
        };
        // Each server asks for its own callers, whichever of them is the first.
        callers_of([&["other"], &[]]);
        assert_eq!(seen("client").await, [421, 200]);
        callers_of([&[], &["other"]]);
        assert_eq!(seen("client").await, [200, 421]);
        callers_of([&["client"], &["client", "other"]]);
        assert_eq!(seen("client").await, [200, 200]);
        callers_of([&["other"], &["another"]]);
        let mut stream = bed.tunnel("client", &at.to_string()).await.unwrap();
        let get = b"GET / HTTP/1.1\r\nhost: svc\r\n\r\n";
        stream.write_all(get).await.unwrap();
        assert!(stream.read_u8().await.is_err(), "no server admits it");
        callers_of([&[], &[]]);
        // With TLS in it as well, for whoever begins it, that says who calls.
        let stream = bed.tunnel("other", &at.to_string()).await.unwrap();
        let own = caller(&bed, Some("client")).await;
        let stream = own.connect(stream, "b.example", Within::Http1).await;
        let mut client = bed.client_over(stream.unwrap()).await;
        assert_eq!(ask(&mut client, "b.example").await, 200);
        // Where callers are of outside, a tunnel alone is none of them.
        let mut secured = of_mesh(Protocol::Https, at.port(), "svc");
        secured.tls = Some(proto::ListenerTls::default());
        describe_all(&bed, vec![secured]);
        let mut stream = bed.tunnel("client", &at.to_string()).await.unwrap();
        let get = b"GET / HTTP/1.1\r\nhost: svc\r\n\r\n";
        stream.write_all(get).await.unwrap();
        assert!(stream.read_u8().await.is_err());
    });
}

#[test]
fn callers_of_the_mesh_do_not_choose_their_address() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        tell_certificates(&bed);
        let (at, _open) = open(&bed, |port| of_mesh(Protocol::Https, port, "svc"));
        rules(&bed);
        let own = caller(&bed, Some("client")).await;
        let tcp = TcpStream::connect(at).await.unwrap();
        let stream = own.connect(tcp, "svc", Within::Http1).await.unwrap();
        let of_outside = bed.client_over(stream).await;
        let in_tunnel = bed.client_to("client", &at.to_string()).await;
        let from = |address: &str| {
            let mut policy = only("client");
            let source = &mut policy.rules[0].from[0];
            source.remote_ip_blocks = vec![address.into()];
            bed.tables(|tables| tables.upsert_policy(&policy));
        };
        let claims = [
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-user", "admin"),
            ("x-real-ip", "10.0.0.1"),
            ("x-request-id", "mine"),
        ];
        for mut client in [of_outside, in_tunnel] {
            from("10.0.0.1/32");
            assert_eq!(client.with("/", &claims).await.status, 403);
            from("127.0.0.1/32");
            let answer = client.with("/", &claims).await;
            assert_eq!(answer.status, 200);
            let got = &answer.headers;
            assert_eq!(got["x-got-x-forwarded-for"], "127.0.0.1");
            assert_eq!(got["x-got-x-forwarded-proto"], "https");
            assert!(!got.contains_key("x-got-x-forwarded-user"));
            assert!(!got.contains_key("x-got-x-real-ip"));
            // Calls within the mesh are followed by it.
            assert_eq!(got["x-got-x-request-id"], "mine");
        }
    });
}

/// Says what it hears.
async fn echo(bed: &Bed) {
    let listener = TcpListener::bind("127.0.1.5:0").await.unwrap();
    bed.known_backend("echo", "v1", listener.local_addr().unwrap());
    bed.scope.spawn("echo", async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            drop(tokio::task::spawn_local(async move {
                let (mut from, mut to) = tcp.split();
                // Until its peer is done.
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }));
        }
    });
}

async fn echoes(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> bool {
    if stream.write_all(b"\x01said").await.is_err() {
        return false;
    }
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.is_ok() && &heard == b"\x01said"
}

/// All connections of that listener go to the service.
fn connections_of(host: &str) -> proto::VirtualService {
    let mut destination = to("", 1);
    if let Some(destination) = &mut destination.destination {
        destination.port = 8080;
    }
    proto::VirtualService {
        parents: vec![rules_of(host)],
        tcp: vec![proto::TcpRoute {
            matches: vec![],
            destinations: vec![destination],
        }],
        ..virtual_service(vec![])
    }
}

#[test]
fn connections_within_tls_that_ends_are_passed_on() {
    run(|bed| async move {
        echo(&bed).await;
        tell_certificates(&bed);
        let (at, _open) = open(&bed, |port| of_mesh(Protocol::Tls, port, "*"));
        bed.tables(|tables| {
            tables.upsert_virtual_service(&connections_of("*")).unwrap();
            tables.upsert_policy(&only("client"));
        });
        for (account, good) in [("client", true), ("other", false)] {
            let own = caller(&bed, Some(account)).await;
            let tcp = TcpStream::connect(at).await.unwrap();
            let stream = own.connect(tcp, "db.example", Within::Anything).await;
            assert_eq!(echoes(stream.unwrap()).await, good, "{account}");
            let stream = bed.tunnel(account, &at.to_string()).await.unwrap();
            assert_eq!(echoes(stream).await, good, "{account} in a tunnel");
        }
    });
}

#[test]
fn what_is_passed_on_by_name_has_no_tls_of_ours_around_it() {
    run(|bed| async move {
        let host = "outbound_.8080_._.svc.default.svc.cluster.local";
        let own = bed.certificates.fetch(&identity("server")).await.unwrap();
        let listener = TcpListener::bind("127.0.1.5:0").await.unwrap();
        bed.known_backend("server", "v1", listener.local_addr().unwrap());
        bed.scope.spawn("server", async move {
            let server = isobar_tls::server_config(&own).without_tunnels(&[]);
            while let Ok((tcp, _)) = listener.accept().await {
                if let Ok((mut stream, _)) = server.accept(tcp).await {
                    // Whoever has gone needs no word.
                    let _ = stream.write_all(b"x").await;
                    let _ = stream.flush().await;
                }
            }
        });
        let (at, _open) = open(&bed, |port| proto::Listener {
            raw: true,
            virtual_hosts: listener_of(Protocol::Tls, port, "*").virtual_hosts,
            ..listener_of(Protocol::Tls, port, "*.local")
        });
        let mut object = connections_of("*");
        object.tls = vec![proto::TlsRoute {
            matches: vec![proto::TlsMatch {
                sni_hosts: vec![host.into()],
                l4: None,
            }],
            destinations: std::mem::take(&mut object.tcp)[0].destinations.clone(),
        }];
        let mut rule = subsets();
        rule.traffic_policy = Some(proto::TrafficPolicy {
            tls: Some(proto::EndpointTls {
                unverified: true,
                ..proto::EndpointTls::default()
            }),
            ..proto::TrafficPolicy::default()
        });
        bed.tables(|tables| {
            tables.upsert_virtual_service(&object).unwrap();
            tables.upsert_destination_rule(&rule).unwrap();
        });
        let own = bed.certificates.fetch(&identity("client")).await.unwrap();
        let chain: String = own.chain().iter().map(|one| one.pem.as_str()).collect();
        let roots: String = own.roots().iter().map(|one| one.pem.as_str()).collect();
        let key = own.private_key().to_pem().unwrap();
        let shown = ClientIdentity {
            chain: &chain,
            key: &key,
        };
        let names = [identity("server").to_string()];
        let client = outwards::client_config(&roots, &names, Some(shown)).unwrap();
        let meet = async |name: &str| {
            let tcp = TcpStream::connect(at).await.unwrap();
            let mut stream = client.connect(tcp, name, Within::Anything).await.ok()?;
            stream.read_u8().await.ok()
        };
        assert_eq!(meet(host).await, Some(b'x'));
        assert_eq!(meet("outbound_.8080_._.other.local").await, None);
        let counted = "reason=\"no_route\"} 1";
        let metrics = bed.registry.encode();
        assert!(metrics.contains(counted), "{metrics}");
        assert_eq!(meet("svc.example").await, None, "no server has that name");
    });
}

/// An HTTP/2 connection as its client uses it.
pub(crate) type Sender = hyper::client::conn::http2::SendRequest<Full<bytes::Bytes>>;

/// A connection of HTTP/2 on which a request is on its way, and the stream of it.
async fn waiting(bed: &Bed, at: SocketAddr) -> (Sender, hyper::body::Incoming) {
    waiting_as(bed, &caller(bed, Some("client")).await, at).await
}

/// The same for somebody else.
pub(crate) async fn waiting_as(
    bed: &Bed,
    own: &OutwardClient,
    at: SocketAddr,
) -> (Sender, hyper::body::Incoming) {
    let tcp = TcpStream::connect(at).await.unwrap();
    let stream = own.connect(tcp, "svc", Within::Http2).await.unwrap();
    let stream: AnyStream = Box::new(stream);
    let stream = TokioIo::new(stream);
    let shaken = hyper::client::conn::http2::handshake(Local, stream);
    let (mut sender, connection) = shaken.await.unwrap();
    bed.scope.spawn("client", async move {
        // Its requests see how it ends.
        let _ = connection.await;
    });
    let response = sender.send_request(events()).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "hello");
    (sender, body)
}

pub(crate) fn events() -> http::Request<Full<bytes::Bytes>> {
    let request = http::Request::get("http://svc/events");
    request.body(Full::default()).unwrap()
}

/// Ends when a GOAWAY, or the end of the connection, keeps further requests from being sent.
async fn takes_no_more(sender: &mut Sender) {
    while sender.send_request(events()).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

/// Answers every request with a first word and nothing after it.
pub(crate) async fn endless(bed: &Bed) {
    let listener = TcpListener::bind("127.0.1.8:0").await.unwrap();
    bed.known_backend("endless", "v1", listener.local_addr().unwrap());
    bed.publish_mesh(AppProtocol::Http11);
    bed.scope.spawn("endless", async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            drop(tokio::task::spawn_local(async move {
                let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    match tcp.read_u8().await {
                        Ok(byte) => seen.push(byte),
                        Err(_) => return,
                    }
                }
                if tcp.write_all(head).await.is_ok() {
                    // Until its peer has gone.
                    let _ = tcp.read_to_end(&mut seen).await;
                }
            }));
        }
    });
}

/// What requests on their way are given.
const STAY: Duration = Duration::from_secs(5);

#[test]
fn a_changed_listener_says_goaway_and_cuts_what_does_not_end() {
    run(|bed| async move {
        endless(&bed).await;
        tell_certificates(&bed);
        let (at, _open) = open(&bed, |port| of_mesh(Protocol::Https, port, "svc"));
        rules(&bed);
        let (mut sender, mut body) = waiting(&bed, at).await;
        let mut named = of_mesh(Protocol::Https, at.port(), "svc");
        let names = vec![identity("other").to_string()];
        named.tls.as_mut().unwrap().client_names = names;
        let since = std::time::Instant::now();
        describe_all(&bed, vec![named]);
        // GOAWAY: the connection takes no further request, while the one on its way goes on.
        let told = tokio::time::timeout(STAY / 2, takes_no_more(&mut sender));
        told.await.unwrap();
        let end = body.frame().await;
        assert!(end.is_none_or(|frame| frame.is_err()), "it was not cut");
        let took = since.elapsed();
        assert!(took >= STAY - Duration::from_millis(500), "{took:?}");
        assert!(took < STAY + Duration::from_secs(3), "{took:?}");
    });
}

#[test]
fn a_drain_says_goaway_to_callers_of_a_gateway_and_cuts_what_does_not_end() {
    run(|bed| async move {
        endless(&bed).await;
        tell_certificates(&bed);
        let (at, _open) = open(&bed, |port| of_mesh(Protocol::Https, port, "svc"));
        rules(&bed);
        let (mut sender, mut body) = waiting(&bed, at).await;
        let limit = Duration::from_secs(2);
        let worker = bed.worker.clone();
        let since = std::time::Instant::now();
        let drained =
            tokio::task::spawn_local(
                async move { isobar_waypoint::run::drain(&worker, limit).await },
            );
        let told = tokio::time::timeout(limit / 2, takes_no_more(&mut sender));
        told.await.unwrap();
        let end = body.frame().await;
        assert!(end.is_none_or(|frame| frame.is_err()), "it was not cut");
        drained.await.unwrap();
        let took = since.elapsed();
        assert!(took < limit + Duration::from_secs(2), "{took:?}");
    });
}

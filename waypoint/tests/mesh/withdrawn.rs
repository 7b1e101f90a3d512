//! What happens to what is on its way when a policy forbids it, or its way is another by now.

use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper_util::rt::TokioIo;
use isobar_hbone::TunnelStream;
use isobar_proto::isobar::v1::{self as proto, authorization::Action};
use isobar_proto::istio::security;
use isobar_proto::istio::security::string_match::MatchType;
use isobar_proto::istio::workload::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use crate::bed::*;

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const CHAT: &[u8] =
    b"GET /chat HTTP/1.1\r\nhost: svc\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

async fn head_of(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Counts what happens at a back end.
struct Counts {
    heads: Semaphore,
    ends: Semaphore,
}

impl Counts {
    async fn one_end(&self) {
        self.ends.acquire().await.unwrap().forget();
    }
}

/// A back end that says `answer` to each request's head, then repeats what it hears; without an
/// answer it only listens.
async fn answering(bed: &Bed, answer: &'static [u8]) -> Rc<Counts> {
    let counts = Rc::new(Counts {
        heads: Semaphore::new(0),
        ends: Semaphore::new(0),
    });
    let listener = TcpListener::bind("127.0.1.7:0").await.unwrap();
    bed.known_backend("raw", "v1", listener.local_addr().unwrap());
    let counted = counts.clone();
    bed.scope.spawn("raw", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let counted = counted.clone();
            drop(tokio::task::spawn_local(async move {
                echo(tcp, answer, &counted).await;
                counted.ends.add_permits(1);
            }));
        }
    });
    counts
}

async fn echo(mut tcp: TcpStream, answer: &[u8], counts: &Counts) {
    head_of(&mut tcp).await;
    counts.heads.add_permits(1);
    tcp.write_all(answer).await.unwrap();
    let mut bytes = [0; 64];
    while let Ok(count @ 1..) = tcp.read(&mut bytes).await {
        if !answer.is_empty() && tcp.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

async fn said(tunnel: &mut TunnelStream, request: &[u8]) -> String {
    tunnel.write_all(request).await.unwrap();
    head_of(tunnel).await
}

async fn ping(tunnel: &mut TunnelStream) {
    tunnel.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    tunnel.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

#[test]
fn a_deny_cuts_a_websocket_of_its_caller_only() {
    run(|bed| async move {
        let counts = answering(&bed, SWITCH).await;
        let mut denied = bed.tunnel("client", VIP).await.unwrap();
        let mut other = bed.tunnel("other", VIP).await.unwrap();
        for tunnel in [&mut denied, &mut other] {
            assert!(said(tunnel, CHAT).await.starts_with("HTTP/1.1 101"));
            ping(tunnel).await;
        }
        bed.tables(|t| t.upsert_policy(&on_account("client", Action::Deny)));
        let mut rest = Vec::new();
        // Whether it looks like an end or a reset is for the tunnel.
        let _ = denied.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        counts.one_end().await;
        let line = bed.line().await;
        assert!(
            line.contains(" 101 RBAC rbac_access_denied_matched_policy[ns[default]-policy[only]"),
            "{line}"
        );
        assert!(line.contains("\"policy withdrawn\" 4 4 "), "{line}");
        ping(&mut other).await;
    });
}

#[test]
fn a_deny_cuts_a_response_that_flows() {
    run(|bed| async move {
        let counts = answering(&bed, CHUNKED).await;
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let head = said(&mut tunnel, b"GET /events HTTP/1.1\r\nhost: svc\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut chunk = [0; 10];
        tunnel.read_exact(&mut chunk).await.unwrap();
        bed.tables(|t| t.upsert_policy(&on_account("other", Action::Deny)));
        bed.tables(|t| t.upsert_policy(&on_account("client", Action::Deny)));
        let mut rest = Vec::new();
        let _ = tunnel.read_to_end(&mut rest).await;
        // No last chunk: the caller must see that it was not all.
        assert!(rest.is_empty(), "{rest:?}");
        counts.one_end().await;
        let line = bed.line().await;
        assert!(line.contains(" 200 RBAC rbac_access_denied"), "{line}");
    });
}

#[test]
fn a_deny_cuts_a_response_that_nobody_reads() {
    run(|bed| async move {
        let listener = TcpListener::bind("127.0.1.7:0").await.unwrap();
        bed.known_backend("flood", "v1", listener.local_addr().unwrap());
        let stalled = Rc::new(Notify::new());
        let told = stalled.clone();
        bed.scope.spawn("flood", async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            head_of(&mut tcp).await;
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n";
            tcp.write_all(head).await.unwrap();
            let block = vec![0; 1 << 16];
            loop {
                let pause = std::time::Duration::from_millis(300);
                match tokio::time::timeout(pause, tcp.write(&block)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return,
                    Err(_) => told.notify_one(),
                }
            }
        });
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let get = b"GET /big HTTP/1.1\r\nhost: svc\r\n\r\n";
        tunnel.write_all(get).await.unwrap();
        stalled.notified().await;
        bed.tables(|t| t.upsert_policy(&on_account("client", Action::Deny)));
        let line = bed.line().await;
        assert!(line.contains(" 200 RBAC rbac_access_denied"), "{line}");
        drop(tunnel);
    });
}

#[test]
fn a_deny_answers_for_an_endpoint_that_has_not() {
    run(|bed| async move {
        let counts = answering(&bed, b"").await;
        let mut waiting = bed.tunnel("client", VIP).await.unwrap();
        let get = b"GET /poll HTTP/1.1\r\nhost: svc\r\n\r\n";
        waiting.write_all(get).await.unwrap();
        let mut sending = bed.tunnel("client", VIP).await.unwrap();
        let post =
            b"POST /up HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        sending.write_all(post).await.unwrap();
        drop(counts.heads.acquire_many(2).await.unwrap());
        assert_eq!(bed.worker.live.len(), 2);
        bed.tables(|t| t.upsert_policy(&on_account("client", Action::Deny)));
        for tunnel in [&mut waiting, &mut sending] {
            let head = head_of(tunnel).await;
            assert!(head.starts_with("HTTP/1.1 403"), "{head}");
            let line = bed.line().await;
            assert!(line.contains(" 403 RBAC rbac_access_denied"), "{line}");
            assert!(line.contains("\"policy withdrawn\""), "{line}");
            counts.one_end().await;
        }
    });
}

/// Answers over HTTP/2: a response that never ends under `/stream`, a whole one elsewhere.
async fn streaming2(bed: &Bed) {
    let listener = TcpListener::bind("127.0.1.6:0").await.unwrap();
    bed.known_backend("h2", "v1", listener.local_addr().unwrap());
    let scope = bed.scope.clone();
    bed.scope.spawn("h2", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: http::Request<_>| async move {
                let request: http::Request<hyper::body::Incoming> = request;
                let data = Bytes::from_static(b"hello");
                let body = if request.uri().path().starts_with("/stream") {
                    let first = stream::iter([Ok::<_, Infallible>(Frame::data(data))]);
                    Either::Left(StreamBody::new(first.chain(stream::pending())))
                } else {
                    Either::Right(Full::new(data))
                };
                Ok::<_, Infallible>(http::Response::new(body))
            });
            scope.spawn("h2 connection", async move {
                // Ends with its peer.
                let _ = hyper::server::conn::http2::Builder::new(Local)
                    .serve_connection(TokioIo::new(tcp), service)
                    .await;
            });
        }
    });
}

#[test]
fn a_deny_resets_streams_of_http2_and_ends_grpc_with_a_status() {
    run(|bed| async move {
        streaming2(&bed).await;
        bed.publish_mesh(AppProtocol::Http2);
        let stream = bed.tunnel("client", VIP).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(Local, TokioIo::new(stream))
                .await
                .unwrap();
        bed.scope.spawn("client", async move {
            let _ = connection.await;
        });
        let request = |path: &str, kind: &str| {
            http::Request::get(format!("http://svc:8080{path}"))
                .header("content-type", kind)
                .body(Full::new(Bytes::new()))
                .unwrap()
        };
        let mut bodies = Vec::new();
        for kind in ["text/plain", "application/grpc"] {
            let response = sender.send_request(request("/stream", kind)).await.unwrap();
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            let first = body.frame().await.unwrap().unwrap();
            assert_eq!(first.into_data().unwrap(), "hello");
            bodies.push(body);
        }
        bed.tables(|t| t.upsert_policy(&deny_path("/stream")));
        let broken = bodies[0].frame().await.unwrap();
        assert!(broken.is_err(), "{broken:?}");
        let last = bodies[1].frame().await.unwrap().unwrap();
        let trailers = last.into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "7");
        assert!(bodies[1].frame().await.is_none());
        for _ in 0..2 {
            let line = bed.line().await;
            assert!(line.contains(" 200 RBAC rbac_access_denied"), "{line}");
        }
        // The connection and what is permitted on it go on.
        let response = sender.send_request(request("/", "a/b")).await.unwrap();
        assert_eq!(response.status(), 200);
    });
}

#[test]
fn requests_on_an_old_tunnel_are_refused_once_the_service_is_elsewhere() {
    run(|bed| async move {
        answering(&bed, SWITCH).await;
        let mut open = bed.tunnel("client", VIP).await.unwrap();
        assert!(said(&mut open, CHAT).await.starts_with("HTTP/1.1 101"));
        bed.remove_backend("raw");
        bed.backend("a", "v1").await;
        let mut client = bed.client("client").await;
        assert_eq!(client.get("/").await.status, 200);
        bed.line().await;
        bed.unbind();
        let answer = client.get("/").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.body, "not served by this waypoint any more");
        let line = bed.line().await;
        assert!(line.contains(" not_served_any_more "), "{line}");
        // The next connection is to find the new way.
        let again = http::Request::get("/").header("host", "svc");
        let again = client.send(again.body(Full::default()).unwrap()).await;
        assert!(again.is_err(), "{again:?}");
        assert!(bed.tunnel("client", VIP).await.is_err());
        // What is open has some time to find it too.
        ping(&mut open).await;
        let mut rest = Vec::new();
        let _ = open.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        loop {
            let line = bed.line().await;
            if line.contains("/chat") {
                assert!(line.contains(" 101 UH not_served_any_more "), "{line}");
                break;
            }
        }
    });
}

#[test]
fn until_every_proxy_knows_what_leaves_is_served_by_its_policies() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.tables(|t| t.upsert_policy(&deny_path("/secret")));
        let mut kept = bed.client("client").await;
        assert_eq!(kept.get("/").await.status, 200);
        bed.begin_to_unbind();
        // Who comes now, and who was there.
        for client in [&mut bed.client("client").await, &mut kept] {
            assert_eq!(client.get("/").await.status, 200);
            // Its next connection is to find the new way.
            let again = http::Request::get("/").header("host", "svc");
            let again = client.send(again.body(Full::default()).unwrap()).await;
            assert!(again.is_err(), "{again:?}");
        }
        assert_eq!(bed.client("client").await.get("/secret").await.status, 403);
        bed.unbind();
        assert!(bed.tunnel("client", VIP).await.is_err());
    });
}

#[test]
fn what_is_open_ends_some_time_after_the_service_went_elsewhere() {
    run(|bed| async move {
        let counts = answering(&bed, CHUNKED).await;
        let get = b"GET /events HTTP/1.1\r\nhost: svc\r\n\r\n";
        let mut open = bed.tunnel("client", VIP).await.unwrap();
        assert!(said(&mut open, get).await.starts_with("HTTP/1.1 200"));
        let since = std::time::Instant::now();
        bed.unbind();
        let mut rest = Vec::new();
        let _ = open.read_to_end(&mut rest).await;
        assert!(since.elapsed().as_secs() >= 4, "{:?}", since.elapsed());
        counts.one_end().await;
        let line = bed.line().await;
        assert!(line.contains(" 200 UH not_served_any_more "), "{line}");
    });
}

#[test]
fn a_deny_on_pods_is_asked_about_the_caller() {
    run(|bed| async move {
        let counts = answering(&bed, CHUNKED).await;
        let get = b"GET /events HTTP/1.1\r\nhost: svc\r\n\r\n";
        let mut flowing = bed.tunnel("client", VIP).await.unwrap();
        assert!(said(&mut flowing, get).await.starts_with("HTTP/1.1 200"));
        bed.on_pods(&pods_deny("client"));
        let mut rest = Vec::new();
        let _ = flowing.read_to_end(&mut rest).await;
        counts.one_end().await;
        let named = "rbac_access_denied_matched_policy[ns[default]-policy[pods]]";
        let line = bed.line().await;
        assert!(line.contains(&format!(" 200 RBAC {named}")), "{line}");
        let mut again = bed.tunnel("client", VIP).await.unwrap();
        assert!(said(&mut again, get).await.starts_with("HTTP/1.1 403"));
        let line = bed.line().await;
        assert!(line.contains(&format!(" 403 RBAC {named}")), "{line}");
        let mut other = bed.tunnel("other", VIP).await.unwrap();
        assert!(said(&mut other, get).await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn what_pods_refuse_is_not_copied_either() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let copy = bed
            .scripted("copy", "v2", "127.0.1.9:0", |_| Reply::Status(200, ""))
            .await;
        let mut rule = forward("main", vec![to("v1", 0)]);
        rule.mirrors = vec![proto::Mirror {
            destination: to("v2", 0).destination,
            percentage: 100.0,
        }];
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            t.upsert_virtual_service(&virtual_service(vec![rule]))
                .unwrap();
        });
        // Only where it was going: the mirror itself would have it.
        let mut deny = pods_deny("client");
        deny.scope = security::Scope::WorkloadSelector.into();
        bed.on_pods(&deny);
        bed.selects("default/pods", "a");
        let mut client = bed.client("client").await;
        assert_eq!(client.get("/refused").await.status, 403);
        let mut other = bed.client("other").await;
        assert_eq!(other.get("/let-in").await.status, 200);
        let copied = |path: &str| copy.all().iter().any(|(head, _)| head.contains(path));
        while !copied("/let-in") {
            tokio::task::yield_now().await;
        }
        assert!(!copied("/refused"));
    });
}

#[test]
fn a_deny_on_pods_is_asked_about_opaque_callers_too() {
    run(|bed| async move {
        let counts = answering(&bed, b"").await;
        bed.publish_mesh(AppProtocol::Tcp);
        let mut open = bed.tunnel("client", VIP).await.unwrap();
        open.write_all(b"x\r\n\r\n").await.unwrap();
        counts.heads.acquire().await.unwrap().forget();
        bed.on_pods(&pods_deny("client"));
        let mut rest = Vec::new();
        let _ = open.read_to_end(&mut rest).await;
        let line = bed.line().await;
        assert!(
            line.contains(" RBAC ") && line.contains("policy[pods]"),
            "{line}"
        );
        let mut again = bed.tunnel("client", VIP).await.unwrap();
        let _ = again.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        assert!(bed.line().await.contains("policy[pods]"));
    });
}

#[test]
fn a_deny_on_pods_that_comes_while_the_endpoint_is_dialled_counts() {
    run(|first| async move {
        drop(first);
        let listener = TcpListener::bind("127.0.1.9:0").await.unwrap();
        let bed = Bed::over_hbone(listener.local_addr().unwrap().port());
        let application = TcpListener::bind("127.0.1.9:0").await.unwrap();
        let application_at = application.local_addr().unwrap();
        bed.known_backend("raw", "v1", application_at);
        bed.publish_mesh(AppProtocol::Tcp);
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        // Asked already, and on its way.
        let (dialled, _) = listener.accept().await.unwrap();
        bed.on_pods(&pods_deny("client"));
        node_proxy_on(&bed, dialled, "server", application_at).await;
        let mut rest = Vec::new();
        let _ = tunnel.read_to_end(&mut rest).await;
        let line = bed.line().await;
        assert!(
            line.contains(" RBAC ") && line.contains("policy[pods]"),
            "{line}"
        );
    });
}

/// Something open ends when the endpoint gets the policy, which was there before.
fn ends_what_is_open(deny: security::Authorization) {
    run(|bed| async move {
        let counts = answering(&bed, SWITCH).await;
        bed.on_pods(&deny);
        let mut open = bed.tunnel("client", VIP).await.unwrap();
        assert!(said(&mut open, CHAT).await.starts_with("HTTP/1.1 101"));
        ping(&mut open).await;
        bed.selected_by(&format!("default/{}", deny.name));
        let mut rest = Vec::new();
        let _ = open.read_to_end(&mut rest).await;
        counts.one_end().await;
        let line = bed.line().await;
        let named = format!("policy[{}]", deny.name);
        assert!(
            line.contains(" 101 RBAC ") && line.contains(&named),
            "{line}"
        );
    });
}

#[test]
fn a_deny_that_an_endpoint_gets_by_its_labels_is_asked_too() {
    ends_what_is_open(security::Authorization {
        scope: security::Scope::WorkloadSelector.into(),
        ..pods_deny("client")
    });
}

#[test]
fn a_network_policy_that_an_endpoint_gets_is_asked_about_the_caller() {
    let mut deny = security::Authorization {
        name: "converted_network_policy_p@default.wp".into(),
        scope: security::Scope::WorkloadSelector.into(),
        ..pods_deny("client")
    };
    let wp = security::StringMatch {
        match_type: Some(MatchType::Exact("cluster.local/ns/default/sa/wp".into())),
    };
    deny.rules[0].clauses[0].matches[0].not_principals.push(wp);
    ends_what_is_open(deny);
}

//! What a caller speaks and what a port declares are two things.

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::bed::*;

async fn client2<B>(bed: &Bed) -> http2::SendRequest<B>
where
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let stream = bed.tunnel("client", VIP).await.unwrap();
    let (sender, connection) = http2::handshake(Local, TokioIo::new(stream)).await.unwrap();
    bed.scope.spawn("client", async move {
        // Its requests see how it ends.
        let _ = connection.await;
    });
    sender
}

fn post(body: &'static [u8]) -> http::Request<Full<Bytes>> {
    http::Request::post("http://Svc:8080/up?x=1")
        .header("te", "trailers")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::new(Bytes::from_static(body)))
        .unwrap()
}

#[test]
fn a_caller_of_http2_gets_an_answer_of_a_port_that_declares_http() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.publish_mesh(AppProtocol::Http11);
        let mut sender = client2(&bed).await;
        let response = sender.send_request(post(b"12345")).await.unwrap();
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        // Only HTTP/1.1 has a host header.
        assert_eq!(headers["x-got-host"], "svc:8080");
        assert_eq!(headers["x-got-cookie"], "a=1; b=2");
        assert_eq!(headers["x-got-content-length"], "5");
        assert!(!headers.contains_key("x-got-te"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "a /up?x=1 5");
        assert!(bed.line().await.contains("HTTP/2\" 200"));
    });
}

#[test]
fn a_caller_of_http1_gets_an_answer_of_a_port_that_declares_http2() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        for protocol in [AppProtocol::Http2, AppProtocol::Grpc] {
            bed.publish_mesh(protocol);
            let mut client = bed.client("client").await;
            let answer = client
                .with(
                    "/in",
                    &[("connection", "keep-alive, x-hop"), ("x-hop", "1")],
                )
                .await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "a /in 0"));
            for gone in ["host", "connection", "x-hop", "te"] {
                let name = format!("x-got-{gone}");
                assert!(!answer.headers.contains_key(name), "{gone}");
            }
            assert!(bed.line().await.contains("HTTP/1.1\" 200"));
        }
    });
}

#[test]
fn where_nothing_is_declared_the_caller_says() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut one = bed.client("client").await;
        assert!(one.get("/").await.headers.contains_key("x-got-host"));
        let response = client2(&bed).await.send_request(post(b"")).await.unwrap();
        assert!(!response.headers().contains_key("x-got-host"));
        assert_eq!(response.headers()["x-got-te"], "trailers");
        assert_eq!(response.headers()["x-got-cookie"], "a=1; b=2");
    });
}

#[test]
fn cookies_of_several_lines_are_one_for_policies() {
    use proto::value_match::MatchType;
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut deny = deny_path("/");
        deny.rules[0].to.clear();
        deny.rules[0].when = vec![proto::AuthorizationCondition {
            key: "request.headers[cookie]".into(),
            values: vec![proto::ValueMatch {
                match_type: Some(MatchType::Exact("a=1; b=2".into())),
            }],
            not_values: vec![],
        }];
        bed.tables(|t| t.upsert_policy(&deny));
        let response = client2(&bed).await.send_request(post(b"")).await.unwrap();
        assert_eq!(response.status(), 403);
    });
}

#[test]
fn a_get_keeps_a_body_of_unknown_length() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.publish_mesh(AppProtocol::Http11);
        let frames = stream::iter(["ab", "c"].map(|part| {
            let part = Bytes::from_static(part.as_bytes());
            Ok::<_, std::convert::Infallible>(Frame::data(part))
        }));
        let request = http::Request::get("http://svc:8080/two");
        let request = request.body(StreamBody::new(frames)).unwrap();
        let response = client2(&bed).await.send_request(request).await.unwrap();
        assert_eq!(response.headers()["x-got-transfer-encoding"], "chunked");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "a /two 3");
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        tunnel
            .write_all(
                b"GET /one HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: chunked\r\n\
                  connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            )
            .await
            .unwrap();
        let mut answer = String::new();
        tunnel.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("a /one 3"), "{answer}");
        // Nothing is added where there is none.
        let answer = bed.client("client").await.get("/none").await;
        assert!(!answer.headers.contains_key("x-got-transfer-encoding"));
    });
}

#[test]
fn trailers_of_http1_are_trailers_of_http2() {
    run(|bed| async move {
        let listener = TcpListener::bind("127.0.1.7:0").await.unwrap();
        bed.known_backend("raw", "v1", listener.local_addr().unwrap());
        bed.publish_mesh(AppProtocol::Http11);
        bed.scope.spawn("raw", async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tcp.read_u8().await.unwrap());
            }
            tcp.write_all(
                b"HTTP/1.1 200 OK\r\nconnection: keep-alive, x-hop\r\nkeep-alive: timeout=5\r\n\
                  x-hop: 1\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
                  3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n",
            )
            .await
            .unwrap();
            // Until the other side is done.
            let _ = tcp.read_u8().await;
        });
        let mut sender = client2(&bed).await;
        let response = sender.send_request(post(b"")).await.unwrap();
        for gone in ["connection", "keep-alive", "x-hop", "transfer-encoding"] {
            assert!(!response.headers().contains_key(gone), "{gone}");
        }
        let whole = response.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["x-sum"], "7");
        assert_eq!(whole.to_bytes(), "abc");
    });
}

//! What a caller speaks and what a port declares are two things.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use isobar_proto::istio::workload::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::bed::*;

type Sender = http2::SendRequest<Full<Bytes>>;

async fn client2(bed: &Bed) -> Sender {
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

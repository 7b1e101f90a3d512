//! Connections that callers keep while the service they are for goes elsewhere.

use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::bed::*;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: svc\r\n\r\n";

fn get() -> http::Request<Full<Bytes>> {
    let request = http::Request::get("http://svc:8080/");
    request.body(Full::default()).unwrap()
}

#[test]
fn idle_ones_end_by_themselves_while_both_ways_are_open() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut plain = bed.tunnel("client", VIP).await.unwrap();
        plain.write_all(GET).await.unwrap();
        let mut said = vec![0; 12];
        plain.read_exact(&mut said).await.unwrap();
        assert_eq!(said, b"HTTP/1.1 200");
        let stream = bed.tunnel("client", VIP).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(Local, TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        let mut connection = std::pin::pin!(connection);
        let asked = sender.send_request(get());
        let answered = tokio::select! {
            _ = connection.as_mut() => panic!("ended before its answer"),
            answered = asked => answered.unwrap(),
        };
        assert_eq!(answered.status(), 200);

        bed.begin_to_unbind();
        // Nothing is said on the way out, and HTTP/2 ends in order.
        let mut rest = Vec::new();
        plain.read_to_end(&mut rest).await.unwrap();
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"));
        drop(answered);
        connection.await.unwrap();
        // The old way still serves who comes, and asks for another connection next time.
        let mut late = bed.client("client").await;
        assert_eq!(late.get("/").await.status, 200);
        let again = http::Request::get("/").header("host", "svc");
        let again = late.send(again.body(Full::default()).unwrap()).await;
        assert!(again.is_err(), "{again:?}");
    });
}

#[test]
fn what_is_under_way_on_them_is_finished() {
    run(|bed| async move {
        let listener = TcpListener::bind("127.0.1.7:0").await.unwrap();
        bed.known_backend("slow", "v1", listener.local_addr().unwrap());
        let go_on = Rc::new(Notify::new());
        let told = go_on.clone();
        bed.scope.spawn("slow", async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut head = [0; 4];
            tcp.read_exact(&mut head).await.unwrap();
            let first = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
            tcp.write_all(first).await.unwrap();
            told.notified().await;
            tcp.write_all(b"2\r\n, \r\n5\r\nworld\r\n0\r\n\r\n")
                .await
                .unwrap();
            // Whoever asks goes first.
            let _ = tcp.read_to_end(&mut Vec::new()).await;
        });
        let mut busy = bed.tunnel("client", VIP).await.unwrap();
        busy.write_all(GET).await.unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"hello\r\n") {
            said.push(busy.read_u8().await.unwrap());
        }
        // One beside it that nobody uses: when it ends, both were told.
        bed.tables(|t| t.upsert_policy(&deny_path("/secret")));
        let mut idle = bed.tunnel("client", VIP).await.unwrap();
        let asked = b"GET /secret HTTP/1.1\r\nhost: svc\r\n\r\n";
        idle.write_all(asked).await.unwrap();
        bed.begin_to_unbind();
        let mut answer = Vec::new();
        idle.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 403"));
        go_on.notify_one();
        let mut rest = Vec::new();
        busy.read_to_end(&mut rest).await.unwrap();
        let rest = String::from_utf8(rest).unwrap();
        assert!(
            rest.contains("world") && rest.ends_with("0\r\n\r\n"),
            "{rest:?}"
        );
    });
}

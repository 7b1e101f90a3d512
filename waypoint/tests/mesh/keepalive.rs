//! Callers over HTTP/1.1, byte by byte: what comes in which order on one connection, and how it ends.

use std::time::Duration;

use isobar_hbone::TunnelStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::*;

/// One response: head and body.
async fn answer(from: &mut TunnelStream, without_body: bool) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; if without_body { 0 } else { length }];
    from.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// All that comes until the end.
async fn rest(from: &mut TunnelStream) -> String {
    let mut said = Vec::new();
    from.read_to_end(&mut said).await.unwrap();
    String::from_utf8(said).unwrap()
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let all = b"GET /1 HTTP/1.1\r\nhost: svc\r\n\r\n\
            POST /2 HTTP/1.1\r\nhost: svc\r\ncontent-length: 3\r\n\r\nabc\r\n\
            POST /3 HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n\
            HEAD /4 HTTP/1.1\r\nhost: svc\r\n\r\n\
            GET /5 HTTP/1.1\r\nhost: svc\r\nconnection: close\r\n\r\n\
            GET /6 HTTP/1.1\r\nhost: svc\r\n\r\n";
        // Whole, and as it might arrive.
        for piece in [all.len(), 7] {
            for part in all.chunks(piece) {
                tunnel.write_all(part).await.unwrap();
            }
            assert_eq!(answer(&mut tunnel, false).await.1, "a /1 0");
            assert_eq!(answer(&mut tunnel, false).await.1, "a /2 3");
            assert_eq!(answer(&mut tunnel, false).await.1, "a /3 4");
            let (head, _) = answer(&mut tunnel, true).await;
            assert!(head.contains("content-length: 6\r\n"), "{head}");
            let (head, body) = answer(&mut tunnel, false).await;
            assert_eq!(body, "a /5 0");
            assert!(head.contains("connection: close\r\n"), "{head}");
            assert_eq!(rest(&mut tunnel).await, "");
            tunnel = bed.tunnel("client", VIP).await.unwrap();
        }
    });
}

#[test]
fn a_caller_waits_with_its_body_until_that_is_wanted() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.tables(|t| t.upsert_policy(&deny_path("/admin")));
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        for _ in 0..2 {
            let head = "POST /x HTTP/1.1\r\nhost: svc\r\nexpect: 100-continue\r\n\
                content-length: 3\r\n\r\n";
            tunnel.write_all(head.as_bytes()).await.unwrap();
            let (head, _) = answer(&mut tunnel, true).await;
            assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
            tunnel.write_all(b"abc").await.unwrap();
            let (head, body) = answer(&mut tunnel, false).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(body, "a /x 3");
        }
        // One that is refused need not send it.
        let head = "POST /admin HTTP/1.1\r\nhost: svc\r\nexpect: 100-continue\r\n\
            content-length: 3\r\n\r\n";
        tunnel.write_all(head.as_bytes()).await.unwrap();
        let (head, _) = answer(&mut tunnel, false).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        assert!(head.contains("connection: close\r\n"), "{head}");
        assert_eq!(rest(&mut tunnel).await, "");
    });
}

#[test]
fn a_caller_that_says_no_more_gets_its_answer() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let asked = b"GET /x HTTP/1.1\r\nhost: svc\r\n\r\n";
        tunnel.write_all(asked).await.unwrap();
        tunnel.shutdown().await.unwrap();
        let said = rest(&mut tunnel).await;
        assert!(said.ends_with("a /x 0"), "{said}");
    });
}

#[test]
fn a_caller_that_goes_away_takes_its_request_back() {
    run(|bed| async move {
        let asked = bed
            .scripted("a", "v1", "127.0.1.9:0", |_| Reply::Silence)
            .await;
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let text = b"GET /x HTTP/1.1\r\nhost: svc\r\n\r\n";
        tunnel.write_all(text).await.unwrap();
        while asked.count() == 0 {
            tokio::task::yield_now().await;
        }
        drop(tunnel);
        let line = bed.line().await;
        assert!(line.contains(" 0 DC "), "{line}");
    });
}

#[test]
fn half_a_body_is_told_to_nobody_as_the_whole() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        for (length, half) in [
            ("content-length: 10", "abc"),
            ("transfer-encoding: chunked", "3\r\nabc\r\n"),
        ] {
            let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
            let text = format!("POST /x HTTP/1.1\r\nhost: svc\r\n{length}\r\n\r\n{half}");
            tunnel.write_all(text.as_bytes()).await.unwrap();
            tunnel.shutdown().await.unwrap();
            let said = rest(&mut tunnel).await;
            assert!(!said.starts_with("HTTP/1.1 200"), "{said}");
            let line = bed.line().await;
            assert!(line.contains(" DC "), "{line}");
        }
    });
}

#[test]
fn an_answer_before_the_body_arrives_and_ends_the_connection() {
    run_within(Duration::from_secs(60), |bed| async move {
        bed.backend("a", "v1").await;
        bed.tables(|t| t.upsert_policy(&deny_path("/admin")));
        // A body that is here already is passed over.
        let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
        let whole = b"POST /admin HTTP/1.1\r\nhost: svc\r\ncontent-length: 3\r\n\r\nabc";
        for _ in 0..2 {
            tunnel.write_all(whole).await.unwrap();
            let (head, _) = answer(&mut tunnel, false).await;
            assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
            assert!(!head.contains("connection: close"), "{head}");
        }
        let head = b"POST /admin HTTP/1.1\r\nhost: svc\r\ncontent-length: 9000000\r\n\r\n";
        tunnel.write_all(head).await.unwrap();
        let (head, _) = answer(&mut tunnel, false).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        assert!(head.contains("connection: close\r\n"), "{head}");
        // What it sends all the same is no request.
        let next = b"GET /x HTTP/1.1\r\nhost: svc\r\n\r\n".repeat(1000);
        let _ = tunnel.write_all(&next).await;
        assert_eq!(rest(&mut tunnel).await, "");
    });
}

#[test]
fn chunks_that_are_none_end_their_connection() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        for body in ["zz\r\n", "3\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n"] {
            let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
            let text = format!(
                "POST /x HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: chunked\r\n\r\n{body}\
                 GET /y HTTP/1.1\r\nhost: svc\r\n\r\n"
            );
            tunnel.write_all(text.as_bytes()).await.unwrap();
            let said = rest(&mut tunnel).await;
            assert!(said.starts_with("HTTP/1.1 400 "), "{body:?}: {said}");
            assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
        }
    });
}

#[test]
fn what_is_no_request_is_refused_and_nothing_follows_it() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        for first in [
            "GET / HTTP/1.1\nhost: svc\r\n\r\n",
            "GET / HTTP/1.1\r\nhost : svc\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: svc\r\nx: 1\r\n 2\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: svc\r\ncontent-length: 1, 1\r\n\r\na",
        ] {
            let mut tunnel = bed.tunnel("client", VIP).await.unwrap();
            let text = format!("{first}GET /y HTTP/1.1\r\nhost: svc\r\n\r\n");
            tunnel.write_all(text.as_bytes()).await.unwrap();
            let said = rest(&mut tunnel).await;
            assert!(said.starts_with("HTTP/1.1 400 "), "{first:?}: {said}");
            assert!(said.contains("connection: close\r\n"), "{said}");
            assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
        }
    });
}

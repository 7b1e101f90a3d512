use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use isobar_proto::isobar::v1 as proto;
use tokio::io::AsyncWriteExt;

use crate::bed::*;

fn millis(n: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: 0,
        nanos: n * 1_000_000,
    })
}

/// Every request to the whole service, tried again as said.
fn retrying(attempts: i32, on: &str) -> proto::HttpRoute {
    let mut rule = forward("again", vec![to("", 0)]);
    rule.retries = Some(proto::Retries {
        attempts,
        retry_on: on.into(),
        backoff: millis(1),
        ..Default::default()
    });
    rule
}

fn routes(bed: &Bed, rule: proto::HttpRoute) {
    bed.tables(|t| {
        t.upsert_virtual_service(&virtual_service(vec![rule]))
            .unwrap();
    });
}

fn post(size: usize) -> http::Request<Full<Bytes>> {
    http::Request::post("/up")
        .header("host", "svc")
        .body(Full::new(Bytes::from(vec![7; size])))
        .unwrap()
}

#[test]
fn a_retry_goes_elsewhere_with_the_whole_body() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let bad = bed
            .scripted("bad", "v1", "127.0.1.9:0", |_| Reply::Status(503, ""))
            .await;
        routes(&bed, retrying(1, "503"));
        let mut client = bed.client("client").await;
        // Which endpoint is first is chance: of so many some are.
        for _ in 0..40 {
            let answer = client.send(post(100_000)).await.unwrap();
            assert_eq!(answer.body, "a /up 100000");
            assert!(bed.line().await.contains("\" 200 - via_upstream"));
        }
        assert!(bad.count() >= 4, "{}", bad.count());
        assert!(bad.all().iter().all(|(_, size)| *size == 100_000));
        let metrics = bed.registry.encode();
        let again = format!(
            "isobar_upstream_retries_total{{outcome=\"again\"}} {}",
            bad.count()
        );
        assert!(metrics.contains(&again), "{again}\n{metrics}");
    });
}

#[test]
fn tries_are_counted_and_their_end_is_told() {
    run(|bed| async move {
        let bad = bed
            .scripted("bad", "v1", "127.0.1.9:0", |_| Reply::Status(503, ""))
            .await;
        routes(&bed, retrying(3, "gateway-error"));
        let mut client = bed.client("client").await;
        assert_eq!(client.get("/").await.status, 503);
        assert_eq!(bad.count(), 4);
        assert!(bed.line().await.contains(" 503 URX via_upstream"));
        // Nobody asked for these.
        routes(&bed, retrying(3, "502"));
        assert_eq!(client.get("/").await.status, 503);
        assert_eq!(bad.count(), 5);
        assert!(bed.line().await.contains(" 503 - via_upstream"));
        // A body that is longer than what is kept goes once.
        routes(&bed, retrying(3, "5xx"));
        assert_eq!(client.send(post(400_000)).await.unwrap().status, 503);
        assert_eq!(bad.count(), 6);
        assert!(bed.line().await.contains(" 503 - via_upstream"));
        assert_eq!(client.send(post(200_000)).await.unwrap().status, 503);
        assert_eq!(bad.count(), 10);
    });
}

#[test]
fn connections_that_end_are_tried_again_only_where_asked() {
    run(|bed| async move {
        let bad = bed
            .scripted("bad", "v1", "127.0.1.9:0", |before| {
                if before == 2 {
                    Reply::Status(204, "")
                } else {
                    Reply::Close
                }
            })
            .await;
        let mut client = bed.client("client").await;
        // By default what may have been done is not done twice.
        let answer = client.get("/").await;
        assert_eq!((answer.status, bad.count()), (503, 1));
        assert!(
            answer
                .body
                .ends_with("headers. reset reason: connection termination")
        );
        assert!(bed.line().await.contains(" 503 UC "));
        routes(&bed, retrying(2, "reset"));
        assert_eq!(client.get("/").await.status, 204);
        assert_eq!(bad.count(), 3);
        bed.line().await;
        let answer = client.get("/").await;
        assert_eq!((answer.status, bad.count()), (503, 6));
        let line = bed.line().await;
        assert!(line.contains(" 503 UC,URX "), "{line}");
        assert!(answer.body.contains("retried and the latest reset reason"));
    });
}

#[test]
fn grpc_that_is_unavailable_is_tried_again_by_default() {
    run(|bed| async move {
        let bad = bed
            .scripted("bad", "v1", "127.0.1.9:0", |before| {
                if before == 0 {
                    Reply::Status(200, "grpc-status: 14\r\n")
                } else {
                    Reply::Status(200, "grpc-status: 5\r\n")
                }
            })
            .await;
        let mut client = bed.client("client").await;
        let answer = client.get("/").await;
        assert_eq!(answer.headers["grpc-status"], "5");
        assert_eq!(bad.count(), 2);
    });
}

#[test]
fn each_try_has_its_time_and_all_have_theirs() {
    run(|bed| async move {
        let silent = bed
            .scripted("silent", "v1", "127.0.1.9:0", |_| Reply::Silence)
            .await;
        let mut rule = retrying(1, "5xx");
        rule.retries.as_mut().unwrap().per_try_timeout = millis(40);
        routes(&bed, rule.clone());
        let mut client = bed.client("client").await;
        let answer = client.get("/").await;
        assert_eq!(
            (answer.status, answer.body.as_str(), silent.count()),
            (504, "upstream request timeout", 2)
        );
        let line = bed.line().await;
        assert!(
            line.contains(" 504 UT,URX upstream_per_try_timeout"),
            "{line}"
        );
        // The time of all tries ends a wait between two.
        let retries = rule.retries.as_mut().unwrap();
        retries.attempts = 1000;
        retries.backoff = millis(500);
        rule.timeout = millis(200);
        routes(&bed, rule.clone());
        let before = std::time::Instant::now();
        assert_eq!(client.get("/").await.status, 504);
        assert!(before.elapsed() < Duration::from_secs(5));
        let line = bed.line().await;
        assert!(line.contains(" 504 UT response_timeout"), "{line}");
        bed.backend("a", "v1").await;
        rule.timeout = None;
        rule.retries.as_mut().unwrap().backoff = millis(1);
        routes(&bed, rule);
        for _ in 0..4 {
            assert_eq!(client.get("/").await.status, 200);
        }
    });
}

/// Waits for a change that other tasks make.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

fn head(length: usize) -> String {
    format!("POST /up HTTP/1.1\r\nhost: svc\r\ncontent-length: {length}\r\n\r\n")
}

#[test]
fn an_answer_before_the_end_of_the_body_loses_nothing_of_it() {
    run(|bed| async move {
        let back = bed
            .scripted("back", "v1", "127.0.1.9:0", |before| {
                if before == 0 {
                    Reply::Early(503)
                } else {
                    Reply::Status(204, "")
                }
            })
            .await;
        routes(&bed, retrying(1, "503"));
        let mut stream = bed.tunnel("client", VIP).await.unwrap();
        // More than is kept: whoever comes after the first may still have all of it.
        let rest = vec![7; 400_000];
        let head = head(rest.len() + 3);
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"abc").await.unwrap();
        until(|| back.connections() == 2).await;
        stream.write_all(&rest).await.unwrap();
        assert!(bed.line().await.contains(" 204 - via_upstream"));
        assert_eq!(back.all()[1].1, 400_003);
    });
}

#[test]
fn time_limits_are_about_the_endpoint_and_not_about_a_slow_caller() {
    run(|bed| async move {
        let back = bed
            .scripted("back", "v1", "127.0.1.9:0", |before| {
                if before == 0 {
                    Reply::Status(204, "")
                } else {
                    Reply::Silence
                }
            })
            .await;
        let mut rule = retrying(0, "");
        rule.timeout = millis(100);
        rule.retries.as_mut().unwrap().per_try_timeout = millis(100);
        routes(&bed, rule);
        let mut stream = bed.tunnel("client", VIP).await.unwrap();
        stream.write_all(head(6).as_bytes()).await.unwrap();
        stream.write_all(b"abc").await.unwrap();
        until(|| back.connections() == 1).await;
        // Slower than both limits.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(b"def").await.unwrap();
        assert!(bed.line().await.contains(" 204 - via_upstream"));
        let mut client = bed.client("client").await;
        assert_eq!(client.send(post(10)).await.unwrap().status, 504);
        assert!(bed.line().await.contains(" 504 UT "));
    });
}

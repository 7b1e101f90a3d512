//! What neither callers nor endpoints can make grow.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::*;

#[test]
fn what_an_endpoint_calls_a_grpc_status_is_no_label() {
    run(|bed| async move {
        bed.scripted("a", "v1", "127.0.1.9:0", |n| {
            let line = format!("grpc-status: x{n}\r\n");
            Reply::Status(200, Box::leak(line.into_boxed_str()))
        })
        .await;
        let mut client = bed.client("client").await;
        for _ in 0..20 {
            client.get("/").await;
            client
                .with("/", &[("content-type", "application/grpc")])
                .await;
        }
        let metrics = bed.registry.encode();
        let told: Vec<&str> = metrics
            .lines()
            .filter(|line| line.starts_with("istio_requests_total{"))
            .filter_map(|line| line.split("grpc_response_status=").nth(1))
            .collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.contains(&"\"\"} 20"), "{told:?}");
        assert!(told.contains(&"\"unknown\"} 20"), "{told:?}");
    });
}

#[test]
fn half_a_head_ends_its_connection_and_no_request_does_not() {
    run_within(Duration::from_secs(3600), |bed| async move {
        bed.backend("a", "v1").await;
        let mut idle = bed.client("client").await;
        assert_eq!(idle.get("/").await.status, 200);
        let mut half = bed.tunnel("client", VIP).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\nhost: svc\r\n")
            .await
            .unwrap();
        // Time passes whenever nobody has anything to do.
        tokio::time::pause();
        let since = tokio::time::Instant::now();
        let mut rest = Vec::new();
        let _ = half.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
        let took = since.elapsed();
        assert!(took >= Duration::from_secs(60), "{took:?}");
        assert!(took < Duration::from_secs(125), "{took:?}");
        tokio::time::resume();
        assert_eq!(idle.get("/").await.status, 200);
    });
}

#[test]
fn a_head_has_a_hundred_fields_and_no_more() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        for (fields, passes) in [(100, true), (101, false)] {
            let mut stream = bed.tunnel("client", VIP).await.unwrap();
            let others = "x: y\r\n".repeat(fields - 2);
            let head = format!("GET / HTTP/1.1\r\nhost: svc\r\nconnection: close\r\n{others}\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut said = String::new();
            let _ = stream.read_to_string(&mut said).await;
            // The back end has the same limit, and is told more fields.
            let passed = said.contains("x-envoy-upstream-service-time");
            assert_eq!(passed, passes, "{fields} fields: {said}");
            assert!(passes || said.starts_with("HTTP/1.1 431"), "{said}");
        }
    });
}

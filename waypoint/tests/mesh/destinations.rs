use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::rc::Rc;

use http_body_util::Full;
use hyper_util::rt::TokioIo;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use tokio::io::AsyncWriteExt;

use crate::bed::*;

/// A rule for the whole service.
fn rule(policy: proto::TrafficPolicy) -> proto::DestinationRule {
    proto::DestinationRule {
        traffic_policy: Some(policy),
        ..subsets()
    }
}

fn http(pool: proto::HttpPool) -> proto::TrafficPolicy {
    proto::TrafficPolicy {
        connection_pool: Some(proto::ConnectionPool {
            http: Some(pool),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn apply(bed: &Bed, policy: proto::TrafficPolicy) {
    bed.tables(|t| t.upsert_destination_rule(&rule(policy)).unwrap());
}

fn once() -> proto::HttpRoute {
    let mut rule = forward("once", vec![to("", 0)]);
    rule.retries = Some(proto::Retries::default());
    rule
}

#[test]
fn an_endpoint_that_fails_is_left_out() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let bad = bed
            .scripted("bad", "v1", "127.0.1.9:0", |_| Reply::Status(500, ""))
            .await;
        bed.tables(|t| {
            t.upsert_virtual_service(&virtual_service(vec![once()]))
                .unwrap();
        });
        apply(
            &bed,
            proto::TrafficPolicy {
                outlier_detection: Some(proto::OutlierDetection {
                    consecutive_5xx: Some(3),
                    max_ejection_percent: 50,
                    ..Default::default()
                }),
                ..Default::default()
            },
        );
        let mut client = bed.client("client").await;
        let mut failed = 0;
        for _ in 0..40 {
            failed += usize::from(client.get("/").await.status == 500);
        }
        assert_eq!((failed, bad.count()), (3, 3));
        let metrics = bed.registry.encode();
        let service = "isobar_outlier_ejections_total{service=\"default/svc.default";
        assert!(metrics.contains(service), "{metrics}");
    });
}

#[test]
fn callers_that_break_off_leave_nobody_out_and_no_load() {
    run(|bed| async move {
        let back = bed
            .scripted("back", "v1", "127.0.1.9:0", |_| Reply::Status(204, ""))
            .await;
        let mut policy = http(proto::HttpPool {
            max_requests: 1,
            ..Default::default()
        });
        policy.outlier_detection = Some(proto::OutlierDetection {
            consecutive_5xx: Some(1),
            max_ejection_percent: 100,
            ..Default::default()
        });
        policy.connection_pool.as_mut().unwrap().max_connections = 1;
        apply(&bed, policy);
        for round in 1..=3 {
            let mut stream = bed.tunnel("client", VIP).await.unwrap();
            let part = b"POST / HTTP/1.1\r\nhost: svc\r\ncontent-length: 9\r\n\r\nabc";
            stream.write_all(part).await.unwrap();
            while back.connections() < round {
                tokio::task::yield_now().await;
            }
            drop(stream);
            let line = bed.line().await;
            assert!(
                line.contains(" 400 DC downstream_remote_disconnect"),
                "{line}"
            );
        }
        let mut client = bed.client("client").await;
        assert_eq!(client.get("/").await.status, 204);
    });
}

#[test]
fn more_than_the_limits_is_refused() {
    run(|bed| async move {
        let silent = bed
            .scripted("silent", "v1", "127.0.1.9:0", |_| Reply::Silence)
            .await;
        apply(
            &bed,
            http(proto::HttpPool {
                max_requests: 1,
                ..Default::default()
            }),
        );
        let mut first = bed.client("client").await;
        let mut second = bed.client("client").await;
        let waits = first.get("/");
        tokio::pin!(waits);
        while silent.count() == 0 {
            assert!(futures_util::poll!(&mut waits).is_pending());
            tokio::task::yield_now().await;
        }
        let answer = second.get("/").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.headers["x-envoy-overloaded"], "true");
        assert!(answer.body.ends_with("reset reason: overflow"));
        let line = bed.line().await;
        assert!(line.contains(" 503 UO upstream_reset_before_response_started{overflow}"));
        let metrics = bed.registry.encode();
        assert!(
            metrics.contains("isobar_upstream_overflows_total{"),
            "{metrics}"
        );
    });
}

#[test]
fn one_connection_serves_one_request_after_the_other() {
    run(|bed| async move {
        let back = bed
            .scripted("back", "v1", "127.0.1.9:0", |_| Reply::Status(204, ""))
            .await;
        let mut policy = http(proto::HttpPool {
            max_pending: 10,
            ..Default::default()
        });
        policy.connection_pool.as_mut().unwrap().max_connections = 1;
        apply(&bed, policy);
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(bed.client("client").await);
        }
        let all = clients.iter_mut().map(|client| client.get("/"));
        let answers = futures_util::future::join_all(all).await;
        assert!(answers.iter().all(|a| a.status == 204), "{answers:?}");
        assert_eq!((back.count(), back.connections()), (5, 1));
        apply(
            &bed,
            http(proto::HttpPool {
                max_requests_per_connection: 1,
                ..Default::default()
            }),
        );
        for _ in 0..3 {
            assert_eq!(clients[0].get("/").await.status, 204);
        }
        assert_eq!((back.count(), back.connections()), (8, 4));
    });
}

/// An endpoint of HTTP/2 that answers once so many requests are there; says how many connections it has
/// taken.
async fn together(bed: &Bed, requests: usize) -> Rc<Cell<usize>> {
    let listener = tokio::net::TcpListener::bind("127.0.1.9:0").await.unwrap();
    bed.known_backend("together", "v1", listener.local_addr().unwrap());
    bed.publish_mesh(AppProtocol::Http2);
    let taken = Rc::new(Cell::new(0));
    let (count, all) = (taken.clone(), Rc::new(tokio::sync::Barrier::new(requests)));
    bed.scope.spawn("together", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            count.set(count.get() + 1);
            let all = all.clone();
            let answer =
                hyper::service::service_fn(move |_: http::Request<hyper::body::Incoming>| {
                    let all = all.clone();
                    async move {
                        all.wait().await;
                        Ok::<_, Infallible>(http::Response::new(Full::<bytes::Bytes>::default()))
                    }
                });
            drop(tokio::task::spawn_local(async move {
                // Ends with its peer.
                let _ = hyper::server::conn::http2::Builder::new(Local)
                    .serve_connection(TokioIo::new(tcp), answer)
                    .await;
            }));
        }
    });
    taken
}

#[test]
fn a_connection_has_so_many_streams_at_once() {
    for (most, connections) in [(0, 1), (2, 2), (1, 3)] {
        run(|bed| async move {
            let taken = together(&bed, 3).await;
            let pool = proto::HttpPool {
                max_concurrent_streams: most,
                ..Default::default()
            };
            apply(&bed, http(pool));
            let mut clients = Vec::new();
            for _ in 0..3 {
                clients.push(bed.client("client").await);
            }
            let all = clients.iter_mut().map(|client| client.get("/"));
            let answers = futures_util::future::join_all(all).await;
            assert!(answers.iter().all(|a| a.status == 200), "{answers:?}");
            assert_eq!(taken.get(), connections, "{most} on each");
        });
    }
}

#[test]
fn a_retry_limit_leaves_the_answer_as_it_is() {
    run(|bed| async move {
        let bad = bed
            .scripted("bad", "v1", "127.0.1.9:0", |_| Reply::Status(503, ""))
            .await;
        let mut rule = once();
        rule.retries = Some(proto::Retries {
            attempts: 2,
            retry_on: "5xx".into(),
            ..Default::default()
        });
        bed.tables(|t| {
            t.upsert_virtual_service(&virtual_service(vec![rule]))
                .unwrap()
        });
        apply(
            &bed,
            proto::TrafficPolicy {
                retry_budget: Some(proto::RetryBudget {
                    percent: Some(0.0),
                    min_concurrency: Some(0),
                }),
                ..Default::default()
            },
        );
        let mut client = bed.client("client").await;
        assert_eq!(client.get("/").await.status, 503);
        assert_eq!(bad.count(), 1);
        let metrics = bed.registry.encode();
        assert!(metrics.contains("outcome=\"overflow\"} 1"), "{metrics}");
    });
}

fn hashing(key: proto::consistent_hash::Key) -> proto::TrafficPolicy {
    proto::TrafficPolicy {
        consistent_hash: Some(proto::ConsistentHash { key: Some(key) }),
        ..Default::default()
    }
}

#[test]
fn a_key_stays_with_its_endpoint() {
    run(|bed| async move {
        for name in ["a", "b", "c", "d"] {
            bed.backend(name, "v1").await;
        }
        let header = proto::consistent_hash::Key::Header("x-user".into());
        apply(&bed, hashing(header));
        let mut client = bed.client("client").await;
        let mut homes = BTreeMap::new();
        for round in 0..3 {
            for user in 0..20 {
                let answer = client.with("/", &[("x-user", &user.to_string())]).await;
                let name = answer.body.split(' ').next().unwrap().to_owned();
                let home = homes.entry(user).or_insert_with(|| name.clone());
                assert_eq!(*home, name, "round {round}");
            }
        }
        let used: std::collections::BTreeSet<_> = homes.values().collect();
        assert!(used.len() > 1, "{homes:?}");
        let cookie = proto::consistent_hash::Key::Cookie(proto::HashCookie {
            name: "home".into(),
            path: "/".into(),
            ttl: Some(prost_types::Duration::default()),
            attributes: Vec::new(),
        });
        apply(&bed, hashing(cookie));
        let answer = client.get("/").await;
        let given = answer.headers["set-cookie"].to_str().unwrap().to_owned();
        assert!(given.ends_with("; Path=/; HttpOnly"), "{given}");
        let pair = given.split(';').next().unwrap();
        for _ in 0..8 {
            let again = client.with("/", &[("cookie", pair)]).await;
            assert_eq!(again.body, answer.body);
            assert!(!again.headers.contains_key("set-cookie"));
        }
    });
}

#[test]
fn ports_have_rules_of_their_own() {
    run(|bed| async move {
        let back = bed
            .scripted("back", "v1", "127.0.1.9:0", |_| Reply::Status(204, ""))
            .await;
        let pool = |most| {
            http(proto::HttpPool {
                max_requests_per_connection: most,
                ..Default::default()
            })
        };
        let mut policy = pool(1);
        policy.port_level = vec![proto::PortTrafficPolicy {
            port: 8080,
            policy: Some(pool(0)),
        }];
        apply(&bed, policy);
        let mut client = bed.client("client").await;
        for _ in 0..3 {
            assert_eq!(client.get("/").await.status, 204);
        }
        assert_eq!((back.count(), back.connections()), (3, 1));
    });
}

#[test]
fn mirrors_get_copies_that_nobody_waits_for() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let copy = bed
            .scripted("copy", "v2", "127.0.1.9:0", |_| Reply::Silence)
            .await;
        let mirror = |percentage| proto::Mirror {
            destination: to("v2", 0).destination,
            percentage,
        };
        let mut rule = forward("main", vec![to("v1", 0)]);
        rule.mirrors = vec![mirror(100.0), mirror(0.0)];
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            t.upsert_virtual_service(&virtual_service(vec![rule]))
                .unwrap();
        });
        let mut client = bed.client("client").await;
        let request = http::Request::post("/up")
            .header("host", "svc:8080")
            .body(Full::new(bytes::Bytes::from_static(b"12345")))
            .unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.body, "a /up 5");
        while copy.count() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let all = copy.all();
        assert_eq!((all.len(), all[0].1), (1, 5));
        assert!(
            all[0].0.contains("host: svc-shadow:8080\r\n"),
            "{}",
            all[0].0
        );
    });
}

#[test]
fn idle_connections_to_endpoints_are_not_used_again() {
    run(|bed| async move {
        let back = bed
            .scripted("back", "v1", "127.0.1.9:0", |_| Reply::Status(204, ""))
            .await;
        let idle = |millis: i32| {
            http(proto::HttpPool {
                idle_timeout: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: millis * 1_000_000,
                }),
                ..Default::default()
            })
        };
        apply(&bed, idle(20));
        let mut client = bed.client("client").await;
        assert_eq!(client.get("/").await.status, 204);
        // At least as long as it may be idle.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        assert_eq!(client.get("/").await.status, 204);
        assert_eq!(back.connections(), 2);
    });
}

#[test]
fn an_endpoint_that_does_not_answer_pings_is_given_up() {
    run(|bed| async move {
        let listener = tokio::net::TcpListener::bind("127.0.1.9:0").await.unwrap();
        bed.known_backend("mute", "v1", listener.local_addr().unwrap());
        bed.publish_mesh(AppProtocol::Http2);
        bed.scope.spawn("mute", async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                drop(tokio::task::spawn_local(async move {
                    // Settings without any, and nothing after that.
                    tcp.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                    let mut sink = Vec::new();
                    let _ = tokio::io::AsyncReadExt::read_to_end(&mut tcp, &mut sink).await;
                }));
            }
        });
        let short = Some(prost_types::Duration {
            seconds: 0,
            nanos: 50_000_000,
        });
        bed.tables(|t| {
            t.upsert_virtual_service(&virtual_service(vec![once()]))
                .unwrap();
        });
        apply(
            &bed,
            http(proto::HttpPool {
                ping_interval: short,
                ping_timeout: short,
                ..Default::default()
            }),
        );
        let mut client = bed.client("client").await;
        let answer = client.get("/").await;
        assert_eq!(answer.status, 503, "{answer:?}");
    });
}

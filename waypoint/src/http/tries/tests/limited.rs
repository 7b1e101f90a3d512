//! Limits of a destination, and what is noted of its endpoints.

use super::*;

fn pool(http: proto::HttpPool, max_connections: u32) -> proto::TrafficPolicy {
    proto::TrafficPolicy {
        connection_pool: Some(proto::ConnectionPool {
            max_connections,
            http: Some(http),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn overloaded(answer: &Answer) {
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["x-envoy-overloaded"], "true");
    assert!(
        answer.body.ends_with("reset reason: overflow"),
        "{}",
        answer.body
    );
}

#[test]
fn so_many_requests_are_under_way() {
    run(
        &["a"],
        |_, _| Reply::Held,
        |bed| async move {
            bed.rule(pool(
                proto::HttpPool {
                    max_requests: 2,
                    ..Default::default()
                },
                0,
            ));
            let two = [bed.begin(), bed.begin()];
            bed.settle().await;
            assert_eq!((bed.asked(), bed.load(Load::Request)), (2, 2));
            assert_eq!(
                bed.load(Load::Connection),
                0,
                "they are not counted where none is limited"
            );
            overloaded(&bed.get().await);
            let line = bed.line().await;
            assert!(line.contains(" 503 UO upstream_reset_before_response_started{overflow}"));
            assert_eq!(bed.overflows(), ["requests 1"]);
            bed.script.released.add_permits(2);
            for one in two {
                assert_eq!(one.await.unwrap().status, 200);
            }
            bed.settle().await;
            assert_eq!(bed.load(Load::Request), 0);
            bed.script.released.add_permits(1);
            assert_eq!(bed.get().await.status, 200);
        },
    );
}

#[test]
fn a_request_keeps_its_place_while_it_is_tried_again() {
    let reply = |_: &str, before| match before {
        0..3 => Reply::Status(503),
        _ => Reply::Held,
    };
    run(&["a"], reply, |bed| async move {
        let rule = pool(
            proto::HttpPool {
                max_requests: 1,
                max_retries: 1,
                ..Default::default()
            },
            0,
        );
        bed.rule(rule);
        bed.retries(again(5, "503"));
        let one = bed.begin();
        while bed.asked() < 4 {
            bed.settle().await;
        }
        assert_eq!((bed.load(Load::Request), bed.load(Load::Retry)), (1, 1));
        bed.script.released.add_permits(1);
        assert_eq!(one.await.unwrap().status, 200);
        assert_eq!(bed.outcomes(), ["again 3", "answered 1"]);
        assert_eq!(bed.overflows(), Vec::<String>::new());
        bed.settle().await;
        assert_eq!((bed.load(Load::Request), bed.load(Load::Retry)), (0, 0));
    });
}

#[test]
fn no_retry_without_a_budget_for_it() {
    run(
        &["a"],
        |_, _| Reply::Status(503),
        |bed| async move {
            bed.rule(proto::TrafficPolicy {
                retry_budget: Some(proto::RetryBudget {
                    percent: Some(0.0),
                    min_concurrency: Some(0),
                }),
                ..Default::default()
            });
            bed.retries(again(5, "503"));
            assert_eq!(bed.get().await.status, 503);
            assert!(bed.line().await.contains(" 503 - via_upstream"));
            assert_eq!(bed.asked(), 1);
            assert_eq!(bed.outcomes(), ["overflow 1"]);
            assert_eq!(bed.overflows(), ["retries 1"]);
        },
    );
}

#[test]
fn so_many_wait_for_a_connection() {
    run(
        &["a"],
        |_, _| Reply::Far,
        |bed| async move {
            bed.rule(pool(
                proto::HttpPool {
                    max_pending: 1,
                    ..Default::default()
                },
                0,
            ));
            bed.retries(again(5, "5xx,reset,connect-failure"));
            let first = bed.begin();
            bed.settle().await;
            assert_eq!(bed.load(Load::Pending), 1);
            overloaded(&bed.get().await);
            assert_eq!(bed.overflows(), ["pending 1"]);
            assert_eq!(
                bed.outcomes(),
                Vec::<String>::new(),
                "a limit is not tried again"
            );
            assert!(!first.is_finished());
            first.abort();
        },
    );
}

#[test]
fn a_request_waits_for_one_of_the_connections() {
    run(
        &["a"],
        |_, _| Reply::Held,
        |bed| async move {
            let http = proto::HttpPool {
                max_pending: 1,
                ..Default::default()
            };
            bed.rule(pool(http, 1));
            let first = bed.begin();
            bed.settle().await;
            let second = bed.begin();
            bed.settle().await;
            assert_eq!((bed.asked(), bed.load(Load::Connection)), (1, 1));
            assert_eq!(bed.load(Load::Pending), 1);
            overloaded(&bed.get().await);
            assert_eq!(bed.overflows(), ["pending 1"]);
            bed.script.released.add_permits(1);
            assert_eq!(first.await.unwrap().status, 200);
            bed.settle().await;
            assert_eq!((bed.asked(), bed.load(Load::Pending)), (2, 0));
            bed.script.released.add_permits(1);
            assert_eq!(second.await.unwrap().status, 200);
            bed.settle().await;
            assert_eq!(bed.load(Load::Connection), 0);
            assert_eq!(
                bed.script.connections.get(),
                1,
                "the connection is used again"
            );
        },
    );
}

#[test]
fn a_retry_gives_its_connection_back_before_it_asks_for_another() {
    let reply = |_: &str, before| match before {
        0 => Reply::Status(503),
        _ => Reply::Status(200),
    };
    run(&["a", "b"], reply, |bed| async move {
        bed.rule(pool(proto::HttpPool::default(), 1));
        bed.retries(again(1, "503"));
        let within = tokio::time::timeout(Duration::from_secs(60), bed.get());
        assert_eq!(within.await.expect("it waits for itself").status, 200);
    });
}

#[test]
fn http_2_has_no_connection_for_each_request() {
    run(
        &["a"],
        |_, _| Reply::Held,
        |bed| async move {
            bed.script.h2.set(true);
            bed.mesh.service(wire::Service {
                ports: vec![wire::Port {
                    app_protocol: wire::AppProtocol::Http2.into(),
                    ..port(8080, 0)
                }],
                ..service()
            });
            bed.rule(pool(proto::HttpPool::default(), 1));
            let two = [bed.begin(), bed.begin()];
            bed.settle().await;
            assert_eq!((bed.asked(), bed.script.connections.get()), (2, 1));
            assert_eq!(bed.load(Load::Connection), 0);
            bed.script.released.add_permits(2);
            for one in two {
                assert_eq!(one.await.unwrap().status, 200);
            }
        },
    );
}

/// Whether one reply leaves an endpoint out, with so many errors of any and of gateways.
fn leaves_out(reply: Reply, server: u32, gateway: u32) -> bool {
    let out = Rc::new(Cell::new(false));
    let seen = out.clone();
    run(
        &["a"],
        move |_, _| reply,
        |bed| async move {
            bed.rule(proto::TrafficPolicy {
                outlier_detection: Some(proto::OutlierDetection {
                    consecutive_5xx: Some(server),
                    consecutive_gateway_errors: gateway,
                    max_ejection_percent: 100,
                    ..Default::default()
                }),
                ..Default::default()
            });
            bed.retries(proto::Retries {
                per_try_timeout: time(1000),
                ..again(0, "")
            });
            bed.get().await;
            let told = bed.counted("isobar_outlier_ejections_total", "service");
            assert!(
                told.is_empty() || told == [format!("default/{HOST} 1")],
                "{told:?}"
            );
            bed.line().await;
            bed.get().await;
            let line = bed.line().await;
            assert_eq!(
                line.contains(" UH no_healthy_upstream"),
                !told.is_empty(),
                "{line}"
            );
            seen.set(!told.is_empty());
        },
    );
    out.get()
}

#[test]
fn each_failure_counts_as_what_it_is() {
    for (reply, server, gateway) in [
        (Reply::Status(200), false, false),
        (Reply::Status(404), false, false),
        (Reply::Status(500), true, false),
        (Reply::Status(503), true, true),
        (Reply::Grpc("0"), false, false),
        (Reply::Grpc("13"), true, false),
        (Reply::Grpc("14"), true, true),
        (Reply::Unreachable, true, true),
        (Reply::Close, true, false),
        (Reply::Silence, true, true),
    ] {
        assert_eq!(leaves_out(reply, 1, 0), server, "{reply:?}");
        assert_eq!(leaves_out(reply, 0, 1), gateway, "{reply:?}");
    }
}

#[test]
fn the_time_of_all_tries_is_the_endpoints_too() {
    run(
        &["a"],
        |_, _| Reply::Silence,
        |bed| async move {
            bed.rule(proto::TrafficPolicy {
                outlier_detection: Some(proto::OutlierDetection {
                    consecutive_5xx: Some(1),
                    max_ejection_percent: 100,
                    ..Default::default()
                }),
                ..Default::default()
            });
            bed.route(|route| route.timeout = time(1000));
            assert_eq!(bed.get().await.status, 504);
            let told = bed.counted("isobar_outlier_ejections_total", "service");
            assert_eq!(told.len(), 1);
        },
    );
}

#[test]
fn who_serves_a_request_is_busy_until_it_is_through() {
    run(
        &["a"],
        |_, _| Reply::Held,
        |bed| async move {
            let one = bed.begin();
            bed.settle().await;
            let uid = "a".into();
            let busy = || bed.worker.turns.open_requests(&uid);
            assert_eq!(busy(), 1);
            bed.script.released.add_permits(1);
            assert_eq!(one.await.unwrap().status, 200);
            bed.settle().await;
            assert_eq!(busy(), 0);
        },
    );
}

//! When a request is tried again, where, and after which time.

use isobar_proto::istio::security;
use tokio::io::AsyncWriteExt as _;

use super::*;

/// Every request has the same endpoint, as long as nothing fails.
fn one_for_all() -> proto::TrafficPolicy {
    let by = proto::consistent_hash::Key::Header("x-key".into());
    proto::TrafficPolicy {
        consistent_hash: Some(proto::ConsistentHash { key: Some(by) }),
        ..Default::default()
    }
}

#[test]
fn a_retry_goes_elsewhere_unless_the_same_will_do() {
    let pods = ["a", "b", "c"];
    run(
        &pods,
        |_, _| Reply::Status(503),
        |bed| async move {
            bed.rule(one_for_all());
            bed.retries(again(2, "503"));
            assert_eq!(bed.get().await.status, 503);
            let mut who = bed.who();
            let first = who[0].clone();
            who.sort();
            assert_eq!(who, pods);
            bed.retries(proto::Retries {
                same_hosts: true,
                ..again(2, "503")
            });
            bed.get().await;
            assert_eq!(
                bed.who()[3..],
                [first.clone(), first.clone(), first.clone()]
            );
            // Once all were tried, they are tried again.
            bed.retries(again(4, "503"));
            bed.get().await;
            let who = &bed.who()[6..];
            assert_eq!((who.len(), &who[3], &who[4]), (5, &first, &first));
        },
    );
}

#[test]
fn a_first_answer_is_no_retry() {
    run(
        &["a"],
        |_, _| Reply::Status(200),
        |bed| async move {
            bed.retries(again(2, "5xx"));
            assert_eq!(bed.get().await.status, 200);
            assert!(bed.line().await.contains(" 200 - via_upstream"));
            assert_eq!((bed.asked(), bed.outcomes()), (1, vec![]));
        },
    );
}

#[test]
fn a_later_answer_is_the_answer() {
    let reply = |_: &str, before| match before {
        0 => Reply::Status(503),
        1 => Reply::Unreachable,
        2 => Reply::Close,
        _ => Reply::Status(404),
    };
    run(&["a"], reply, |bed| async move {
        bed.retries(again(9, "5xx"));
        assert_eq!(bed.get().await.status, 404);
        assert!(bed.line().await.contains(" 404 - via_upstream"));
        assert_eq!(bed.asked(), 4);
        assert_eq!(bed.outcomes(), ["again 3", "answered 1"]);
    });
}

#[test]
fn tries_end_and_the_last_answer_says_so() {
    run(
        &["a"],
        |_, _| Reply::Status(503),
        |bed| async move {
            bed.retries(again(2, "503"));
            assert_eq!(bed.get().await.status, 503);
            assert!(bed.line().await.contains(" 503 URX via_upstream"));
            assert_eq!(bed.asked(), 3);
            assert_eq!(bed.outcomes(), ["again 2", "exhausted 1"]);
            // The same answer where nobody wants another.
            bed.retries(again(2, "502"));
            assert_eq!(bed.get().await.status, 503);
            assert!(bed.line().await.contains(" 503 - via_upstream"));
            assert_eq!(bed.asked(), 4);
            assert_eq!(bed.outcomes(), ["again 2", "exhausted 1"]);
        },
    );
}

#[test]
fn a_failure_that_nobody_asked_about_ends_the_tries() {
    let reply = |_: &str, before| match before {
        1 => Reply::Status(503),
        _ => Reply::Close,
    };
    run(&["a"], reply, |bed| async move {
        bed.retries(again(5, "503,connect-failure"));
        let answer = bed.get().await;
        assert_eq!((answer.status, bed.asked()), (503, 1));
        let why = ". reset reason: connection termination";
        assert!(answer.body.ends_with(why), "{}", answer.body);
        assert!(bed.line().await.contains(" 503 UC "));
        assert_eq!(bed.outcomes(), Vec::<String>::new());
        let answer = bed.get().await;
        assert_eq!((answer.status, bed.asked()), (503, 3));
        let why = ". retried and the latest reset reason: connection termination";
        assert!(answer.body.ends_with(why), "{}", answer.body);
        assert_eq!(bed.outcomes(), ["again 1"]);
    });
}

#[test]
fn what_cannot_be_reached_is_not_what_breaks_off() {
    let reply = |_: &str, before| match before {
        0 => Reply::Unreachable,
        _ => Reply::Close,
    };
    run(&["a"], reply, |bed| async move {
        bed.retries(again(5, "connect-failure"));
        let answer = bed.get().await;
        assert_eq!((answer.status, bed.asked()), (503, 2));
        assert!(bed.line().await.contains(" 503 UC "));
        assert_eq!(bed.outcomes(), ["again 1"]);
    });
}

#[test]
fn a_body_that_is_not_kept_goes_once() {
    run(
        &["a"],
        |_, _| Reply::Status(503),
        |bed| async move {
            bed.retries(again(2, "503"));
            assert_eq!(bed.send(300_000).await.status, 503);
            assert_eq!(bed.outcomes(), ["body_gone 1"]);
            assert!(bed.line().await.contains(" 503 - via_upstream"));
            assert_eq!(bed.send(200_000).await.status, 503);
            let sizes: Vec<_> = bed
                .script
                .asked
                .borrow()
                .iter()
                .map(|(_, size)| *size)
                .collect();
            assert_eq!(sizes, [300_000, 200_000, 200_000, 200_000]);
        },
    );
}

#[test]
fn a_caller_that_goes_away_is_not_the_endpoints_failure() {
    run(
        &["a"],
        |_, _| Reply::Status(204),
        |bed| async move {
            bed.rule(proto::TrafficPolicy {
                outlier_detection: Some(proto::OutlierDetection {
                    consecutive_5xx: Some(1),
                    max_ejection_percent: 100,
                    ..Default::default()
                }),
                ..Default::default()
            });
            bed.retries(again(2, "5xx,reset"));
            let mut stream = bed.open();
            let part = b"POST / HTTP/1.1\r\nhost: svc\r\ncontent-length: 9\r\n\r\nabc";
            stream.write_all(part).await.unwrap();
            bed.settle().await;
            assert_eq!(bed.script.connections.get(), 1);
            drop(stream);
            let line = bed.line().await;
            assert!(
                line.contains(" 400 DC downstream_remote_disconnect"),
                "{line}"
            );
            assert_eq!(bed.outcomes(), Vec::<String>::new());
            assert!(
                bed.counted("isobar_outlier_ejections_total", "service")
                    .is_empty()
            );
            assert_eq!(bed.get().await.status, 204);
        },
    );
}

#[test]
fn each_try_has_its_time() {
    run(
        &["a"],
        |_, _| Reply::Silence,
        |bed| async move {
            bed.retries(proto::Retries {
                per_try_timeout: time(2000),
                ..again(2, "5xx")
            });
            let began = Instant::now();
            let answer = bed.get().await;
            assert_eq!(
                (answer.status, &*answer.body),
                (504, "upstream request timeout")
            );
            // Three times two seconds and the waits between them.
            let took = began.elapsed().as_millis();
            assert!((6000..6100).contains(&took), "{took}");
            let line = bed.line().await;
            assert!(
                line.contains(" 504 UT,URX upstream_per_try_timeout"),
                "{line}"
            );
            assert_eq!(bed.outcomes(), ["again 2", "exhausted 1"]);
        },
    );
}

#[test]
fn all_tries_have_theirs() {
    run(
        &["a"],
        |_, _| Reply::Silence,
        |bed| async move {
            bed.route(|route| {
                route.timeout = time(5000);
                route.retries = Some(again(9, "5xx"));
            });
            let began = Instant::now();
            assert_eq!(bed.get().await.status, 504);
            assert_eq!(began.elapsed().as_secs(), 5);
            let line = bed.line().await;
            assert!(line.contains(" 504 UT response_timeout"), "{line}");
            assert_eq!((bed.asked(), bed.outcomes()), (1, vec![]));
            // The time of the whole ends a try before its own.
            bed.route(|route| {
                route.timeout = time(5000);
                route.retries = Some(proto::Retries {
                    per_try_timeout: time(2000),
                    ..again(9, "5xx")
                });
            });
            let began = Instant::now();
            assert_eq!(bed.get().await.status, 504);
            assert_eq!(began.elapsed().as_secs(), 5);
            assert!(bed.line().await.contains(" 504 UT response_timeout"));
            assert_eq!(bed.asked(), 4);
        },
    );
}

#[test]
fn a_slow_caller_takes_nothing_of_the_time() {
    run(
        &["a"],
        |_, _| Reply::Silence,
        |bed| async move {
            bed.route(|route| route.timeout = time(1000));
            let mut stream = bed.open();
            let part = b"POST / HTTP/1.1\r\nhost: svc\r\ncontent-length: 6\r\n\r\nabc";
            stream.write_all(part).await.unwrap();
            tokio::time::sleep(Duration::from_secs(7)).await;
            assert!(
                bed.lines.try_recv().is_err(),
                "the endpoint has had no time"
            );
            stream.write_all(b"def").await.unwrap();
            let began = Instant::now();
            let line = bed.line().await;
            assert!(line.contains(" 504 UT response_timeout"), "{line}");
            let took = began.elapsed().as_millis();
            assert!((1000..1010).contains(&took), "{took}");
        },
    );
}

#[test]
fn there_is_a_wait_between_two_tries_within_the_time_of_all() {
    let reply = |_: &str, before| Reply::Status(if before == 1 { 200 } else { 503 });
    run(&["a"], reply, |bed| async move {
        let seconds = |timeout: i64, backoff: i64| {
            bed.route(|route| {
                route.timeout = time(timeout * 1000);
                route.retries = Some(proto::Retries {
                    backoff: time(backoff * 1000),
                    ..again(1, "503")
                });
            });
        };
        seconds(3_000_000, 1_000_000);
        let began = Instant::now();
        assert_eq!(bed.get().await.status, 200);
        // By chance, up to so long; a millionth of it is never drawn.
        let waited = began.elapsed().as_secs();
        assert!((1..=1_000_000).contains(&waited), "{waited}");
        bed.line().await;
        // It would end after the time of all.
        seconds(1, 1_000_000);
        let began = Instant::now();
        assert_eq!(bed.get().await.status, 504);
        assert_eq!(began.elapsed().as_secs(), 1);
        assert!(bed.line().await.contains(" 504 UT response_timeout"));
        assert_eq!(bed.asked(), 3);
    });
}

#[test]
fn nobody_to_ask_is_told_apart_from_nothing_known() {
    run(
        &[],
        |_, _| Reply::Status(200),
        |bed| async move {
            assert_eq!(bed.get().await.status, 503);
            assert!(bed.line().await.contains(" 503 UH no_healthy_upstream"));
            bed.route(|route| {
                let Some(proto::http_route::Action::Forward(to)) = &mut route.action else {
                    unreachable!("it forwards");
                };
                to.destinations[0].destination.as_mut().unwrap().port = 81;
            });
            assert_eq!(bed.get().await.status, 503);
            let line = bed.line().await;
            assert!(line.contains(" 503 NC cluster_not_found"), "{line}");
            assert!(line.contains("has no port 81"), "{line}");
        },
    );
}

#[test]
fn a_later_try_leaves_the_place_where_that_is_allowed() {
    let reply = |uid: &str, _| Reply::Status(if uid == "near" { 503 } else { 200 });
    run(&[], reply, |bed| async move {
        let [near, far] = [("near", "r"), ("far", "q")].map(|(name, region)| {
            let pod = pods(&[name]).remove(0);
            in_locality(pod, region, "z", "s")
        });
        bed.mesh.pods([near, far]);
        bed.rule(proto::TrafficPolicy {
            locality: Some(proto::LocalityBalancing::default()),
            outlier_detection: Some(proto::OutlierDetection {
                consecutive_5xx: Some(100),
                ..Default::default()
            }),
            ..Default::default()
        });
        bed.retries(again(1, "503"));
        assert_eq!(bed.get().await.status, 503);
        assert_eq!(bed.who(), ["near", "near"]);
        bed.retries(proto::Retries {
            remote_localities: true,
            ..again(1, "503")
        });
        assert_eq!(bed.get().await.status, 200);
        assert_eq!(bed.who()[2..], ["near", "far"]);
    });
}

#[test]
fn what_an_endpoint_forbids_is_not_tried_again() {
    run(
        &["a"],
        |_, _| Reply::Status(200),
        |bed| async move {
            bed.retries(again(3, "5xx,403"));
            let principal = "cluster.local/ns/default/sa/caller".to_owned();
            let exact = security::string_match::MatchType::Exact(principal);
            let matches = security::Match {
                principals: vec![security::StringMatch {
                    match_type: Some(exact),
                }],
                ..Default::default()
            };
            let clause = security::Clause {
                matches: vec![matches],
            };
            bed.mesh.policy(&security::Authorization {
                name: "pods".into(),
                namespace: "default".into(),
                scope: security::Scope::Namespace.into(),
                action: security::Action::Deny.into(),
                rules: vec![security::Rule {
                    clauses: vec![clause],
                }],
                ..Default::default()
            });
            let answer = bed.get().await;
            assert_eq!((answer.status, &*answer.body), (403, "RBAC: access denied"));
            let line = bed.line().await;
            let named = "rbac_access_denied_matched_policy[ns[default]-policy[pods]]";
            assert!(line.contains(named), "{line}");
            assert_eq!((bed.asked(), bed.outcomes()), (0, vec![]));
        },
    );
}

#[test]
fn a_grpc_status_in_the_head_is_what_it_means() {
    let with = |status: Option<&str>, code: u16| {
        let mut response = Response::builder().status(code);
        if let Some(status) = status {
            response = response.header("grpc-status", status);
        }
        meaning(&response.body(()).unwrap())
    };
    for (status, means) in [
        ("0", 200),
        ("1", 200),
        ("2", 500),
        ("4", 504),
        ("8", 200),
        ("12", 501),
        ("13", 500),
        ("14", 503),
        ("15", 500),
        ("16", 200),
        ("140", 200),
    ] {
        assert_eq!(with(Some(status), 200), means, "{status}");
    }
    assert_eq!((with(None, 204), with(None, 503)), (204, 503));
}

//! What becomes of requests before an endpoint is chosen.

use proto::authorization::Action;
use proto::http_route::Action as Does;

use super::*;

fn any(action: Action) -> proto::Authorization {
    proto::Authorization {
        namespace: "default".into(),
        name: "wall".into(),
        action: action.into(),
        services: vec![service_ref()],
        rules: vec![proto::AuthorizationRule::default()],
        ..Default::default()
    }
}

impl Bed {
    /// Sends a request with these headers.
    async fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = ::http::Request::get(path).header("host", "svc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::default()).unwrap();
        let response = self.client().await.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }
}

#[test]
fn a_policy_comes_before_what_a_rule_would_say() {
    run(
        &["a"],
        |_, _| Reply::Status(200),
        |bed| async move {
            let nothing = proto::HttpMatch {
                port: 1,
                ..Default::default()
            };
            bed.route(|route| route.matches = vec![nothing]);
            assert_eq!(bed.get().await.status, 404);
            assert!(bed.line().await.contains(" 404 NR "));
            bed.mesh.tables(|t| t.upsert_policy(&any(Action::Deny)));
            assert_eq!(bed.get().await.status, 403);
            assert!(bed.line().await.contains(" 403 RBAC "));
            assert_eq!(bed.asked(), 0);
        },
    );
}

#[test]
fn policies_that_are_only_watched_are_counted() {
    run(
        &["a"],
        |_, _| Reply::Status(200),
        |bed| async move {
            let said = || bed.counted("isobar_authorization_observations_total", "outcome");
            bed.mesh.tables(|t| t.upsert_policy(&any(Action::Audit)));
            assert_eq!(bed.get().await.status, 200);
            assert_eq!(said(), ["audit 1"]);
            bed.mesh.tables(|t| {
                t.upsert_policy(&proto::Authorization {
                    dry_run: true,
                    ..any(Action::Deny)
                });
            });
            assert_eq!(bed.get().await.status, 200);
            assert_eq!(said(), ["audit 1", "would_deny 1"]);
        },
    );
}

#[test]
fn rules_answer_by_themselves() {
    run(
        &["a"],
        |_, _| Reply::Status(200),
        |bed| async move {
            bed.route(|route| {
                route.action = Some(Does::Redirect(proto::HttpRedirect {
                    authority: "other".into(),
                    code: 308,
                    ..Default::default()
                }));
            });
            let answer = bed.ask("/a/b?c=d", &[]).await;
            assert_eq!(answer.status, 308);
            assert_eq!(answer.headers["location"], "http://other/a/b?c=d");
            assert!(bed.line().await.contains(" 308 - direct_response"));

            bed.route(|route| {
                route.action = Some(Does::DirectResponse(proto::DirectResponse {
                    status: 418,
                    body: b"tea"[..].into(),
                }));
            });
            let answer = bed.ask("/", &[]).await;
            assert_eq!((answer.status, &*answer.body), (418, "tea"));

            let fault = |http_status, grpc_status| proto::Fault {
                delay: None,
                abort: Some(proto::fault::Abort {
                    percentage: 100.0,
                    http_status,
                    grpc_status,
                }),
            };
            bed.route(|route| route.fault = Some(fault(509, 0)));
            let answer = bed.ask("/", &[]).await;
            assert_eq!((answer.status, &*answer.body), (509, "fault filter abort"));
            bed.route(|route| route.fault = Some(fault(0, 8)));
            let answer = bed.ask("/", &[]).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.headers["grpc-status"], "8");
            assert_eq!(answer.headers["content-type"], "application/grpc");
            assert_eq!(bed.asked(), 0);
        },
    );
}

#[test]
fn callers_by_grpc_get_a_status_of_theirs() {
    run(
        &["a"],
        |_, _| Reply::Status(200),
        |bed| async move {
            bed.mesh.tables(|t| t.upsert_policy(&any(Action::Deny)));
            for (kind, status) in [
                ("application/grpc", 200),
                ("application/grpc+proto", 200),
                ("application/grpc;x=y", 200),
                ("application/grpc-web", 403),
                ("application/json", 403),
            ] {
                let answer = bed.ask("/", &[("content-type", kind)]).await;
                assert_eq!(answer.status, status, "{kind}");
                let is_told = answer.headers.contains_key("grpc-status");
                assert_eq!(is_told, status == 200, "{kind}");
            }
        },
    );
}

#[test]
fn the_size_of_a_head_is_counted() {
    run(
        &["a"],
        |_, _| Reply::Status(200),
        |bed| async move {
            let sum = || {
                let text = bed.registry.encode();
                let lines = text.lines();
                let mut sums = lines.filter(|line| line.starts_with("istio_request_bytes_sum"));
                let line = sums.next().expect("a size");
                line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
            };
            let size = async |path: &str, headers: &[(&str, &str)]| {
                let before = if bed.asked() == 0 { 0.0 } else { sum() };
                assert_eq!(bed.ask(path, headers).await.status, 200);
                // It is counted when its record is written.
                bed.line().await;
                sum() - before
            };
            let plain = size("/", &[]).await;
            assert_eq!(size("/twelve-more!", &[]).await, plain + 12.0);
            let more = size("/", &[("x-a", "1234567")]).await - plain;
            assert!((10.0..20.0).contains(&more), "{more}");
        },
    );
}

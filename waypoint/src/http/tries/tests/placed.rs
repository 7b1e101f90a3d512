//! What of a request decides where it goes, and whether it may go now.

use ::http::header::{COOKIE, SET_COOKIE};

use super::*;

impl Bed {
    /// A request with a cookie, where there is one: who was asked, and the cookie that is given out.
    async fn with(&self, cookie: Option<&str>) -> (String, Option<String>) {
        let mut request = ::http::Request::get("/").header("host", "svc");
        if let Some(cookie) = cookie {
            request = request.header(COOKIE, cookie);
        }
        let request = request.body(Full::default()).unwrap();
        let response = self.client().await.send_request(request).await.unwrap();
        let given = response.headers().get(SET_COOKIE);
        let given = given.map(|given| given.to_str().unwrap().to_owned());
        (self.who().pop().unwrap(), given)
    }
}

#[test]
fn a_cookie_is_given_to_who_has_none_and_leads_back() {
    run(
        &["a", "b", "c"],
        |_, _| Reply::Status(200),
        |bed| async move {
            let cookie = proto::HashCookie {
                name: "user".into(),
                ttl: time(60_000),
                ..Default::default()
            };
            bed.rule(proto::TrafficPolicy {
                consistent_hash: Some(proto::ConsistentHash {
                    key: Some(proto::consistent_hash::Key::Cookie(cookie)),
                }),
                ..Default::default()
            });
            let (first, given) = bed.with(None).await;
            let given = given.expect("a cookie");
            assert!(given.starts_with("user="), "{given}");
            let own = given.split(';').next().unwrap();
            for _ in 0..12 {
                assert_eq!(bed.with(Some(own)).await, (first.clone(), None));
            }
        },
    );
}

#[test]
fn nothing_is_given_where_nothing_is_asked_for() {
    run(
        &["a", "b"],
        |_, _| Reply::Status(200),
        |bed| async move {
            assert_eq!(bed.with(None).await.1, None);
            let by = proto::consistent_hash::Key::Header("x-key".into());
            bed.rule(proto::TrafficPolicy {
                consistent_hash: Some(proto::ConsistentHash { key: Some(by) }),
                ..Default::default()
            });
            assert_eq!(bed.with(None).await.1, None);
        },
    );
}

#[test]
fn a_rate_limit_tells_what_is_left_and_when_to_come_again() {
    run(
        &["a"],
        |_, _| Reply::Status(200),
        |bed| async move {
            let policy = |requests| proto::RateLimitPolicy {
                namespace: "default".into(),
                name: "rates".into(),
                whole_waypoint: true,
                limits: vec![proto::RateLimit {
                    requests,
                    per: time(600_000),
                    burst: 2,
                    ..Default::default()
                }],
                ..Default::default()
            };
            let plain = bed.get().await;
            assert!(!plain.headers.contains_key("x-ratelimit-limit"));
            bed.mesh
                .tables(|t| t.upsert_rate_limits(&policy(1)).unwrap());
            let first = bed.get().await;
            let told =
                |answer: &Answer, name: &str| answer.headers[name].to_str().unwrap().to_owned();
            assert_eq!(first.status, 200);
            assert_eq!(told(&first, "x-ratelimit-limit"), "2");
            assert_eq!(told(&first, "x-ratelimit-remaining"), "1");
            assert_eq!(told(&first, "x-ratelimit-reset"), "600");
            assert!(!first.headers.contains_key("retry-after"));
            assert_eq!(bed.get().await.status, 200);
            let third = bed.get().await;
            assert_eq!((third.status, bed.asked()), (429, 3));
            assert_eq!(told(&third, "x-ratelimit-remaining"), "0");
            // Some milliseconds have gone by; a second too early would be refused again.
            assert_eq!(told(&third, "retry-after"), "600");
            assert_eq!(told(&third, "x-ratelimit-reset"), "1200");
        },
    );
}

#[test]
fn an_endpoint_has_so_long_to_be_reached() {
    run(
        &["a"],
        |_, _| Reply::Far,
        |bed| async move {
            bed.rule(proto::TrafficPolicy {
                connection_pool: Some(proto::ConnectionPool {
                    connect_timeout: time(7000),
                    ..Default::default()
                }),
                ..Default::default()
            });
            bed.retries(again(0, ""));
            let began = Instant::now();
            assert_eq!(bed.get().await.status, 503);
            assert_eq!(began.elapsed().as_secs(), 7);
            let line = bed.line().await;
            assert!(line.contains("connection_timeout"), "{line}");
        },
    );
}

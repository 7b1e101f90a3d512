//! Callers that stay with their endpoint, and header values made of what is known.

use isobar_proto::isobar::v1 as proto;

use crate::bed::*;

fn keeping(session: proto::Session) -> proto::HttpRoute {
    proto::HttpRoute {
        session: Some(session),
        ..forward("kept", vec![to("v1", 50), to("v2", 50)])
    }
}

#[test]
fn a_session_stays_with_its_endpoint_until_that_is_gone() {
    run(|bed| async move {
        for (name, version) in [("a", "v1"), ("b", "v2"), ("c", "v2"), ("d", "v2")] {
            bed.backend(name, version).await;
        }
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            let rule = keeping(proto::Session {
                name: "kept".into(),
                ..Default::default()
            });
            t.upsert_virtual_service(&virtual_service(vec![rule]))
                .unwrap();
        });
        let mut client = bed.client("client").await;
        let first = client.get("/").await;
        let name = first.body.split(' ').next().unwrap().to_owned();
        let cookie = first.headers["set-cookie"].to_str().unwrap().to_owned();
        assert!(
            cookie.starts_with("kept=") && cookie.ends_with("; Path=/; HttpOnly"),
            "{cookie}"
        );
        let shown = cookie.split(';').next().unwrap().to_owned();
        for _ in 0..20 {
            let again = client.with("/", &[("cookie", &shown)]).await;
            assert!(again.body.starts_with(&name), "{again:?}");
            assert!(!again.headers.contains_key("set-cookie"));
        }
        let gone = ["a", "b", "c", "d"]
            .into_iter()
            .find(|one| *one == name)
            .unwrap();
        bed.remove_backend(gone);
        if name != "a" {
            let moved = client.with("/", &[("cookie", &shown)]).await;
            assert_eq!(moved.status, 200);
            let given = moved.headers["set-cookie"].to_str().unwrap();
            assert!(!given.starts_with(&shown), "{given}");
        }
    });
}

#[test]
fn a_session_that_may_end_is_given_more_time_by_each_answer() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let minute = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            let rule = proto::HttpRoute {
                session: Some(proto::Session {
                    name: "x-kept".into(),
                    header: true,
                    lifetime: minute(600),
                    idle: minute(60),
                    ..Default::default()
                }),
                ..forward("kept", vec![to("v1", 1)])
            };
            t.upsert_virtual_service(&virtual_service(vec![rule]))
                .unwrap();
        });
        let mut client = bed.client("client").await;
        let first = client.get("/").await.headers["x-kept"].clone();
        let first = first.to_str().unwrap();
        let again = client.with("/", &[("x-kept", first)]).await;
        let again = again.headers["x-kept"].to_str().unwrap();
        let end = |text: &str| text.split('-').nth(2).unwrap().to_owned();
        // It is told again, and ends no later for that.
        assert_eq!(again.split('-').count(), 4, "{again}");
        assert_eq!(end(first), end(again));
    });
}

#[test]
fn a_session_may_be_shown_by_a_header() {
    run(|bed| async move {
        for (name, version) in [("a", "v1"), ("b", "v2"), ("c", "v2")] {
            bed.backend(name, version).await;
        }
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            let rule = keeping(proto::Session {
                name: "x-kept".into(),
                header: true,
                ..Default::default()
            });
            t.upsert_virtual_service(&virtual_service(vec![rule]))
                .unwrap();
        });
        let mut client = bed.client("client").await;
        let first = client.get("/").await;
        let shown = first.headers["x-kept"].to_str().unwrap().to_owned();
        let name = first.body.split(' ').next().unwrap().to_owned();
        for _ in 0..20 {
            let again = client.with("/", &[("x-kept", &shown)]).await;
            assert!(again.body.starts_with(&name), "{again:?}");
        }
        // What is none is not honoured, and answered with one.
        let other = client.with("/", &[("x-kept", "1-2-3-4")]).await;
        assert!(other.headers.contains_key("x-kept"));
    });
}

#[test]
fn header_values_are_made_of_caller_request_and_reply() {
    run(|bed| async move {
        let at = bed.backend("a", "v1").await;
        let set = |all: &[(&str, &str)]| {
            let pairs = all.iter();
            let set = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Some(proto::HeaderOperations {
                set: set.collect(),
                ..Default::default()
            })
        };
        let mut rule = forward("made", vec![to("", 0)]);
        rule.headers = Some(proto::Headers {
            request: set(&[
                ("x-from", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
                ("x-who", "%DOWNSTREAM_PEER_URI_SAN%"),
                (
                    "x-line",
                    "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %DOWNSTREAM_LOCAL_ADDRESS%",
                ),
                ("x-rule", "%ROUTE_NAME% on %HOSTNAME%"),
                ("x-none", "%REQ(x-nobody)%"),
            ]),
            response: set(&[
                ("x-to", "%UPSTREAM_HOST%"),
                (
                    "x-said",
                    "%RESPONSE_CODE% %REQ(x-mine?x-yours)% %RESP(x-got-host)%",
                ),
            ]),
        });
        rule.matches = vec![proto::HttpMatch {
            stat_prefix: "counted".into(),
            ..Default::default()
        }];
        bed.tables(|t| {
            t.upsert_virtual_service(&virtual_service(vec![rule]))
                .unwrap()
        });
        let mut client = bed.client("client").await;
        let answer = client.with("/p?q=1", &[("x-yours", "7")]).await;
        for (name, value) in [
            ("x-got-x-from", "127.0.0.1"),
            ("x-got-x-who", "spiffe://cluster.local/ns/default/sa/client"),
            ("x-got-x-line", "GET /p?q=1 HTTP/1.1 10.96.0.1:8080"),
            ("x-got-x-rule", "made on wp-1"),
            ("x-to", &at.to_string()),
            ("x-said", "200 7 svc:8080"),
        ] {
            let got = answer.headers.get(name).map(|v| v.to_str().unwrap());
            assert_eq!(got, Some(value), "{name} {answer:?}");
        }
        assert!(!answer.headers.contains_key("x-got-x-none"));
        bed.line().await;
        let metrics = bed.registry.encode();
        let counted =
            "isobar_route_requests_total{stat_prefix=\"counted\",response_code=\"200\"} 1";
        assert!(metrics.contains(counted), "{metrics}");
    });
}

//! Authorisers of rules and destinations, and limits that stand in these.

mod judge;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use proto::external_auth::{Grpc, Http, Protocol};
use proto::rate_limit::key::Kind;

use crate::bed::*;
use judge::Judge;

fn over_http(to: proto::ServiceRef) -> proto::ExternalAuth {
    let own = |name: &str| name.to_owned();
    asked(
        to,
        Protocol::Http(Http {
            path: "/check/".into(),
            headers: vec![own("x-say")],
            answer_headers: vec![own("x-user")],
        }),
    )
}

fn over_grpc(to: proto::ServiceRef) -> proto::ExternalAuth {
    asked(to, Protocol::Grpc(Grpc::default()))
}

fn asked(to: proto::ServiceRef, protocol: Protocol) -> proto::ExternalAuth {
    proto::ExternalAuth {
        destination: Some(proto::Destination {
            service: Some(to),
            host: "other".into(),
            ..Default::default()
        }),
        protocol: Some(protocol),
        max_body: 0,
    }
}

/// Every request is shown to this authoriser.
fn guard(bed: &Bed, auth: &proto::ExternalAuth) {
    let mut rule = forward("guarded", vec![to("", 0)]);
    rule.external_auth = vec![auth.clone()];
    route(bed, vec![rule]);
}

fn route(bed: &Bed, rules: Vec<proto::HttpRoute>) {
    bed.tables(|t| t.upsert_virtual_service(&virtual_service(rules)).unwrap());
}

fn outcomes(bed: &Bed) -> Vec<String> {
    let text = bed.registry.encode();
    let own = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("isobar_external_authorizations_total{")?;
        let (labels, count) = rest.split_once("} ")?;
        let (_, outcome) = labels.split_once("outcome=\"")?;
        Some(format!("{} {count}", outcome.trim_end_matches('"')))
    });
    let mut own: Vec<_> = own.collect();
    own.sort();
    own
}

#[test]
fn an_authoriser_over_http_decides() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let judge = Judge::start(&bed).await;
        guard(&bed, &over_http(judge.service.clone()));
        let mut client = bed.client("client").await;
        let shown = [
            ("x-say", "yes"),
            ("authorization", "Bearer t"),
            ("cookie", "c=1"),
            ("x-user", "eve"),
        ];
        let answer = client.with("/a/../x?y=1", &shown).await;
        assert_eq!((answer.status, &*answer.body), (200, "a /x?y=1 0"));
        // What it grants takes the place of what the caller says of itself.
        assert_eq!(answer.headers["x-got-x-user"], "ann");
        assert!(!answer.headers.contains_key("x-got-x-other"));
        assert_eq!(answer.headers["x-got-cookie"], "c=1");
        let seen = judge.seen();
        let told = |name: &str| seen[0].headers.get(name).cloned();
        assert_eq!((&*seen[0].method, &*seen[0].path), ("GET", "/check/x?y=1"));
        assert_eq!(told("authorization").unwrap(), "Bearer t");
        assert_eq!(told("host").unwrap(), "svc:8080");
        assert_eq!(told("content-length").unwrap(), "0");
        assert!(told("cookie").is_none() && told("x-user").is_none());
        assert!(bed.line().await.contains(" 200 - via_upstream"));

        let answer = client.with("/x", &[("x-say", "no")]).await;
        assert_eq!((answer.status, &*answer.body), (401, "who?"));
        assert_eq!(answer.headers["x-why"], "no");
        assert!(bed.line().await.contains(" 401 UAEX ext_authz_denied"));
        for wrong in ["wrong", "gone"] {
            let answer = client.with("/x", &[("x-say", wrong)]).await;
            assert_eq!((answer.status, &*answer.body), (403, ""), "{wrong}");
            let line = bed.line().await;
            assert!(line.contains(" 403 UAEX ext_authz_error"), "{line}");
        }
        assert_eq!(outcomes(&bed), ["allowed 1", "failed 2", "refused 1"]);
    });
}

#[test]
fn an_authoriser_over_grpc_decides() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let judge = Judge::start(&bed).await;
        guard(&bed, &over_grpc(judge.service.clone()));
        let mut client = bed.client("client").await;
        let answer = client
            .with("/x?y=1&token=t", &[("x-say", "yes"), ("x-secret", "s")])
            .await;
        assert_eq!((answer.status, &*answer.body), (200, "a /x?y=1 0"));
        assert_eq!(answer.headers["x-got-x-user"], "ann");
        assert!(!answer.headers.contains_key("x-got-x-secret"));
        assert_eq!(answer.headers["x-seen"], "1");
        let seen = judge.checks();
        let http = seen[0].request.as_ref().unwrap().http.as_ref().unwrap();
        assert_eq!((&*http.method, &*http.path), ("GET", "/x?y=1&token=t"));
        assert_eq!((&*http.host, &*http.scheme), ("svc:8080", "http"));
        assert_eq!((&*http.protocol, http.size), ("HTTP/1.1", 0));
        assert_eq!(http.headers["x-secret"], "s");
        assert_eq!(http.headers[":path"], "/x?y=1&token=t");
        let source = seen[0].source.as_ref().unwrap();
        let client_is = "spiffe://cluster.local/ns/default/sa/client";
        assert_eq!(source.principal, client_is);

        let answer = client.with("/x", &[("x-say", "no")]).await;
        assert_eq!((answer.status, &*answer.body), (401, "who?"));
        assert_eq!(answer.headers["x-why"], "no");
        for wrong in ["wrong", "gone", "garbage"] {
            let answer = client.with("/x", &[("x-say", wrong)]).await;
            assert_eq!((answer.status, &*answer.body), (403, ""), "{wrong}");
        }
        // A caller that speaks gRPC is told in its own words.
        let call = [("x-say", "no"), ("content-type", "application/grpc")];
        let answer = client.with("/x", &call).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["grpc-status"], "16");
        assert_eq!(answer.headers["grpc-message"], "who?");
    });
}

#[test]
fn who_cannot_be_asked_lets_nobody_on() {
    run_within(Duration::from_secs(60), |bed| async move {
        bed.backend("a", "v1").await;
        let listener = tokio::net::TcpListener::bind("127.0.1.9:0").await.unwrap();
        let silent = bed.other_service(listener.local_addr().unwrap());
        guard(&bed, &over_http(silent));
        let mut client = bed.client("client").await;
        // Nobody accepts; the time for an answer has to pass.
        let answer = client.get("/x").await;
        assert_eq!((answer.status, &*answer.body), (403, ""));
        let line = bed.line().await;
        assert!(line.contains("403 UAEX ext_authz_error"), "{line}");
        drop(listener);
        assert_eq!(client.get("/x").await.status, 403);
        guard(&bed, &over_http(proto::ServiceRef::default()));
        assert_eq!(client.get("/x").await.status, 403);
        assert_eq!(outcomes(&bed), ["failed 1", "failed 2"]);
    });
}

#[test]
fn a_body_is_shown_whole_and_reaches_the_endpoint_all_the_same() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let judge = Judge::start(&bed).await;
        let http = over_http(judge.service.clone());
        let grpc = over_grpc(judge.service.clone());
        let mut client = bed.client("client").await;
        for (auth, most) in [(&http, 10), (&grpc, 10), (&http, 0)] {
            let mut auth = auth.clone();
            auth.max_body = most;
            guard(&bed, &auth);
            let answer = client.send(post("yes", "0123456789")).await.unwrap();
            assert_eq!((answer.status, &*answer.body), (200, "a /post 10"));
            let answer = client.send(post("no", "0123456789")).await.unwrap();
            assert_eq!(answer.status, 401);
            client = bed.client("client").await;
        }
        let bodies: Vec<String> = judge.seen().into_iter().map(|one| one.body).collect();
        assert_eq!(bodies, ["0123456789", "0123456789", "", ""]);
        let checks = judge.checks();
        let http_of = |at: usize| checks[at].request.clone().unwrap().http.unwrap();
        assert_eq!(
            (http_of(0).body.as_str(), http_of(0).size),
            ("0123456789", 10)
        );

        let mut auth = over_http(judge.service.clone());
        auth.max_body = 9;
        guard(&bed, &auth);
        let asked = judge.seen().len();
        let answer = client.send(post("yes", "0123456789")).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (413, "Payload Too Large"));
        assert_eq!(judge.seen().len(), asked, "nobody was asked");
    });
}

fn post(say: &str, body: &'static str) -> http::Request<Full<Bytes>> {
    let request = http::Request::post("/post").header("host", "svc:8080");
    request.header("x-say", say).body(Full::from(body)).unwrap()
}

#[test]
fn policies_come_before_an_authoriser_and_redirects_after_it() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let judge = Judge::start(&bed).await;
        bed.tables(|t| t.upsert_policy(&deny_path("/admin")));
        let auth = over_http(judge.service.clone());
        let mut away = forward("away", Vec::new());
        away.matches = vec![on_prefix("/away")];
        away.action = Some(proto::http_route::Action::Redirect(proto::HttpRedirect {
            uri: "/new".into(),
            ..Default::default()
        }));
        let mut rest = forward("rest", vec![to("", 0)]);
        for rule in [&mut away, &mut rest] {
            rule.external_auth = vec![auth.clone()];
        }
        route(&bed, vec![away, rest]);
        let mut client = bed.client("client").await;
        assert_eq!(client.with("/admin", &[("x-say", "yes")]).await.status, 403);
        assert!(judge.seen().is_empty());
        for (say, status) in [("no", 401), ("yes", 301)] {
            let answer = client.with("/away", &[("x-say", say)]).await;
            assert_eq!(answer.status, status);
        }
    });
}

#[test]
fn a_policy_that_is_written_while_an_authoriser_thinks_counts() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let judge = Judge::start(&bed).await;
        guard(&bed, &over_http(judge.service.clone()));
        let mut client = bed.client("client").await;
        let asked = client.with("/admin", &[("x-say", "wait")]);
        let written = async {
            while judge.seen().is_empty() {
                tokio::task::yield_now().await;
            }
            bed.tables(|t| t.upsert_policy(&deny_path("/admin")));
        };
        let (answer, ()) = tokio::join!(asked, written);
        assert_eq!(answer.status, 403);
        let line = bed.line().await;
        assert!(line.contains("403 RBAC "), "{line}");
    });
}

#[test]
fn a_destination_has_an_authoriser_of_its_own() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.backend("b", "v2").await;
        let judge = Judge::start(&bed).await;
        let mut guarded = to("v1", 50);
        guarded.external_auth = vec![over_http(judge.service.clone())];
        let rule = forward("split", vec![guarded, to("v2", 50)]);
        bed.tables(|t| t.upsert_destination_rule(&subsets()).unwrap());
        route(&bed, vec![rule]);
        let mut client = bed.client("client").await;
        let mut answers = Vec::new();
        for _ in 0..60 {
            answers.push(client.with("/x", &[("x-say", "no")]).await);
        }
        let refused = answers.iter().filter(|a| a.status == 401).count();
        let passed = answers.iter().filter(|a| a.body.starts_with("b ")).count();
        assert!(refused > 0 && passed > 0, "{refused} {passed}");
        assert_eq!(refused + passed, 60);
        assert_eq!(judge.seen().len(), refused);
    });
}

#[test]
fn limits_of_a_rule_and_of_a_destination_count_for_these_alone() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.publish_mesh(AppProtocol::Http11);
        let limits = |name: &str, requests: u32| proto::RateLimitPolicy {
            namespace: "default".into(),
            name: name.into(),
            limits: vec![proto::RateLimit {
                name: "all".into(),
                requests,
                // Nothing comes back while a test runs.
                per: Some(prost_types::Duration {
                    seconds: 3600,
                    nanos: 0,
                }),
                keys: vec![proto::rate_limit::Key {
                    kind: Some(Kind::Path(true)),
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut limited = forward("limited", vec![to("", 0)]);
        limited.matches = vec![on_prefix("/limited")];
        limited.rate_limits = vec![limits("of-rule", 3)];
        let mut own = to("", 0);
        own.rate_limits = vec![limits("of-destination", 2)];
        let mut through = forward("through", vec![own.clone()]);
        through.matches = vec![on_prefix("/through")];
        let mut both = forward("both", vec![own]);
        both.matches = vec![on_prefix("/both")];
        both.rate_limits = vec![limits("of-rule", 3)];
        let rest = forward("rest", vec![to("", 0)]);
        route(&bed, vec![limited, through, both, rest]);
        let mut client = bed.client("client").await;
        for (path, passes) in [("/limited", 3), ("/through", 2), ("/both", 2)] {
            for n in 0..4 {
                let answer = client.get(path).await;
                let wanted = if n < passes { 200 } else { 429 };
                assert_eq!(answer.status, wanted, "{path} {n}");
            }
        }
        for _ in 0..10 {
            assert_eq!(client.get("/rest").await.status, 200);
        }
        // The same policy by its target, too, counts once.
        let mut targeted = limits("of-rule", 3);
        targeted.services = vec![service_ref()];
        bed.tables(|t| t.upsert_rate_limits(&targeted).unwrap());
        for n in 0..4 {
            let answer = client.get("/limited/more").await;
            assert_eq!(answer.status, if n < 3 { 200 } else { 429 }, "{n}");
        }
    });
}

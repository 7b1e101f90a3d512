use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use proto::rate_limit::key::Kind;

use crate::bed::*;

fn limit(name: &str, requests: u32, by: Kind) -> proto::RateLimit {
    proto::RateLimit {
        name: name.into(),
        requests,
        // Nothing comes back while a test runs.
        per: Some(prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        }),
        keys: vec![proto::rate_limit::Key { kind: Some(by) }],
        ..Default::default()
    }
}

fn apply(bed: &Bed, limits: Vec<proto::RateLimit>) {
    let policy = proto::RateLimitPolicy {
        namespace: "default".into(),
        name: "rates".into(),
        services: vec![service_ref()],
        limits,
        ..Default::default()
    };
    bed.tables(|t| t.upsert_rate_limits(&policy).unwrap());
}

fn identity() -> Kind {
    Kind::Caller(proto::rate_limit::Caller::Identity.into())
}

#[test]
fn a_caller_gets_its_share_and_is_told_when_to_come_back() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        apply(&bed, vec![limit("each", 2, identity())]);
        let mut one = bed.client("one").await;
        for left in ["1", "0"] {
            let answer = one.get("/").await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.headers["x-ratelimit-limit"], "2");
            assert_eq!(answer.headers["x-ratelimit-remaining"], left);
            bed.line().await;
        }
        let answer = one.get("/").await;
        assert_eq!((answer.status, &*answer.body), (429, "local_rate_limited"));
        assert_eq!(answer.headers["retry-after"], "1800");
        assert_eq!(answer.headers["x-ratelimit-remaining"], "0");
        let line = bed.line().await;
        assert!(line.contains(" 429 RL local_rate_limited"), "{line}");
        let metrics = bed.registry.encode();
        let counted =
            "isobar_rate_limited_requests_total{policy=\"default/rates\",limit=\"each\"} 1";
        assert!(metrics.contains(counted), "{metrics}");
        // Another connection of the same caller counts with it; another caller does not.
        assert_eq!(bed.client("one").await.get("/").await.status, 429);
        assert_eq!(bed.client("two").await.get("/").await.status, 200);
    });
}

#[test]
fn routes_paths_and_headers_are_limited_apart_and_who_is_refused_counts_nowhere() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut slow = forward("slow", vec![to("", 0)]);
        slow.matches = vec![on_prefix("/slow")];
        let rules = vec![slow, forward("rest", vec![to("", 0)])];
        bed.tables(|t| {
            t.upsert_virtual_service(&virtual_service(rules)).unwrap();
            t.upsert_policy(&deny_path("/no"));
        });
        let mut of_route = limit("slow", 1, Kind::Header("x-user".into()));
        of_route.routes = vec!["slow".into()];
        let mut of_path = limit("path", 1, Kind::Path(true));
        of_path.matches = vec![on_prefix("/p")];
        let mut all = limit("all", 5, Kind::Path(true));
        all.keys.clear();
        apply(&bed, vec![of_route, of_path, all]);
        let mut client = bed.client("one").await;
        let mut codes = Vec::new();
        for (path, user) in [
            ("/no", "x"),
            ("/slow", "a"),
            ("/slow", "a"),
            ("/slow", "b"),
            ("/p1", "a"),
            ("/p1", "a"),
            ("/p2", "a"),
            ("/free", "a"),
            ("/free", "a"),
        ] {
            codes.push(client.with(path, &[("x-user", user)]).await.status);
        }
        assert_eq!(codes, [403, 200, 429, 200, 200, 429, 200, 200, 429]);
    });
}

#[test]
fn audits_and_dry_runs_are_counted_and_refuse_nothing() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut dry = deny_path("/x");
        dry.dry_run = true;
        let mut audit = deny_path("/");
        audit.name = "audit".into();
        audit.action = proto::authorization::Action::Audit.into();
        bed.tables(|t| {
            t.upsert_policy(&dry);
            t.upsert_policy(&audit);
        });
        let mut client = bed.client("client").await;
        for path in ["/x", "/"] {
            assert_eq!(client.get(path).await.status, 200);
            bed.line().await;
        }
        let told = |policy: &str, outcome: &str, n: u32| {
            let metrics = bed.registry.encode();
            let line = format!(
                "isobar_authorization_observations_total{{policy=\"default/{policy}\",\
                 outcome=\"{outcome}\"}} {n}"
            );
            assert!(metrics.contains(&line), "{line}\n{metrics}");
        };
        told(&dry.name, "would_deny", 1);
        told("audit", "audit", 2);
        // A connection that is not HTTP has no path: a DENY leans to refusing it.
        bed.publish_mesh(AppProtocol::Tcp);
        drop(bed.tunnel("client", VIP).await.unwrap());
        bed.line().await;
        told(&dry.name, "would_deny", 2);
    });
}

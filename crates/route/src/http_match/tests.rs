use std::collections::BTreeMap;
use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use isobar_proto::isobar::v1 as proto;
use isobar_types::Identity;
use proptest::prelude::*;

use super::*;
use crate::{Action, Draft, choose};
use proto::string_match::MatchType;

pub(crate) fn service() -> NamespacedHostname {
    NamespacedHostname::parse("default/svc.default.svc.cluster.local").unwrap()
}

fn service_ref() -> proto::ServiceRef {
    proto::ServiceRef {
        namespace: "default".into(),
        hostname: "svc.default.svc.cluster.local".into(),
    }
}

fn text(kind: MatchType) -> proto::StringMatch {
    proto::StringMatch {
        match_type: Some(kind),
    }
}

fn to(subset: &str, weight: u32) -> proto::WeightedDestination {
    proto::WeightedDestination {
        destination: Some(proto::Destination {
            service: Some(service_ref()),
            subset: subset.into(),
            ..Default::default()
        }),
        weight,
        ..Default::default()
    }
}

pub(crate) fn rule(name: &str, matches: Vec<proto::HttpMatch>) -> proto::HttpRoute {
    proto::HttpRoute {
        name: name.into(),
        matches,
        action: Some(proto::http_route::Action::Forward(proto::HttpForward {
            destinations: vec![to(name, 0)],
        })),
        ..Default::default()
    }
}

pub(crate) fn object(
    name: &str,
    created: i64,
    http: Vec<proto::HttpRoute>,
) -> proto::VirtualService {
    proto::VirtualService {
        namespace: "default".into(),
        name: name.into(),
        parents: vec![service_ref()],
        http,
        created,
        ..Default::default()
    }
}

fn tables(objects: &[proto::VirtualService]) -> Tables {
    let mut draft: Draft = Tables::default().draft();
    for object in objects {
        draft.upsert_virtual_service(object).unwrap();
    }
    draft.finish()
}

pub(crate) fn caller() -> Caller {
    Caller {
        identity: Some(Identity::new("cluster.local", "default", "client")),
        ip: "10.0.0.9".parse().unwrap(),
        labels: Some(Arc::new(BTreeMap::from([("app".into(), "web".into())]))),
    }
}

pub(crate) fn call<'a>(path: &'a str, headers: &'a HeaderMap) -> HttpCall<'a> {
    HttpCall {
        method: &Method::GET,
        path,
        query: Some("q=1&flag"),
        authority: "svc:8080",
        written_authority: "svc:8080",
        scheme: "http",
        headers,
        destination: SocketAddr::from(([10, 96, 0, 1], 8080)),
    }
}

fn taken(tables: &Tables, path: &str) -> Option<String> {
    let headers = HeaderMap::new();
    match match_http(tables, &service(), &call(path, &headers), &caller()) {
        HttpDecision::Taken(taken) => Some(taken.name()),
        HttpDecision::NoRoute => None,
        HttpDecision::Default => Some("default".into()),
    }
}

pub(crate) fn uri(kind: MatchType) -> proto::HttpMatch {
    proto::HttpMatch {
        uri: Some(text(kind)),
        ..Default::default()
    }
}

#[test]
fn the_first_rule_that_matches_wins() {
    let tables = tables(&[object(
        "vs",
        1,
        vec![
            rule("exact", vec![uri(MatchType::Exact("/a".into()))]),
            rule("prefix", vec![uri(MatchType::Prefix("/a".into()))]),
            rule("regex", vec![uri(MatchType::Regex("/b/[0-9]+".into()))]),
        ],
    )]);
    assert_eq!(taken(&tables, "/a").unwrap(), "exact");
    assert_eq!(taken(&tables, "/ab").unwrap(), "prefix");
    assert_eq!(taken(&tables, "/b/12").unwrap(), "regex");
    assert_eq!(taken(&tables, "/b/12x"), None);
}

#[test]
fn what_took_a_request_is_named_with_the_match_that_held() {
    let named = |name: &str, path: &str| proto::HttpMatch {
        name: name.into(),
        ..uri(MatchType::Exact(path.into()))
    };
    let tables = tables(&[object(
        "vs",
        1,
        vec![
            rule("r", vec![named("", "/1"), named("m", "/2")]),
            rule("", vec![named("m", "/3"), named("", "/4")]),
            rule("all", vec![]),
        ],
    )]);
    let headers = HeaderMap::new();
    for (path, name, block) in [
        ("/1", "r", Some("")),
        ("/2", "r.m", Some("m")),
        ("/3", "m", Some("m")),
        ("/4", "default/vs/http[1]", Some("")),
        ("/5", "all", None),
    ] {
        let decision = match_http(&tables, &service(), &call(path, &headers), &caller());
        let HttpDecision::Taken(taken) = decision else {
            panic!("{path} was not taken");
        };
        let held = taken.block();
        assert_eq!(taken.name(), name, "{path}");
        assert_eq!(held.map(|b| b.name.as_str()), block, "{path}");
        let is_own = |b: &HttpMatch| b.holds(&call(path, &headers), &caller());
        assert!(held.is_none_or(is_own) && held.is_none_or(|b| b.uri.is_some()));
    }
}

#[test]
fn an_authority_is_told_by_case() {
    let block = proto::HttpMatch {
        authority: Some(text(MatchType::Exact("Shop".into()))),
        ..Default::default()
    };
    let tables = tables(&[object("vs", 1, vec![rule("named", vec![block])])]);
    let headers = HeaderMap::new();
    for (written, taken) in [("Shop", true), ("shop", false), ("SHOP", false)] {
        let call = HttpCall {
            authority: "shop",
            written_authority: written,
            ..call("/", &headers)
        };
        let decision = match_http(&tables, &service(), &call, &caller());
        assert_eq!(
            matches!(decision, HttpDecision::Taken(_)),
            taken,
            "{written}"
        );
    }
}

#[test]
fn without_http_rules_the_service_itself_is_meant() {
    assert_eq!(taken(&Tables::default(), "/").unwrap(), "default");
    assert_eq!(
        taken(&tables(&[object("vs", 1, vec![])]), "/").unwrap(),
        "default"
    );
}

#[test]
fn the_oldest_object_comes_first() {
    let objects = [
        object("a-young", 20, vec![rule("young", vec![])]),
        object(
            "z-old",
            10,
            vec![rule("old", vec![uri(MatchType::Exact("/x".into()))])],
        ),
        object("b-young", 20, vec![rule("later", vec![])]),
    ];
    let tables = tables(&objects);
    assert_eq!(taken(&tables, "/x").unwrap(), "old");
    assert_eq!(taken(&tables, "/y").unwrap(), "young");
}

#[test]
fn removing_the_object_restores_the_default() {
    let with = tables(&[object(
        "vs",
        1,
        vec![rule("r", vec![uri(MatchType::Exact("/x".into()))])],
    )]);
    let mut draft = with.draft();
    draft.remove_virtual_service("default/vs");
    assert_eq!(taken(&draft.finish(), "/y").unwrap(), "default");
    assert_eq!(taken(&with, "/y"), None);
}

#[test]
fn source_conditions_use_identity_and_known_labels() {
    let wants = proto::HttpMatch {
        source_namespace: "default".into(),
        source_labels: BTreeMap::from([("app".into(), "web".into())]),
        ..Default::default()
    };
    let m = VirtualService::compile(&object("vs", 1, vec![rule("r", vec![wants])])).unwrap();
    let m = &m.http[0].matches[0];
    let headers = HeaderMap::new();
    let at = call("/", &headers);
    assert!(m.holds(&at, &caller()));
    let unknown = Caller {
        labels: None,
        ..caller()
    };
    assert!(!m.holds(&at, &unknown));
    let stranger = Caller {
        identity: Some(Identity::new("cluster.local", "other", "client")),
        ..caller()
    };
    assert!(!m.holds(&at, &stranger));
}

#[test]
fn a_header_that_is_missing_is_empty_unless_its_presence_is_the_question() {
    let without = |kind| proto::HttpMatch {
        without_headers: BTreeMap::from([("x-a".into(), text(kind))]),
        ..Default::default()
    };
    let empty = HeaderMap::new();
    let mut there = HeaderMap::new();
    there.insert("x-a", HeaderValue::from_static("1"));
    for (kind, missing, with) in [
        (MatchType::Exact("1".into()), true, false),
        (MatchType::Exact("2".into()), true, true),
        (MatchType::Exact("".into()), false, true),
        (MatchType::Present(true), true, false),
    ] {
        let block = crate::virtual_service::compile_match(&without(kind.clone())).unwrap();
        let holds = |headers: &HeaderMap| block.holds(&call("/", headers), &caller());
        assert_eq!((holds(&empty), holds(&there)), (missing, with), "{kind:?}");
    }
}

#[test]
fn weights_choose_and_a_single_destination_takes_all() {
    let mut split = rule("split", vec![]);
    split.action = Some(proto::http_route::Action::Forward(proto::HttpForward {
        destinations: vec![to("v1", 80), to("v2", 20), to("v3", 0)],
    }));
    let object =
        VirtualService::compile(&object("vs", 1, vec![split, rule("one", vec![])])).unwrap();
    let chosen = |at: usize, dice: u64| match &object.http[at].action {
        Action::Forward(all) => choose(all, dice).and_then(|(_, w)| w.target.subset.clone()),
        _ => None,
    };
    let v2 = (0..1000)
        .filter(|d| chosen(0, *d).as_deref() == Some("v2"))
        .count();
    assert_eq!(v2, 200);
    assert!((0..1000).all(|d| chosen(0, d).as_deref() != Some("v3")));
    assert_eq!(chosen(1, 77).as_deref(), Some("one"));
}

fn kinds() -> impl Strategy<Value = proto::StringMatch> {
    let word = prop::sample::select(vec!["", "/", "/a", "/ab", "a", "svc", "GET", "http", "1"]);
    (word, 0..4u8).prop_map(|(word, kind)| {
        text(match kind {
            0 => MatchType::Exact(word.into()),
            1 => MatchType::Prefix(word.into()),
            2 => MatchType::Regex(format!("{word}.?")),
            _ => MatchType::Present(true),
        })
    })
}

fn maps() -> impl Strategy<Value = BTreeMap<String, proto::StringMatch>> {
    let name = prop::sample::select(vec!["x-a", "x-b", "q", "flag"]);
    prop::collection::btree_map(name.prop_map(str::to_owned), kinds(), 0..3)
}

fn blocks() -> impl Strategy<Value = proto::HttpMatch> {
    let texts = prop::collection::vec(prop::option::of(kinds()), 4);
    (
        texts,
        maps(),
        maps(),
        maps(),
        prop::sample::select(vec![0u32, 8080, 80]),
    )
        .prop_map(
            |(texts, headers, without_headers, query_params, port)| proto::HttpMatch {
                uri: texts[0].clone(),
                method: texts[1].clone(),
                scheme: texts[2].clone(),
                authority: texts[3].clone(),
                headers,
                without_headers,
                query_params,
                port,
                ..Default::default()
            },
        )
}

/// The documented meaning, read straight off the message.
mod naive {
    use super::*;

    fn one(m: &proto::StringMatch, value: &str) -> bool {
        match m.match_type.as_ref().unwrap() {
            MatchType::Exact(t) => t == value,
            MatchType::Prefix(t) | MatchType::PathPrefix(t) => value.starts_with(t.as_str()),
            MatchType::Regex(t) => {
                // The generated patterns are all `WORD.?`.
                let word = t.strip_suffix(".?").unwrap();
                value.strip_prefix(word).is_some_and(|rest| rest.len() <= 1)
            }
            MatchType::Present(_) => true,
        }
    }

    pub(super) fn holds(m: &proto::HttpMatch, call: &HttpCall<'_>) -> bool {
        let part = |m: &Option<proto::StringMatch>, v: &str| m.as_ref().is_none_or(|m| one(m, v));
        let header = |name: &str| call.headers.get(name).map(|v| v.to_str().unwrap());
        let query = |name: &str| {
            let pairs = call.query.unwrap_or("").split('&');
            pairs
                .map(|p| p.split_once('=').unwrap_or((p, "")))
                .find(|(k, _)| *k == name)
                .map(|(_, v)| v)
        };
        let present = |m: &proto::StringMatch| matches!(m.match_type, Some(MatchType::Present(_)));
        part(&m.uri, call.path)
            && part(&m.method, call.method.as_str())
            && part(&m.scheme, call.scheme)
            && part(&m.authority, call.written_authority)
            && (m.port == 0 || m.port == u32::from(call.destination.port()))
            && m.headers
                .iter()
                .all(|(k, m)| header(k).is_some_and(|v| one(m, v)))
            && m.without_headers.iter().all(|(k, m)| match header(k) {
                Some(v) => !one(m, v),
                None => present(m) || !one(m, ""),
            })
            && m.query_params
                .iter()
                .all(|(k, m)| query(k).is_some_and(|v| one(m, v)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_rules_mean_what_the_message_says(
        rules in prop::collection::vec(prop::collection::vec(blocks(), 0..3), 1..5),
        path in prop::sample::select(vec!["/", "/a", "/ab", "/abc"]),
        values in prop::collection::vec(prop::option::of(prop::sample::select(vec!["a", "ab", "1", ""])), 2),
        query in prop::option::of(prop::sample::select(vec!["q=1", "flag", "q=a&flag=1", ""])),
        large in prop::bool::ANY,
    ) {
        // A large object is searched in another way.
        let others = (0..20 * u8::from(large)).map(|n| rule("other", vec![uri(MatchType::Exact(format!("/other/{n}")))]));
        let own = rules.iter().enumerate().map(|(at, m)| rule(&at.to_string(), m.clone()));
        let http: Vec<_> = others.chain(own).collect();
        let tables = tables(&[object("vs", 1, http)]);
        let mut headers = HeaderMap::new();
        for (name, value) in ["x-a", "x-b"].iter().zip(values) {
            if let Some(value) = value {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
        }
        let at = HttpCall { query, ..call(path, &headers) };
        let wanted = rules.iter().position(|blocks| {
            blocks.is_empty() || blocks.iter().any(|m| naive::holds(m, &at))
        });
        let got = match match_http(&tables, &service(), &at, &caller()) {
            HttpDecision::Taken(taken) => Some(taken.name().parse::<usize>().unwrap()),
            _ => None,
        };
        prop_assert_eq!(got, wanted);
    }
}

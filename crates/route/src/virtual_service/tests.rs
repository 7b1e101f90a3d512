use super::*;

fn compile(route: proto::HttpRoute) -> Result<VirtualService, ResourceError> {
    VirtualService::compile(&proto::VirtualService {
        namespace: "ns".into(),
        name: "vs".into(),
        http: vec![route],
        ..Default::default()
    })
}

fn forward() -> Option<proto::http_route::Action> {
    Some(proto::http_route::Action::Forward(proto::HttpForward {
        destinations: vec![proto::WeightedDestination::default()],
    }))
}

#[test]
fn errors_name_object_and_field() {
    let bad = proto::StringMatch {
        match_type: Some(proto::string_match::MatchType::Regex("(".into())),
    };
    let error = compile(proto::HttpRoute {
        action: forward(),
        matches: vec![proto::HttpMatch {
            uri: Some(bad),
            ..Default::default()
        }],
        ..Default::default()
    })
    .unwrap_err();
    assert_eq!(error.object, "ns/vs");
    assert_eq!(error.field, "http[0].match[0].uri");
    let error = compile(proto::HttpRoute::default()).unwrap_err();
    assert_eq!(error.field, "http[0].route");
}

#[test]
fn odd_numbers_are_refused() {
    let reply = |status| {
        compile(proto::HttpRoute {
            action: Some(proto::http_route::Action::DirectResponse(
                proto::DirectResponse {
                    status,
                    body: vec![],
                },
            )),
            ..Default::default()
        })
    };
    assert!(reply(200).is_ok());
    assert!(reply(99).is_err());
    assert!(reply(100).is_err());
    let timeout = |seconds| {
        compile(proto::HttpRoute {
            action: forward(),
            timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        })
    };
    assert!(timeout(-1).is_err());
    assert_eq!(
        timeout(3).unwrap().http[0].timeout,
        Some(Duration::from_secs(3))
    );
    assert_eq!(timeout(0).unwrap().http[0].timeout, None);
}

#[test]
fn host_in_header_operations_is_a_new_authority() {
    let object = compile(proto::HttpRoute {
        action: forward(),
        headers: Some(proto::Headers {
            request: Some(proto::HeaderOperations {
                set: [
                    ("Host".to_owned(), "other".to_owned()),
                    ("x-a".into(), "1".into()),
                ]
                .into(),
                ..Default::default()
            }),
            response: None,
        }),
        ..Default::default()
    })
    .unwrap();
    let edits = &object.http[0].request;
    assert_eq!(edits.authority.as_deref(), Some("other"));
    assert_eq!(edits.set.len(), 1);
}

#[test]
fn no_rule_says_where_messages_end() {
    for name in ["Content-Length", "transfer-encoding"] {
        let edit = proto::HeaderOperations {
            add: [(name.to_owned(), "85".to_owned())].into(),
            ..Default::default()
        };
        let refused = compile(proto::HttpRoute {
            action: forward(),
            headers: Some(proto::Headers {
                request: None,
                response: Some(edit),
            }),
            ..Default::default()
        });
        assert!(refused.unwrap_err().to_string().contains(name));
    }
}

mod fields;

#[test]
fn limits_that_are_named_twice_count_once() {
    let limits = |name: &str| proto::RateLimitPolicy {
        namespace: "ns".into(),
        name: name.into(),
        ..Default::default()
    };
    let route = proto::HttpRoute {
        action: forward(),
        rate_limits: ["a", "b", "a"].map(limits).to_vec(),
        ..Default::default()
    };
    let made = compile_limits(&route.rate_limits).unwrap();
    let names: Vec<&str> = made.iter().map(|one| &*one.name.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(compile(route).is_ok());
}

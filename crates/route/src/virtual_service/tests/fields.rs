//! Every field of an HTTP rule arrives, and values without a meaning are named.

use super::*;
use proto::http_route::Action as From;

fn rule(change: impl FnOnce(&mut proto::HttpRoute)) -> Result<HttpRoute, String> {
    let mut from = proto::HttpRoute {
        action: forward(),
        ..Default::default()
    };
    change(&mut from);
    let object = compile(from).map_err(|error| error.field)?;
    Ok(object.http.into_iter().next().unwrap())
}

fn seconds(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn exact(text: &str) -> proto::StringMatch {
    proto::StringMatch {
        match_type: Some(proto::string_match::MatchType::Exact(text.into())),
    }
}

#[test]
fn redirects_have_a_code_and_perhaps_a_port() {
    let redirect = |code, port| {
        let to = proto::HttpRedirect {
            uri: "/new".into(),
            code,
            port,
            ..Default::default()
        };
        let rule = rule(|r| r.action = Some(From::Redirect(to)))?;
        match rule.action {
            Action::Redirect(to) => Ok((to.code, to.port, to.uri)),
            other => panic!("{other:?}"),
        }
    };
    let uri = || Some("/new".to_owned());
    assert_eq!(redirect(0, 0), Ok((301, None, uri())));
    assert_eq!(redirect(308, 8443), Ok((308, Some(8443), uri())));
    let wrong = || "http[0].redirect.redirectCode".to_owned();
    assert_eq!(redirect(200, 0), Err(wrong()));
    assert_eq!(redirect(304, 0), Err(wrong()));
    assert_eq!(redirect(301, 65_536), Err("http[0].redirect.port".into()));
}

#[test]
fn only_mirrors_of_some_share_are_kept() {
    let mirrors = |shares: &[f64]| {
        let one = |percentage: &f64| proto::Mirror {
            destination: Some(proto::Destination {
                host: format!("at-{percentage}"),
                ..Default::default()
            }),
            percentage: *percentage,
        };
        let mirrors = rule(|r| r.mirrors = shares.iter().map(one).collect())?.mirrors;
        Ok(mirrors.iter().map(|m| m.percentage).collect::<Vec<_>>())
    };
    assert_eq!(mirrors(&[0.0, 0.5, 100.0]), Ok(vec![0.5, 100.0]));
    for bad in [-1.0, 100.5, f64::NAN] {
        let field = Err("http[0].mirrors[1].percentage".to_owned());
        assert_eq!(mirrors(&[1.0, bad]), field);
    }
}

#[test]
fn a_target_names_a_service_only_if_it_has_a_host() {
    let target = |hostname: &str, refuse| {
        let destination = proto::Destination {
            service: Some(proto::ServiceRef {
                namespace: "ns".into(),
                hostname: hostname.into(),
            }),
            refuse,
            ..Default::default()
        };
        let to = proto::WeightedDestination {
            destination: Some(destination),
            ..Default::default()
        };
        let destinations = compile_destinations(&[to], "route").unwrap();
        let target = &destinations[0].target;
        let service = target.service.as_ref().map(ToString::to_string);
        (service.unwrap_or_default(), target.refuse)
    };
    assert_eq!(target("SVC", 0), ("ns/svc".into(), None));
    assert_eq!(target("", 503), (String::new(), Some(503)));
    assert_eq!(target("svc", 200).1, None);
}

#[test]
fn rewrites_arrive() {
    let rewrite = |regex: &str| {
        let from = proto::HttpRewrite {
            uri: "/to".into(),
            authority: "other".into(),
            regex: regex.into(),
            regex_rewrite: r"\1".into(),
        };
        rule(|r| r.rewrite = Some(from)).map(|rule| rule.rewrite)
    };
    let whole = rewrite("/a(.*)").unwrap();
    assert_eq!(whole.uri.as_deref(), Some("/to"));
    assert_eq!(whole.authority.as_deref(), Some("other"));
    let (pattern, with) = whole.regex.unwrap();
    assert_eq!((pattern.text(), &*with), ("/a(.*)", r"\1"));
    assert!(rewrite("").unwrap().regex.is_none());
    let wrong = "http[0].rewrite.uriRegexRewrite.match";
    assert_eq!(rewrite("(").unwrap_err(), wrong);
}

#[test]
fn faults_arrive() {
    let abort = |http_status, grpc_status, percentage| {
        let fault = proto::Fault {
            delay: Some(proto::fault::Delay {
                percentage: 25.0,
                fixed: seconds(2, 0),
            }),
            abort: Some(proto::fault::Abort {
                percentage,
                http_status,
                grpc_status,
            }),
        };
        let fault = rule(|r| r.fault = Some(fault))?.fault;
        assert_eq!(fault.delay, Some((25.0, Duration::from_secs(2))));
        Ok(fault.abort.unwrap())
    };
    assert_eq!(abort(503, 0, 50.0), Ok((50.0, AbortWith::Http(503))));
    assert_eq!(abort(0, 14, 100.0), Ok((100.0, AbortWith::Grpc(14))));
    let wrong = |field: &str| Err(format!("http[0].fault.abort.{field}"));
    assert_eq!(abort(199, 0, 50.0), wrong("httpStatus"));
    assert_eq!(abort(0, 17, 50.0), wrong("grpcStatus"));
    assert_eq!(abort(503, 0, 101.0), wrong("percentage"));
    assert_eq!(rule(|_| ()).unwrap().fault, Fault::default());
}

#[test]
fn cross_origin_rules_arrive() {
    let cors = |methods: &[&str]| {
        let from = proto::Cors {
            allow_origins: vec![exact("https://a")],
            allow_methods: methods.iter().map(ToString::to_string).collect(),
            max_age: seconds(60, 0),
            allow_credentials: true,
            ..Default::default()
        };
        rule(|r| r.cors = Some(from)).map(|rule| rule.cors.unwrap())
    };
    let rules = cors(&["GET", "PUT"]).unwrap();
    assert_eq!(rules.origins, [TextMatch::Exact("https://a".into())]);
    assert_eq!(rules.methods.unwrap(), "GET,PUT");
    assert_eq!((rules.headers, rules.max_age), (None, Some(60)));
    assert!(rules.credentials && !rules.answers_unmatched);
    let wrong = cors(&["G\nET"]).unwrap_err();
    assert_eq!(wrong, "http[0].corsPolicy.allowMethods");
    assert!(rule(|_| ()).unwrap().cors.is_none());
}

#[test]
fn a_second_has_less_than_a_thousand_million_nanoseconds() {
    let timeout = |nanos| rule(|r| r.timeout = seconds(1, nanos)).map(|rule| rule.timeout);
    let most = Duration::new(1, 999_999_999);
    assert_eq!(timeout(999_999_999), Ok(Some(most)));
    for bad in [-1, 1_000_000_000, i32::MAX] {
        assert_eq!(timeout(bad), Err("http[0].timeout".into()), "{bad}");
    }
}

#[test]
fn headers_are_shown_as_they_are_written() {
    for (given, shown) in [
        (":METHOD", ":method"),
        (":path", ":path"),
        ("Host", ":authority"),
        (":authority", ":authority"),
        (":scheme", ":scheme"),
        ("X-User", "x-user"),
    ] {
        assert_eq!(HeaderKey::parse(given).unwrap().to_string(), shown);
    }
    assert_eq!(HeaderKey::parse("x user"), None);
}

use http::{HeaderMap, HeaderValue, Method};

use super::*;
use crate::{Observed, Outcome, observe_http};
use proto::authorization::Action;
use proto::value_match::MatchType;

mod conditions;

fn service() -> NamespacedHostname {
    NamespacedHostname::parse("default/svc").unwrap()
}

fn exact(text: &str) -> proto::ValueMatch {
    proto::ValueMatch {
        match_type: Some(MatchType::Exact(text.into())),
    }
}

fn policy(action: Action, rules: Vec<proto::AuthorizationRule>) -> proto::Authorization {
    proto::Authorization {
        namespace: "default".into(),
        name: format!("{action:?}").to_lowercase(),
        action: action.into(),
        services: vec![proto::ServiceRef {
            namespace: "default".into(),
            hostname: "svc".into(),
        }],
        rules,
        ..Default::default()
    }
}

fn to(operation: proto::AuthorizationOperation) -> proto::AuthorizationRule {
    proto::AuthorizationRule {
        to: vec![operation],
        ..Default::default()
    }
}

fn paths(paths: &[&str]) -> proto::AuthorizationRule {
    to(proto::AuthorizationOperation {
        paths: paths.iter().map(|p| exact(p)).collect(),
        ..Default::default()
    })
}

fn from(principal: &str) -> proto::AuthorizationRule {
    proto::AuthorizationRule {
        from: vec![proto::AuthorizationSource {
            principals: vec![exact(principal)],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn when(key: &str, values: &[&str], not_values: &[&str]) -> proto::AuthorizationRule {
    proto::AuthorizationRule {
        when: vec![proto::AuthorizationCondition {
            key: key.into(),
            values: values.iter().map(|v| exact(v)).collect(),
            not_values: not_values.iter().map(|v| exact(v)).collect(),
        }],
        ..Default::default()
    }
}

fn tables(policies: &[proto::Authorization]) -> Tables {
    let mut draft = Tables::default().draft();
    for policy in policies {
        draft.upsert_policy(policy);
    }
    draft.finish()
}

fn caller(account: &str) -> Caller {
    Caller {
        identity: Some(Identity::new("cluster.local", "default", account)),
        ip: "10.1.2.3".parse().unwrap(),
        labels: None,
    }
}

fn call<'a>(path: &'a str, headers: &'a HeaderMap) -> HttpCall<'a> {
    HttpCall {
        method: &Method::GET,
        path,
        query: None,
        authority: "svc:8080",
        written_authority: "svc:8080",
        scheme: "http",
        headers,
        destination: ([10, 96, 0, 1], 8080).into(),
    }
}

fn ask(tables: &Tables, account: &str, path: &str, headers: &HeaderMap) -> Result<Permit, Denied> {
    let call = call(path, headers);
    authorize_http(tables, Some(&service()), &call, &caller(account))
}

fn ok(tables: &Tables, account: &str, path: &str) -> bool {
    ask(tables, account, path, &HeaderMap::new()).is_ok()
}

fn tcp_ok(tables: &Tables, account: &str) -> bool {
    let call = TcpCall {
        destination: ([10, 96, 0, 1], 8080).into(),
        sni: None,
    };
    authorize_tcp(tables, Some(&service()), &call, &caller(account)).is_ok()
}

#[test]
fn deny_comes_before_allow() {
    let both = tables(&[
        policy(
            Action::Allow,
            vec![from("cluster.local/ns/default/sa/good")],
        ),
        policy(Action::Deny, vec![paths(&["/admin"])]),
    ]);
    assert!(ok(&both, "good", "/"));
    assert!(!ok(&both, "good", "/admin"));
    assert!(!ok(&both, "bad", "/"));
    let detail = ask(&both, "bad", "/", &HeaderMap::new())
        .unwrap_err()
        .code_detail();
    assert_eq!(detail, "rbac_access_denied_matched_policy[none]");
    let detail = ask(&both, "good", "/admin", &HeaderMap::new())
        .unwrap_err()
        .code_detail();
    assert_eq!(
        detail,
        "rbac_access_denied_matched_policy[ns[default]-policy[deny]-rule[0]]"
    );
}

#[test]
fn allow_without_rules_allows_nothing_and_deny_without_rules_denies_nothing() {
    assert!(!ok(&tables(&[policy(Action::Allow, vec![])]), "a", "/"));
    assert!(ok(&tables(&[policy(Action::Deny, vec![])]), "a", "/"));
    let everything = vec![proto::AuthorizationRule::default()];
    assert!(ok(
        &tables(&[policy(Action::Allow, everything.clone())]),
        "a",
        "/"
    ));
    assert!(!ok(&tables(&[policy(Action::Deny, everything)]), "a", "/"));
    assert!(ok(&Tables::default(), "a", "/"));
}

#[test]
fn an_unenforceable_policy_refuses_its_targets_only() {
    let mut bad = policy(Action::Allow, vec![proto::AuthorizationRule::default()]);
    bad.unenforceable = "jwt is not supported".into();
    let with = tables(&[bad]);
    assert!(!ok(&with, "a", "/"));
    let call = TcpCall {
        destination: ([10, 0, 0, 1], 80).into(),
        sni: None,
    };
    assert!(authorize_tcp(&with, None, &call, &caller("a")).is_ok());
    let mut odd = policy(Action::Allow, vec![]);
    odd.action = 77;
    assert!(matches!(
        ask(&tables(&[odd]), "a", "/", &HeaderMap::new()),
        Err(Denied::Unenforceable { .. })
    ));
    let source = proto::AuthorizationSource {
        ip_blocks: vec!["10.0.0.0/33".into()],
        ..Default::default()
    };
    let rule = proto::AuthorizationRule {
        from: vec![source],
        ..Default::default()
    };
    assert!(!ok(&tables(&[policy(Action::Deny, vec![rule])]), "a", "/"));
}

#[test]
fn what_is_not_understood_makes_it_stricter() {
    let key = "request.auth.claims[group]";
    assert!(!ok(
        &tables(&[policy(Action::Allow, vec![when(key, &["x"], &[])])]),
        "a",
        "/"
    ));
    assert!(!ok(
        &tables(&[policy(Action::Allow, vec![when(key, &[], &["x"])])]),
        "a",
        "/"
    ));
    assert!(!ok(
        &tables(&[policy(Action::Deny, vec![when(key, &["x"], &[])])]),
        "a",
        "/"
    ));
    assert!(!ok(
        &tables(&[policy(Action::Deny, vec![when(key, &[], &["x"])])]),
        "a",
        "/"
    ));
}

#[test]
fn http_attributes_on_a_tcp_port_are_stricter() {
    assert!(!tcp_ok(
        &tables(&[policy(Action::Allow, vec![paths(&["/a"])])]),
        "a"
    ));
    assert!(!tcp_ok(
        &tables(&[policy(Action::Deny, vec![paths(&["/a"])])]),
        "a"
    ));
    let allow = policy(Action::Allow, vec![from("cluster.local/ns/default/sa/a")]);
    assert!(tcp_ok(&tables(std::slice::from_ref(&allow)), "a"));
    assert!(!tcp_ok(&tables(&[allow]), "b"));
}

#[test]
fn several_header_lines_cannot_hide_a_value() {
    let deny = tables(&[policy(
        Action::Deny,
        vec![when("request.headers[x-r]", &["bad"], &[])],
    )]);
    let allow = tables(&[policy(
        Action::Allow,
        vec![when("request.headers[x-r]", &["good"], &[])],
    )]);
    let not = tables(&[policy(
        Action::Allow,
        vec![when("request.headers[x-r]", &[], &["bad"])],
    )]);
    let lines = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-r", HeaderValue::from_static(value));
        }
        headers
    };
    let asks =
        |tables: &Tables, values: &[&'static str]| ask(tables, "a", "/", &lines(values)).is_ok();
    assert!(!asks(&deny, &["bad"]));
    assert!(!asks(&deny, &["good", "bad"]));
    assert!(!asks(&deny, &["good, bad"]));
    assert!(asks(&deny, &["good"]));
    assert!(asks(&allow, &["good"]));
    assert!(!asks(&allow, &["good", "bad"]));
    assert!(!asks(&allow, &["good,bad"]));
    assert!(!asks(&allow, &[]));
    assert!(asks(&not, &["good"]));
    assert!(asks(&not, &[]));
    assert!(!asks(&not, &["good,bad"]));
}

#[test]
fn an_empty_header_is_there() {
    let any = |action| {
        let mut rule = when("request.headers[x-r]", &["any"], &[]);
        rule.when[0].values[0].match_type = Some(MatchType::Present(true));
        tables(&[policy(action, vec![rule])])
    };
    let mut headers = HeaderMap::new();
    assert!(ask(&any(Action::Deny), "a", "/", &headers).is_ok());
    assert!(ask(&any(Action::Allow), "a", "/", &headers).is_err());
    headers.insert("x-r", HeaderValue::from_static(""));
    assert!(ask(&any(Action::Deny), "a", "/", &headers).is_err());
    assert!(ask(&any(Action::Allow), "a", "/", &headers).is_ok());
}

#[test]
fn the_host_is_the_authority_however_it_is_named() {
    let deny = |host: &str| {
        tables(&[policy(
            Action::Deny,
            vec![when("request.headers[host]", &[host], &[])],
        )])
    };
    let mut headers = HeaderMap::new();
    // What a request with a target in absolute form may carry besides.
    headers.insert("host", HeaderValue::from_static("other"));
    for (host, passes) in [("svc", false), ("svc:8080", false), ("other", true)] {
        let passed = ask(&deny(host), "a", "/", &headers).is_ok();
        assert_eq!(passed, passes, "{host}");
    }
}

#[test]
fn a_rule_may_name_the_default_port() {
    let headers = HeaderMap::new();
    let mut call = call("/", &headers);
    call.authority = "svc";
    for (host, passes) in [("svc:80", false), ("svc", false), ("svc:8080", true)] {
        let rule = to(proto::AuthorizationOperation {
            hosts: vec![exact(host)],
            ..Default::default()
        });
        let tables = tables(&[policy(Action::Deny, vec![rule])]);
        let passed = authorize_http(&tables, Some(&service()), &call, &caller("a")).is_ok();
        assert_eq!(passed, passes, "{host}");
    }
}

#[test]
fn hosts_ports_methods_and_accounts() {
    let one = |operation| tables(&[policy(Action::Allow, vec![to(operation)])]);
    let hosts = |h: &str| proto::AuthorizationOperation {
        hosts: vec![exact(h)],
        ..Default::default()
    };
    assert!(ok(&one(hosts("SVC")), "a", "/"));
    assert!(ok(&one(hosts("svc:8080")), "a", "/"));
    assert!(!ok(&one(hosts("other")), "a", "/"));
    let ports = |ports: &[u32]| proto::AuthorizationOperation {
        ports: ports.to_vec(),
        ..Default::default()
    };
    assert!(ok(&one(ports(&[8080])), "a", "/"));
    assert!(!ok(&one(ports(&[80])), "a", "/"));
    let methods = proto::AuthorizationOperation {
        not_methods: vec![exact("GET")],
        ..Default::default()
    };
    assert!(!ok(&one(methods), "a", "/"));
    for (account, yes) in [
        ("a", true),
        ("default/a", true),
        ("other/a", false),
        ("b", false),
    ] {
        let rule = when("source.serviceAccount", &[account], &[]);
        assert_eq!(
            ok(&tables(&[policy(Action::Allow, vec![rule])]), "a", "/"),
            yes
        );
    }
    let inside = when("source.ip", &["10.1.0.0/16"], &["10.1.9.0/24"]);
    assert!(ok(
        &tables(&[policy(Action::Allow, vec![inside])]),
        "a",
        "/"
    ));
}

fn observed(tables: &Tables, account: &str, path: &str) -> Vec<(String, Option<usize>, Outcome)> {
    let headers = HeaderMap::new();
    let call = call(path, &headers);
    let all = observe_http(tables, Some(&service()), &call, &caller(account));
    let short = |o: Observed| (o.policy.name.to_string(), o.rule, o.outcome);
    all.into_iter().map(short).collect()
}

#[test]
fn audit_changes_nothing_but_is_reported() {
    let with = tables(&[policy(Action::Audit, vec![paths(&["/a"])])]);
    assert!(ok(&with, "a", "/a"));
    let audit = ("audit".to_owned(), Some(0), Outcome::Audit);
    assert_eq!(observed(&with, "a", "/a"), [audit]);
    assert!(observed(&with, "a", "/b").is_empty());
}

#[test]
fn dry_runs_tell_what_they_would_do_and_do_nothing() {
    let dry = |action, rules| proto::Authorization {
        dry_run: true,
        ..policy(action, rules)
    };
    let deny = tables(&[dry(Action::Deny, vec![paths(&["/x"]), paths(&["/a"])])]);
    assert!(ok(&deny, "a", "/a"));
    let would = ("deny".to_owned(), Some(1), Outcome::WouldDeny);
    assert_eq!(observed(&deny, "a", "/a"), [would]);
    assert!(observed(&deny, "a", "/b").is_empty());

    let allow = |account: &str| vec![from(&format!("cluster.local/ns/default/sa/{account}"))];
    let dry_allow = dry(Action::Allow, allow("a"));
    let alone = tables(std::slice::from_ref(&dry_allow));
    assert!(ok(&alone, "b", "/"));
    let word = |account| {
        let all = observed(&alone, account, "/");
        all.into_iter()
            .map(|(_, _, outcome)| outcome)
            .collect::<Vec<_>>()
    };
    assert_eq!(word("a"), [Outcome::WouldAllow]);
    assert_eq!(word("b"), [Outcome::WouldDeny]);
    // Beside a policy in force that allows the call nothing would change.
    let mut other = policy(Action::Allow, allow("b"));
    other.name = "other".into();
    let both = tables(&[dry_allow, other]);
    assert!(observed(&both, "b", "/").is_empty());
    assert!(!ok(&both, "a", "/"));
    assert!(ok(&both, "b", "/"));

    let mut broken = dry(Action::Allow, vec![]);
    broken.unenforceable = "needs tokens".into();
    let broken = tables(&[broken]);
    assert!(ok(&broken, "a", "/"));
    assert_eq!(observed(&broken, "a", "/")[0].2, Outcome::WouldDeny);
}

#[test]
fn sources_by_trust_domain_and_by_the_client_behind_a_proxy() {
    let source = |change: fn(&mut proto::AuthorizationSource)| {
        let mut source = proto::AuthorizationSource::default();
        change(&mut source);
        proto::AuthorizationRule {
            from: vec![source],
            ..Default::default()
        }
    };
    let domain = source(|s| s.trust_domains = vec![exact("cluster.local")]);
    assert!(ok(
        &tables(&[policy(Action::Allow, vec![domain])]),
        "a",
        "/"
    ));
    let foreign = source(|s| s.not_trust_domains = vec![exact("cluster.local")]);
    assert!(!ok(
        &tables(&[policy(Action::Allow, vec![foreign])]),
        "a",
        "/"
    ));

    let inside = || source(|s| s.remote_ip_blocks = vec!["192.0.2.0/24".into()]);
    let allow = tables(&[policy(Action::Allow, vec![inside()])]);
    let deny = tables(&[policy(Action::Deny, vec![inside()])]);
    let key = when("remote.ip", &["192.0.2.0/24"], &[]);
    let by_key = tables(&[policy(Action::Allow, vec![key])]);
    for (lines, allowed, denied) in [
        (&["192.0.2.7"][..], true, true),
        (&["192.0.2.7", "10.0.0.1"], false, false),
        (&["10.0.0.1, 192.0.2.7"], true, true),
        (&["192.0.2.7:4711"], true, true),
        (&["192.0.2.7, 10.0.0.1"], false, false),
        // What is no address is stricter in both.
        (&["nobody"], false, true),
        (&[], false, false),
    ] {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_static(line));
        }
        let asks = |tables: &Tables| ask(tables, "a", "/", &headers).is_ok();
        assert_eq!((asks(&allow), !asks(&deny)), (allowed, denied), "{lines:?}");
        assert_eq!(asks(&by_key), allowed, "{lines:?}");
    }
}

#[test]
fn path_templates() {
    let allow = tables(&[policy(Action::Allow, vec![paths(&["/a/{*}/c", "/d/{**}"])])]);
    for (path, yes) in [
        ("/a/b/c", true),
        ("/a/b/x/c", false),
        ("/d/x/y", true),
        ("/e", false),
    ] {
        assert_eq!(ok(&allow, "a", path), yes, "{path}");
    }
}

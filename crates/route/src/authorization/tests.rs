use http::{HeaderMap, HeaderValue, Method};

use super::*;
use proto::authorization::Action;
use proto::value_match::MatchType;

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

fn ask(tables: &Tables, account: &str, path: &str, headers: &HeaderMap) -> Result<Permit, Denied> {
    let call = HttpCall {
        method: &Method::GET,
        path,
        query: None,
        authority: "svc:8080",
        written_authority: "svc:8080",
        scheme: "http",
        headers,
        destination: ([10, 96, 0, 1], 8080).into(),
    };
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

#[test]
fn audit_changes_nothing_but_is_reported() {
    let with = tables(&[policy(Action::Audit, vec![paths(&["/a"])])]);
    let permit = ask(&with, "a", "/a", &HeaderMap::new()).unwrap();
    assert_eq!(permit.audited().unwrap().rule, 0);
    assert!(
        ask(&with, "a", "/b", &HeaderMap::new())
            .unwrap()
            .audited()
            .is_none()
    );
}

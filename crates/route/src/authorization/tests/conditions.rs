//! What each key of a condition asks for, and which values mean nothing.

use super::*;

fn allowed(rule: proto::AuthorizationRule) -> bool {
    ok(&tables(&[policy(Action::Allow, vec![rule])]), "a", "/")
}

fn problem(rule: proto::AuthorizationRule) -> Option<String> {
    let policy = Policy::compile(&policy(Action::Deny, vec![rule]));
    policy.unenforceable().map(str::to_owned)
}

#[test]
fn every_key_asks_for_its_own_attribute() {
    for (key, holds, fails) in [
        (
            "source.principal",
            "cluster.local/ns/default/sa/a",
            "cluster.local/ns/default/sa/b",
        ),
        (
            "source.principal",
            "spiffe://cluster.local/ns/default/sa/a",
            "spiffe://other/ns/default/sa/a",
        ),
        ("source.namespace", "default", "other"),
        ("source.trustDomain", "cluster.local", "other"),
        ("source.ip", "10.1.2.3", "10.1.2.4"),
        ("destination.ip", "10.96.0.0/16", "10.97.0.0/16"),
        ("destination.port", "8080", "80"),
    ] {
        assert!(allowed(when(key, &[holds], &[])), "{key} {holds}");
        assert!(!allowed(when(key, &[fails], &[])), "{key} {fails}");
        assert!(allowed(when(key, &[], &[fails])), "{key} not {fails}");
    }
}

#[test]
fn a_server_name_is_asked_of_the_connection() {
    let asks = |action, sni| {
        let rule = when("connection.sni", &["Shop.example"], &[]);
        let call = TcpCall {
            destination: ([10, 96, 0, 1], 443).into(),
            sni,
        };
        let tables = tables(&[policy(action, vec![rule])]);
        authorize_tcp(&tables, Some(&service()), &call, &caller("a")).is_ok()
    };
    assert!(asks(Action::Allow, Some("shop.example")));
    assert!(!asks(Action::Allow, Some("bank.example")));
    assert!(asks(Action::Deny, Some("bank.example")));
    // Nobody knows which server was meant.
    assert!(!asks(Action::Allow, None) && !asks(Action::Deny, None));
}

#[test]
fn a_value_that_means_nothing_is_named() {
    for (key, value) in [
        ("destination.port", "http"),
        ("destination.port", "65536"),
        ("destination.ip", "ten"),
        ("source.serviceAccount", "default/"),
        ("source.serviceAccount", "a/b/c"),
    ] {
        let why = problem(when(key, &[value], &[])).unwrap_or_default();
        assert!(why.starts_with("rules[0]: "), "{key} {value}: {why}");
    }
    assert_eq!(problem(when("source.serviceAccount", &["a"], &[])), None);
}

#[test]
fn only_a_star_in_braces_makes_a_path_template() {
    let path = |kind| {
        to(proto::AuthorizationOperation {
            paths: vec![proto::ValueMatch {
                match_type: Some(kind),
            }],
            ..Default::default()
        })
    };
    let passes = |kind, at: &str| ok(&tables(&[policy(Action::Allow, vec![path(kind)])]), "a", at);
    assert!(passes(MatchType::Exact("/a/{x}".into()), "/a/{x}"));
    assert!(!passes(MatchType::Exact("/a/{x}".into()), "/a/b"));
    assert!(passes(MatchType::Prefix("/a".into()), "/ab"));
    let mixed = problem(path(MatchType::Prefix("/a/{*}/b".into())));
    assert!(mixed.is_some_and(|why| why.contains("mixes a path template with a star")));
}

#[test]
fn a_permit_names_the_rule_and_a_policy_its_action() {
    let rules = vec![
        from("cluster.local/ns/default/sa/b"),
        from("cluster.local/ns/default/sa/a"),
    ];
    let allow = tables(&[policy(Action::Allow, rules)]);
    let permit = ask(&allow, "a", "/", &HeaderMap::new()).unwrap();
    let rule = permit.allowed_by().unwrap();
    assert_eq!((&*rule.policy.to_string(), rule.rule), ("default/allow", 1));
    let unasked = ask(&Tables::default(), "a", "/", &HeaderMap::new()).unwrap();
    assert_eq!(unasked.allowed_by(), None);
    for (action, word) in [
        (Action::Allow, "ALLOW"),
        (Action::Deny, "DENY"),
        (Action::Audit, "AUDIT"),
    ] {
        let policy = Policy::compile(&policy(action, vec![]));
        assert_eq!((policy.action(), policy.unenforceable()), (word, None));
    }
    let mut refused = policy(Action::Allow, vec![]);
    refused.unenforceable = "needs tokens".into();
    let refused = Policy::compile(&refused);
    let said = (refused.action(), refused.unenforceable());
    assert_eq!(said, ("REFUSE", Some("needs tokens")));
}

//! What is told of a decision: the reason, the snapshot, and what is only tried out.

use super::*;

fn refused(policy: sec::Authorization, who: Option<(&str, &str)>) -> Reason {
    let snapshot = with_policies(&[of_workload(target())], &[policy]);
    let workload = snapshot.workloads().next().unwrap();
    let peer = peer(who, "10.0.9.9");
    let denied = authorize(&snapshot, &peer, workload, at("10.0.0.1:80"));
    denied.unwrap_err().reason
}

#[test]
fn plaintext_is_the_reason_only_where_an_identity_is_all_that_is_missing() {
    let deny = |matches: Vec<sec::Match>| {
        let mut deny = policy("shop", "d", Scope::Namespace, Deny, vec![]);
        let clauses = vec![sec::Clause { matches }];
        deny.rules = vec![sec::Rule { clauses }];
        deny
    };
    let no_plaintext = || deny(vec![no_principal()]);
    let by_port = || deny(vec![ports(&[80])]);
    let either = || deny(vec![no_principal(), ports(&[80])]);
    assert_eq!(refused(no_plaintext(), None), Reason::PlaintextRefused);
    assert_eq!(refused(by_port(), None), Reason::PolicyDenied);
    assert_eq!(refused(by_port(), FRONT), Reason::PolicyDenied);
    // It wants an identity, and this caller has one.
    assert_eq!(refused(either(), FRONT), Reason::PolicyDenied);
    assert_eq!(refused(either(), None), Reason::PlaintextRefused);
}

#[test]
fn a_permit_names_the_snapshot_it_was_given_on() {
    let mut snapshot = with_policies(&[of_workload(target())], &[]);
    for _ in 0..3 {
        snapshot = snapshot.draft().finish();
    }
    let workload = snapshot.workloads().next().unwrap();
    let peer = peer(FRONT, "10.0.9.9");
    let permit = authorize(&snapshot, &peer, workload, at("10.0.0.1:80")).unwrap();
    assert_eq!(permit.version(), 4);
}

#[test]
fn a_dry_run_says_whether_it_would_have_refused() {
    let key = || NamespacedName::parse("shop/p");
    for (policy, action, refuses) in [
        (key(), Action::Deny, true),
        (key(), Action::Allow, false),
        (None, Action::Allow, true),
    ] {
        let run = DryRun { policy, action };
        let reason = refuses.then_some(Reason::PolicyDenied);
        assert_eq!(run.refusal(), reason, "{run:?}");
    }
}

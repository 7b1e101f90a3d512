//! What policies tell without deciding anything: audits and dry runs.

use isobar_types::{NamespacedHostname, NamespacedName};

use crate::authorization::{Effect, Subject};
use crate::call::{Caller, HttpCall, TcpCall};
use crate::condition::Lean;
use crate::table::Tables;

/// What a policy would have said of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The object.
    pub policy: NamespacedName,
    /// Place of its rule that matched, where one did.
    pub rule: Option<usize>,
    /// What it would have said.
    pub outcome: Outcome,
}

/// What a policy would have said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An AUDIT rule matched.
    Audit,
    /// A dry run: the call would be refused.
    WouldDeny,
    /// A dry run: the policy allows the call.
    WouldAllow,
}

impl Outcome {
    /// Word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::WouldDeny => "would_deny",
            Self::WouldAllow => "would_allow",
        }
    }
}

/// What audits and dry runs say of a request; to be asked once for each. Nothing is allocated where
/// there are none.
#[must_use]
pub fn observe_http(
    tables: &Tables,
    service: Option<&NamespacedHostname>,
    call: &HttpCall<'_>,
    caller: &Caller,
) -> Vec<Observed> {
    if !tables.observes() {
        return Vec::new();
    }
    observe(tables, service, &Subject::of_http(call, caller))
}

/// As [`observe_http`] for an opaque connection.
#[must_use]
pub fn observe_tcp(
    tables: &Tables,
    service: Option<&NamespacedHostname>,
    call: &TcpCall<'_>,
    caller: &Caller,
) -> Vec<Observed> {
    if !tables.observes() {
        return Vec::new();
    }
    observe(tables, service, &Subject::of_tcp(call, caller))
}

fn observe(
    tables: &Tables,
    service: Option<&NamespacedHostname>,
    subject: &Subject<'_>,
) -> Vec<Observed> {
    // In force or not, one ALLOW rule is enough.
    let mut allows = tables
        .policies_of(service)
        .filter(|p| p.effect == Effect::Allow);
    let allowed = allows.any(|p| p.matching_rule(subject, Lean::Certain).is_some());
    let mut out = Vec::new();
    for policy in tables.policies_of(service).filter(|p| p.observes()) {
        let lean = match policy.effect {
            Effect::Deny => Lean::Possible,
            _ => Lean::Certain,
        };
        let rule = policy.matching_rule(subject, lean);
        let outcome = match (&policy.effect, rule) {
            (Effect::Audit, Some(_)) => Outcome::Audit,
            (Effect::Allow, Some(_)) => Outcome::WouldAllow,
            (Effect::Deny, Some(_)) | (Effect::Refuse(_), _) => Outcome::WouldDeny,
            (Effect::Allow, None) if !allowed => Outcome::WouldDeny,
            (Effect::Allow | Effect::Audit | Effect::Deny, None) => continue,
        };
        out.push(Observed {
            policy: policy.name.clone(),
            rule,
            outcome,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use isobar_proto::isobar::v1 as proto;
    use proto::authorization::Action;

    use super::*;
    use crate::http_match::tests::caller;

    fn tables(dry_run: bool, action: Action, sni: &str) -> Tables {
        let mut draft = Tables::default().draft();
        let name = proto::ValueMatch {
            match_type: Some(proto::value_match::MatchType::Exact(sni.into())),
        };
        draft.upsert_policy(&proto::Authorization {
            namespace: "ns".into(),
            name: "p".into(),
            action: action.into(),
            whole_waypoint: true,
            dry_run,
            rules: vec![proto::AuthorizationRule {
                when: vec![proto::AuthorizationCondition {
                    key: "connection.sni".into(),
                    values: vec![name],
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        });
        draft.finish()
    }

    fn said(tables: &Tables) -> Vec<&'static str> {
        let call = TcpCall {
            destination: ([10, 0, 0, 1], 80).into(),
            sni: Some("a.example"),
        };
        let all = observe_tcp(tables, None, &call, &caller());
        all.into_iter().map(|one| one.outcome.as_str()).collect()
    }

    #[test]
    fn connections_are_watched_as_requests_are() {
        let mine = "a.example";
        for (dry_run, action, sni, expect) in [
            (false, Action::Audit, mine, &["audit"][..]),
            (false, Action::Audit, "b.example", &[]),
            (true, Action::Deny, mine, &["would_deny"]),
            (true, Action::Deny, "b.example", &[]),
            (true, Action::Allow, mine, &["would_allow"]),
            (true, Action::Allow, "b.example", &["would_deny"]),
            (false, Action::Deny, mine, &[]),
        ] {
            let tables = tables(dry_run, action, sni);
            assert_eq!(said(&tables), expect, "{dry_run} {action:?} {sni}");
        }
        assert!(said(&Tables::default()).is_empty());
    }
}

use std::net::SocketAddr;
use std::sync::Arc;

use isobar_proto::isobar::v1 as proto;
use isobar_types::{Identity, NamespacedHostname, NamespacedName};

use crate::call::{Caller, HttpCall, TcpCall};
use crate::condition::{Lean, Rule};
use crate::table::Tables;

/// A compiled `AuthorizationPolicy`. Compiling never fails: what cannot be enforced as written is
/// kept as a policy that refuses everything it targets, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The object.
    pub name: NamespacedName,
    /// Applies to all traffic of the waypoint.
    pub whole_waypoint: bool,
    /// Otherwise to these services only.
    pub services: Vec<NamespacedHostname>,
    /// Evaluated and reported, not enforced.
    pub dry_run: bool,
    pub(crate) effect: Effect,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    Allow,
    Deny,
    Audit,
    Refuse(String),
}

/// Proof that every policy was asked; only this module makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    allowed_by: Option<MatchedRule>,
}

/// A policy and the place of its rule that matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchedRule {
    /// The object.
    pub policy: NamespacedName,
    /// Place of the rule.
    pub rule: usize,
}

impl Permit {
    /// The ALLOW rule that matched; `None` where no ALLOW policy applies.
    #[must_use]
    pub fn allowed_by(&self) -> Option<&MatchedRule> {
        self.allowed_by.as_ref()
    }
}

/// Why a call is refused (403, flag `RBAC`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A DENY rule matched.
    #[error("rule {rule} of the DENY policy {policy} matched")]
    Matched {
        /// The object.
        policy: NamespacedName,
        /// Place of the rule.
        rule: usize,
    },
    /// ALLOW policies apply and none of their rules matched.
    #[error("no rule of the ALLOW policies matched")]
    NotAllowed,
    /// A policy that cannot be enforced applies.
    #[error("the policy {policy} cannot be enforced as written: {problem}")]
    Unenforceable {
        /// The object.
        policy: NamespacedName,
        /// Why.
        problem: String,
    },
}

impl Denied {
    /// Envoy's response code detail, which log parsers know.
    #[must_use]
    pub fn code_detail(&self) -> String {
        let inner = match self {
            Self::Matched { policy, rule } => rule_key(policy, *rule),
            Self::NotAllowed => "none".to_owned(),
            Self::Unenforceable { policy, .. } => rule_key(policy, 0),
        };
        format!("rbac_access_denied_matched_policy[{inner}]")
    }
}

fn rule_key(policy: &NamespacedName, rule: usize) -> String {
    format!(
        "ns[{}]-policy[{}]-rule[{rule}]",
        policy.namespace, policy.name
    )
}

impl Policy {
    /// Compiles one resource.
    #[must_use]
    pub fn compile(from: &proto::Authorization) -> Self {
        use proto::authorization::Action;
        let rules: Result<Vec<_>, String> = from
            .rules
            .iter()
            .enumerate()
            .map(|(at, rule)| {
                Rule::compile(rule, &from.namespace).map_err(|why| format!("rules[{at}]: {why}"))
            })
            .collect();
        let refuse = |why: String| (Effect::Refuse(why), Vec::new());
        let (effect, rules) = match (Action::try_from(from.action), rules) {
            _ if !from.unenforceable.is_empty() => refuse(from.unenforceable.clone()),
            (Err(_), _) => refuse(format!("action {} is not known to this proxy", from.action)),
            (Ok(_), Err(why)) => refuse(why),
            (Ok(Action::Allow), Ok(rules)) => (Effect::Allow, rules),
            (Ok(Action::Deny), Ok(rules)) => (Effect::Deny, rules),
            (Ok(Action::Audit), Ok(rules)) => (Effect::Audit, rules),
        };
        Self {
            name: NamespacedName {
                namespace: from.namespace.as_str().into(),
                name: from.name.as_str().into(),
            },
            whole_waypoint: from.whole_waypoint,
            services: from
                .services
                .iter()
                .map(crate::virtual_service::service_key)
                .collect(),
            dry_run: from.dry_run,
            effect,
            rules,
        }
    }

    /// `ALLOW`, `DENY`, `AUDIT`, or `REFUSE` for a policy that cannot be enforced.
    #[must_use]
    pub const fn action(&self) -> &'static str {
        match self.effect {
            Effect::Allow => "ALLOW",
            Effect::Deny => "DENY",
            Effect::Audit => "AUDIT",
            Effect::Refuse(_) => "REFUSE",
        }
    }

    /// Why the policy cannot be enforced, if it cannot.
    #[must_use]
    pub fn unenforceable(&self) -> Option<&str> {
        match &self.effect {
            Effect::Refuse(why) => Some(why),
            _ => None,
        }
    }

    /// True if it has something to tell without deciding anything.
    pub(crate) fn observes(&self) -> bool {
        self.dry_run || self.effect == Effect::Audit
    }

    pub(crate) fn matching_rule(&self, subject: &Subject<'_>, lean: Lean) -> Option<usize> {
        self.rules.iter().position(|rule| rule.holds(subject, lean))
    }
}

/// Everything a rule may ask about.
pub(crate) struct Subject<'a> {
    pub(crate) caller: &'a Caller,
    principal: Option<String>,
    pub(crate) destination: SocketAddr,
    pub(crate) http: Option<&'a HttpCall<'a>>,
    pub(crate) sni: Option<&'a str>,
}

impl<'a> Subject<'a> {
    fn new(caller: &'a Caller, destination: SocketAddr) -> Self {
        Self {
            caller,
            principal: caller.identity.as_ref().map(Identity::principal),
            destination,
            http: None,
            sni: None,
        }
    }

    pub(crate) fn of_http(call: &'a HttpCall<'a>, caller: &'a Caller) -> Self {
        let mut subject = Self::new(caller, call.destination);
        subject.http = Some(call);
        subject
    }

    pub(crate) fn of_tcp(call: &TcpCall<'a>, caller: &'a Caller) -> Self {
        let mut subject = Self::new(caller, call.destination);
        subject.sni = call.sni;
        subject
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.caller.identity.as_ref()
    }

    pub(crate) fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }
}

/// Asks the policies that apply to a request for `service` (`None`: a call to a pod's own address,
/// to which only policies for the whole waypoint apply).
///
/// # Errors
/// [`Denied`], by the first DENY rule that matches, or because no ALLOW rule does.
pub fn authorize_http(
    tables: &Tables,
    service: Option<&NamespacedHostname>,
    call: &HttpCall<'_>,
    caller: &Caller,
) -> Result<Permit, Denied> {
    if !tables.has_policies(service) {
        return Ok(UNASKED);
    }
    decide(tables, service, &Subject::of_http(call, caller))
}

/// As [`authorize_http`] for an opaque connection: an attribute that only HTTP has never matches in
/// ALLOW and always does in DENY.
///
/// # Errors
/// As [`authorize_http`].
pub fn authorize_tcp(
    tables: &Tables,
    service: Option<&NamespacedHostname>,
    call: &TcpCall<'_>,
    caller: &Caller,
) -> Result<Permit, Denied> {
    if !tables.has_policies(service) {
        return Ok(UNASKED);
    }
    decide(tables, service, &Subject::of_tcp(call, caller))
}

const UNASKED: Permit = Permit { allowed_by: None };

fn decide(
    tables: &Tables,
    service: Option<&NamespacedHostname>,
    subject: &Subject<'_>,
) -> Result<Permit, Denied> {
    for policy in tables.policies_of(service).filter(|p| !p.dry_run) {
        match &policy.effect {
            Effect::Refuse(problem) => {
                return Err(Denied::Unenforceable {
                    policy: policy.name.clone(),
                    problem: problem.clone(),
                });
            }
            Effect::Deny => {
                if let Some(rule) = policy.matching_rule(subject, Lean::Possible) {
                    return Err(Denied::Matched {
                        policy: policy.name.clone(),
                        rule,
                    });
                }
            }
            Effect::Allow | Effect::Audit => {}
        }
    }
    allowed(tables, service, subject)
}

fn allowed(
    tables: &Tables,
    service: Option<&NamespacedHostname>,
    subject: &Subject<'_>,
) -> Result<Permit, Denied> {
    let mut any = false;
    let enforced = |p: &&Arc<Policy>| p.effect == Effect::Allow && !p.dry_run;
    for policy in tables.policies_of(service).filter(enforced) {
        any = true;
        if let Some(rule) = policy.matching_rule(subject, Lean::Certain) {
            return Ok(Permit {
                allowed_by: Some(MatchedRule {
                    policy: policy.name.clone(),
                    rule,
                }),
            });
        }
    }
    if any {
        Err(Denied::NotAllowed)
    } else {
        Ok(UNASKED)
    }
}

#[cfg(test)]
mod tests;

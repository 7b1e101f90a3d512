use ipnet::IpNet;
use isobar_proto::isobar::v1::AuditedRules;
use isobar_proto::istio::security as wire;
use isobar_proto::type_url;
use isobar_types::NamespacedName;
use prost::Message;

use super::fields::{known, net, port, required};
use super::{ConvertError, Interner};
use crate::policy::{
    Action, Authorization, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, TextMatch,
};

/// Converts a policy. Nothing in it may be dropped: a list that loses an entry can become empty,
/// and an empty list matches everything.
///
/// # Errors
/// When a field cannot be understood.
pub fn authorization(
    a: &wire::Authorization,
    interner: &mut Interner,
) -> Result<Authorization, ConvertError> {
    let audited = audited(a)?;
    let written = audited.as_ref().map_or(&a.rules, |audit| &audit.rules);
    let mut rules = Vec::with_capacity(written.len());
    for (r, rule) in written.iter().enumerate() {
        let mut clauses = Vec::with_capacity(rule.clauses.len());
        for (c, clause) in rule.clauses.iter().enumerate() {
            let mut matches = Vec::with_capacity(clause.matches.len());
            for (m, one) in clause.matches.iter().enumerate() {
                let path = format!("rules[{r}].clauses[{c}].matches[{m}]");
                matches.push(match_of(&path, one, interner)?);
            }
            clauses.push(Clause { matches });
        }
        rules.push(Rule { clauses });
    }
    Ok(Authorization {
        key: NamespacedName {
            namespace: required("namespace", &a.namespace, interner)?,
            name: required("name", &a.name, interner)?,
        },
        scope: match known("scope", a.scope)? {
            wire::Scope::Global => PolicyScope::Global,
            wire::Scope::Namespace => PolicyScope::Namespace,
            wire::Scope::WorkloadSelector => PolicyScope::WorkloadSelector,
        },
        action: match known("action", a.action)? {
            wire::Action::Allow => Action::Allow,
            wire::Action::Deny => Action::Deny,
        },
        rules,
        dry_run: a.dry_run || audited.is_some(),
    })
}

/// Rules that are only to be audited: in an extension, of a policy without rules of its own.
fn audited(a: &wire::Authorization) -> Result<Option<AuditedRules>, ConvertError> {
    let is_it = |config: &&prost_types::Any| config.type_url == type_url::AUDITED_RULES;
    let config = a.extensions.iter().filter_map(|e| e.config.as_ref());
    match config.into_iter().find(is_it) {
        Some(config) if a.rules.is_empty() => AuditedRules::decode(&config.value[..])
            .map(Some)
            .map_err(|_| ConvertError::Malformed {
                field: "extensions".to_owned(),
            }),
        _ => Ok(None),
    }
}

/// What stands in for a policy that cannot be read where no earlier version of it is known: it
/// refuses whatever the policy applies to. Leaving the policy out would let through what it forbids.
/// `None` where not even its kind and place can be told.
pub(crate) fn closed(a: &wire::Authorization, interner: &mut Interner) -> Option<Authorization> {
    let shell = wire::Authorization {
        rules: Vec::new(),
        ..a.clone()
    };
    let mut closed = authorization(&shell, interner).ok()?;
    match closed.action {
        // Without rules it allows nothing, and that it exists refuses the rest.
        Action::Allow => {}
        Action::Deny => closed.rules.push(Rule {
            clauses: Vec::new(),
        }),
    }
    Some(closed)
}

fn match_of(path: &str, m: &wire::Match, interner: &mut Interner) -> Result<Match, ConvertError> {
    Ok(Match {
        namespaces: texts(path, "namespaces", &m.namespaces, interner)?,
        not_namespaces: texts(path, "not_namespaces", &m.not_namespaces, interner)?,
        principals: texts(path, "principals", &m.principals, interner)?,
        not_principals: texts(path, "not_principals", &m.not_principals, interner)?,
        source_ips: nets(path, "source_ips", &m.source_ips)?,
        not_source_ips: nets(path, "not_source_ips", &m.not_source_ips)?,
        destination_ips: nets(path, "destination_ips", &m.destination_ips)?,
        not_destination_ips: nets(path, "not_destination_ips", &m.not_destination_ips)?,
        destination_ports: ports(path, "destination_ports", &m.destination_ports)?,
        not_destination_ports: ports(path, "not_destination_ports", &m.not_destination_ports)?,
        service_accounts: accounts(path, "service_accounts", &m.service_accounts, interner)?,
        not_service_accounts: accounts(
            path,
            "not_service_accounts",
            &m.not_service_accounts,
            interner,
        )?,
    })
}

fn texts(
    path: &str,
    list: &str,
    texts: &[wire::StringMatch],
    interner: &mut Interner,
) -> Result<Vec<TextMatch>, ConvertError> {
    use wire::string_match::MatchType;
    let one = |(at, text): (usize, &wire::StringMatch)| match &text.match_type {
        Some(MatchType::Exact(t)) => Ok(TextMatch::Exact(interner.intern(t))),
        Some(MatchType::Prefix(t)) => Ok(TextMatch::Prefix(interner.intern(t))),
        Some(MatchType::Suffix(t)) => Ok(TextMatch::Suffix(interner.intern(t))),
        Some(MatchType::Presence(())) => Ok(TextMatch::Presence),
        None => Err(ConvertError::Missing {
            field: format!("{path}.{list}[{at}].match_type"),
        }),
    };
    texts.iter().enumerate().map(one).collect()
}

fn nets(path: &str, list: &str, nets: &[wire::Address]) -> Result<Vec<IpNet>, ConvertError> {
    nets.iter()
        .enumerate()
        .map(|(at, a)| net(&format!("{path}.{list}[{at}]"), &a.address, a.length))
        .collect()
}

fn ports(path: &str, list: &str, ports: &[u32]) -> Result<Vec<u16>, ConvertError> {
    ports
        .iter()
        .enumerate()
        .map(|(at, value)| port(&format!("{path}.{list}[{at}]"), *value))
        .collect()
}

fn accounts(
    path: &str,
    list: &str,
    accounts: &[wire::ServiceAccountMatch],
    interner: &mut Interner,
) -> Result<Vec<ServiceAccountMatch>, ConvertError> {
    accounts
        .iter()
        .enumerate()
        .map(|(at, a)| {
            let field = format!("{path}.{list}[{at}]");
            Ok(ServiceAccountMatch {
                namespace: required(&format!("{field}.namespace"), &a.namespace, interner)?,
                service_account: required(
                    &format!("{field}.serviceAccount"),
                    &a.service_account,
                    interner,
                )?,
            })
        })
        .collect()
}

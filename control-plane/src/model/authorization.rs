//! AuthorizationPolicy without `targetRefs`, as the L4 policy that node proxies enforce. What
//! cannot be expressed at L4 makes the policy stricter than written, never looser.

use std::collections::BTreeMap;
use std::net::IpAddr;

use isobar_objects::istio::{
    Action, AuthorizationPolicy, Operation, Rule, Source, WorkloadSelector,
};
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::istio::security as wire;
use isobar_proto::istio::security::string_match::MatchType;
use isobar_types::labels::DRY_RUN;

use super::pods::PodFacts;
use super::verdict::{Severity, Verdict};

/// Condition type for what node proxies do with a policy.
pub(crate) const CONDITION: &str = "ZtunnelAccepted";

/// What node proxies get for one policy.
#[derive(Debug)]
pub(crate) struct L4Policy {
    /// Nothing if the policy is not for node proxies.
    pub(crate) wire: Option<wire::Authorization>,
    /// What to tell.
    pub(crate) verdict: Option<Verdict>,
}

/// Why a value cannot be enforced as written.
struct Unenforceable(String);

/// Converts one policy.
pub(crate) fn convert(policy: &AuthorizationPolicy, root: &str) -> L4Policy {
    if policy.spec.targets().next().is_some() {
        return L4Policy {
            wire: None,
            verdict: None,
        };
    }
    let object = policy.reference();
    let nothing = |text: &str| L4Policy {
        wire: None,
        verdict: Some(
            Verdict::fails(object.clone(), CONDITION, "UnsupportedValue", text)
                .severity(Severity::Warning),
        ),
    };
    if policy.annotation(DRY_RUN) == Some("true") {
        return nothing("dry run: the policy is not enforced");
    }
    let refuse = |text: String| {
        let text = format!("{text}; the policy's workloads refuse everything");
        L4Policy {
            wire: Some(wire_policy(
                policy,
                root,
                wire::Action::Deny,
                vec![everything()],
            )),
            verdict: Some(Verdict::fails(
                object.clone(),
                CONDITION,
                "UnsupportedValue",
                text,
            )),
        }
    };
    let action = match policy.spec.action {
        Action::Allow => wire::Action::Allow,
        Action::Deny => wire::Action::Deny,
        Action::Audit => return nothing("action AUDIT changes nothing at L4"),
        Action::Custom => {
            let text = "action CUSTOM is not supported, at a waypoint \
                        the filter ExternalAuth of an HTTPRoute asks an authoriser";
            return refuse(text.into());
        }
    };
    match rules(policy, action) {
        Err(Unenforceable(text)) => refuse(text),
        Ok((rules, dropped)) => L4Policy {
            wire: Some(wire_policy(policy, root, action, rules)),
            verdict: Some(accepted(policy, action, &dropped)),
        },
    }
}

/// All policies of node proxies, converted once and ready to be asked about pods.
pub(crate) struct L4Policies<'a> {
    root: String,
    /// Messages.
    pub(crate) wire: Vec<wire::Authorization>,
    selective: BTreeMap<&'a str, Vec<(&'a WorkloadSelector, String)>>,
}

impl<'a> L4Policies<'a> {
    /// Converts every policy; tells what cannot be enforced as written.
    pub(crate) fn read(set: &'a ObjectSet, root: &str, verdicts: &mut Vec<Verdict>) -> Self {
        let mut all = Self {
            root: root.to_owned(),
            wire: Vec::new(),
            selective: BTreeMap::new(),
        };
        for policy in set.authorization_policies.iter() {
            let converted = convert(policy, root);
            verdicts.extend(converted.verdict);
            let Some(wire) = converted.wire else { continue };
            if let Some(selector) = &policy.spec.selector {
                let key = format!("{}/{}", policy.namespace(), policy.name());
                let entry = all.selective.entry(policy.namespace()).or_default();
                entry.push((selector, key));
            }
            all.wire.push(wire);
        }
        all
    }

    /// Only what decides about pods of one namespace; messages are left out.
    pub(crate) fn selecting(set: &'a ObjectSet, root: &str, namespace: &str) -> Self {
        let mut all = Self {
            root: root.to_owned(),
            wire: Vec::new(),
            selective: BTreeMap::new(),
        };
        let own = set.authorization_policies.in_namespace(namespace);
        let of_root = set.authorization_policies.in_namespace(root);
        for policy in own.chain(of_root.filter(|_| namespace != root)) {
            if let Some(selector) = &policy.spec.selector
                && convert(policy, root).wire.is_some()
            {
                let key = format!("{}/{}", policy.namespace(), policy.name());
                let entry = all.selective.entry(policy.namespace()).or_default();
                entry.push((selector, key));
            }
        }
        all
    }

    /// Keys of the policies whose selector takes the pod: those of its namespace and of the root.
    pub(crate) fn keys_for(&self, pod: &PodFacts<'_>) -> Vec<String> {
        let namespace = &*pod.key.namespace;
        let own = self.selective.get(namespace);
        let root = self
            .selective
            .get(&*self.root)
            .filter(|_| namespace != self.root);
        own.into_iter()
            .chain(root)
            .flatten()
            .filter(|(selector, _)| selector.selects(pod.labels))
            .map(|(_, key)| key.clone())
            .collect()
    }
}

fn accepted(policy: &AuthorizationPolicy, action: wire::Action, dropped: &[String]) -> Verdict {
    let object = policy.reference();
    if dropped.is_empty() {
        return Verdict::holds(object, CONDITION, "Accepted", "enforced by node proxies");
    }
    let list = dropped.join(", ");
    let text = match action {
        wire::Action::Allow => format!(
            "node proxies cannot see {list}; ALLOW rules with them never match, \
             so what they would allow is refused: use targetRefs and a waypoint"
        ),
        wire::Action::Deny => format!(
            "node proxies cannot see {list}; DENY rules with them are enforced without, \
             so more is refused than written: use targetRefs and a waypoint"
        ),
    };
    Verdict::holds(object, CONDITION, "UnsupportedValue", text).severity(Severity::Error)
}

fn wire_policy(
    policy: &AuthorizationPolicy,
    root: &str,
    action: wire::Action,
    rules: Vec<wire::Rule>,
) -> wire::Authorization {
    let scope = if policy.spec.selector.is_some() {
        wire::Scope::WorkloadSelector
    } else if policy.namespace() == root {
        wire::Scope::Global
    } else {
        wire::Scope::Namespace
    };
    wire::Authorization {
        name: policy.name().to_owned(),
        namespace: policy.namespace().to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules,
        ..wire::Authorization::default()
    }
}

/// A rule that matches every connection, by a match that is not empty: empty ones never match.
pub(crate) fn everything() -> wire::Rule {
    let any = |address: Vec<u8>| wire::Address { address, length: 0 };
    let both = wire::Match {
        source_ips: vec![any(vec![0; 4]), any(vec![0; 16])],
        ..wire::Match::default()
    };
    wire::Rule {
        clauses: vec![wire::Clause {
            matches: vec![both],
        }],
    }
}

/// The rules, and the attributes that node proxies cannot see.
fn rules(
    policy: &AuthorizationPolicy,
    action: wire::Action,
) -> Result<(Vec<wire::Rule>, Vec<String>), Unenforceable> {
    let mut rules = Vec::new();
    let mut dropped = Vec::new();
    for rule in &policy.spec.rules {
        let mut unseen = Vec::new();
        let clauses = clauses(rule, policy.namespace(), &mut unseen)?;
        let keep = unseen.is_empty() || action == wire::Action::Deny;
        dropped.append(&mut unseen);
        if !keep {
            continue;
        }
        rules.push(if clauses.is_empty() {
            everything()
        } else {
            wire::Rule { clauses }
        });
    }
    dropped.sort_unstable();
    dropped.dedup();
    Ok((rules, dropped))
}

/// One clause for `from`, one for `to`, one for each condition. A list of which one entry is
/// satisfied by everything is satisfied by everything, and gives no clause.
fn clauses(
    rule: &Rule,
    namespace: &str,
    unseen: &mut Vec<String>,
) -> Result<Vec<wire::Clause>, Unenforceable> {
    let mut clauses = Vec::new();
    let mut push = |matches: Vec<wire::Match>| {
        let empty = wire::Match::default();
        if !matches.is_empty() && !matches.contains(&empty) {
            clauses.push(wire::Clause { matches });
        }
    };
    let from = rule.from.iter().map(|from| match &from.source {
        Some(source) => source_match(source, namespace, unseen),
        None => Ok(wire::Match::default()),
    });
    push(from.collect::<Result<_, _>>()?);
    let to = rule.to.iter().map(|to| match &to.operation {
        Some(operation) => operation_match(operation, unseen),
        None => Ok(wire::Match::default()),
    });
    push(to.collect::<Result<_, _>>()?);
    for condition in &rule.when {
        push(condition_match(condition, namespace, unseen)?);
    }
    Ok(clauses)
}

fn source_match(
    source: &Source,
    namespace: &str,
    unseen: &mut Vec<String>,
) -> Result<wire::Match, Unenforceable> {
    for (name, values) in [
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ] {
        if !values.is_empty() {
            unseen.push(name.to_owned());
        }
    }
    Ok(wire::Match {
        principals: texts(&source.principals)?,
        not_principals: texts(&source.not_principals)?,
        namespaces: texts(&source.namespaces)?,
        not_namespaces: texts(&source.not_namespaces)?,
        source_ips: networks(&source.ip_blocks)?,
        not_source_ips: networks(&source.not_ip_blocks)?,
        service_accounts: accounts(&source.service_accounts, namespace)?,
        not_service_accounts: accounts(&source.not_service_accounts, namespace)?,
        ..wire::Match::default()
    })
}

fn operation_match(
    operation: &Operation,
    unseen: &mut Vec<String>,
) -> Result<wire::Match, Unenforceable> {
    for (name, values) in [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ] {
        if !values.is_empty() {
            unseen.push(name.to_owned());
        }
    }
    Ok(wire::Match {
        destination_ports: port_numbers(&operation.ports)?,
        not_destination_ports: port_numbers(&operation.not_ports)?,
        ..wire::Match::default()
    })
}

/// Empty if the attribute cannot be seen: then there is no clause.
fn condition_match(
    condition: &isobar_objects::istio::Condition,
    namespace: &str,
    unseen: &mut Vec<String>,
) -> Result<Vec<wire::Match>, Unenforceable> {
    let (yes, no) = (&condition.values, &condition.not_values);
    let empty = wire::Match::default();
    let one = match condition.key.as_str() {
        "source.ip" => wire::Match {
            source_ips: networks(yes)?,
            not_source_ips: networks(no)?,
            ..empty
        },
        "source.namespace" => wire::Match {
            namespaces: texts(yes)?,
            not_namespaces: texts(no)?,
            ..empty
        },
        "source.principal" => wire::Match {
            principals: texts(yes)?,
            not_principals: texts(no)?,
            ..empty
        },
        "source.serviceAccount" => wire::Match {
            service_accounts: accounts(yes, namespace)?,
            not_service_accounts: accounts(no, namespace)?,
            ..empty
        },
        "destination.ip" => wire::Match {
            destination_ips: networks(yes)?,
            not_destination_ips: networks(no)?,
            ..empty
        },
        "destination.port" => wire::Match {
            destination_ports: port_numbers(yes)?,
            not_destination_ports: port_numbers(no)?,
            ..empty
        },
        other => {
            unseen.push(other.to_owned());
            return Ok(Vec::new());
        }
    };
    Ok(vec![one])
}

fn texts(values: &[String]) -> Result<Vec<wire::StringMatch>, Unenforceable> {
    values.iter().map(|value| text(value)).collect()
}

/// `*`, `*suffix`, `prefix*` or the exact text.
fn text(value: &str) -> Result<wire::StringMatch, Unenforceable> {
    let (kind, rest) = if value == "*" {
        (MatchType::Presence(()), "")
    } else if let Some(rest) = value.strip_prefix('*') {
        (MatchType::Suffix(rest.to_owned()), rest)
    } else if let Some(rest) = value.strip_suffix('*') {
        (MatchType::Prefix(rest.to_owned()), rest)
    } else {
        (MatchType::Exact(value.to_owned()), value)
    };
    if rest.contains('*') || value.is_empty() {
        let why = "a star is understood alone, in front or at the end";
        return Err(Unenforceable(format!("{value:?} cannot be matched: {why}")));
    }
    Ok(wire::StringMatch {
        match_type: Some(kind),
    })
}

fn networks(values: &[String]) -> Result<Vec<wire::Address>, Unenforceable> {
    values
        .iter()
        .map(|value| {
            let network = value
                .parse::<ipnet::IpNet>()
                .or_else(|_| value.parse::<IpAddr>().map(ipnet::IpNet::from))
                .map_err(|_| Unenforceable(format!("{value:?} is no address or network")))?;
            Ok(wire::Address {
                address: super::services::octets(network.addr()),
                length: u32::from(network.prefix_len()),
            })
        })
        .collect()
}

fn port_numbers(values: &[String]) -> Result<Vec<u32>, Unenforceable> {
    values
        .iter()
        .map(|value| {
            value
                .parse::<u16>()
                .map(u32::from)
                .map_err(|_| Unenforceable(format!("{value:?} is no port number")))
        })
        .collect()
}

/// `namespace/account`, or `account` in the policy's own namespace.
fn accounts(
    values: &[String],
    namespace: &str,
) -> Result<Vec<wire::ServiceAccountMatch>, Unenforceable> {
    values
        .iter()
        .map(|value| {
            let (namespace, account) = value.split_once('/').unwrap_or((namespace, value));
            if namespace.is_empty() || account.is_empty() || value.contains('*') {
                return Err(Unenforceable(format!("{value:?} is no service account")));
            }
            Ok(wire::ServiceAccountMatch {
                namespace: namespace.to_owned(),
                service_account: account.to_owned(),
            })
        })
        .collect()
}

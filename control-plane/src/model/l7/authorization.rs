use isobar_objects::istio as from;
use isobar_objects::istio::{Action, AuthorizationPolicy};
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_types::NamespacedName;
use isobar_types::labels::DRY_RUN;

use super::super::verdict::{Severity, Verdict};
use super::served::Served;
use super::target_refs::{Chosen, FOREIGN, Places};

/// Condition type for what waypoints do with a policy.
const CONDITION: &str = "WaypointAccepted";

/// A policy for waypoints, and what it is about.
#[derive(Debug)]
pub(crate) struct Targets {
    /// The message, without its services.
    pub(crate) wire: wire::Authorization,
    /// What it is about.
    pub(crate) chosen: Chosen,
    /// What to tell.
    pub(crate) verdict: Verdict,
    /// It would refuse something, so a target that cannot enforce it has to refuse.
    pub(crate) restricts: bool,
}

/// All policies with `targetRefs`.
pub(crate) fn targets(set: &ObjectSet, places: Places<'_>) -> Vec<Targets> {
    set.authorization_policies
        .iter()
        .filter(|policy| policy.spec.targets().next().is_some())
        .map(|policy| target(policy, places))
        .collect()
}

fn target(policy: &AuthorizationPolicy, places: Places<'_>) -> Targets {
    let mut found = Targets {
        wire: convert(policy),
        chosen: Chosen::default(),
        verdict: Verdict::holds(
            policy.reference(),
            CONDITION,
            "Accepted",
            "enforced by the waypoints of its targets",
        ),
        restricts: policy.spec.action != Action::Audit
            && policy.annotation(DRY_RUN) != Some("true"),
    };
    let mut problems = Vec::new();
    for reference in policy.spec.targets() {
        let added = found.chosen.add(reference, policy.namespace(), places);
        problems.extend(added.err());
    }
    let elsewhere = found.chosen.foreign(places);
    let elsewhere =
        elsewhere.map(|what| format!("{what}: whether it keeps the policy is not known here"));
    // Whatever else is to be told, nothing is promised for a waypoint that is not ours.
    let fails = |reason, text: String| {
        let all = [Some(text), elsewhere.clone()];
        let text = Vec::from_iter(all.into_iter().flatten()).join("; ");
        Verdict::fails(policy.reference(), CONDITION, reason, text)
    };
    if !found.wire.unenforceable.is_empty() {
        let effect = if found.wire.dry_run {
            "that would make its targets refuse everything"
        } else {
            "its targets refuse everything"
        };
        let text = format!("{}; {effect}", found.wire.unenforceable);
        found.verdict = fails("Invalid", text);
    } else if !problems.is_empty() {
        let reason = if found.chosen.is_some() {
            "PartiallyInvalid"
        } else {
            "TargetNotFound"
        };
        found.verdict = fails(reason, problems.join("; "));
    } else if let Some(bare) = places
        .served()
        .find(|one| found.chosen.names(one.owner) && one.waypoints.is_empty() && found.restricts)
    {
        let effect = if bare.fail_open {
            "the policy is not enforced there"
        } else {
            "traffic to it is refused"
        };
        let text = format!(
            "{} has no waypoint that could enforce it; {effect}",
            bare.owner
        );
        found.verdict = fails("AncestorNotBound", text);
    } else if let Some(text) = elsewhere {
        let verdict = Verdict::fails(policy.reference(), CONDITION, FOREIGN, text);
        found.verdict = verdict.severity(Severity::Warning);
    } else if found.wire.dry_run {
        let text = "dry run: the waypoints of its targets evaluate it and tell, nothing is refused";
        found.verdict = Verdict::holds(policy.reference(), CONDITION, "DryRun", text);
    }
    found
}

impl Targets {
    /// The message for one waypoint, if the policy is about it or a service it serves.
    pub(super) fn for_waypoint(
        &self,
        waypoint: &NamespacedName,
        served: &[Served<'_>],
    ) -> Option<wire::Authorization> {
        let (whole_waypoint, services) = self.chosen.at(waypoint, served)?;
        Some(wire::Authorization {
            whole_waypoint,
            services,
            ..self.wire.clone()
        })
    }
}

pub(super) fn convert(policy: &AuthorizationPolicy) -> wire::Authorization {
    use wire::authorization::Action as Out;

    let spec = &policy.spec;
    let mut problems = Vec::new();
    let action = match spec.action {
        Action::Allow => Out::Allow,
        Action::Deny => Out::Deny,
        Action::Audit => Out::Audit,
        Action::Custom => {
            let text = "action CUSTOM is not supported, \
                        the filter ExternalAuth of an HTTPRoute asks an authoriser";
            problems.push(text.to_owned());
            Out::Deny
        }
    };
    let rules = spec
        .rules
        .iter()
        .map(|rule| convert_rule(rule, policy.namespace(), &mut problems))
        .collect();
    problems.sort_unstable();
    problems.dedup();
    let mut wire = wire::Authorization {
        namespace: policy.namespace().to_owned(),
        name: policy.name().to_owned(),
        action: action.into(),
        rules,
        created: policy.created(),
        dry_run: policy.annotation(DRY_RUN) == Some("true"),
        ..wire::Authorization::default()
    };
    if problems.is_empty() {
        // What the waypoint itself would not take.
        let compiled = isobar_route::Policy::compile(&wire);
        problems.extend(compiled.unenforceable().map(str::to_owned));
    }
    wire.unenforceable = problems.join("; ");
    wire
}

fn convert_rule(
    rule: &from::Rule,
    namespace: &str,
    problems: &mut Vec<String>,
) -> wire::AuthorizationRule {
    let from = rule.from.iter().map(|from| {
        let source = from.source.clone().unwrap_or_default();
        convert_source(&source, namespace, problems)
    });
    let from = from.collect();
    let to = rule.to.iter().map(|to| {
        let operation = to.operation.clone().unwrap_or_default();
        convert_operation(&operation, problems)
    });
    let to = to.collect();
    let when = rule.when.iter().map(|condition| {
        let unknown = ["request.auth", "experimental.envoy"];
        if unknown.iter().any(|key| condition.key.starts_with(key)) {
            problems.push(format!("condition {} is not supported", condition.key));
        }
        wire::AuthorizationCondition {
            key: condition.key.clone(),
            values: values(&condition.values, problems),
            not_values: values(&condition.not_values, problems),
        }
    });
    let when = when.collect();
    wire::AuthorizationRule { from, to, when }
}

fn convert_source(
    source: &from::Source,
    namespace: &str,
    problems: &mut Vec<String>,
) -> wire::AuthorizationSource {
    for (name, set) in [
        ("requestPrincipals", !source.request_principals.is_empty()),
        (
            "notRequestPrincipals",
            !source.not_request_principals.is_empty(),
        ),
    ] {
        if set {
            problems.push(format!("{name} is not supported"));
        }
    }
    wire::AuthorizationSource {
        principals: values(&source.principals, problems),
        not_principals: values(&source.not_principals, problems),
        namespaces: values(&source.namespaces, problems),
        not_namespaces: values(&source.not_namespaces, problems),
        ip_blocks: source.ip_blocks.clone(),
        not_ip_blocks: source.not_ip_blocks.clone(),
        service_accounts: accounts(&source.service_accounts, namespace),
        not_service_accounts: accounts(&source.not_service_accounts, namespace),
        remote_ip_blocks: source.remote_ip_blocks.clone(),
        not_remote_ip_blocks: source.not_remote_ip_blocks.clone(),
        trust_domains: values(&source.trust_domains, problems),
        not_trust_domains: values(&source.not_trust_domains, problems),
    }
}

fn convert_operation(
    operation: &from::Operation,
    problems: &mut Vec<String>,
) -> wire::AuthorizationOperation {
    wire::AuthorizationOperation {
        hosts: values(&operation.hosts, problems),
        not_hosts: values(&operation.not_hosts, problems),
        ports: ports(&operation.ports, problems),
        not_ports: ports(&operation.not_ports, problems),
        methods: values(&operation.methods, problems),
        not_methods: values(&operation.not_methods, problems),
        paths: paths(&operation.paths, problems),
        not_paths: paths(&operation.not_paths, problems),
    }
}

/// Stars inside braces are those of a template, which is no star form.
fn paths(texts: &[String], problems: &mut Vec<String>) -> Vec<wire::ValueMatch> {
    let one = |text: &String| {
        if text.contains("{*") {
            let exact = wire::value_match::MatchType::Exact(text.clone());
            return vec![wire::ValueMatch {
                match_type: Some(exact),
            }];
        }
        values(std::slice::from_ref(text), problems)
    };
    texts.iter().flat_map(one).collect()
}

fn ports(texts: &[String], problems: &mut Vec<String>) -> Vec<u32> {
    let mut numbers = Vec::new();
    for text in texts {
        match text.parse::<u16>() {
            Ok(number) => numbers.push(u32::from(number)),
            Err(_) => problems.push(format!("{text:?} is no port number")),
        }
    }
    numbers
}

/// `account` means the policy's own namespace.
fn accounts(texts: &[String], namespace: &str) -> Vec<wire::ValueMatch> {
    texts
        .iter()
        .map(|text| match text.split_once('/') {
            Some(_) => text.clone(),
            None => format!("{namespace}/{text}"),
        })
        .map(|text| wire::ValueMatch {
            match_type: Some(wire::value_match::MatchType::Exact(text)),
        })
        .collect()
}

fn values(texts: &[String], problems: &mut Vec<String>) -> Vec<wire::ValueMatch> {
    use wire::value_match::MatchType;

    let mut all = Vec::new();
    for text in texts {
        let (kind, rest) = if text == "*" {
            (MatchType::Present(true), "")
        } else if let Some(rest) = text.strip_prefix('*') {
            (MatchType::Suffix(rest.to_owned()), rest)
        } else if let Some(rest) = text.strip_suffix('*') {
            (MatchType::Prefix(rest.to_owned()), rest)
        } else {
            (MatchType::Exact(text.clone()), text.as_str())
        };
        if rest.contains('*') {
            problems.push(format!(
                "{text:?} cannot be matched: a star is understood alone, in front or at the end"
            ));
        }
        all.push(wire::ValueMatch {
            match_type: Some(kind),
        });
    }
    all
}

use std::collections::BTreeSet;

use isobar_objects::istio as from;
use isobar_objects::istio::{Action, AuthorizationPolicy};
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_types::NamespacedName;

use super::super::authorization::DRY_RUN;
use super::super::gateways::Gateways;
use super::super::services::ServicePlan;
use super::super::settings::Settings;
use super::super::verdict::{Severity, Verdict};
use super::hosts::Hosts;

/// Condition type for what waypoints do with a policy.
const CONDITION: &str = "WaypointAccepted";

/// A policy for waypoints, and what it is about.
#[derive(Debug)]
pub(crate) struct Targets {
    /// The message, without its services.
    pub(crate) wire: wire::Authorization,
    /// Waypoints it is about as a whole.
    pub(crate) gateways: BTreeSet<NamespacedName>,
    /// Services it is about.
    pub(crate) services: BTreeSet<NamespacedName>,
    /// What to tell.
    pub(crate) verdict: Verdict,
    /// It would refuse something, so a target that cannot enforce it has to refuse.
    pub(crate) restricts: bool,
}

/// All policies with `targetRefs`.
pub(crate) fn targets(
    set: &ObjectSet,
    services: &[ServicePlan],
    gateways: &Gateways<'_>,
    settings: &Settings,
) -> Vec<Targets> {
    set.authorization_policies
        .iter()
        .filter(|policy| policy.spec.targets().next().is_some())
        .map(|policy| target(policy, services, gateways, settings))
        .collect()
}

fn target(
    policy: &AuthorizationPolicy,
    services: &[ServicePlan],
    gateways: &Gateways<'_>,
    settings: &Settings,
) -> Targets {
    let mut found = Targets {
        wire: convert(policy),
        gateways: BTreeSet::new(),
        services: BTreeSet::new(),
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
        if let Err(text) = found.add(reference, policy, services, gateways, settings) {
            problems.push(text);
        }
    }
    let fails = |reason, text: String| Verdict::fails(policy.reference(), CONDITION, reason, text);
    if policy.annotation(DRY_RUN) == Some("true") {
        found.verdict = fails(
            "UnsupportedValue",
            "dry run: the policy is not enforced".into(),
        )
        .severity(Severity::Warning);
    } else if !found.wire.unenforceable.is_empty() {
        let text = format!(
            "{}; its targets refuse everything",
            found.wire.unenforceable
        );
        found.verdict = fails("Invalid", text);
    } else if !problems.is_empty() {
        let partly = !found.gateways.is_empty() || !found.services.is_empty();
        let reason = if partly {
            "PartiallyInvalid"
        } else {
            "TargetNotFound"
        };
        found.verdict = fails(reason, problems.join("; "));
    } else if let Some(service) = services.iter().find(|service| {
        found.services.contains(&service.key) && service.waypoints.is_empty() && found.restricts
    }) {
        let effect = if service.fail_open {
            "the policy is not enforced there"
        } else {
            "traffic to it is refused"
        };
        let text = format!(
            "Service {} has no waypoint that could enforce it; {effect}",
            service.key
        );
        found.verdict = fails("AncestorNotBound", text);
    }
    found
}

impl Targets {
    fn add(
        &mut self,
        reference: &from::TargetReference,
        policy: &AuthorizationPolicy,
        services: &[ServicePlan],
        gateways: &Gateways<'_>,
        settings: &Settings,
    ) -> Result<(), String> {
        let namespace = policy.namespace();
        if !reference.namespace.is_empty() && reference.namespace != namespace {
            return Err(format!(
                "target {} is in namespace {}, only the policy's own is allowed",
                reference.name, reference.namespace
            ));
        }
        let key = NamespacedName {
            namespace: namespace.into(),
            name: reference.name.as_str().into(),
        };
        match (reference.group.as_str(), reference.kind.as_str()) {
            ("gateway.networking.k8s.io", "Gateway") if gateways.contains_key(&key) => {
                self.gateways.insert(key);
            }
            ("gateway.networking.k8s.io", "GatewayClass")
                if namespace == &*settings.root_namespace =>
            {
                let of_class = gateways
                    .values()
                    .filter(|g| g.gateway.spec.gateway_class_name == reference.name)
                    .map(|g| g.key.clone());
                self.gateways.extend(of_class);
            }
            ("" | "core", "Service") if services.iter().any(|s| s.key == key) => {
                self.services.insert(key);
            }
            (_, kind) => return Err(format!("target {kind} {key} is not found")),
        }
        Ok(())
    }

    /// The message for one waypoint, if the policy is about it or a service it serves.
    pub(super) fn for_waypoint(
        &self,
        waypoint: &NamespacedName,
        served: &[&ServicePlan],
        hosts: &Hosts,
    ) -> Option<wire::Authorization> {
        if !self.restricts && self.wire.action != i32::from(wire::authorization::Action::Audit) {
            return None;
        }
        let whole_waypoint = self.gateways.contains(waypoint);
        let services: Vec<_> = served
            .iter()
            .filter(|service| self.services.contains(&service.key))
            .map(|service| hosts.reference(&service.wire.hostname, &service.key.namespace))
            .collect();
        (whole_waypoint || !services.is_empty()).then(|| wire::Authorization {
            whole_waypoint,
            services,
            ..self.wire.clone()
        })
    }
}

fn convert(policy: &AuthorizationPolicy) -> wire::Authorization {
    use wire::authorization::Action as Out;

    let spec = &policy.spec;
    let mut problems = Vec::new();
    let action = match spec.action {
        Action::Allow => Out::Allow,
        Action::Deny => Out::Deny,
        Action::Audit => Out::Audit,
        Action::Custom => {
            problems.push("action CUSTOM is not supported".to_owned());
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
    wire::Authorization {
        namespace: policy.namespace().to_owned(),
        name: policy.name().to_owned(),
        action: action.into(),
        rules,
        unenforceable: problems.join("; "),
        created: policy.created(),
        ..wire::Authorization::default()
    }
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
        if condition.key.starts_with("request.auth") {
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
        ("remoteIpBlocks", !source.remote_ip_blocks.is_empty()),
        ("notRemoteIpBlocks", !source.not_remote_ip_blocks.is_empty()),
        ("trustDomains", !source.trust_domains.is_empty()),
        ("notTrustDomains", !source.not_trust_domains.is_empty()),
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
    }
}

fn convert_operation(
    operation: &from::Operation,
    problems: &mut Vec<String>,
) -> wire::AuthorizationOperation {
    for path in operation.paths.iter().chain(&operation.not_paths) {
        if path.contains('{') {
            problems.push(format!("path template {path:?} is not supported"));
        }
    }
    wire::AuthorizationOperation {
        hosts: values(&operation.hosts, problems),
        not_hosts: values(&operation.not_hosts, problems),
        ports: ports(&operation.ports, problems),
        not_ports: ports(&operation.not_ports, problems),
        methods: values(&operation.methods, problems),
        not_methods: values(&operation.not_methods, problems),
        paths: values(&operation.paths, problems),
        not_paths: values(&operation.not_paths, problems),
    }
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

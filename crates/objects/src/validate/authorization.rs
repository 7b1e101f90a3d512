use super::Report;
use crate::finding::Finding;
use crate::istio::{
    Action, AuthorizationPolicy, Condition, Operation, Rule, Source, TargetReference,
};
use crate::kinds::{GATEWAY_GROUP, ISTIO_NETWORKING};
use crate::names;
use crate::object::ObjectHead;

/// Attributes that `when` may name; those that end in `[` take a name in brackets.
const CONDITION_KEYS: &[&str] = &[
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "remote.ip",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "request.headers[",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[",
    "experimental.envoy.filters.",
];

pub(super) fn check(policy: &AuthorizationPolicy, report: &mut Report) {
    let spec = &policy.spec;
    if let Some(selector) = &spec.selector {
        report.labels("spec.selector.matchLabels", Some(&selector.match_labels));
        if spec.targets().next().is_some() {
            report.error("spec.selector", "cannot be used with targetRefs");
        }
    }
    if spec.target_ref.is_some() && !spec.target_refs.is_empty() {
        report.error("spec.targetRef", "cannot be used with targetRefs");
    }
    targets(policy, report);
    match (spec.action, &spec.provider) {
        (Action::Custom, None) => report.error("spec.provider", "must be there with action CUSTOM"),
        (Action::Allow | Action::Deny | Action::Audit, Some(_)) => {
            report.error("spec.provider", "is only allowed with action CUSTOM");
        }
        _ => {}
    }
    if spec.rules.is_empty() && spec.action == Action::Deny {
        let finding = Finding::warning("spec.rules", "a DENY policy without rules never refuses");
        report.push(finding.with_hint("one empty rule, rules: [{}], refuses everything"));
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        check_rule(&format!("spec.rules[{index}]"), rule, report);
    }
    let for_node_proxies = spec.targets().next().is_none();
    if for_node_proxies && matches!(spec.action, Action::Allow | Action::Deny) {
        for (index, rule) in spec.rules.iter().enumerate() {
            unseen(&format!("spec.rules[{index}]"), rule, spec.action, report);
        }
    }
}

/// What only a waypoint sees, in a policy that node proxies enforce: they stay on the safe side.
fn unseen(field: &str, rule: &Rule, action: Action, report: &mut Report) {
    let mut tell = |field: String, name: &str| {
        let effect = match action {
            Action::Allow => "this ALLOW rule never matches, so what it would allow is refused",
            _ => "this DENY rule is enforced without it, so more is refused than written",
        };
        let message = format!("node proxies cannot see {name}: {effect}");
        let finding = Finding::warning(field, message);
        report.push(finding.with_hint("use targetRefs and a waypoint instead of a selector"));
    };
    for (index, to) in rule.to.iter().enumerate() {
        let Some(operation) = &to.operation else {
            continue;
        };
        for (name, list) in [
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ] {
            if !list.is_empty() {
                tell(format!("{field}.to[{index}].operation.{name}"), name);
            }
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        let key = condition.key.as_str();
        if key.starts_with("request.headers[") || key == "connection.sni" {
            tell(format!("{field}.when[{index}].key"), key);
        }
    }
}

fn targets(policy: &AuthorizationPolicy, report: &mut Report) {
    let spec = &policy.spec;
    let listed = spec.target_refs.iter().enumerate();
    let listed = listed.map(|(index, target)| (format!("spec.targetRefs[{index}]"), target));
    let single = spec.target_ref.iter();
    for (field, one) in listed.chain(single.map(|target| ("spec.targetRef".into(), target))) {
        target(&field, one, policy.namespace(), report);
    }
}

/// One reference of an object in `namespace`.
pub(super) fn target(field: &str, target: &TargetReference, namespace: &str, report: &mut Report) {
    if target.name.is_empty() {
        report.error(format!("{field}.name"), "must not be empty");
    }
    if !target.namespace.is_empty() && target.namespace != namespace {
        report.error(
            format!("{field}.namespace"),
            "must be the policy's own namespace",
        );
    }
    if !is_known_kind(target) {
        let (group, kind) = (&target.group, &target.kind);
        let finding = Finding::error(
            format!("{field}.kind"),
            format!("a policy cannot target kind {kind:?} of group {group:?}"),
        );
        report.push(finding.with_hint(
            "kind: Service with group: \"\", or kind: Gateway with group: gateway.networking.k8s.io",
        ));
    }
}

fn is_known_kind(target: &TargetReference) -> bool {
    matches!(
        (target.group.as_str(), target.kind.as_str()),
        ("" | "core", "Service")
            | (GATEWAY_GROUP, "Gateway" | "GatewayClass")
            | (ISTIO_NETWORKING, "ServiceEntry")
    )
}

/// True if a policy in `namespace` can be about this.
pub(crate) fn is_usable(target: &TargetReference, namespace: &str) -> bool {
    let is_own = target.namespace.is_empty() || target.namespace == namespace;
    is_own && !target.name.is_empty() && is_known_kind(target)
}

fn check_rule(field: &str, rule: &Rule, report: &mut Report) {
    for (index, from) in rule.from.iter().enumerate() {
        let field = format!("{field}.from[{index}].source");
        match from
            .source
            .as_ref()
            .filter(|one| **one != Source::default())
        {
            Some(source) => check_source(&field, source, report),
            None => report.error(
                field,
                "must say something; leave out from to match everybody",
            ),
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        let field = format!("{field}.to[{index}].operation");
        match to
            .operation
            .as_ref()
            .filter(|one| **one != Operation::default())
        {
            Some(operation) => check_operation(&field, operation, report),
            None => report.error(
                field,
                "must say something; leave out to to match everything",
            ),
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        check_condition(&format!("{field}.when[{index}]"), condition, report);
    }
}

fn check_source(field: &str, source: &Source, report: &mut Report) {
    let lists = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ];
    for (name, list) in lists {
        wildcards(&format!("{field}.{name}"), list, report);
    }
    for (name, list) in [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
    ] {
        for (index, text) in list.iter().enumerate() {
            if text.starts_with("spiffe://") {
                let finding = Finding::error(
                    format!("{field}.{name}[{index}]"),
                    "a principal is written without spiffe://, so this one never matches",
                );
                report.push(finding.with_hint(text.trim_start_matches("spiffe://").to_owned()));
            }
        }
    }
    for (name, list) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        for (index, text) in list.iter().enumerate() {
            report.network(format!("{field}.{name}[{index}]"), text);
        }
    }
    let accounts = [
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
    ];
    for (name, list) in accounts {
        for (index, text) in list.iter().enumerate() {
            let (namespace, account) = text.split_once('/').unwrap_or(("default", text));
            if !names::is_label(namespace) || !names::is_subdomain(account) {
                report.error(
                    format!("{field}.{name}[{index}]"),
                    format!("{text:?} is neither ACCOUNT nor NAMESPACE/ACCOUNT"),
                );
            }
        }
        let others = [&source.principals, &source.namespaces];
        let not_others = [&source.not_principals, &source.not_namespaces];
        if !list.is_empty()
            && others
                .iter()
                .chain(&not_others)
                .any(|list| !list.is_empty())
        {
            report.error(
                format!("{field}.{name}"),
                "cannot be used with principals or namespaces",
            );
        }
    }
}

fn check_operation(field: &str, operation: &Operation, report: &mut Report) {
    for (name, list) in [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
    ] {
        wildcards(&format!("{field}.{name}"), list, report);
    }
    for (name, list) in [
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
    ] {
        for (index, text) in list.iter().enumerate() {
            port(&format!("{field}.{name}[{index}]"), text, report);
        }
    }
    for (name, list) in [
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ] {
        let field = format!("{field}.{name}");
        for (index, text) in list.iter().enumerate() {
            path(&format!("{field}[{index}]"), text, report);
        }
    }
}

fn port(field: &str, text: &str, report: &mut Report) {
    match text.parse::<i64>() {
        Ok(number) => report.port(field, number),
        Err(_) => report.error(field, format!("{text:?} is not a port number")),
    }
}

/// `*` at one end, or a template of whole `{*}` and `{**}` segments, never both.
fn path(field: &str, text: &str, report: &mut Report) {
    if !text.contains(['{', '}']) {
        wildcard(field, text, report);
        return;
    }
    let segments: Vec<&str> = text.split('/').collect();
    let plain = |segment: &&str| !segment.contains(['{', '}', '*']);
    let fine = |segment: &&str| plain(segment) || matches!(*segment, "{*}" | "{**}");
    let deep = segments
        .iter()
        .filter(|segment| **segment == "{**}")
        .count();
    if !text.starts_with('/') || !segments.iter().all(fine) || deep > 1 {
        report.error(
            field,
            format!("{text:?} is no path template: whole segments {{*}}, and {{**}} once"),
        );
    }
}

fn check_condition(field: &str, condition: &Condition, report: &mut Report) {
    let key = condition.key.as_str();
    let known = CONDITION_KEYS.iter().any(|known| {
        if known.ends_with('[') {
            let name = key
                .strip_prefix(known)
                .and_then(|rest| rest.strip_suffix(']'));
            name.is_some_and(|name| !name.is_empty())
        } else if known.ends_with('.') {
            key.starts_with(known)
        } else {
            key == *known
        }
    });
    if !known {
        let finding = Finding::error(format!("{field}.key"), format!("unknown attribute {key:?}"));
        report.push(match names::nearest(key, CONDITION_KEYS.iter().copied()) {
            Some(near) if !near.ends_with(['[', '.']) => {
                finding.with_hint(format!("did you mean {near}?"))
            }
            _ => finding,
        });
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        report.error(field, "needs values or notValues");
    }
    for (name, list) in [
        ("values", &condition.values),
        ("notValues", &condition.not_values),
    ] {
        for (index, text) in list.iter().enumerate() {
            let field = format!("{field}.{name}[{index}]");
            match key {
                "source.ip" | "remote.ip" | "destination.ip" => report.network(field, text),
                "destination.port" => port(&field, text, report),
                _ => wildcard(&field, text, report),
            }
        }
    }
}

fn wildcards(field: &str, list: &[String], report: &mut Report) {
    for (index, text) in list.iter().enumerate() {
        wildcard(&format!("{field}[{index}]"), text, report);
    }
}

/// `*` means something only alone, in front or at the end; elsewhere it is a letter, which is
/// hardly ever meant.
fn wildcard(field: &str, text: &str, report: &mut Report) {
    if text.is_empty() {
        report.error(field, "must not be empty");
        return;
    }
    let inner = text.strip_prefix('*').unwrap_or(text);
    let inner = match inner.len() == text.len() {
        true => inner.strip_suffix('*').unwrap_or(inner),
        false => inner,
    };
    if inner.contains('*') {
        let message = format!("{text:?}: \"*\" has a meaning only alone, in front or at the end");
        report.warning(field, message);
    }
}

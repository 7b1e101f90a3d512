//! Routes and ReferenceGrant: what the API server would refuse.

use super::Report;
use crate::finding::{Finding, Severity};
use crate::gateway_api::{
    BackendRef, ExtensionRef, ExternalAuthFilter, GrpcRouteSpec, HttpRouteMatch, HttpRouteSpec,
    MatchKind, NamedMatch, ParentReference, PathMatchKind, PathModifier, ReferenceGrantSpec,
    RequestMirror, RequestRedirect, RouteFilter, SessionLifetime, SessionPersistence, SessionType,
    TcpRouteRule, TcpRouteSpec, TlsRouteSpec,
};
use crate::kinds::{ISTIO_NETWORKING, Kind};
use crate::names;

/// Statuses a redirect may have.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

pub(super) fn http(spec: &HttpRouteSpec, report: &mut Report) {
    parents(&spec.parent_refs, report);
    for (index, rule) in spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        for (at, one) in rule.matches.iter().enumerate() {
            http_match(&format!("{field}.matches[{at}]"), one, report);
        }
        filters(&field, &rule.filters, report);
        backends(&field, &rule.backend_refs, report);
        session(&field, rule.session_persistence.as_ref(), report);
        let redirects = rule.filters.iter().any(|f| f.kind == "RequestRedirect");
        if redirects && !rule.backend_refs.is_empty() {
            let message = "a rule that redirects has no destinations";
            report.error(format!("{field}.backendRefs"), message);
        }
        let limits = rule.timeouts.unwrap_or_default();
        if let (Some(whole), Some(one)) = (limits.request, limits.backend_request)
            && !whole.is_zero()
            && one > whole
        {
            let message = "must not be longer than timeouts.request";
            report.error(format!("{field}.timeouts.backendRequest"), message);
        }
        let attempts = rule.retry.as_ref().and_then(|retry| retry.attempts);
        if let Some(attempts) = attempts.filter(|attempts| *attempts < 0) {
            let message = format!("{attempts} is negative");
            report.error(format!("{field}.retry.attempts"), message);
        }
        let codes = rule.retry.iter().flat_map(|retry| &retry.codes);
        for code in codes.filter(|code| !(400..=599).contains(*code)) {
            let message = format!("{code} is not a status to retry on: 400 to 599");
            report.error(format!("{field}.retry.codes"), message);
        }
    }
}

pub(super) fn grpc(spec: &GrpcRouteSpec, report: &mut Report) {
    parents(&spec.parent_refs, report);
    for (index, rule) in spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        for (at, one) in rule.matches.iter().enumerate() {
            let field = format!("{field}.matches[{at}]");
            named(&format!("{field}.headers"), &one.headers, report);
            let Some(method) = &one.method else { continue };
            let field = format!("{field}.method");
            if method.service.is_none() && method.method.is_none() {
                report.error(&field, "needs a service or a method");
            }
            if method.how == MatchKind::RegularExpression {
                for pattern in [&method.service, &method.method].into_iter().flatten() {
                    report.pattern(&field, pattern);
                }
            }
        }
        filters(&field, &rule.filters, report);
        backends(&field, &rule.backend_refs, report);
        session(&field, rule.session_persistence.as_ref(), report);
    }
}

pub(super) fn tcp(spec: &TcpRouteSpec, report: &mut Report) {
    parents(&spec.parent_refs, report);
    opaque(&spec.rules, report);
}

pub(super) fn tls(spec: &TlsRouteSpec, report: &mut Report) {
    parents(&spec.parent_refs, report);
    for (index, host) in spec.hostnames.iter().enumerate() {
        let name = host.strip_prefix("*.").unwrap_or(host);
        if !names::is_hostname(name) {
            let message = format!("{host:?} is not a host name");
            report.error(format!("spec.hostnames[{index}]"), message);
        }
    }
    opaque(&spec.rules, report);
}

fn opaque(rules: &[TcpRouteRule], report: &mut Report) {
    if rules.is_empty() {
        report.error("spec.rules", "needs at least one rule");
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        if rule.backend_refs.is_empty() {
            let message = "needs at least one destination";
            report.error(format!("{field}.backendRefs"), message);
        }
        backends(&field, &rule.backend_refs, report);
    }
    if rules.len() > 1 {
        let message = "every rule takes everything, so that only the first counts";
        report.warning("spec.rules[1]", message);
    }
}

fn session(field: &str, session: Option<&SessionPersistence>, report: &mut Report) {
    let Some(session) = session else { return };
    let field = format!("{field}.sessionPersistence");
    if let Some(name) = &session.session_name
        && (!names::is_header(name) || name.len() > 128)
    {
        let message = format!("{name:?} is not the name of a cookie or header");
        report.error(format!("{field}.sessionName"), message);
    }
    let permanent = session
        .cookie_config
        .is_some_and(|cookie| cookie.lifetime_type == SessionLifetime::Permanent);
    if permanent && session.absolute_timeout.is_none() {
        let message = "a permanent cookie needs an absoluteTimeout";
        report.error(format!("{field}.absoluteTimeout"), message);
    }
    if session.how == SessionType::Header && session.cookie_config.is_some() {
        let message = "is for sessions of type Cookie";
        report.error(format!("{field}.cookieConfig"), message);
    }
}

pub(super) fn grant(spec: &ReferenceGrantSpec, report: &mut Report) {
    if spec.from.is_empty() {
        report.error("spec.from", "needs at least one entry");
    }
    if spec.to.is_empty() {
        report.error("spec.to", "needs at least one entry");
    }
    for (index, from) in spec.from.iter().enumerate() {
        report.required(&format!("spec.from[{index}].kind"), &from.kind);
        report.required(&format!("spec.from[{index}].namespace"), &from.namespace);
    }
    for (index, to) in spec.to.iter().enumerate() {
        report.required(&format!("spec.to[{index}].kind"), &to.kind);
    }
}

fn parents(refs: &[ParentReference], report: &mut Report) {
    for (index, parent) in refs.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        report.required(&format!("{field}.name"), &parent.name);
        if parent.port == Some(0) {
            report.port(format!("{field}.port"), 0);
        }
        let is_entry = parent.kind.as_deref() == Some("ServiceEntry");
        if is_entry && parent.group.as_deref() != Some(ISTIO_NETWORKING) {
            let message = format!("a ServiceEntry is of group {ISTIO_NETWORKING}");
            let finding = Finding::error(format!("{field}.group"), message);
            report.push(finding.with_hint(format!("write group: {ISTIO_NETWORKING}")));
        }
        let is_service = parent.kind.as_deref() == Some("Service");
        if is_service && parent.group.as_deref() != Some("") {
            let message = "a Service is of the core group";
            let finding = Finding::error(format!("{field}.group"), message);
            report.push(finding.with_hint("write group: \"\""));
        }
    }
}

fn http_match(field: &str, one: &HttpRouteMatch, report: &mut Report) {
    named(&format!("{field}.headers"), &one.headers, report);
    let field_of_query = format!("{field}.queryParams");
    for (index, parameter) in one.query_params.iter().enumerate() {
        let field = format!("{field_of_query}[{index}]");
        report.required(&format!("{field}.name"), &parameter.name);
        pattern(&field, parameter, report);
    }
    let Some(path) = &one.path else { return };
    let field = format!("{field}.path.value");
    match path.how {
        PathMatchKind::RegularExpression => report.pattern(field, &path.value),
        PathMatchKind::Exact | PathMatchKind::PathPrefix => {
            let whole = path.value.starts_with('/') && !path.value.contains(['?', '#']);
            if !whole || path.value.contains("//") {
                let message = format!("{:?} is not an absolute path", path.value);
                report.error(field, message);
            }
        }
    }
}

fn named(field: &str, all: &[NamedMatch], report: &mut Report) {
    for (index, one) in all.iter().enumerate() {
        let field = format!("{field}[{index}]");
        header_name(&format!("{field}.name"), &one.name, report);
        pattern(&field, one, report);
    }
}

fn pattern(field: &str, one: &NamedMatch, report: &mut Report) {
    if one.how == MatchKind::RegularExpression {
        report.pattern(format!("{field}.value"), &one.value);
    }
}

fn header_name(field: &str, name: &str, report: &mut Report) {
    if !names::is_header(name) {
        report.error(field, format!("{name:?} is not the name of a header"));
    }
}

fn filters(field: &str, all: &[RouteFilter], report: &mut Report) {
    for (index, filter) in all.iter().enumerate() {
        let field = format!("{field}.filters[{index}]");
        let there = match filter.kind.as_str() {
            "RequestHeaderModifier" => filter.request_header_modifier.is_some(),
            "ResponseHeaderModifier" => filter.response_header_modifier.is_some(),
            "RequestMirror" => filter.request_mirror.is_some(),
            "RequestRedirect" => filter.request_redirect.is_some(),
            "URLRewrite" => filter.url_rewrite.is_some(),
            "CORS" => filter.cors.is_some(),
            "ExternalAuth" => filter.external_auth.is_some(),
            "ExtensionRef" => filter.extension_ref.is_some(),
            other => {
                let message = format!("{other:?} is not a type of filter");
                report.error(format!("{field}.type"), message);
                continue;
            }
        };
        if !there {
            let message = format!("the settings of {} are not there", filter.kind);
            report.error(&field, message);
        }
        let edits = [
            &filter.request_header_modifier,
            &filter.response_header_modifier,
        ];
        for edits in edits.into_iter().flatten() {
            let names = edits.set.iter().chain(&edits.add).map(|p| &p.name);
            for name in names.clone() {
                report.framing(&field, name);
            }
            for name in names.chain(&edits.remove) {
                header_name(&field, name, report);
            }
            for edit in edits.set.iter().chain(&edits.add) {
                report.header_value(&field, &edit.value);
            }
        }
        if let Some(mirror) = &filter.request_mirror {
            mirrored(&format!("{field}.requestMirror"), mirror, report);
        }
        if let Some(to) = &filter.request_redirect {
            redirect(&format!("{field}.requestRedirect"), to, report);
        }
        if let Some(rewrite) = &filter.url_rewrite {
            let field = format!("{field}.urlRewrite");
            path_modifier(&field, rewrite.path.as_ref(), report);
            hostname(&field, rewrite.hostname.as_deref(), report);
        }
        if let Some(auth) = &filter.external_auth {
            external_auth(&format!("{field}.externalAuth"), auth, report);
        }
        if let Some(extension) = &filter.extension_ref {
            extension_ref(&format!("{field}.extensionRef"), extension, report);
        }
    }
}

fn redirect(field: &str, to: &RequestRedirect, report: &mut Report) {
    path_modifier(field, to.path.as_ref(), report);
    hostname(field, to.hostname.as_deref(), report);
    let code = to.status_code.unwrap_or(302);
    if !REDIRECTS.contains(&code) {
        let message = format!("{code} is none of 301, 302, 303, 307, 308");
        report.error(format!("{field}.statusCode"), message);
    }
    if !matches!(to.scheme.as_deref(), None | Some("http" | "https")) {
        report.error(format!("{field}.scheme"), "must be http or https");
    }
}

fn hostname(field: &str, name: Option<&str>, report: &mut Report) {
    if let Some(name) = name.filter(|name| !names::is_hostname(name)) {
        let message = format!("{name:?} is not a host name");
        report.error(format!("{field}.hostname"), message);
    }
}

fn mirrored(field: &str, mirror: &RequestMirror, report: &mut Report) {
    if !names::is_subdomain(&mirror.backend_ref.name) {
        let message = format!("{:?} is not a name", mirror.backend_ref.name);
        report.error(format!("{field}.backendRef.name"), message);
    }
    if mirror
        .percent
        .is_some_and(|share| !(0..=100).contains(&share))
    {
        report.error(format!("{field}.percent"), "must be 0 to 100");
    }
    if let Some(share) = &mirror.fraction {
        let of = share.denominator.unwrap_or(100);
        if of < 1 || !(0..=of).contains(&share.numerator) {
            let message = format!("{} of {of} is not a share", share.numerator);
            report.error(format!("{field}.fraction"), message);
        }
    }
}

fn external_auth(field: &str, auth: &ExternalAuthFilter, report: &mut Report) {
    let settings = [
        ("GRPC", "grpc", auth.grpc.is_some()),
        ("HTTP", "http", auth.http.is_some()),
    ];
    if !settings.iter().any(|(name, ..)| *name == auth.protocol) {
        let message = format!("{:?} is neither GRPC nor HTTP", auth.protocol);
        report.error(format!("{field}.protocol"), message);
    }
    for (name, own, there) in settings {
        if there && name != auth.protocol {
            report.error(format!("{field}.{own}"), format!("is for protocol {name}"));
        }
    }
    if !names::is_subdomain(&auth.backend_ref.name) {
        let message = format!("{:?} is not a name", auth.backend_ref.name);
        report.error(format!("{field}.backendRef.name"), message);
    }
    let grpc = auth.grpc.iter().flat_map(|grpc| &grpc.allowed_headers);
    for name in grpc {
        header_name(&format!("{field}.grpc.allowedHeaders"), name, report);
    }
    let Some(http) = &auth.http else { return };
    for name in &http.allowed_headers {
        header_name(&format!("{field}.http.allowedHeaders"), name, report);
    }
    for name in &http.allowed_response_headers {
        let field = format!("{field}.http.allowedResponseHeaders");
        header_name(&field, name, report);
    }
    let path = http.path.as_deref().unwrap_or_default();
    if !path.is_empty() && (!path.starts_with('/') || path.contains(['?', '#'])) {
        let message = format!("{path:?} is not an absolute path");
        let finding = Finding::error(format!("{field}.http.path"), message);
        report.push(finding.with_hint("begin it with /, without ? and #"));
    }
}

/// The one kind there is to name. What is named is looked for by the control plane.
fn extension_ref(field: &str, extension: &ExtensionRef, report: &mut Report) {
    let kind = Kind::RateLimitPolicy;
    if extension.group != kind.group() || extension.kind != kind.as_str() {
        let message = "not supported yet: extensionRef to another kind than RateLimitPolicy";
        let finding = Finding::new(Severity::Unsupported, field, message);
        let hint = "name a RateLimitPolicy of group isobar.dev, or remove it; until then requests \
                    are answered with 500";
        report.push(finding.with_hint(hint));
    }
    report.required(&format!("{field}.name"), &extension.name);
}

fn path_modifier(field: &str, path: Option<&PathModifier>, report: &mut Report) {
    let Some(path) = path else { return };
    let there = match path.kind.as_str() {
        "ReplaceFullPath" => path.replace_full_path.is_some(),
        "ReplacePrefixMatch" => path.replace_prefix_match.is_some(),
        _ => false,
    };
    if !there {
        let message = "needs type ReplaceFullPath or ReplacePrefixMatch, and its value";
        report.error(format!("{field}.path"), message);
    }
    for text in [&path.replace_full_path, &path.replace_prefix_match]
        .into_iter()
        .flatten()
    {
        report.header_value(format!("{field}.path"), text);
    }
}

fn backends(field: &str, all: &[BackendRef], report: &mut Report) {
    for (index, backend) in all.iter().enumerate() {
        let field = format!("{field}.backendRefs[{index}]");
        if !names::is_subdomain(&backend.name) {
            let message = format!("{:?} is not a name", backend.name);
            report.error(format!("{field}.name"), message);
        }
        if backend
            .weight
            .is_some_and(|w| !(0..=1_000_000).contains(&w))
        {
            report.error(format!("{field}.weight"), "0 to 1000000");
        }
        filters(&field, &backend.filters, report);
    }
}

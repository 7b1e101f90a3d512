use std::time::Duration;

use super::Report;
use crate::finding::Finding;
use crate::istio::{
    Abort, Delay, Destination, DirectResponse, Fault, HeaderOperations, Headers, HttpMatch,
    HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, L4Match, Percent, RouteDestination,
    StringMatch, VirtualServiceSpec,
};
use crate::names;

/// Durations below this are refused, as in Istio.
const LEAST: Duration = Duration::from_millis(1);

const RETRY_CONDITIONS: &[&str] = &[
    "5xx",
    "cancelled",
    "connect-failure",
    "deadline-exceeded",
    "envoy-ratelimited",
    "gateway-error",
    "http3-post-connect-failure",
    "internal",
    "refused-stream",
    "reset",
    "reset-before-request",
    "resource-exhausted",
    "retriable-4xx",
    "retriable-headers",
    "retriable-status-codes",
    "unavailable",
];

pub(super) fn check(spec: &VirtualServiceSpec, report: &mut Report) {
    hosts(spec, report);
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        report.error("spec", "needs at least one rule in http, tls or tcp");
    }
    for (index, route) in spec.http.iter().enumerate() {
        http_route(&format!("spec.http[{index}]"), route, report);
    }
    unreachable_rules(spec, report);
    for (index, route) in spec.tls.iter().enumerate() {
        let field = format!("spec.tls[{index}]");
        if route.matches.is_empty() {
            report.error(format!("{field}.match"), "needs at least one match");
        }
        for (at, matched) in route.matches.iter().enumerate() {
            let field = format!("{field}.match[{at}]");
            if matched.sni_hosts.is_empty() {
                report.error(format!("{field}.sniHosts"), "needs at least one host");
            }
            let l4 = L4Match {
                destination_subnets: matched.destination_subnets.clone(),
                port: matched.port,
                source_labels: matched.source_labels.clone(),
                ..L4Match::default()
            };
            l4_match(&field, &l4, report);
        }
        destinations(&field, &route.route, true, report);
    }
    for (index, route) in spec.tcp.iter().enumerate() {
        let field = format!("spec.tcp[{index}]");
        for (at, matched) in route.matches.iter().enumerate() {
            l4_match(&format!("{field}.match[{at}]"), matched, report);
        }
        destinations(&field, &route.route, true, report);
    }
}

fn hosts(spec: &VirtualServiceSpec, report: &mut Report) {
    if spec.hosts.is_empty() {
        delegate(spec, report);
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        if host == "*" && spec.applies_to_mesh() {
            report.error(field, "\"*\" alone is not allowed inside the mesh");
        } else {
            host_name(&field, host, report);
        }
    }
    let named = spec.hosts.iter().enumerate();
    report.unique(
        "host",
        named.map(|(index, host)| (format!("spec.hosts[{index}]"), host.as_str())),
    );
}

/// An object without hosts: others hand over to it, or its author has forgotten them.
fn delegate(spec: &VirtualServiceSpec, report: &mut Report) {
    let only_http = !spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty();
    if !only_http || !spec.gateways.is_empty() {
        let finding = Finding::error("spec.hosts", "needs at least one host");
        report.push(finding.with_hint(
            "name the service, for example svc-hello; only http rules that another \
             VirtualService hands over to go without",
        ));
    }
    for (index, route) in spec.http.iter().enumerate() {
        if route.delegate.is_some() {
            let field = format!("spec.http[{index}].delegate");
            report.error(field, "a delegate cannot hand over in turn");
        }
    }
}

/// A host name, `*.suffix` or an address.
pub(super) fn host_name(field: &str, host: &str, report: &mut Report) {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let fine = host == "*" || names::is_hostname(name) || host.parse::<std::net::IpAddr>().is_ok();
    if !fine {
        report.error(field, format!("{host:?} is not a host name"));
    }
}

fn http_route(field: &str, route: &HttpRoute, report: &mut Report) {
    let actions = [
        !route.route.is_empty(),
        route.redirect.is_some(),
        route.direct_response.is_some(),
        route.delegate.is_some(),
    ];
    match actions.iter().filter(|present| **present).count() {
        0 => report.error(
            field,
            "needs one of route, redirect, directResponse or delegate",
        ),
        1 => {}
        _ => report.error(
            field,
            "only one of route, redirect, directResponse and delegate is allowed",
        ),
    }
    for (index, matched) in route.matches.iter().enumerate() {
        http_match(&format!("{field}.match[{index}]"), matched, report);
    }
    if !route.route.is_empty() {
        destinations(field, &route.route, false, report);
    }
    if let Some(redirect) = &route.redirect {
        http_redirect(&format!("{field}.redirect"), redirect, report);
        if route.rewrite.is_some() {
            report.error(format!("{field}.rewrite"), "cannot be used with redirect");
        }
    }
    if let Some(delegate) = &route.delegate
        && delegate.name.is_empty()
    {
        report.error(format!("{field}.delegate.name"), "needs a name");
    }
    if let Some(reply) = &route.direct_response {
        direct_response(&format!("{field}.directResponse"), reply, report);
    }
    if let Some(rewrite) = &route.rewrite {
        http_rewrite(&format!("{field}.rewrite"), rewrite, report);
    }
    // Zero turns the deadline off; below a millisecond is a slip of the unit.
    if route
        .timeout
        .is_some_and(|limit| !limit.is_zero() && limit < LEAST)
    {
        report.error(format!("{field}.timeout"), "must be at least 1ms");
    }
    if let Some(retries) = &route.retries {
        http_retry(&format!("{field}.retries"), retries, report);
    }
    if let Some(fault) = &route.fault {
        http_fault(&format!("{field}.fault"), fault, report);
    }
    mirrors(field, route, report);
    cors(field, route, report);
    headers(&format!("{field}.headers"), route.headers.as_ref(), report);
}

pub(super) fn http_match(field: &str, matched: &HttpMatch, report: &mut Report) {
    let texts = [
        ("uri", &matched.uri),
        ("scheme", &matched.scheme),
        ("method", &matched.method),
        ("authority", &matched.authority),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            let field = format!("{field}.{name}");
            if *text == StringMatch::default() {
                report.error(field, "needs one of exact, prefix or regex");
            } else {
                string_match(&field, text, report);
            }
        }
    }
    for (part, entries) in [
        ("headers", &matched.headers),
        ("withoutHeaders", &matched.without_headers),
    ] {
        for (name, text) in entries {
            let field = format!("{field}.{part}[{name}]");
            if !names::is_header(name.strip_prefix(':').unwrap_or(name)) {
                report.error(field.clone(), format!("{name:?} is not a header name"));
            }
            string_match(&field, text, report);
        }
    }
    for (name, text) in &matched.query_params {
        let field = format!("{field}.queryParams[{name}]");
        if name.is_empty() {
            report.error(field.clone(), "a query parameter needs a name");
        }
        string_match(&field, text, report);
    }
    if let Some(port) = matched.port {
        report.port(format!("{field}.port"), port.into());
    }
    report.labels(
        &format!("{field}.sourceLabels"),
        Some(&matched.source_labels),
    );
}

fn string_match(field: &str, text: &StringMatch, report: &mut Report) {
    let set = [&text.exact, &text.prefix, &text.regex];
    if set.iter().filter(|one| one.is_some()).count() > 1 {
        report.error(field, "only one of exact, prefix and regex is allowed");
    }
    if text.prefix.as_deref() == Some("") {
        report.error(format!("{field}.prefix"), "must not be empty");
    }
    if let Some(pattern) = &text.regex {
        if pattern.is_empty() {
            report.error(format!("{field}.regex"), "must not be empty");
        }
        report.pattern(format!("{field}.regex"), pattern);
    }
}

fn destinations(field: &str, routes: &[RouteDestination], l4: bool, report: &mut Report) {
    if routes.is_empty() {
        report.error(format!("{field}.route"), "needs at least one destination");
    }
    let mut sum: i64 = 0;
    let mut negative = false;
    for (index, route) in routes.iter().enumerate() {
        let field = format!("{field}.route[{index}]");
        if route.weight < 0 {
            negative = true;
            let message = format!("weight {} is negative", route.weight);
            report.error(format!("{field}.weight"), message);
        }
        sum += i64::from(route.weight);
        destination(&format!("{field}.destination"), &route.destination, report);
        if l4 && route.headers.is_some() {
            report.error(format!("{field}.headers"), "there are no headers in TCP");
        }
        headers(&format!("{field}.headers"), route.headers.as_ref(), report);
    }
    if negative {
        return;
    }
    if routes.len() > 1 && sum == 0 {
        let finding = Finding::error(format!("{field}.route"), "the weights add up to 0");
        report.push(finding.with_hint("give each destination a weight, for example 80 and 20"));
    } else if sum > i64::from(u32::MAX) {
        let message = format!("the weights add up to {sum}, more than 4294967295");
        report.error(format!("{field}.route"), message);
    }
}

fn destination(field: &str, destination: &Destination, report: &mut Report) {
    if destination.host.is_empty() {
        report.error(format!("{field}.host"), "must not be empty");
    } else if destination.host.contains('*') {
        report.error(
            format!("{field}.host"),
            "a destination cannot be a wildcard",
        );
    } else {
        host_name(&format!("{field}.host"), &destination.host, report);
    }
    if !destination.subset.is_empty() && !names::is_label(&destination.subset) {
        let message = format!("{:?} is not a subset name", destination.subset);
        report.error(format!("{field}.subset"), message);
    }
    if let Some(port) = &destination.port {
        report.port(format!("{field}.port.number"), port.number.into());
    }
}

fn http_redirect(field: &str, redirect: &HttpRedirect, report: &mut Report) {
    let code = redirect.redirect_code.unwrap_or(301);
    if !matches!(code, 301 | 302 | 303 | 307 | 308) {
        let message = format!("{code} is none of 301, 302, 303, 307, 308");
        report.error(format!("{field}.redirectCode"), message);
    }
    if let Some(port) = redirect.port {
        report.port(format!("{field}.port"), port.into());
        if redirect.derive_port.is_some() {
            report.error(format!("{field}.derivePort"), "cannot be used with port");
        }
    }
    report.header_value(format!("{field}.uri"), &redirect.uri);
    report.header_value(format!("{field}.authority"), &redirect.authority);
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        report.error(format!("{field}.scheme"), "must be http or https");
    }
    if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
        report.error(format!("{field}.prefixRewrite"), "cannot be used with uri");
    }
}

fn direct_response(field: &str, reply: &DirectResponse, report: &mut Report) {
    status(&format!("{field}.status"), i64::from(reply.status), report);
    let Some(body) = &reply.body else { return };
    let length = body
        .string
        .as_ref()
        .or(body.bytes.as_ref())
        .map_or(0, String::len);
    if body.string.is_some() && body.bytes.is_some() {
        report.error(
            format!("{field}.body"),
            "only one of string and bytes is allowed",
        );
    }
    if length > 1 << 20 {
        report.error(format!("{field}.body"), "is longer than 1 MiB");
    }
}

fn status(field: &str, code: i64, report: &mut Report) {
    if !(200..=599).contains(&code) {
        report.error(field, format!("{code} is not an HTTP status: 200 to 599"));
    }
}

fn http_rewrite(field: &str, rewrite: &HttpRewrite, report: &mut Report) {
    let pattern = rewrite.uri_regex_rewrite.as_ref();
    if rewrite.uri.is_empty() && rewrite.authority.is_empty() && pattern.is_none() {
        report.error(field, "needs one of uri, authority or uriRegexRewrite");
    }
    report.header_value(format!("{field}.uri"), &rewrite.uri);
    report.header_value(format!("{field}.authority"), &rewrite.authority);
    if let Some(pattern) = pattern {
        let field = format!("{field}.uriRegexRewrite");
        if !rewrite.uri.is_empty() {
            report.error(field.clone(), "cannot be used with uri");
        }
        report.required(&format!("{field}.match"), &pattern.pattern);
        report.pattern(format!("{field}.match"), &pattern.pattern);
    }
}

fn http_retry(field: &str, retries: &HttpRetry, report: &mut Report) {
    if retries.attempts < 0 {
        let message = format!("{} is negative", retries.attempts);
        report.error(format!("{field}.attempts"), message);
    }
    let rest = [
        retries.per_try_timeout.is_some(),
        !retries.retry_on.is_empty(),
    ];
    if retries.attempts == 0 && rest.contains(&true) {
        let finding = Finding::error(format!("{field}.attempts"), "0 turns retries off");
        report.push(finding.with_hint("set attempts, or remove the other fields"));
    }
    for (name, limit) in [
        ("perTryTimeout", retries.per_try_timeout),
        ("backoff", retries.backoff),
    ] {
        if limit.is_some_and(|limit| !limit.is_zero() && limit < LEAST) {
            report.error(format!("{field}.{name}"), "must be at least 1ms");
        }
    }
    for condition in retries.retry_on.split(',').map(str::trim) {
        let is_code = condition
            .parse::<u16>()
            .is_ok_and(|code| (100..=599).contains(&code));
        if !condition.is_empty() && !is_code && !RETRY_CONDITIONS.contains(&condition) {
            let finding = Finding::error(
                format!("{field}.retryOn"),
                format!("{condition:?} is no condition"),
            );
            let near = names::nearest(condition, RETRY_CONDITIONS.iter().copied());
            report.push(match near {
                Some(near) => finding.with_hint(format!("did you mean {near}?")),
                None => finding,
            });
        }
    }
}

fn http_fault(field: &str, fault: &Fault, report: &mut Report) {
    if let Some(delay) = &fault.delay {
        let Delay {
            percentage,
            percent,
            fixed_delay,
            exponential_delay,
        } = delay;
        let field = format!("{field}.delay");
        share(&format!("{field}.percentage"), percentage.as_ref(), report);
        if percent.is_some_and(|share| !(0..=100).contains(&share)) {
            report.error(format!("{field}.percent"), "must be 0 to 100");
        }
        match (fixed_delay, exponential_delay) {
            (None, None) => report.error(field, "needs fixedDelay"),
            (Some(delay), _) if *delay < LEAST => {
                report.error(format!("{field}.fixedDelay"), "must be at least 1ms");
            }
            _ => {}
        }
    }
    if let Some(abort) = &fault.abort {
        let Abort {
            percentage,
            http_status,
            grpc_status,
            http2_error,
        } = abort;
        let field = format!("{field}.abort");
        share(&format!("{field}.percentage"), percentage.as_ref(), report);
        if let Some(code) = http_status {
            status(&format!("{field}.httpStatus"), i64::from(*code), report);
        }
        let set = [
            http_status.is_some(),
            grpc_status.is_some(),
            http2_error.is_some(),
        ];
        if set.iter().filter(|one| **one).count() != 1 {
            report.error(field, "needs one of httpStatus and grpcStatus");
        }
    }
}

fn share(field: &str, percent: Option<&Percent>, report: &mut Report) {
    if let Some(percent) = percent
        && !(0.0..=100.0).contains(&percent.value)
    {
        let message = format!("{} is not a share: 0 to 100", percent.value);
        report.error(format!("{field}.value"), message);
    }
}

fn mirrors(field: &str, route: &HttpRoute, report: &mut Report) {
    if let Some(mirror) = &route.mirror {
        destination(&format!("{field}.mirror"), mirror, report);
        if !route.mirrors.is_empty() {
            report.error(format!("{field}.mirrors"), "cannot be used with mirror");
        }
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        let field = format!("{field}.mirrors[{index}]");
        destination(&format!("{field}.destination"), &mirror.destination, report);
        share(
            &format!("{field}.percentage"),
            mirror.percentage.as_ref(),
            report,
        );
    }
    let field = format!("{field}.mirrorPercentage");
    share(&field, route.mirror_percentage.as_ref(), report);
}

fn cors(field: &str, route: &HttpRoute, report: &mut Report) {
    let Some(policy) = &route.cors_policy else {
        return;
    };
    let field = format!("{field}.corsPolicy");
    for (index, origin) in policy.allow_origins.iter().enumerate() {
        string_match(&format!("{field}.allowOrigins[{index}]"), origin, report);
    }
    for (name, list) in [
        ("allowHeaders", &policy.allow_headers),
        ("exposeHeaders", &policy.expose_headers),
        ("allowMethods", &policy.allow_methods),
    ] {
        for (index, word) in list.iter().enumerate() {
            if !names::is_header(word) {
                report.error(
                    format!("{field}.{name}[{index}]"),
                    format!("{word:?} is no token"),
                );
            }
        }
    }
}

fn headers(field: &str, headers: Option<&Headers>, report: &mut Report) {
    let Some(headers) = headers else { return };
    for (part, operations) in [
        ("request", &headers.request),
        ("response", &headers.response),
    ] {
        let Some(HeaderOperations { set, add, remove }) = operations else {
            continue;
        };
        let written = set.iter().map(|entry| ("set", entry));
        let written = written.chain(add.iter().map(|entry| ("add", entry)));
        for (how, (name, value)) in written {
            let field = format!("{field}.{part}.{how}[{name}]");
            header(&field, name, report);
            report.framing(&field, name);
            report.header_value(&field, value);
        }
        for (index, name) in remove.iter().enumerate() {
            header(&format!("{field}.{part}.remove[{index}]"), name, report);
        }
    }
}

fn header(field: &str, name: &str, report: &mut Report) {
    if name == ":authority" {
        return;
    }
    if !names::is_header(name) {
        report.error(field, format!("{name:?} is not a header name"));
    }
}

fn l4_match(field: &str, matched: &L4Match, report: &mut Report) {
    for (index, subnet) in matched.destination_subnets.iter().enumerate() {
        report.network(format!("{field}.destinationSubnets[{index}]"), subnet);
    }
    if !matched.source_subnet.is_empty() {
        report.network(format!("{field}.sourceSubnet"), &matched.source_subnet);
    }
    if let Some(port) = matched.port {
        report.port(format!("{field}.port"), port.into());
    }
    report.labels(
        &format!("{field}.sourceLabels"),
        Some(&matched.source_labels),
    );
}

/// Rules after one that takes everything are never asked.
fn unreachable_rules(spec: &VirtualServiceSpec, report: &mut Report) {
    let takes_all = |route: &HttpRoute| {
        route.matches.is_empty() || route.matches.contains(&HttpMatch::default())
    };
    let Some(last) = spec.http.iter().position(takes_all) else {
        return;
    };
    for index in last + 1..spec.http.len() {
        let message = format!("is never reached: http[{last}] takes every request");
        report.warning(format!("spec.http[{index}]"), message);
    }
}

use std::time::Duration;

use super::{Report, authorization, virtual_service};
use crate::names;
use crate::object::ObjectHead as _;
use crate::rate_limit::{RateKey, RateLimitPolicy};

/// Longer times are refused: a day is the longest that makes sense in memory.
const LONGEST: Duration = Duration::from_secs(86_400);

/// One without targets counts for the routes that name it, so that none is no mistake.
pub(super) fn check(policy: &RateLimitPolicy, report: &mut Report) {
    let spec = &policy.spec;
    for (index, target) in spec.target_refs.iter().enumerate() {
        let field = format!("spec.targetRefs[{index}]");
        authorization::target(&field, target, policy.namespace(), report);
    }
    if spec.limits.is_empty() {
        report.error("spec.limits", "needs at least one limit");
    }
    for (index, limit) in spec.limits.iter().enumerate() {
        let field = format!("spec.limits[{index}]");
        if limit.requests == 0 {
            report.error(format!("{field}.requests"), "must be at least 1");
        }
        if limit.burst == Some(0) {
            report.error(format!("{field}.burst"), "must be at least 1");
        }
        let per = limit.per.unwrap_or(Duration::from_secs(1));
        if per < Duration::from_millis(1) || per > LONGEST {
            report.error(format!("{field}.per"), "must be between 1ms and 24h");
        }
        for (at, matched) in limit.matches.iter().enumerate() {
            virtual_service::http_match(&format!("{field}.match[{at}]"), matched, report);
        }
        for (at, key) in limit.by.iter().enumerate() {
            check_key(&format!("{field}.by[{at}]"), key, report);
        }
    }
    let named = spec.limits.iter().enumerate();
    let named = named.filter(|(_, limit)| !limit.name.is_empty());
    report.unique(
        "limit",
        named.map(|(index, limit)| (format!("spec.limits[{index}].name"), limit.name.as_str())),
    );
}

fn check_key(field: &str, key: &RateKey, report: &mut Report) {
    let fields = [
        key.caller.is_some(),
        key.header.is_some(),
        key.query_param.is_some(),
        key.path == Some(true),
    ];
    if fields.iter().filter(|there| **there).count() != 1 {
        let text = "needs exactly one of caller, header, queryParam and path: true";
        report.error(field, text);
    }
    if let Some(header) = &key.header
        && !names::is_header(header)
    {
        report.error(
            format!("{field}.header"),
            format!("{header:?} is not a header name"),
        );
    }
}

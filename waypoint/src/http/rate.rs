//! Rate limits of one request, and the headers that tell of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::header::{HeaderName, RETRY_AFTER};
use ::http::{HeaderMap, HeaderValue};
use isobar_route::{RateLimits, Taken};

use super::pipeline::Flow;
use super::reply::Local;
use crate::rates::Verdict;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Counts a request. Headers for its response, if a limit is about it.
///
/// # Errors
/// The answer for a request that no limit has room for.
pub(super) fn ask(flow: &Flow, taken: Option<&Taken>) -> Result<Option<HeaderMap>, Local> {
    let service = flow.session.addressed.service().map(|s| &s.key);
    let own = taken.map_or(&[][..], |taken| &taken.route().limits);
    let of_target = || flow.view.tables.rate_limits_of(service);
    // What a rule names besides its target's counts once.
    let more = own
        .iter()
        .filter(|own| of_target().all(|one| one.name != own.name));
    count(flow, of_target().chain(more), taken)
}

/// Counts a request in limits besides those.
///
/// # Errors
/// As [`ask`].
pub(super) fn ask_more(
    flow: &Flow,
    limits: &[Arc<RateLimits>],
    taken: Option<&Taken>,
) -> Result<Option<HeaderMap>, Local> {
    let service = flow.session.addressed.service().map(|s| &s.key);
    let of_rule = taken.map_or(&[][..], |taken| &taken.route().limits);
    let counted = |one: &&Arc<RateLimits>| {
        let of_target = flow.view.tables.rate_limits_of(service);
        let mut all = of_target.chain(of_rule);
        all.all(|other| other.name != one.name)
    };
    count(flow, limits.iter().filter(counted), taken)
}

fn count<'a>(
    flow: &Flow,
    policies: impl Iterator<Item = &'a Arc<RateLimits>>,
    taken: Option<&Taken>,
) -> Result<Option<HeaderMap>, Local> {
    let mut policies = policies.peekable();
    if policies.peek().is_none() {
        return Ok(None);
    }
    let session = &flow.session;
    let call = flow.asked.call(session);
    let rates = &session.worker.world.rates;
    let caller = &flow.caller.caller;
    let Some(verdict) = rates.ask(policies, &call, caller, taken, Instant::now()) else {
        return Ok(None);
    };
    let mut headers = described(&verdict);
    let Some(wait) = verdict.wait else {
        return Ok(Some(headers));
    };
    headers.insert(RETRY_AFTER, seconds(wait));
    let metrics = &session.worker.metrics;
    metrics.rate_limited(&verdict.policy.name, &verdict.limit.name);
    let (policy, limit) = (&verdict.policy.name, &verdict.limit.name);
    Err(Local::rate_limited(format!("{policy}: {limit}"), headers))
}

fn described(verdict: &Verdict<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(LIMIT, HeaderValue::from(verdict.limit.burst));
    headers.insert(REMAINING, HeaderValue::from(verdict.remaining));
    headers.insert(RESET, seconds(verdict.full_in));
    headers
}

/// Whole seconds; never so few that it would be too early.
fn seconds(time: Duration) -> HeaderValue {
    let up = u64::from(time.subsec_nanos() > 0);
    HeaderValue::from(time.as_secs().saturating_add(up))
}

//! Rate limits of one request, and the headers that tell of them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::header::{HeaderName, RETRY_AFTER};
use ::http::{HeaderMap, HeaderValue};
use isobar_route::{Caller, RateLimits, Taken};
use isobar_state::Snapshot;

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
    let caller = as_one(&flow.caller.caller, &flow.view.snapshot);
    let Some(verdict) = rates.ask(policies, &call, &caller, taken, Instant::now()) else {
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

/// The caller as it counts: an account of a mesh with several names is one, whichever its certificate shows.
fn as_one<'a>(caller: &'a Caller, mesh: &Snapshot) -> Cow<'a, Caller> {
    let named = caller.identity.as_ref().map(|own| mesh.one_name(own));
    match named {
        Some(Cow::Owned(identity)) => Cow::Owned(Caller {
            identity: Some(identity),
            ..caller.clone()
        }),
        Some(Cow::Borrowed(_)) | None => Cow::Borrowed(caller),
    }
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

#[cfg(test)]
mod tests {
    use isobar_proto::isobar::v1 as proto;
    use isobar_types::Identity;
    use proto::outbound_policy::Kind;

    use super::*;

    fn caller(identity: Option<Identity>) -> Caller {
        Caller {
            identity,
            ip: [10, 0, 0, 2].into(),
            labels: None,
        }
    }

    #[test]
    fn an_account_counts_once_under_all_names_of_the_mesh() {
        let mut draft = Snapshot::default().draft();
        let domains = vec!["new.example".into(), "old.example".into()];
        let kind = Some(Kind::Trust(proto::Trust { domains }));
        let told = proto::OutboundPolicy { kind };
        draft.upsert_outbound_policy(&told).unwrap();
        let (renamed, plain) = (draft.finish(), Snapshot::default());
        let of = |domain, account| caller(Some(Identity::new(domain, "shop", account)));
        let (new, old) = (of("new.example", "a"), of("old.example", "a"));
        assert_eq!(as_one(&new, &renamed), as_one(&old, &renamed));
        assert_ne!(as_one(&new, &plain), as_one(&old, &plain));
        for other in [
            of("old.example", "b"),
            of("other.example", "a"),
            caller(None),
        ] {
            assert_ne!(
                as_one(&new, &renamed),
                as_one(&other, &renamed),
                "{other:?}"
            );
        }
    }
}

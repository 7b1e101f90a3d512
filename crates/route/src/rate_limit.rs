mod words;

use std::hash::{Hash, Hasher};
use std::time::Duration;

use http::HeaderName;
use isobar_proto::isobar::v1 as proto;
use isobar_types::{NamespacedHostname, NamespacedName};
use proto::rate_limit::{Caller as CallerPart, key::Kind};

use crate::call::{Caller, HttpCall};
use crate::http_match::{Taken, header_value, query_value};
use crate::table::ResourceError;
use crate::virtual_service::{FieldError, HttpMatch, compile_match, duration, service_key};

/// No request waits longer for its room, in nanoseconds: a year.
const LONGEST: u64 = 365 * 86_400 * 1_000_000_000;

/// A compiled `RateLimitPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimits {
    /// The object.
    pub name: NamespacedName,
    /// Applies to all requests of the waypoint.
    pub whole_waypoint: bool,
    /// Otherwise to these services only.
    pub services: Vec<NamespacedHostname>,
    /// Each counts on its own, and each must have room.
    pub limits: Vec<RateLimit>,
}

/// One limit: a bucket that holds `burst` requests and gets one back every `interval`, for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Name for headers, metric and log.
    pub name: String,
    /// Requests that find a full bucket and pass at once.
    pub burst: u32,
    /// Nanoseconds until one request's room is back; never 0.
    pub interval: u64,
    /// One must hold; empty: every request.
    matches: Vec<HttpMatch>,
    /// Names of route rules; empty: whatever the route.
    routes: Vec<String>,
    keys: Vec<Key>,
}

/// What separates the counts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    /// The caller's identity; without one, its address.
    Identity,
    Namespace,
    Address,
    /// The host asked for, which HTTP/2 does not write as a header.
    Host,
    Header(HeaderName),
    Query(String),
    Path,
}

/// What a bucket says of one request. Times are in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It passes.
    Taken {
        /// The bucket's new state.
        bucket: u64,
        /// So many more would pass now.
        remaining: u32,
        /// Until the bucket is full again.
        full_in: u64,
    },
    /// It does not pass.
    None {
        /// The bucket's state: as it was, unless it was more than this limit can be behind.
        bucket: u64,
        /// Until there is room for one.
        wait: u64,
        /// Until the bucket is full again.
        full_in: u64,
    },
}

impl RateLimits {
    pub(crate) fn compile(from: &proto::RateLimitPolicy) -> Result<Self, ResourceError> {
        let wrap = |e: FieldError| e.of("RateLimitPolicy", &from.namespace, &from.name);
        let mut limits = Vec::with_capacity(from.limits.len());
        for (at, limit) in from.limits.iter().enumerate() {
            let under = |e: FieldError| wrap(e.under(&format!("limits[{at}]")));
            limits.push(RateLimit::compile(limit, at).map_err(under)?);
        }
        Ok(Self {
            name: NamespacedName {
                namespace: from.namespace.as_str().into(),
                name: from.name.as_str().into(),
            },
            whole_waypoint: from.whole_waypoint,
            services: from.services.iter().map(service_key).collect(),
            limits,
        })
    }
}

impl RateLimit {
    fn compile(from: &proto::RateLimit, at: usize) -> Result<Self, FieldError> {
        if from.requests == 0 {
            return Err(FieldError::new("requests", "must be at least 1"));
        }
        let per = duration(from.per.as_ref(), "per")?.unwrap_or(Duration::from_secs(1));
        let interval = per.as_nanos() / u128::from(from.requests);
        let mut matches = Vec::with_capacity(from.matches.len());
        for (at, block) in from.matches.iter().enumerate() {
            matches.push(compile_match(block).map_err(|e| e.under(&format!("match[{at}]")))?);
        }
        let keys = from.keys.iter().enumerate().map(|(at, key)| {
            Key::compile(key).ok_or_else(|| {
                FieldError::new(&format!("by[{at}]"), "not a key this proxy can count by")
            })
        });
        Ok(Self {
            name: if from.name.is_empty() {
                format!("limits[{at}]")
            } else {
                from.name.clone()
            },
            burst: if from.burst == 0 {
                from.requests
            } else {
                from.burst
            },
            interval: u64::try_from(interval).unwrap_or(LONGEST).clamp(1, LONGEST),
            matches,
            routes: from.routes.clone(),
            keys: keys.collect::<Result<_, _>>()?,
        })
    }

    /// True if a request counts; `route` is the rule that took it, if one did.
    #[must_use]
    pub fn counts(&self, call: &HttpCall<'_>, caller: &Caller, route: Option<&Taken>) -> bool {
        let named = |taken: &Taken| self.routes.contains(&taken.route().name);
        (self.routes.is_empty() || route.is_some_and(named))
            && (self.matches.is_empty() || self.matches.iter().any(|m| m.holds(call, caller)))
    }

    /// Tells one count from another. Requests without what the key asks for share one.
    pub fn key(&self, call: &HttpCall<'_>, caller: &Caller, into: &mut impl Hasher) {
        for key in &self.keys {
            match key {
                Key::Identity => match &caller.identity {
                    Some(identity) => identity.hash(into),
                    None => caller.ip.hash(into),
                },
                Key::Namespace => caller.namespace().hash(into),
                Key::Address => caller.ip.hash(into),
                Key::Host => call.authority.hash(into),
                Key::Header(name) => header_value(name, call).hash(into),
                Key::Query(name) => query_value(call.query, name).hash(into),
                Key::Path => call.path.hash(into),
            }
        }
    }

    /// Takes room for one request out of a bucket, whose state is the time at which it is full again
    /// (0 for a new one). All times count from one moment.
    #[must_use]
    pub fn take(&self, bucket: u64, now: u64) -> Room {
        let size = self.interval.saturating_mul(u64::from(self.burst));
        // A limit that was stricter may have left a bucket that this one could never fill.
        let full = bucket.max(now).min(now.saturating_add(size));
        let next = full.saturating_add(self.interval);
        let used = next - now;
        if used > size {
            return Room::None {
                bucket: full,
                wait: used - size,
                full_in: full - now,
            };
        }
        let remaining = (size - used) / self.interval;
        Room::Taken {
            bucket: next,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            full_in: used,
        }
    }
}

impl Key {
    fn compile(from: &proto::rate_limit::Key) -> Option<Self> {
        Some(match from.kind.as_ref()? {
            Kind::Caller(part) => match CallerPart::try_from(*part).ok()? {
                CallerPart::Identity => Self::Identity,
                CallerPart::Namespace => Self::Namespace,
                CallerPart::Address => Self::Address,
            },
            Kind::Header(name)
                if name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority") =>
            {
                Self::Host
            }
            Kind::Header(name) => Self::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
            Kind::QueryParam(name) => Self::Query(name.clone()),
            Kind::Path(true) => Self::Path,
            Kind::Path(false) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;

    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::http_match::tests::{call, caller, uri};

    fn limit(change: impl FnOnce(&mut proto::RateLimit)) -> RateLimit {
        let mut from = proto::RateLimit {
            requests: 10,
            ..Default::default()
        };
        change(&mut from);
        RateLimit::compile(&from, 0).unwrap()
    }

    #[test]
    fn the_eleventh_of_ten_waits_for_its_share_of_the_time() {
        let limit = limit(|_| {});
        let tenth = 100_000_000;
        assert_eq!((limit.burst, limit.interval), (10, tenth));
        let mut bucket = 0;
        for n in 0..10 {
            let Room::Taken {
                bucket: next,
                remaining,
                full_in,
            } = limit.take(bucket, 5)
            else {
                panic!("request {n} did not pass");
            };
            assert_eq!((remaining, full_in), (9 - n, u64::from(n + 1) * tenth));
            bucket = next;
        }
        let none = |wait, full_in| Room::None {
            bucket,
            wait,
            full_in,
        };
        assert_eq!(limit.take(bucket, 5), none(tenth, 10 * tenth));
        assert_eq!(limit.take(bucket, tenth), none(5, 9 * tenth + 5));
        let later = limit.take(bucket, 5 + tenth);
        assert!(matches!(later, Room::Taken { remaining: 0, .. }));
        // After a long time no more than a burst has come together.
        let later = limit.take(bucket, 1000 * tenth);
        assert!(matches!(later, Room::Taken { remaining: 9, .. }));
    }

    #[test]
    fn what_a_stricter_limit_left_is_no_more_than_this_one_holds() {
        let limit = limit(|_| {});
        let day = 86_400_000_000_000;
        let Room::None {
            bucket,
            wait,
            full_in,
        } = limit.take(5 + day, 5)
        else {
            panic!("it is used up");
        };
        assert_eq!(wait, limit.interval);
        assert_eq!(full_in, 10 * limit.interval);
        let later = limit.take(bucket, 5 + wait);
        assert!(
            matches!(later, Room::Taken { remaining: 0, .. }),
            "{later:?}"
        );
    }

    #[test]
    fn extreme_limits_do_not_overflow() {
        let most = limit(|l| {
            l.requests = u32::MAX;
            l.burst = u32::MAX;
        });
        assert!(matches!(most.take(0, 1), Room::Taken { .. }));
        let least = limit(|l| {
            l.requests = 1;
            l.per = Some(prost_types::Duration {
                seconds: i64::MAX,
                nanos: 0,
            });
        });
        let Room::Taken { bucket, .. } = least.take(0, 7) else {
            panic!("one passes");
        };
        assert!(matches!(least.take(bucket, 8), Room::None { .. }));
        let mut none = proto::RateLimit::default();
        assert!(RateLimit::compile(&none, 0).is_err());
        none.requests = 1;
        none.keys = vec![proto::rate_limit::Key::default()];
        assert!(RateLimit::compile(&none, 0).is_err());
    }

    #[test]
    fn keys_tell_callers_headers_and_paths_apart() {
        let by = |kind| limit(|l| l.keys = vec![proto::rate_limit::Key { kind: Some(kind) }]);
        let hash = |limit: &RateLimit, path: &str, user: &str, account: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-user", HeaderValue::from_str(user).unwrap());
            let mut caller = caller();
            let id = isobar_types::Identity::new("cluster.local", "web", account);
            caller.identity = Some(id);
            let mut into = DefaultHasher::new();
            limit.key(&call(path, &headers), &caller, &mut into);
            into.finish()
        };
        let identity = by(Kind::Caller(CallerPart::Identity.into()));
        let header = by(Kind::Header("x-user".into()));
        let path = by(Kind::Path(true));
        let all = limit(|_| {});
        let base = ("/a", "u", "one");
        for (other, told) in [
            (("/b", "u", "one"), [false, false, true, false]),
            (("/a", "v", "one"), [false, true, false, false]),
            (("/a", "u", "two"), [true, false, false, false]),
        ] {
            let apart = [&identity, &header, &path, &all].map(|limit| {
                hash(limit, base.0, base.1, base.2) != hash(limit, other.0, other.1, other.2)
            });
            assert_eq!(apart, told, "{other:?}");
        }
    }

    #[test]
    fn the_host_is_the_authority_whatever_the_headers_say() {
        for name in ["host", "Host", ":authority"] {
            let kind = Kind::Header(name.into());
            let limit = limit(|l| l.keys = vec![proto::rate_limit::Key { kind: Some(kind) }]);
            let hash = |authority: &'static str, header: &'static str| {
                let mut headers = HeaderMap::new();
                headers.insert("host", HeaderValue::from_static(header));
                let mut call = call("/", &headers);
                call.authority = authority;
                let mut into = DefaultHasher::new();
                limit.key(&call, &caller(), &mut into);
                into.finish()
            };
            assert_eq!(hash("a", "x"), hash("a", "y"), "{name}");
            assert_ne!(hash("a", "x"), hash("b", "x"), "{name}");
        }
    }

    #[test]
    fn only_requests_that_match_count() {
        use proto::string_match::MatchType;
        let headers = HeaderMap::new();
        let api = limit(|l| l.matches = vec![uri(MatchType::Prefix("/api".into()))]);
        assert!(api.counts(&call("/api/x", &headers), &caller(), None));
        assert!(!api.counts(&call("/other", &headers), &caller(), None));
        let routed = limit(|l| l.routes = vec!["slow".into()]);
        assert!(!routed.counts(&call("/", &headers), &caller(), None));
    }
}

//! A limit in words, for whoever asks which one is about a request.

use std::fmt;
use std::time::Duration;

use super::{Key, RateLimit};
use crate::call::{Caller, HttpCall};
use crate::http_match::{header_value, query_value};

impl fmt::Display for RateLimit {
    /// `10 at once, then one each 100ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = Duration::from_nanos(self.interval);
        write!(f, "{} at once, then one each {each:?}", self.burst)
    }
}

impl RateLimit {
    /// With whom a request shares its count: the values of the keys it is counted by.
    #[must_use]
    pub fn counted_by(&self, call: &HttpCall<'_>, caller: &Caller) -> String {
        if self.keys.is_empty() {
            return "one count for all requests".to_owned();
        }
        let parts = self.keys.iter().map(|key| key.words(call, caller));
        parts.collect::<Vec<_>>().join(", ")
    }
}

impl Key {
    fn words(&self, call: &HttpCall<'_>, caller: &Caller) -> String {
        let or_none =
            |value: Option<&str>| value.map_or_else(|| "none".to_owned(), |v| format!("{v:?}"));
        match self {
            Self::Identity => match &caller.identity {
                Some(identity) => format!("caller {identity}"),
                None => format!("address {}", caller.ip),
            },
            Self::Namespace => format!("callers of namespace {}", or_none(caller.namespace())),
            Self::Address => format!("address {}", caller.ip),
            Self::Host => format!("host {:?}", call.authority),
            Self::Header(name) => {
                let value = header_value(name, call);
                let text = value.as_deref().map(String::from_utf8_lossy);
                format!("header {name} {}", or_none(text.as_deref()))
            }
            Self::Query(name) => {
                let value = query_value(call.query, name);
                format!("query parameter {name} {}", or_none(value))
            }
            Self::Path => format!("path {}", call.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use isobar_proto::isobar::v1 as proto;
    use proto::rate_limit::{Caller as CallerPart, key::Kind};

    use super::*;
    use crate::http_match::tests::{call, caller};

    fn by(kinds: &[Kind]) -> RateLimit {
        let key = |kind: &Kind| proto::rate_limit::Key {
            kind: Some(kind.clone()),
        };
        let from = proto::RateLimit {
            requests: 10,
            keys: kinds.iter().map(key).collect(),
            ..Default::default()
        };
        RateLimit::compile(&from, 0).unwrap()
    }

    #[test]
    fn a_limit_says_how_many_and_how_often() {
        assert_eq!(by(&[]).to_string(), "10 at once, then one each 100ms");
    }

    #[test]
    fn a_count_is_named_by_what_is_shared() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("ann"));
        let call = call("/a", &headers);
        let part = |part: CallerPart| Kind::Caller(part.into());
        let mut nobody = caller();
        nobody.identity = None;
        for (kind, known, unknown) in [
            (
                part(CallerPart::Identity),
                "caller spiffe://cluster.local/ns/default/sa/client",
                "address 10.0.0.9",
            ),
            (
                part(CallerPart::Namespace),
                "callers of namespace \"default\"",
                "callers of namespace none",
            ),
            (
                part(CallerPart::Address),
                "address 10.0.0.9",
                "address 10.0.0.9",
            ),
        ] {
            let limit = by(&[kind]);
            assert_eq!(limit.counted_by(&call, &caller()), known);
            assert_eq!(limit.counted_by(&call, &nobody), unknown);
        }
        for (kind, words) in [
            (Kind::Header("host".into()), "host \"svc:8080\""),
            (Kind::Header("x-user".into()), "header x-user \"ann\""),
            (Kind::Header("x-other".into()), "header x-other none"),
            (Kind::QueryParam("q".into()), "query parameter q \"1\""),
            (Kind::QueryParam("p".into()), "query parameter p none"),
            (Kind::Path(true), "path /a"),
        ] {
            assert_eq!(by(&[kind]).counted_by(&call, &caller()), words);
        }
        let both = by(&[Kind::Path(true), Kind::QueryParam("q".into())]);
        let words = both.counted_by(&call, &caller());
        assert_eq!(words, "path /a, query parameter q \"1\"");
        let none = by(&[]).counted_by(&call, &caller());
        assert_eq!(none, "one count for all requests");
    }
}

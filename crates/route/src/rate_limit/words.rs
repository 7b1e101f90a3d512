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

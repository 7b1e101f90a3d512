use std::time::Duration;

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use isobar_proto::isobar::v1 as proto;

use crate::action::Target;
use crate::hash::{cookie, mix};
use crate::traffic::header_name;
use crate::virtual_service::{FieldError, duration};

/// A caller stays with the endpoint that answered it first, as long as that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRules {
    by: By,
    /// Life of a session, whatever happens in it.
    pub lifetime: Option<Duration>,
}

/// By what callers show their session.
#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    Header(HeaderName),
    /// Its name, and what follows name and value where it is given out.
    Cookie(String, String),
}

/// Where a session is, as its caller shows it. It names nothing, and nobody but us can make use of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Stands for the endpoint: see [`Session::endpoint`].
    pub endpoint: u64,
    /// Stands for the destination: see [`Session::destination`].
    pub destination: u64,
    /// Seconds since the epoch at which it ends; 0: it does not.
    pub ends: u64,
}

impl Session {
    /// What stands for an endpoint.
    #[must_use]
    pub fn endpoint(uid: &str) -> u64 {
        mix(0x5e55, uid.as_bytes())
    }

    /// What stands for a destination of a rule.
    #[must_use]
    pub fn destination(to: &Target) -> u64 {
        let service = to.service.as_ref().map(ToString::to_string);
        let mut hash = mix(0x5e55, service.unwrap_or_default().as_bytes());
        hash = mix(hash, to.subset.as_deref().unwrap_or_default().as_bytes());
        mix(hash, &to.port.to_be_bytes())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut next = || u64::from_str_radix(parts.next()?, 16).ok();
        let session = Self {
            endpoint: next()?,
            destination: next()?,
            ends: next()?,
        };
        parts.next().is_none().then_some(session)
    }
}

impl SessionRules {
    pub(crate) fn compile(from: &proto::Session) -> Result<Self, FieldError> {
        let lifetime = duration(from.lifetime.as_ref(), "session.lifetime")?;
        // A cookie's name is a token, as a header's is.
        let name = header_name(&from.name, "session.name")?;
        let by = if from.header {
            By::Header(name)
        } else {
            let kept = lifetime.filter(|_| from.permanent);
            let kept = kept.map(|life| format!("; Max-Age={}", life.as_secs()));
            By::Cookie(
                from.name.clone(),
                format!("{}; Path=/; HttpOnly", kept.unwrap_or_default()),
            )
        };
        Ok(Self { by, lifetime })
    }

    /// The session of a request, if it shows one that goes on. `now` in seconds since the epoch.
    #[must_use]
    pub fn shown(&self, headers: &HeaderMap, now: u64) -> Option<Session> {
        let text = match &self.by {
            By::Header(name) => headers.get(name)?.as_bytes(),
            By::Cookie(name, _) => cookie(headers, name)?,
        };
        let session = Session::parse(std::str::from_utf8(text).ok()?)?;
        let bounded = self.lifetime.is_none_or(|life| {
            // Nobody gives themselves more time than there is.
            session.ends > now && session.ends <= now + life.as_secs().max(1)
        });
        (bounded && (session.ends == 0 || session.ends > now)).then_some(session)
    }

    /// The header of a reply that tells a caller its session.
    #[must_use]
    pub fn give(&self, endpoint: u64, destination: u64, now: u64) -> (HeaderName, HeaderValue) {
        let ends = self.lifetime.map_or(0, |life| now + life.as_secs().max(1));
        let value = format!("{endpoint:x}-{destination:x}-{ends:x}");
        let (name, text) = match &self.by {
            By::Header(name) => (name.clone(), value),
            By::Cookie(name, with) => (SET_COOKIE, format!("{name}={value}{with}")),
        };
        let value = HeaderValue::from_str(&text);
        (name, value.expect("a token and what follows a cookie"))
    }
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    fn rules(header: bool, lifetime: Option<i64>, permanent: bool) -> SessionRules {
        SessionRules::compile(&proto::Session {
            name: "x-s".into(),
            header,
            lifetime: lifetime.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            permanent,
        })
        .unwrap()
    }

    #[test]
    fn what_is_given_leads_back_until_it_ends() {
        let to = Session::destination(&Target {
            service: None,
            subset: Some("v1".into()),
            port: 80,
            host: "a".into(),
            refuse: None,
        });
        let at = Session::endpoint("uid");
        for (rules, text) in [
            (rules(true, None, false), "x-s"),
            (rules(false, None, false), "; Path=/; HttpOnly"),
            (rules(false, Some(60), false), "; Path=/; HttpOnly"),
            (
                rules(false, Some(60), true),
                "; Max-Age=60; Path=/; HttpOnly",
            ),
        ] {
            let (name, value) = rules.give(at, to, 1000);
            let line = format!("{name} {}", value.to_str().unwrap());
            assert!(line.contains(text), "{line}");
            let shown = value
                .to_str()
                .unwrap()
                .split(';')
                .next()
                .unwrap()
                .to_owned();
            let mut headers = HeaderMap::new();
            let name = if name == SET_COOKIE { COOKIE } else { name };
            headers.insert(name, HeaderValue::from_str(&shown).unwrap());
            let found = rules.shown(&headers, 1059).unwrap();
            assert_eq!((found.endpoint, found.destination), (at, to));
            let later = rules.shown(&headers, 1060);
            assert_eq!(later.is_none(), rules.lifetime.is_some());
        }
    }

    #[test]
    fn what_others_made_up_is_no_session() {
        let rules = rules(true, Some(60), false);
        for text in [
            "",
            "1-2",
            "1-2-0",
            "1-2-3-4",
            "1-2-ffffff",
            "x-y-z",
            "1-2-3e7",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-s", HeaderValue::from_str(text).unwrap());
            assert_eq!(rules.shown(&headers, 1000), None, "{text}");
        }
    }
}

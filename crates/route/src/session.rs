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
    /// A session ends when nothing was asked for so long.
    pub idle: Option<Duration>,
}

/// By what callers show their session.
#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    Header(HeaderName),
    /// Its name, and whether browsers keep it for the session's life.
    Cookie(String, bool),
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
    /// Seconds since the epoch at which it ends unless something is asked before; 0: it does not.
    pub idle: u64,
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
        let mut session = Self {
            endpoint: next()?,
            destination: next()?,
            ends: next()?,
            idle: 0,
        };
        if let Some(idle) = parts.next() {
            session.idle = u64::from_str_radix(idle, 16).ok()?;
        }
        parts.next().is_none().then_some(session)
    }
}

impl SessionRules {
    pub(crate) fn compile(from: &proto::Session) -> Result<Self, FieldError> {
        // A cookie's name is a token, as a header's is.
        let name = header_name(&from.name, "session.name")?;
        Ok(Self {
            by: if from.header {
                By::Header(name)
            } else {
                By::Cookie(from.name.clone(), from.permanent)
            },
            lifetime: duration(from.lifetime.as_ref(), "session.lifetime")?,
            idle: duration(from.idle.as_ref(), "session.idle")?,
        })
    }

    /// The session of a request, if it shows one that goes on. `now` in seconds since the epoch.
    #[must_use]
    pub fn shown(&self, headers: &HeaderMap, now: u64) -> Option<Session> {
        let text = match &self.by {
            By::Header(name) => headers.get(name)?.as_bytes(),
            By::Cookie(name, _) => cookie(headers, name)?,
        };
        let session = Session::parse(std::str::from_utf8(text).ok()?)?;
        // Nobody gives themselves more time than there is.
        let within = |at: u64, most: Option<Duration>| match most {
            Some(most) => at > now && at <= now + most.as_secs().max(1),
            None => at == 0 || at > now,
        };
        (within(session.ends, self.lifetime) && within(session.idle, self.idle)).then_some(session)
    }

    /// The header of a reply that tells a caller its session; `before` is the one that goes on.
    #[must_use]
    pub fn give(
        &self,
        before: Option<Session>,
        (endpoint, destination): (u64, u64),
        now: u64,
    ) -> (HeaderName, HeaderValue) {
        let from_now = |time: Option<Duration>| time.map_or(0, |time| now + time.as_secs().max(1));
        let ends = before.map_or_else(|| from_now(self.lifetime), |before| before.ends);
        let mut value = format!("{endpoint:x}-{destination:x}-{ends:x}");
        if self.idle.is_some() {
            value.push_str(&format!("-{:x}", from_now(self.idle)));
        }
        let (name, text) = match &self.by {
            By::Header(name) => (name.clone(), value),
            By::Cookie(name, permanent) => {
                let kept = Some(ends.saturating_sub(now)).filter(|left| *permanent && *left > 0);
                let kept = kept.map(|left| format!("; Max-Age={left}"));
                let with = kept.unwrap_or_default();
                (
                    SET_COOKIE,
                    format!("{name}={value}{with}; Path=/; HttpOnly"),
                )
            }
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
            idle: None,
        })
        .unwrap()
    }

    #[test]
    fn a_session_ends_when_nothing_is_asked_for_a_while() {
        let mut rules = rules(true, Some(100), false);
        rules.idle = Some(Duration::from_secs(10));
        let shown = |value: &HeaderValue, now| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static("x-s"), value.clone())]);
            rules.shown(&headers, now)
        };
        let (_, first) = rules.give(None, (1, 2), 1000);
        let before = shown(&first, 1009).unwrap();
        assert_eq!((before.ends, before.idle), (1100, 1010));
        assert_eq!(shown(&first, 1010), None);
        // Each answer gives more time, of the session's whole life no more than there was.
        let (_, second) = rules.give(Some(before), (1, 2), 1009);
        let later = shown(&second, 1018).unwrap();
        assert_eq!((later.ends, later.idle), (1100, 1019));
        // Without the time, or with more of it than there is, it is nobody's session.
        for text in ["1-2-44c", "1-2-44c-ffff"] {
            assert_eq!(shown(&HeaderValue::from_static(text), 1000), None, "{text}");
        }
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
            let (name, value) = rules.give(None, (at, to), 1000);
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

    #[test]
    fn endpoints_and_destinations_are_told_apart() {
        assert_ne!(Session::endpoint("a"), Session::endpoint("b"));
        let to = |subset: &str, port| {
            Session::destination(&Target {
                service: None,
                subset: Some(subset.into()),
                port,
                host: "a".into(),
                refuse: None,
            })
        };
        let all = [to("v1", 80), to("v2", 80), to("v1", 81)];
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
        assert_eq!(all[0], to("v1", 80));
    }

    #[test]
    fn nobody_gives_themselves_more_time_than_there_is() {
        let of = |lifetime: Option<i64>, text: &str, now| {
            let mut headers = HeaderMap::new();
            headers.insert("x-s", HeaderValue::from_str(text).unwrap());
            rules(true, lifetime, false).shown(&headers, now).is_some()
        };
        // 3e8 is 1000, 424 is 1060.
        for (lifetime, text, now, expect) in [
            (Some(60), "1-2-424", 1000, true),
            (Some(60), "1-2-424", 999, false),
            (Some(60), "1-2-424", 1059, true),
            (Some(60), "1-2-424", 1060, false),
            (Some(60), "1-2-0", 1000, false),
            (None, "1-2-0", 1000, true),
            (None, "1-2-424", 1059, true),
            (None, "1-2-424", 1060, false),
        ] {
            assert_eq!(of(lifetime, text, now), expect, "{lifetime:?} {text} {now}");
        }
    }

    #[test]
    fn browsers_keep_what_lasts() {
        let given = |rules: &SessionRules, before, now| {
            let (_, value) = rules.give(before, (1, 2), now);
            value.to_str().unwrap().to_owned()
        };
        let endless = rules(false, None, true);
        assert!(!given(&endless, None, 1000).contains("Max-Age"));
        let at_its_end = Session {
            endpoint: 1,
            destination: 2,
            ends: 1000,
            idle: 0,
        };
        let permanent = rules(false, Some(60), true);
        assert!(given(&permanent, None, 1000).contains("Max-Age=60;"));
        assert!(!given(&permanent, Some(at_its_end), 1000).contains("Max-Age"));
    }
}

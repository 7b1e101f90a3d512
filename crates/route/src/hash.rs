use std::net::IpAddr;

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use isobar_proto::isobar::v1 as proto;

use crate::traffic::header_name;
use crate::virtual_service::{FieldError, duration};

/// What of a request decides which endpoint takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(HashCookie),
    /// The caller's address.
    SourceIp,
    /// The value of a query parameter.
    Query(String),
}

/// A cookie that keeps a browser at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// How a cookie that is missing is given out, after name and value; `None`: it is not.
    pub given_with: Option<String>,
}

impl HashKey {
    pub(crate) fn compile(from: &proto::ConsistentHash) -> Result<Self, FieldError> {
        use proto::consistent_hash::Key;
        match &from.key {
            Some(Key::Header(name)) => {
                header_name(name, "consistentHash.httpHeaderName").map(Self::Header)
            }
            Some(Key::Cookie(cookie)) => HashCookie::compile(cookie).map(Self::Cookie),
            Some(Key::SourceIp(_)) => Ok(Self::SourceIp),
            Some(Key::QueryParameter(name)) => Ok(Self::Query(name.clone())),
            None => Err(FieldError::new("consistentHash", "has no key")),
        }
    }

    /// The number that stands for this request; `None` where it does not have the key.
    #[must_use]
    pub fn of(&self, headers: &HeaderMap, query: Option<&str>, caller: IpAddr) -> Option<u64> {
        match self {
            Self::Header(name) => {
                let mut values = headers.get_all(name).iter().peekable();
                values.peek()?;
                Some(values.fold(0, |hash, value| mix(hash, value.as_bytes())))
            }
            Self::Cookie(cookie) => cookie.value(headers).map(|value| mix(0, value)),
            Self::SourceIp => Some(match caller {
                IpAddr::V4(ip) => mix(0, &ip.octets()),
                IpAddr::V6(ip) => mix(0, &ip.octets()),
            }),
            Self::Query(name) => {
                crate::http_match::query_value(query, name).map(|value| mix(0, value.as_bytes()))
            }
        }
    }
}

impl HashCookie {
    fn compile(from: &proto::HashCookie) -> Result<Self, FieldError> {
        let ttl = from.ttl.as_ref();
        let life = duration(ttl, "consistentHash.httpCookie.ttl")?;
        let mut with = String::new();
        if let Some(life) = life {
            with.push_str(&format!("; Max-Age={}", life.as_secs()));
        }
        if !from.path.is_empty() {
            with.push_str(&format!("; Path={}", from.path));
        }
        for one in &from.attributes {
            with.push_str("; ");
            with.push_str(&one.name);
            if !one.value.is_empty() {
                with.push('=');
                with.push_str(&one.value);
            }
        }
        with.push_str("; HttpOnly");
        let cookie = Self {
            name: from.name.clone(),
            given_with: ttl.map(|_| with),
        };
        // What is given out must be a header value, whatever the value of the cookie will be.
        match cookie.given_with.is_some() && cookie.give(0).is_none() {
            true => Err(FieldError::new(
                "consistentHash.httpCookie",
                "cannot be written into a header",
            )),
            false => Ok(cookie),
        }
    }

    fn value<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        cookie(headers, &self.name)
    }

    /// A new cookie by chance: its number, and the `set-cookie` that gives it out.
    #[must_use]
    pub fn give(&self, dice: u64) -> Option<(u64, HeaderValue)> {
        let with = self.given_with.as_ref()?;
        let value = format!("{dice:016x}");
        let header = format!("{}=\"{value}\"{with}", self.name);
        let header = HeaderValue::from_str(&header).ok()?;
        Some((mix(0, value.as_bytes()), header))
    }
}

/// The value of a cookie.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(COOKIE).iter();
    let crumbs = lines.flat_map(|line| line.as_bytes().split(|b| *b == b';'));
    crumbs
        .filter_map(|crumb| {
            let crumb = crumb.trim_ascii();
            let at = crumb.iter().position(|b| *b == b'=')?;
            (&crumb[..at] == name.as_bytes()).then_some(&crumb[at + 1..])
        })
        .map(|value| {
            value
                .strip_prefix(b"\"")
                .map_or(value, |v| v.strip_suffix(b"\"").unwrap_or(v))
        })
        .find(|value| !value.is_empty())
}

/// FNV-1a with a final stir: stable over processes and versions, so that all copies of a waypoint
/// send a key to the same endpoint.
#[must_use]
pub fn mix(seed: u64, bytes: &[u8]) -> u64 {
    let start = seed ^ 0xcbf2_9ce4_8422_2325;
    let hash = bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// How strongly an endpoint is drawn to a key: the one with the highest score takes it. Endpoints
/// that come or go move only the keys that are theirs, and each gets a share by its weight (highest
/// random weight hashing), which is what rings and tables approach with their size.
#[must_use]
pub fn score(key: u64, endpoint: &str, weight: u32) -> f64 {
    // 53 bits, in (0, 1).
    #[expect(clippy::cast_precision_loss, reason = "at most 53 bits")]
    let drawn = ((mix(key, endpoint.as_bytes()) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(weight) / -drawn.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(ttl: Option<i64>) -> HashCookie {
        HashCookie::compile(&proto::HashCookie {
            name: "user".into(),
            path: "/a".into(),
            ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            attributes: vec![proto::CookieAttribute {
                name: "SameSite".into(),
                value: "Strict".into(),
            }],
        })
        .unwrap()
    }

    #[test]
    fn every_key_is_found_where_it_is() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("ann"));
        headers.insert(COOKIE, HeaderValue::from_static("a=b; user=\"ann\"; c=d"));
        let ip = IpAddr::from([10, 0, 0, 1]);
        let ann = Some(mix(0, b"ann"));
        let of = |key: HashKey| key.of(&headers, Some("x=1&u=ann"), ip);
        assert_eq!(of(HashKey::Header(HeaderName::from_static("x-user"))), ann);
        assert_eq!(
            of(HashKey::Header(HeaderName::from_static("x-other"))),
            None
        );
        assert_eq!(of(HashKey::Cookie(cookie(None))), ann);
        assert_eq!(of(HashKey::Query("u".into())), ann);
        assert_eq!(of(HashKey::Query("v".into())), None);
        assert!(of(HashKey::SourceIp).is_some());
    }

    #[test]
    fn a_cookie_that_is_given_out_leads_back() {
        assert!(cookie(None).give(7).is_none());
        let (number, header) = cookie(Some(60)).give(7).unwrap();
        let text = header.to_str().unwrap();
        assert_eq!(
            text,
            "user=\"0000000000000007\"; Max-Age=60; Path=/a; SameSite=Strict; HttpOnly"
        );
        let mut headers = HeaderMap::new();
        let back = HeaderValue::from_static("user=\"0000000000000007\"");
        headers.insert(COOKIE, back);
        let ip = IpAddr::from([10, 0, 0, 1]);
        let key = HashKey::Cookie(cookie(Some(60)));
        assert_eq!(key.of(&headers, None, ip), Some(number));
        // 0 is for the browser's session.
        let (_, session) = cookie(Some(0)).give(7).unwrap();
        assert!(!session.to_str().unwrap().contains("Max-Age"));
    }

    #[test]
    fn a_number_is_the_same_in_every_version() {
        assert_eq!(mix(0, b""), 0xefd0_1f60_ba99_2926);
        assert_eq!(mix(0, b"ann"), 0x6ef4_c3ab_a814_f113);
        assert_eq!(mix(7, b"10.0.0.1:8080"), 0xeb79_2405_0836_0a31);
    }

    #[test]
    fn keys_spread_by_weight_and_few_move() {
        let owner = |key: u64, all: &[(&'static str, u32)]| {
            let best = |a: &&(&str, u32), b: &&(&str, u32)| {
                score(key, a.0, a.1).total_cmp(&score(key, b.0, b.1))
            };
            all.iter().max_by(best).unwrap().0
        };
        let three = [("a", 1), ("b", 1), ("c", 2)];
        let four = [("a", 1), ("b", 1), ("c", 2), ("d", 1)];
        let keys: Vec<u64> = (0..10_000_u64).map(|n| mix(0, &n.to_le_bytes())).collect();
        let of_c = keys.iter().filter(|k| owner(**k, &three) == "c").count();
        assert!((4700..5300).contains(&of_c), "{of_c}");
        let moved = keys
            .iter()
            .filter(|k| owner(**k, &three) != owner(**k, &four))
            .collect::<Vec<_>>();
        assert!(moved.iter().all(|k| owner(**k, &four) == "d"));
        assert!((1700..2300).contains(&moved.len()), "{}", moved.len());
    }
}

//! The one view of a request's header fields that policy, routing and the endpoint share.

use std::borrow::Cow;

use http::header::{COOKIE, Entry};
use http::{HeaderMap, HeaderName, HeaderValue};

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Headers that only a proxy of the mesh may set; a caller's own are removed.
const OURS_ALONE: [&str; 6] = [
    "x-forwarded-client-cert",
    "x-forwarded-host",
    "x-istio-source",
    "x-istio-attributes",
    "x-original-url",
    "x-rewrite-url",
];

/// Removes what a caller has no say in and joins what belongs together. Returns the scheme.
pub fn clean(headers: &mut HeaderMap) -> &'static str {
    remove_ours(headers);
    join_cookies(headers);
    forwarded_proto(headers)
}

/// A name as applications may read it that make variables of names (CGI, WSGI): `_` and `-` are one there.
#[must_use]
pub fn folded(name: &HeaderName) -> Cow<'_, str> {
    let name = name.as_str();
    if name.contains('_') {
        Cow::Owned(name.replace('_', "-"))
    } else {
        Cow::Borrowed(name)
    }
}

/// `x-envoy-*` steers Envoys behind us; a caller has no say in that, nor in what only we may set.
fn remove_ours(headers: &mut HeaderMap) {
    let ours = |name: &&HeaderName| {
        if !name.as_str().starts_with('x') {
            return false;
        }
        let name = folded(name);
        name.starts_with("x-envoy-") || OURS_ALONE.contains(&&*name)
    };
    let ours: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Keeps a plain statement of a gateway in front of us, says `http` otherwise.
fn forwarded_proto(headers: &mut HeaderMap) -> &'static str {
    match headers.entry(FORWARDED_PROTO) {
        Entry::Occupied(mut said) => {
            let https = said.get().as_bytes() == b"https";
            let scheme = if https { "https" } else { "http" };
            said.insert(HeaderValue::from_static(scheme));
            scheme
        }
        Entry::Vacant(none) => {
            none.insert(HeaderValue::from_static("http"));
            "http"
        }
    }
}

/// HTTP/2 may send cookies in several lines (RFC 9113 §8.2.3). An application sees them as one, so
/// policies and routes must too.
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if crumbs.len() < 2 {
        return;
    }
    // Values stay values when they are put one after the other.
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(lines: &[(&'static str, &'static str)]) -> (HeaderMap, &'static str) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let scheme = clean(&mut headers);
        (headers, scheme)
    }

    #[test]
    fn a_callers_own_words_about_itself_go() {
        let (headers, scheme) = cleaned(&[
            ("x-forwarded-host", "evil"),
            ("x-original-url", "/admin"),
            ("x-envoy-max-retries", "7"),
            ("x-forwarded-proto", "gopher"),
            ("x_forwarded-client_cert", "By=me"),
            ("x_envoy_internal", "true"),
            ("x-own", "1"),
            ("x_own", "2"),
        ]);
        assert_eq!((headers.len(), scheme), (3, "http"), "{headers:?}");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-own"], "1");
        assert_eq!(headers["x_own"], "2");
        assert_eq!(cleaned(&[("x-forwarded-proto", "https")]).1, "https");
    }

    #[test]
    fn crumbs_of_cookies_are_one_line() {
        let (headers, _) = cleaned(&[("cookie", "a=1"), ("cookie", "admin=1; b=2")]);
        let all: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(all, ["a=1; admin=1; b=2"]);
        assert_eq!(cleaned(&[("cookie", "a=1")]).0[COOKIE], "a=1");
        assert!(!cleaned(&[]).0.contains_key(COOKIE));
    }
}

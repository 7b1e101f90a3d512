//! Before anything looks at a request: refuse what is ambiguous, remove what only we may say.

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use isobar_route::path::Normalization;
use isobar_route::{fields, path};

use super::FIELDS;
use super::reply::Local;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Fields that a gateway has written before a head is looked at: who called, and over what.
const WRITTEN_HERE: usize = 2;

/// The one view of a request that policy, routes and log share.
#[derive(Debug, Clone)]
pub(super) struct Clean {
    pub(super) path: String,
    /// How far the path was normalised.
    pub(super) normal: Normalization,
    pub(super) query: Option<String>,
    pub(super) authority: String,
    /// The authority as it was written, where that is another.
    written: Option<String>,
    pub(super) scheme: &'static str,
    /// The protocol a caller wants to change to.
    pub(super) upgrade: Option<HeaderValue>,
    /// There is an `expect`, which is answered here.
    pub(super) expects: bool,
}

/// Checks and cleans a head in place; its path is normalised as the mesh wants it.
///
/// # Errors
/// The answer for a request that is refused.
pub(super) fn clean(parts: &mut Parts, normal: Normalization) -> Result<Clean, Local> {
    if matches!(parts.version, Version::HTTP_10 | Version::HTTP_09) {
        let status = StatusCode::UPGRADE_REQUIRED;
        let reason = isobar_types::Reason::BadRequest;
        return Err(Local::new(status, reason, "low_version", ""));
    }
    if parts.method == Method::CONNECT {
        return Err(Local::bad_request("connect_not_supported"));
    }
    if parts.version == Version::HTTP_2 {
        // Over HTTP/1.1 what reads them sees to that.
        readable(&parts.headers)?;
    }
    let seen = Seen::of(&parts.headers);
    if seen.framing {
        framing(parts).map_err(|local| closing(local, parts.version))?;
    }
    let (authority, written) = authority(parts)?;
    let path = path::normalise(parts.uri.path(), normal)
        .map_err(|_| Local::bad_request("path_normalization_failed"))?
        .into_owned();
    let query = parts.uri.query().map(str::to_owned);
    let te_alone = seen.te && parts.version == Version::HTTP_2 && takes_trailers(&parts.headers);
    let upgrade = match seen.hop_by_hop || (seen.te && !te_alone) {
        true => hop_by_hop(&mut parts.headers, parts.version),
        false => None,
    };
    let scheme = fields::clean(&mut parts.headers);
    if !seen.id {
        parts.headers.insert(REQUEST_ID, new_id());
    }
    Ok(Clean {
        path,
        normal,
        query,
        authority,
        written,
        scheme,
        upgrade,
        expects: seen.expects,
    })
}

/// What there is among a head's names that most have none of: looked for in one pass, not name by name.
#[derive(Debug, Default)]
struct Seen {
    /// Something of [`framing`].
    framing: bool,
    /// Something of [`hop_by_hop`] besides `te`.
    hop_by_hop: bool,
    te: bool,
    id: bool,
    expects: bool,
}

impl Seen {
    fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "content-length" => seen.framing = true,
                "transfer-encoding" => (seen.framing, seen.hop_by_hop) = (true, true),
                "x-request-id" => seen.id = true,
                "expect" => seen.expects = true,
                "te" => seen.te = true,
                other => seen.hop_by_hop |= is_for_one_hop(other),
            }
        }
        // A `connection` that names the id takes nothing away: see `is_pseudo_identity`.
        seen
    }
}

/// Fields of a message that are for its receiver alone, `te` among them.
pub(crate) fn is_for_one_hop(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}

/// As many as over HTTP/1.1 at most, and values as others read them: an endpoint that is asked over HTTP/1.1
/// takes spaces around one for none of it, and policies would have seen another value (RFC 9113 §8.2.1
/// forbids them).
fn readable(headers: &HeaderMap) -> Result<(), Local> {
    if headers.len() > FIELDS + WRITTEN_HERE {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let reason = isobar_types::Reason::BadRequest;
        return Err(Local::new(status, reason, "http2.too_many_headers", ""));
    }
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let padded = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        blank(bytes.first()) || blank(bytes.last())
    };
    if headers.values().any(padded) {
        return Err(Local::bad_request("http2.invalid.header.field"));
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    // Equal ones too: they would go on as several.
    if lengths.nth(1).is_some() {
        return Err(Local::bad_request("http2.content_length_malformed"));
    }
    Ok(())
}

/// Where the end of a request is in doubt, so is the begin of what follows it on its connection.
fn closing(mut local: Local, version: Version) -> Local {
    if version == Version::HTTP_11 {
        let close = HeaderValue::from_static("close");
        local.headers.insert(CONNECTION, close);
    }
    local
}

/// One length, or chunks, never both: whoever disagrees about where a request ends can smuggle.
fn framing(parts: &Parts) -> Result<(), Local> {
    let headers = &parts.headers;
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let first = lengths.next();
    if let Some(first) = first {
        let digits = !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
        if !digits || lengths.any(|other| other != first) {
            return Err(Local::bad_request("http1.content_length_malformed"));
        }
    }
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !chunked || encodings.next().is_some() || parts.version != Version::HTTP_11 {
            return Err(Local::bad_request("http1.invalid_transfer_encoding"));
        }
        if first.is_some() {
            return Err(Local::bad_request("http1.content_length_not_allowed"));
        }
    }
    Ok(())
}

/// The target's authority wins over `host` (RFC 9112 §3.2.2); several hosts are none.
fn authority(parts: &Parts) -> Result<(String, Option<String>), Local> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Local::bad_request("several_hosts"));
    }
    let host = host.map(|h| h.to_str().unwrap_or(""));
    let own = parts.uri.authority().map(::http::uri::Authority::as_str);
    if parts.version == Version::HTTP_2
        && let (Some(host), Some(own)) = (host, own)
        && !host.eq_ignore_ascii_case(own)
    {
        return Err(Local::bad_request("host_differs_from_authority"));
    }
    let text = own.or(host).unwrap_or("");
    let normal = path::normalise_authority(text, "http")
        .ok_or_else(|| Local::bad_request("invalid_authority"))?;
    let written = path::without_trailing_dot(text);
    let other = (*written != normal).then(|| written.into_owned());
    Ok((normal, other))
}

impl Clean {
    /// The authority as it was written.
    pub(super) fn written(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.authority)
    }
}

/// True if `te` is as [`hop_by_hop`] leaves it over HTTP/2, which every call of gRPC writes.
fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(TE).iter();
    all.next().is_some_and(|te| te == "trailers") && all.next().is_none()
}

/// Removes what is meant for this hop only; returns the upgrade asked for.
fn hop_by_hop(headers: &mut HeaderMap, version: Version) -> Option<HeaderValue> {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    let upgrade = headers
        .get(UPGRADE)
        .filter(|_| version == Version::HTTP_11 && named.contains(&UPGRADE))
        .cloned();
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|v| v.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in named {
        // A caller must not make us drop what routing and policy have to see.
        if ![HOST, CONTENT_LENGTH, TRAILER].contains(&name) && !is_pseudo_identity(&name) {
            headers.remove(name);
        }
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers && version == Version::HTTP_2 {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

fn is_pseudo_identity(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-") || *name == REQUEST_ID
}

/// Same for a response.
pub(super) fn clean_response(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| is_for_one_hop(name.as_str())) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A random UUID, version 4.
fn new_id() -> HeaderValue {
    let bits = (rand::random::<u128>() & !(0xf000_u128 << 64) & !(0xc000_u128 << 48))
        | (0x4000_u128 << 64)
        | (0x8000_u128 << 48);
    // By hand: nearly every request gets one, and formatting is the larger part of making it.
    let bits = bits.to_be_bytes();
    let mut digits = [0; 32];
    for (pair, octet) in digits.chunks_exact_mut(2).zip(bits) {
        pair[0] = DIGITS[usize::from(octet >> 4)];
        pair[1] = DIGITS[usize::from(octet & 0xf)];
    }
    let mut text = [b'-'; 36];
    for (to, from) in [
        (0..8, 0..8),
        (9..13, 8..12),
        (14..18, 12..16),
        (19..23, 16..20),
        (24..36, 20..32),
    ] {
        text[to].copy_from_slice(&digits[from]);
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    fn asked(version: Version, fields: &[(&'static str, &'static [u8])]) -> Result<Clean, Local> {
        let request = Request::post("http://svc/").version(version).body(());
        let (mut parts, ()) = request.unwrap().into_parts();
        parts.headers.insert(HOST, HeaderValue::from_static("svc"));
        for (name, value) in fields {
            let value = HeaderValue::from_bytes(value).unwrap();
            parts.headers.append(*name, value);
        }
        clean(&mut parts, Normalization::Base)
    }

    fn refusal(version: Version, fields: &[(&'static str, &'static [u8])]) -> Option<u16> {
        let refused = asked(version, fields).err();
        refused.map(|local| local.status.as_u16())
    }

    #[test]
    fn values_over_http2_have_no_space_around_them() {
        let over = |value| refusal(Version::HTTP_2, &[("x-user", value)]);
        for value in [&b" admin"[..], b"admin ", b"\tadmin", b"admin\t", b" "] {
            assert_eq!(over(value), Some(400), "{value:?}");
        }
        assert_eq!(over(b"the admin"), None);
        assert_eq!(over(b""), None);
    }

    #[test]
    fn there_are_as_many_fields_over_http2_as_over_http1() {
        let many = |count| refusal(Version::HTTP_2, &vec![("x-one", &b"1"[..]); count]);
        // One is the host.
        assert_eq!(many(FIELDS - 1), None);
        assert_eq!(many(FIELDS + WRITTEN_HERE), Some(431));
        assert_eq!(many(1500), Some(431));
    }

    #[test]
    fn a_length_over_http2_is_told_once() {
        let length = ("content-length", &b"3"[..]);
        assert_eq!(refusal(Version::HTTP_2, &[length]), None);
        assert_eq!(refusal(Version::HTTP_2, &[length, length]), Some(400));
    }

    #[test]
    fn of_te_only_trailers_go_on_and_only_over_http2() {
        let left = |version, values: &[&'static [u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(TE, HeaderValue::from_bytes(value).unwrap());
            }
            let request = Request::post("http://svc/").version(version).body(());
            let (mut parts, ()) = request.unwrap().into_parts();
            parts.headers = headers;
            assert!(clean(&mut parts, Normalization::Base).is_ok());
            let all = parts.headers.get_all(TE).iter();
            all.map(|te| te.as_bytes().to_vec()).collect::<Vec<_>>()
        };
        let trailers: &[u8] = b"trailers";
        for written in [
            &[trailers][..],
            &[b"Trailers"],
            &[b"gzip", trailers],
            &[trailers, trailers],
        ] {
            assert_eq!(left(Version::HTTP_2, written), [trailers], "{written:?}");
            assert!(left(Version::HTTP_11, written).is_empty(), "{written:?}");
        }
        assert!(left(Version::HTTP_2, &[b"gzip"]).is_empty());
    }

    #[test]
    fn nothing_follows_a_request_whose_end_is_in_doubt() {
        let chunked = ("transfer-encoding", &b"chunked"[..]);
        let twice = asked(Version::HTTP_11, &[chunked, chunked]).unwrap_err();
        assert_eq!(twice.status, StatusCode::BAD_REQUEST);
        assert_eq!(twice.headers[CONNECTION], "close");
    }
}

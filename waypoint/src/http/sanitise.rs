//! Before anything looks at a request: refuse what is ambiguous, remove what only we may say.

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use isobar_route::{fields, path};

use super::reply::Local;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The one view of a request that policy, routes and log share.
#[derive(Debug, Clone)]
pub(super) struct Clean {
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) authority: String,
    /// The authority as it was written, where that is another.
    written: Option<String>,
    pub(super) scheme: &'static str,
    /// The protocol a caller wants to change to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// Checks and cleans a head in place.
///
/// # Errors
/// The answer for a request that is refused.
pub(super) fn clean(parts: &mut Parts) -> Result<Clean, Local> {
    if matches!(parts.version, Version::HTTP_10 | Version::HTTP_09) {
        let status = StatusCode::UPGRADE_REQUIRED;
        let reason = isobar_types::Reason::BadRequest;
        return Err(Local::new(status, reason, "low_version", ""));
    }
    if parts.method == Method::CONNECT {
        return Err(Local::bad_request("connect_not_supported"));
    }
    framing(parts)?;
    let (authority, written) = authority(parts)?;
    let path = path::normalise(parts.uri.path())
        .map_err(|_| Local::bad_request("path_normalization_failed"))?
        .into_owned();
    let query = parts.uri.query().map(str::to_owned);
    let upgrade = hop_by_hop(&mut parts.headers, parts.version);
    let scheme = fields::clean(&mut parts.headers);
    if !parts.headers.contains_key(&REQUEST_ID) {
        parts.headers.insert(REQUEST_ID, new_id());
    }
    Ok(Clean {
        path,
        query,
        authority,
        written,
        scheme,
        upgrade,
    })
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

/// A random UUID, version 4.
fn new_id() -> HeaderValue {
    let bits = (rand::random::<u128>() & !(0xf000_u128 << 64) & !(0xc000_u128 << 48))
        | (0x4000_u128 << 64)
        | (0x8000_u128 << 48);
    // By hand: nearly every request gets one, and formatting is the larger part of making it.
    let mut text = [b'-'; 36];
    let mut place = 0;
    for (at, octet) in bits.to_be_bytes().into_iter().enumerate() {
        place += usize::from(matches!(at, 4 | 6 | 8 | 10));
        for half in [octet >> 4, octet & 0xf] {
            text[place] = b"0123456789abcdef"[usize::from(half)];
            place += 1;
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

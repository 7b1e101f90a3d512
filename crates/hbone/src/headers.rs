mod authority;
mod baggage;
mod forwarded;
#[cfg(test)]
mod tests;
mod trace;

use std::fmt::{self, Write as _};

use bytes::{Bytes, BytesMut};
use http::header::{FORWARDED, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Uri};

pub use authority::Authority;
pub use baggage::{Baggage, BaggageValue, WorkloadType};
pub use forwarded::Forwarded;
pub use trace::TraceParent;

/// Name of the sender's network; only on the inner CONNECT of a cross-network call.
pub const FORWARDED_NETWORK: &str = "x-forwarded-network";
pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Room for all that a request says, as a rule: it is then written without moving.
const TEXT: usize = 512;

/// What a CONNECT request says (as Istio's ztunnel does). All but the authority is unauthenticated and
/// for telemetry only; malformed parts are treated as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// Where the tunnel leads: `IP:port` or `hostname:port`.
    pub authority: Authority,
    /// What the sender says about the source workload.
    pub baggage: Option<BaggageValue>,
    /// The caller's address and the host it asked for.
    pub forwarded: Option<Forwarded>,
    /// Trace context.
    pub traceparent: Option<TraceParent>,
    /// The sender's network, see [`FORWARDED_NETWORK`].
    pub forwarded_network: Option<String>,
}

/// Why headers cannot be sent, or a request is no CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another method.
    #[error("the method is not CONNECT")]
    Method,
    /// No authority, or not `host:port`.
    #[error("the authority {0:?} is not host:port")]
    Authority(String),
    /// A value that no header can carry.
    #[error("the value of {0} cannot be sent")]
    Value(&'static str),
}

impl ConnectHeaders {
    /// Headers with an authority only.
    #[must_use]
    pub const fn new(authority: Authority) -> Self {
        Self {
            authority,
            baggage: None,
            forwarded: None,
            traceparent: None,
            forwarded_network: None,
        }
    }

    /// The request to send.
    pub(crate) fn to_request(&self) -> Result<Request<()>, HeaderError> {
        let mut text = BytesMut::with_capacity(TEXT);
        let uri = Uri::from_maybe_shared(written(&mut text, &self.authority))
            .map_err(|_| HeaderError::Authority(self.authority.to_string()))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE, baggage.value());
        }
        if let Some(forwarded) = &self.forwarded {
            headers.insert(FORWARDED, once(value("forwarded", &mut text, forwarded)?));
        }
        if let Some(traceparent) = &self.traceparent {
            let value = once(value("traceparent", &mut text, traceparent)?);
            headers.insert(TRACEPARENT, value);
        }
        if let Some(network) = &self.forwarded_network {
            headers.insert(
                HeaderName::from_static(FORWARDED_NETWORK),
                value(FORWARDED_NETWORK, &mut text, network)?,
            );
        }
        Ok(request)
    }

    /// Reads a received request.
    pub(crate) fn from_request<B>(request: &Request<B>) -> Result<Self, HeaderError> {
        if request.method() != Method::CONNECT {
            return Err(HeaderError::Method);
        }
        let authority = request
            .uri()
            .authority()
            .map_or("", http::uri::Authority::as_str);
        let authority = Authority::parse(authority)
            .ok_or_else(|| HeaderError::Authority(authority.chars().take(300).collect()))?;
        let headers = request.headers();
        Ok(Self {
            authority,
            baggage: BaggageValue::received(headers),
            forwarded: text(headers, &FORWARDED).and_then(Forwarded::parse),
            traceparent: text(headers, &TRACEPARENT).and_then(TraceParent::parse),
            forwarded_network: text(headers, &HeaderName::from_static(FORWARDED_NETWORK))
                .map(str::to_owned),
        })
    }
}

/// A value that no other request has: put into the table of headers (RFC 7541 section 2.3.2) it would
/// only push out what the next request says again.
fn once(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// `text` is room to write in.
fn value(
    name: &'static str,
    text: &mut BytesMut,
    what: &impl fmt::Display,
) -> Result<HeaderValue, HeaderError> {
    let text = written(text, what);
    if !text.is_ascii() {
        return Err(HeaderError::Value(name));
    }
    HeaderValue::from_maybe_shared(text).map_err(|_| HeaderError::Value(name))
}

fn written(text: &mut BytesMut, what: &impl fmt::Display) -> Bytes {
    // Fails only where what is written says so itself; nothing here does.
    let _ = write!(text, "{what}");
    text.split().freeze()
}

/// The first value of a header, if it is visible ASCII.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

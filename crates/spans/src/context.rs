//! Which trace a request belongs to: from its headers, and in those that go on.
//!
//! W3C Trace Context (<https://www.w3.org/TR/trace-context>) counts first, then B3
//! (<https://github.com/openzipkin/b3-propagation>). What is malformed, or there several times, begins a new trace.

mod b3;
mod w3c;

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Random bits of a trace id by which it is sampled or not, as other parts of its trace decide it
/// (OpenTelemetry's consistent sampling).
const RANDOM_BITS: u32 = 56;
const MILLION: u64 = 1_000_000;

/// A request's place in its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Never zero.
    pub(crate) trace: u128,
    /// Of the request here; never zero.
    pub(crate) span: u64,
    /// Of whoever called.
    pub(crate) parent: Option<u64>,
    /// What it is told of is recorded.
    sampled: bool,
    /// The caller's `tracestate`, where it goes on and something is recorded.
    pub(crate) state: String,
}

impl Context {
    /// True if a span is to be recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }
}

/// What a request's headers say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Received {
    /// Trace and span of the caller.
    parent: Option<(u128, u64)>,
    /// What is decided already.
    sampled: Option<bool>,
    /// B3's "debug" goes on as such.
    debug: bool,
}

/// Begins the span of a request: reads where it comes from, and leaves in its headers what whoever gets it next has to
/// know. Nothing decided yet, of a million new traces `per_million` are sampled.
pub fn begin(headers: &mut HeaderMap, per_million: u32) -> Context {
    let told = b3::Told::of(headers);
    let (received, state) = match w3c::received(headers) {
        Some(Ok(received)) => (received, w3c::state(headers)),
        // Whoever writes it wrongly begins anew, whatever else there is.
        Some(Err(w3c::Malformed)) => (Received::default(), None),
        None => (told.received(headers), None),
    };
    let trace = received.parent.map_or_else(new_trace, |(trace, _)| trace);
    let parent = received.parent.map(|(_, span)| span);
    let sampled = received
        .sampled
        .unwrap_or_else(|| is_chosen(trace, per_million));
    let span = new_span();
    headers.insert(TRACEPARENT, w3c::value(trace, span, sampled));
    if state.is_none() {
        headers.remove(TRACESTATE);
    }
    told.write(
        headers,
        &b3::Next {
            trace,
            span,
            parent,
            sampled,
            debug: received.debug,
        },
    );
    Context {
        trace,
        span,
        parent,
        sampled,
        state: state.filter(|_| sampled).unwrap_or_default(),
    }
}

/// Whether a trace is among `per_million` of a million.
fn is_chosen(trace: u128, per_million: u32) -> bool {
    let left_out = MILLION.saturating_sub(per_million.into());
    let first = (u128::from(left_out) << RANDOM_BITS) / u128::from(MILLION);
    let random = trace & ((1 << RANDOM_BITS) - 1);
    random >= first
}

fn new_trace() -> u128 {
    loop {
        let id = rand::random();
        if id != 0 {
            return id;
        }
    }
}

fn new_span() -> u64 {
    loop {
        let id = rand::random();
        if id != 0 {
            return id;
        }
    }
}

/// Each is another: an index of HTTP/2 would drive out for them what comes again.
fn unique(text: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;

//! B3, in one header or in several: whoever calls with it gets it passed on in the same form.

use http::{HeaderMap, HeaderName, HeaderValue};
use isobar_types::hex;

use super::{Received, unique};

const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

const YES: HeaderValue = HeaderValue::from_static("1");
const NO: HeaderValue = HeaderValue::from_static("0");

/// In which forms a caller uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    single: bool,
    several: bool,
}

/// What the next one is told.
pub(super) struct Next {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) parent: Option<u64>,
    pub(super) sampled: bool,
    pub(super) debug: bool,
}

impl Told {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let several = [TRACE, SPAN, PARENT, SAMPLED, FLAGS];
        Self {
            single: headers.contains_key(SINGLE),
            several: several.iter().any(|name| headers.contains_key(name)),
        }
    }

    /// What the headers say; the one header counts before the several.
    pub(super) fn received(self, headers: &HeaderMap) -> Received {
        let read = match self {
            Self { single: true, .. } => only(headers, &SINGLE).and_then(single),
            Self { several: true, .. } => several(headers),
            _ => None,
        };
        read.unwrap_or_default()
    }

    /// Writes what goes on, in the forms that came.
    pub(super) fn write(self, headers: &mut HeaderMap, next: &Next) {
        let (mut trace, mut span) = ([0; 32], [0; 16]);
        if self.single || self.several {
            hex::write(&mut trace, next.trace);
            hex::write(&mut span, next.span.into());
        }
        let parent = next.parent.map(|parent| {
            let mut text = [0; 16];
            hex::write(&mut text, parent.into());
            text
        });
        if self.single {
            let flag = match (next.debug, next.sampled) {
                (true, _) => b"d",
                (false, true) => b"1",
                (false, false) => b"0",
            };
            let mut parts = vec![&trace[..], &span, flag];
            parts.extend(parent.as_ref().map(|parent| &parent[..]));
            put(headers, SINGLE, unique(&parts.join(&b'-')));
        }
        if self.several {
            put(headers, TRACE, unique(&trace));
            put(headers, SPAN, unique(&span));
            put(headers, PARENT, parent.and_then(|parent| unique(&parent)));
            let sampled = if next.sampled { YES } else { NO };
            put(headers, SAMPLED, (!next.debug).then_some(sampled));
            put(headers, FLAGS, next.debug.then_some(YES));
        }
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => drop(headers.insert(name, value)),
        None => drop(headers.remove(name)),
    }
}

/// A header's value, if there is one of its name.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    all.next().is_none().then(|| first.as_bytes())
}

fn trace_id(digits: &[u8]) -> Option<u128> {
    // Those of 64 bits are the lower half.
    let fits = matches!(digits.len(), 16 | 32);
    hex::number(digits).filter(|id| fits && *id != 0)
}

fn span_id(digits: &[u8]) -> Option<u64> {
    let id = hex::number(digits).filter(|id| digits.len() == 16 && *id != 0)?;
    u64::try_from(id).ok()
}

/// `TRACE-SPAN[-DECISION[-PARENT]]`, or the decision alone.
fn single(text: &[u8]) -> Option<Received> {
    let decision = |flag: &[u8]| match flag {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    };
    if let Some((sampled, debug)) = decision(text) {
        return Some(Received {
            parent: None,
            sampled: Some(sampled),
            debug,
        });
    }
    let mut parts = text.split(|byte| *byte == b'-');
    let parent = (trace_id(parts.next()?)?, span_id(parts.next()?)?);
    let mut received = Received {
        parent: Some(parent),
        ..Received::default()
    };
    if let Some(flag) = parts.next() {
        let (sampled, debug) = decision(flag)?;
        (received.sampled, received.debug) = (Some(sampled), debug);
    }
    if let Some(parent) = parts.next() {
        span_id(parent)?;
    }
    parts.next().is_none().then_some(received)
}

fn several(headers: &HeaderMap) -> Option<Received> {
    let of = |name: HeaderName| match headers.contains_key(&name) {
        true => only(headers, &name).map(Some).ok_or(()),
        false => Ok(None),
    };
    let parent = match (of(TRACE).ok()?, of(SPAN).ok()?) {
        (None, None) => None,
        (Some(trace), Some(span)) => Some((trace_id(trace)?, span_id(span)?)),
        _ => return None,
    };
    let debug = of(FLAGS).ok()? == Some(b"1");
    let sampled = match of(SAMPLED).ok()? {
        None => None,
        Some(b"1" | b"true") => Some(true),
        Some(b"0" | b"false") => Some(false),
        Some(_) => return None,
    };
    Some(Received {
        parent,
        sampled: if debug { Some(true) } else { sampled },
        debug,
    })
}

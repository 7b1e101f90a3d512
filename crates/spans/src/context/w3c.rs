//! W3C Trace Context, level 1, and its rules for levels that are to come.

use http::{HeaderMap, HeaderValue};
use isobar_types::hex;

use super::{Received, TRACEPARENT, TRACESTATE, unique};

/// A context without its numbers.
const BLANK: &[u8; 55] = b"00-00000000000000000000000000000000-0000000000000000-00";
/// Bit 0 of the flags.
const SAMPLED: u128 = 1;
/// Most octets and entries of a `tracestate` that goes on (the least that has to).
const STATE: usize = 512;
const ENTRIES: usize = 32;

/// There is a `traceparent`, and it counts for nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What `traceparent` says; `None` without one.
pub(super) fn received(headers: &HeaderMap) -> Option<Result<Received, Malformed>> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let first = all.next()?;
    let read = match all.next() {
        None => parse(first.as_bytes()),
        Some(_) => None,
    };
    Some(read.ok_or(Malformed))
}

fn parse(text: &[u8]) -> Option<Received> {
    let (own, rest) = text.split_at_checked(BLANK.len())?;
    let version = hex::number(&own[..2])?;
    let dashes = [2, 35, 52].iter().all(|at| own[*at] == b'-');
    let more = match version {
        0 => rest.is_empty(),
        0xff => false,
        // Of those to come the first fields are known.
        _ => rest.is_empty() || rest.starts_with(b"-"),
    };
    let trace = hex::number(&own[3..35])?;
    let span = u64::try_from(hex::number(&own[36..52])?).ok()?;
    let flags = hex::number(&own[53..])?;
    (dashes && more && trace != 0 && span != 0).then_some(Received {
        parent: Some((trace, span)),
        sampled: Some(flags & SAMPLED != 0),
        debug: false,
    })
}

/// The `traceparent` that goes on.
pub(super) fn value(trace: u128, span: u64, sampled: bool) -> HeaderValue {
    let mut text = *BLANK;
    hex::write(&mut text[3..35], trace);
    hex::write(&mut text[36..52], span.into());
    hex::write(&mut text[53..], u128::from(sampled));
    unique(&text).unwrap_or_else(|| HeaderValue::from_static(""))
}

/// The caller's `tracestate`, where there is one that goes on.
pub(super) fn state(headers: &HeaderMap) -> Option<String> {
    let mut text = String::new();
    for value in headers.get_all(TRACESTATE) {
        let value = value.to_str().ok()?;
        if text.len() + value.len() > STATE {
            return None;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(value);
    }
    let fits = text.len() <= STATE && text.split(',').count() <= ENTRIES;
    (fits && !text.is_empty()).then_some(text)
}

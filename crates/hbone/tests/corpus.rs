//! The fuzz targets for what peers send, over their committed inputs and small changes to them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "a module beside the fuzz library")]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../../fuzz/src/peer.rs"]
mod peer;

use corpus::over;

#[test]
fn authorities() {
    over("authority", peer::authority);
}

#[test]
fn baggage() {
    over("baggage", peer::baggage);
}

#[test]
fn forwarded() {
    over("forwarded", peer::forwarded);
}

#[test]
fn trace_parents() {
    over("traceparent", peer::traceparent);
}

#[test]
fn proxy_headers() {
    over("proxy_header", peer::proxy_header);
}

#[test]
fn frames() {
    over("frames", peer::frames);
}

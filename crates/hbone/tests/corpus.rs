//! The fuzz targets for what peers send, over their committed inputs and small changes to them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../../fuzz/src/peer.rs"]
mod peer;

use std::path::Path;

/// Every input as it is, cut anywhere, and with any byte changed.
fn over(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut inputs = 0;
    for file in std::fs::read_dir(folder.join(target)).unwrap() {
        let input = std::fs::read(file.unwrap().path()).unwrap();
        run(&input);
        for at in 0..input.len().min(4096) {
            run(&input[..at]);
            for change in [1, 0x20, 0x80, 0xff] {
                let mut changed = input.clone();
                changed[at] ^= change;
                run(&changed);
            }
        }
        inputs += 1;
    }
    assert!(inputs > 0, "no corpus for {target}");
}

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

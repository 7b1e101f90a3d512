//! The fuzz targets for what pods and the node agent send, over their committed inputs and small changes to them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../fuzz/src/pods.rs"]
mod pods;

use std::path::Path;

/// Every input as it is, cut anywhere, and with any byte changed.
fn over(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
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
fn packets() {
    over("packet", pods::packet);
}

#[test]
fn queries() {
    over("query", pods::query);
}

//! The fuzz targets for what a control plane tells, over their committed inputs and small changes to them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../../fuzz/src/told.rs"]
mod told;

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
fn addresses() {
    over("address", told::address);
}

#[test]
fn policies() {
    over("authorization", told::authorization);
}

#[test]
fn outbound_policies() {
    over("outbound_policy", told::outbound_policy);
}

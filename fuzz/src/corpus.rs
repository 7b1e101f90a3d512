//! The committed inputs of a target, for tests that run it without a fuzzer.

use std::path::Path;

/// Runs `target` over each of its inputs as it is, cut anywhere, and with any byte changed.
///
/// # Panics
/// When there is no input, or the target panics.
pub fn over(target: &str, run: fn(&[u8])) {
    let inner = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut above = inner.ancestors().map(|folder| folder.join("fuzz/corpus"));
    let corpus = above.find(|folder| folder.is_dir()).unwrap();
    let mut inputs = 0;
    for file in std::fs::read_dir(corpus.join(target)).unwrap() {
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

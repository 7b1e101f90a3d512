//! The waypoint beside a real Envoy: the same objects, the same requests, the same back ends. What the
//! caller gets and what the back ends see is compared; a difference is a failure, unless
//! `divergences.toml` says why it is wanted.
//!
//! The objects go through the control plane's model on both sides: our waypoint gets its messages as
//! over discovery, Envoy a configuration made from them. Needs the Envoy that `make setup` installs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod backends;
mod caller;
mod divergence;
mod gateways;
mod generate;
mod judge;
mod objects;
mod observed;
mod ours;
mod round;
mod scenario;

use std::path::{Path, PathBuf};

use divergence::Divergences;

/// Generated configurations, and requests to each: in the long form, and in the short one.
const LONG: (usize, usize) = (60, 40);
const SHORT: (usize, usize) = (8, 25);
/// Fewer written scenarios are a sign that some got lost.
const WRITTEN: usize = 400;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential")
}

fn long() -> bool {
    std::env::var_os("ISOBAR_TEST_LONG").is_some()
}

#[test]
fn written_scenarios_end_as_with_envoy() {
    let only = std::env::var("ISOBAR_ORACLE").unwrap_or_default();
    let mut all = scenario::read(&folder().join("scenarios"));
    all.retain(|configuration| configuration.name.contains(&only));
    let count: usize = all.iter().map(|c| c.cases.len()).sum();
    println!("{count} scenarios in {} configurations", all.len());
    let divergences = Divergences::read(&folder().join("divergences.toml"));
    round::compare("written", &all, &divergences);
    if only.is_empty() {
        assert!(count >= WRITTEN, "only {count} scenarios");
        let unused = divergences.unused();
        assert!(unused.is_empty(), "entries that nothing needs: {unused:#?}");
    }
}

#[test]
fn generated_requests_end_as_with_envoy() {
    let seed = std::env::var("ISOBAR_ORACLE_SEED").map_or(20_261, |text| text.parse().unwrap());
    let (configurations, requests) = if long() { LONG } else { SHORT };
    println!("seed {seed}: {configurations} configurations with {requests} requests each");
    let all = generate::configurations(seed, configurations, requests);
    let divergences = Divergences::read(&folder().join("divergences.toml"));
    round::compare("generated", &all, &divergences);
}

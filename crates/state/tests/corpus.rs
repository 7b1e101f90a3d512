//! The fuzz targets for what a control plane tells, over their committed inputs and small changes to them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "a module beside the fuzz library")]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../../fuzz/src/told.rs"]
mod told;

use corpus::over;

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

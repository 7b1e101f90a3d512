//! The fuzz targets for what proves an identity, over their committed inputs and small changes to them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "a module beside the fuzz library")]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../../fuzz/src/credentials.rs"]
mod credentials;

use corpus::over;

#[test]
fn tokens() {
    over("token", credentials::token);
}

#[test]
fn key_sets() {
    over("keys", credentials::keys);
}

#[test]
fn certificates() {
    over("certificate", credentials::certificate);
}

#[test]
fn revocation_lists() {
    over("revocation", credentials::revocation);
}

#[test]
fn requests() {
    over("request", credentials::request);
}

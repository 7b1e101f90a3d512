//! The fuzz targets for what pods, the node agent and operators write, over their committed inputs and small changes to them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "a module beside the fuzz library")]
#[path = "../../fuzz/src/corpus.rs"]
mod corpus;
#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../fuzz/src/local.rs"]
mod local;
#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../fuzz/src/pods.rs"]
mod pods;

use corpus::over;

#[test]
fn packets() {
    over("packet", pods::packet);
}

#[test]
fn queries() {
    over("query", pods::query);
}

#[test]
fn local_meshes() {
    over("local_mesh", local::local_mesh);
}

//! The fuzz targets for what was kept on file, over their committed inputs and small changes to them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unreachable_pub, reason = "a module beside the fuzz library")]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[allow(unreachable_pub, reason = "a module of the fuzz library")]
#[path = "../../../fuzz/src/kept.rs"]
mod kept;

use corpus::over;

#[test]
fn files_of_the_mesh() {
    over("mesh_file", kept::mesh_file);
}

#[test]
fn files_of_certificates() {
    over("certificate_file", kept::certificate_file);
}

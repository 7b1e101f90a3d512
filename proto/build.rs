//! Compiles the `.proto` files with protox, so that no protobuf compiler has to be installed.

use std::path::Path;

const FILES: [&str; 9] = [
    "istio/workload.proto",
    "istio/authorization.proto",
    "istio/ca.proto",
    "istio/zds.proto",
    "xds/discovery.proto",
    "envoy/authorization.proto",
    "isobar/waypoint.proto",
    "isobar/policy.proto",
    "isobar/outbound.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("protos");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [root])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}

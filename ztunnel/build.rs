//! Tells the program what it was built with, for `ztunnel version`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    let profile = profile(Path::new(&out)).unwrap_or("unknown");
    println!("cargo:rustc-env=ISOBAR_BUILD_PROFILE={profile}");
    if let Some(version) = compiler() {
        println!("cargo:rustc-env=ISOBAR_RUST_VERSION={version}");
    }
}

/// Cargo tells a profile's own name only by the folder it builds in: `.../PROFILE/build/CRATE/out`.
fn profile(out: &Path) -> Option<&str> {
    let build = out.ancestors().find(|dir| dir.ends_with("build"))?;
    build.parent()?.file_name()?.to_str()
}

/// As in `rustc 1.90.0 (...)`, without the first word.
fn compiler() -> Option<String> {
    let output = Command::new(std::env::var_os("RUSTC")?)
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().trim_start_matches("rustc ").to_owned())
}

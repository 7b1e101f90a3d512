//! Checks of the house itself: `cargo run -p xtask -- check`; and `-- checks` and `-- bars`, the node
//! proxy's conformance checks and reliability bars; `-- features`, the table of fields.
//!
//! Each check prints what is wrong and how to mend it; the exit code is 1 if any found something.

#![forbid(unsafe_code)]

mod checks;
mod containers;
mod docs;
mod features;
mod findings;
mod layers;
mod pages;
mod sbom;
mod size;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// One complaint: where, and what to do.
#[derive(Debug)]
pub(crate) struct Complaint(pub(crate) String);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lives one level below the workspace")
        .to_owned()
}

const USAGE: &str = "usage: xtask check|layers|size|docs|pages|page|codes|images\n       xtask checks|bars [-o json] [--narrow] [--long]\n       xtask features [-o json | --write]\n       xtask findings [--write]\n       xtask sbom PROGRAM";

fn main() -> anyhow::Result<ExitCode> {
    let root = root();
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let wanted = arguments.first().cloned().unwrap_or_default();
    match &*wanted {
        "checks" => return checks::run(&root, &checks::CONFORMANCE, &arguments[1..]),
        "bars" => return checks::run(&root, &checks::RELIABILITY, &arguments[1..]),
        _ => {}
    }
    if wanted == "sbom" {
        return sbom::run(&root, &arguments[1..]);
    }
    if wanted == "findings" {
        return findings::run(&root, &arguments[1..]);
    }
    if wanted == "features" {
        return features::run(&root, &arguments[1..]);
    }
    type Check = fn(&Path) -> anyhow::Result<Vec<Complaint>>;
    let checks: [(&str, Check); 7] = [
        ("layers", layers::check),
        ("size", size::check),
        ("docs", docs::check),
        ("pages", pages::check),
        ("page", features::check),
        ("codes", findings::check),
        ("images", containers::check),
    ];
    if ["--help", "-h", "help"].contains(&&*wanted) {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    if !checks.iter().any(|(name, _)| *name == wanted) && wanted != "check" {
        eprintln!("{USAGE}");
        return Ok(ExitCode::from(2));
    }
    let mut failed = false;
    for (name, check) in checks {
        if wanted != "check" && wanted != name {
            continue;
        }
        let complaints = check(&root)?;
        println!(
            "{name}: {}",
            if complaints.is_empty() { "ok" } else { "wrong" }
        );
        for Complaint(text) in &complaints {
            println!("  {text}");
        }
        failed |= !complaints.is_empty();
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Files git tracks or would track, relative to the root.
pub(crate) fn tracked(root: &Path, pattern: &str) -> anyhow::Result<Vec<PathBuf>> {
    let output = std::process::Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            pattern,
        ])
        .current_dir(root)
        .output()?;
    anyhow::ensure!(output.status.success(), "git ls-files failed");
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .map(PathBuf::from)
        .filter(|p| root.join(p).is_file())
        .collect())
}

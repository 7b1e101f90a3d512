//! Which crate may depend on which, and which crates may not be there at all.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::Complaint;

/// Band of each library crate: an edge may only point to a lower band, or inside a band where
/// [`SAME_BAND`] says so.
const BANDS: &[(&str, u8)] = &[
    ("isobar-proto", 0),
    ("isobar-types", 0),
    ("isobar-state", 1),
    ("isobar-route", 1),
    ("isobar-runtime", 2),
    ("isobar-net", 2),
    ("isobar-tls", 2),
    ("isobar-telemetry", 2),
    ("isobar-spans", 2),
    ("isobar-chart", 3),
    ("isobar-objects", 3),
    ("isobar-hbone", 3),
    ("isobar-xds", 3),
    ("isobar-kubernetes", 4),
    ("isobar-lab", 5),
    ("isobar-samples", 6),
    ("isobar-ztunnel", 6),
    ("isobar-waypoint", 6),
    ("isobar-control-plane", 6),
    ("isobar-explain", 6),
    ("isobar-node-agent", 6),
    ("isobar-cli", 6),
    ("isobar-tests", 7),
    ("isobar-benches", 7),
    ("xtask", 7),
];

const SAME_BAND: &[(&str, &str)] = &[
    ("isobar-route", "isobar-state"),
    ("isobar-net", "isobar-runtime"),
    ("isobar-tls", "isobar-runtime"),
    ("isobar-telemetry", "isobar-runtime"),
    ("isobar-explain", "isobar-control-plane"),
    ("isobar-cli", "isobar-explain"),
    ("isobar-benches", "isobar-tests"),
];

/// What a product must not use, and why.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    (
        "isobar-ztunnel",
        "isobar-objects",
        "a node proxy knows no API server",
    ),
    (
        "isobar-ztunnel",
        "isobar-route",
        "a node proxy parses no requests",
    ),
    (
        "isobar-waypoint",
        "isobar-objects",
        "a waypoint is fed over xDS only",
    ),
    (
        "isobar-control-plane",
        "isobar-net",
        "the control plane touches no data socket",
    ),
    (
        "isobar-control-plane",
        "isobar-hbone",
        "the control plane touches no data socket",
    ),
    (
        "isobar-node-agent",
        "isobar-tls",
        "the agent places rules, it decides nothing",
    ),
    (
        "isobar-node-agent",
        "isobar-hbone",
        "the agent places rules, it decides nothing",
    ),
    (
        "isobar-node-agent",
        "isobar-route",
        "the agent places rules, it decides nothing",
    ),
];

/// Pure crates: no runtime, no sockets.
const PURE: &[&str] = &[
    "isobar-types",
    "isobar-proto",
    "isobar-state",
    "isobar-route",
];
const IMPURE: &[&str] = &["tokio", "socket2", "hyper", "nix", "rand"];

/// External crates that only one of ours may name.
const ONE_USER: &[(&str, &[&str])] = &[
    ("rustls", &["isobar-tls"]),
    ("boring", &["isobar-tls"]),
    ("boring-rustls-provider", &["isobar-tls"]),
    ("kube", &["isobar-kubernetes", "isobar-lab", "isobar-tests"]),
];

/// Crates that must not be in the build, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "one crypto library: BoringSSL"),
    ("aws-lc-rs", "one crypto library: BoringSSL"),
    ("openssl", "one crypto library: BoringSSL"),
    ("native-tls", "one crypto library: BoringSSL"),
    ("serde_yaml", "deprecated; serde-saphyr reads YAML here"),
    ("serde_yml", "unsound and archived"),
    ("backoff", "unmaintained"),
    ("rustls-pemfile", "unmaintained"),
    ("instant", "unmaintained"),
    ("bincode", "unmaintained"),
    ("rustables", "GPL"),
    ("async-std", "unmaintained"),
    ("chrono", "jiff keeps time here"),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Runs the check against `cargo metadata`.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<Complaint>> {
    let output = Command::new("cargo")
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
        ])
        .arg("x86_64-unknown-linux-gnu")
        .current_dir(root)
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let mut complaints = judge(&metadata);
    complaints.extend(banned(&built(root)?));
    Ok(complaints)
}

/// Names of the crates that are really built: the lock file also lists what no feature turns on.
fn built(root: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("cargo")
        .args([
            "tree",
            "--workspace",
            "--locked",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .args(["--edges", "normal,build,dev"])
        .current_dir(root)
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "cargo tree failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut names: Vec<_> = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn banned(built: &[String]) -> Vec<Complaint> {
    BANNED
        .iter()
        .filter(|(name, _)| built.iter().any(|b| b == name))
        .map(|(name, why)| Complaint(format!("{name} is banned: {why}")))
        .collect()
}

fn judge(metadata: &Metadata) -> Vec<Complaint> {
    let bands: BTreeMap<_, _> = BANDS.iter().copied().collect();
    let mut complaints = Vec::new();
    for package in &metadata.packages {
        if !metadata.workspace_members.contains(&package.id) {
            continue;
        }
        let Some(band) = bands.get(package.name.as_str()) else {
            complaints.push(Complaint(format!(
                "{} has no band: give it one in xtask/src/layers.rs",
                package.name
            )));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind.is_none()) {
            judge_edge(package, *band, dependency, &bands, &mut complaints);
        }
    }
    complaints
}

fn judge_edge(
    package: &Package,
    band: u8,
    dependency: &Dependency,
    bands: &BTreeMap<&str, u8>,
    complaints: &mut Vec<Complaint>,
) {
    let (from, to) = (package.name.as_str(), dependency.name.as_str());
    if let Some(lower) = bands.get(to) {
        let allowed = *lower < band || SAME_BAND.contains(&(from, to));
        if !allowed {
            complaints.push(Complaint(format!(
                "{from} may not depend on {to}: not a lower band"
            )));
        }
    }
    if let Some((_, _, why)) = FORBIDDEN.iter().find(|(a, b, _)| (*a, *b) == (from, to)) {
        complaints.push(Complaint(format!("{from} may not depend on {to}: {why}")));
    }
    if PURE.contains(&from) && IMPURE.contains(&to) {
        complaints.push(Complaint(format!(
            "{from} is pure and may not depend on {to}"
        )));
    }
    if let Some((_, users)) = ONE_USER.iter().find(|(name, _)| *name == to)
        && !users.contains(&from)
    {
        complaints.push(Complaint(format!(
            "only {users:?} may name {to}, not {from}"
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(from: &str, to: &str) -> Metadata {
        let package = |name: &str, dependencies| Package {
            id: name.to_owned(),
            name: name.to_owned(),
            dependencies,
        };
        Metadata {
            packages: vec![package(
                from,
                vec![Dependency {
                    name: to.to_owned(),
                    kind: None,
                }],
            )],
            workspace_members: vec![from.to_owned()],
        }
    }

    #[test]
    fn refuses_edges_that_point_up_or_sideways() {
        for (from, to) in [
            ("isobar-types", "isobar-state"),
            ("isobar-state", "tokio"),
            ("isobar-ztunnel", "isobar-waypoint"),
            ("isobar-ztunnel", "isobar-objects"),
            ("isobar-hbone", "rustls"),
            ("isobar-unheard-of", "tokio"),
        ] {
            assert_eq!(judge(&metadata(from, to)).len(), 1, "{from} -> {to}");
        }
        assert_eq!(banned(&["serde".to_owned(), "ring".to_owned()]).len(), 1);
        assert!(judge(&metadata("isobar-route", "isobar-state")).is_empty());
        assert!(judge(&metadata("isobar-ztunnel", "isobar-hbone")).is_empty());
    }
}

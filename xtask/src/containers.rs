//! Files for images must name what exists: programs, the compiler, and images that charts ask for.

use std::collections::BTreeSet;
use std::path::Path;

use crate::{Complaint, tracked};

const FOLDER: &str = "manifests/containers";

/// Runs the check.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<Complaint>> {
    let compiler = std::fs::read_to_string(root.join("rust-toolchain.toml"))?;
    let compiler = quoted(&compiler, "channel").unwrap_or_default();
    let programs = programs(root)?;
    let mut complaints = Vec::new();
    let mut images = BTreeSet::new();
    for path in tracked(root, &format!("{FOLDER}/*.Containerfile"))? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(root.join(&path))?;
        for wrong in wrong(&text, &compiler, &programs, |path| root.join(path).exists()) {
            complaints.push(Complaint(format!("{}: {wrong}", path.display())));
        }
        images.insert(name.into_owned());
    }
    for image in asked_for(root)? {
        if !images.contains(&image) {
            complaints.push(Complaint(format!(
                "charts ask for an image {image}, and {FOLDER} has no file for it"
            )));
        }
    }
    Ok(complaints)
}

/// Programs of the workspace.
fn programs(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for path in tracked(root, "*Cargo.toml")? {
        let text = std::fs::read_to_string(root.join(path))?;
        let bins = text.split("[[bin]]").skip(1);
        found.extend(bins.filter_map(|bin| quoted(bin, "name")));
    }
    Ok(found)
}

/// The value of the first line `KEY = "VALUE"`.
fn quoted(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines();
    let start = format!("{key} = \"");
    let line = lines.find_map(|line| line.trim().strip_prefix(&start))?;
    line.split('"').next().map(str::to_owned)
}

/// Names of images in the charts and in the program, `hub/NAME:tag`.
fn asked_for(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for path in tracked(root, "manifests/kubernetes/*.yaml")? {
        let text = std::fs::read_to_string(root.join(path))?;
        let images = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("image: "));
        found.extend(images.filter_map(|image| {
            let image = image.trim_matches('"');
            let name = image.rsplit('/').next()?.split([':', '@']).next()?;
            Some(name.to_owned())
        }));
    }
    Ok(found)
}

fn wrong(
    text: &str,
    compiler: &str,
    programs: &BTreeSet<String>,
    exists: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut placed = BTreeSet::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["FROM", image, ..] if image.contains("/rust:") => {
                let version = image.rsplit(':').next().unwrap_or_default();
                let version = version.split('-').next().unwrap_or_default();
                if !compiler.starts_with(version) {
                    wrong.push(format!(
                        "it has Rust {version}, rust-toolchain.toml {compiler}"
                    ));
                }
            }
            ["COPY", "--from=build", from @ .., to] => {
                for path in from {
                    let name = path.rsplit('/').next().unwrap_or_default();
                    let built = path.starts_with("/programs/");
                    if built && !programs.contains(name) {
                        wrong.push(format!("there is no program {name}"));
                    }
                    placed.insert(match to.strip_suffix('/') {
                        Some(folder) => format!("{folder}/{name}"),
                        None => (*to).to_owned(),
                    });
                }
            }
            ["COPY", from, _] if *from != "." && !exists(from) => {
                wrong.push(format!("there is no {from}"));
            }
            _ => {}
        }
        let entry = line.strip_prefix("ENTRYPOINT [\"");
        if let Some(entry) = entry.and_then(|rest| rest.split('"').next())
            && !placed.contains(entry)
        {
            wrong.push(format!("it starts {entry}, which it does not have"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_exist_are_found() {
        let programs = BTreeSet::from(["isobard".to_owned()]);
        let file = |rust: &str, program: &str, entry: &str| {
            format!(
                "FROM docker.io/library/rust:{rust}-bookworm AS build\nFROM scratch\n\
                 COPY --from=build /programs/{program} /usr/local/bin/\nENTRYPOINT [\"{entry}\"]\n"
            )
        };
        let check = |text: String| wrong(&text, "1.95.0", &programs, |_| false).len();
        let good = "/usr/local/bin/isobard";
        assert_eq!(check(file("1.95", "isobard", good)), 0);
        assert_eq!(check(file("1.94", "isobard", good)), 1);
        assert_eq!(check(file("1.95", "isobarx", good)), 2);
        assert_eq!(check(file("1.95", "isobard", "/isobard")), 1);
    }
}

//! File sizes and file names. Offenders listed in `xtask/size-ratchet.txt` may only shrink.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{Complaint, tracked};

const MOST_LINES: usize = 600;
const VAGUE: &[&str] = &[
    "util", "utils", "helper", "helpers", "common", "misc", "manager",
];
const RATCHET: &str = "xtask/size-ratchet.txt";

/// Runs the check over every Rust file git knows.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<Complaint>> {
    let ratchet = read_ratchet(root)?;
    let mut complaints = Vec::new();
    let mut seen = BTreeMap::new();
    for file in tracked(root, "*.rs")? {
        let name = file.to_string_lossy().into_owned();
        let stem = file
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default();
        if VAGUE.contains(&stem.as_str()) {
            complaints.push(Complaint(format!(
                "{name}: name the file after what it holds"
            )));
        }
        let lines = std::fs::read_to_string(root.join(&file))?.lines().count();
        let most = ratchet.get(&name).copied().unwrap_or(MOST_LINES);
        if lines > most {
            complaints.push(Complaint(format!(
                "{name}: {lines} lines, at most {most}; split it"
            )));
        }
        seen.insert(name, lines);
    }
    for (name, allowed) in ratchet {
        match seen.get(&name) {
            Some(lines) if *lines > MOST_LINES => {
                if *lines < allowed {
                    complaints.push(Complaint(format!(
                        "{RATCHET}: {name} has shrunk to {lines}; lower its number"
                    )));
                }
            }
            _ => complaints.push(Complaint(format!(
                "{RATCHET}: {name} needs no entry any more"
            ))),
        }
    }
    Ok(complaints)
}

fn read_ratchet(root: &Path) -> anyhow::Result<BTreeMap<String, usize>> {
    let text = std::fs::read_to_string(root.join(RATCHET))?;
    text.lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (lines, name) = line
                .split_once(' ')
                .ok_or_else(|| anyhow::anyhow!("{RATCHET}: expected `LINES FILE`, got {line:?}"))?;
            Ok((name.trim().to_owned(), lines.parse()?))
        })
        .collect()
}

//! ARCHITECTURE.md must stay true: every path and every `item` it names in backticks exists.

use std::collections::BTreeSet;
use std::path::Path;

use crate::{Complaint, tracked};

/// Documents whose backticked names are checked.
const DOCUMENTS: &[&str] = &["ARCHITECTURE.md", "CONTRIBUTING.md"];

/// Runs the check.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<Complaint>> {
    let sources: Vec<(String, String)> = tracked(root, "*.rs")?
        .into_iter()
        .map(|p| {
            Ok((
                p.to_string_lossy().into_owned(),
                std::fs::read_to_string(root.join(p))?,
            ))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut complaints = Vec::new();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(document))?;
        for name in names(&text) {
            if !is_true(root, &name, &sources) {
                complaints.push(Complaint(format!("{document}: `{name}` does not exist")));
            }
        }
    }
    Ok(complaints)
}

/// Backticked words that claim to be a path (`a/b`) or a Rust item (`a::b`, `Type`, `function()`).
fn names(text: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            !word.contains([' ', '\n', '<', '$', '=', '*', '{', ':'])
                || word.contains("::") && !word.contains([' ', '\n', '<', '*'])
        })
        .filter(|word| claims_path(word) || word.contains("::") || word.ends_with("()"))
        .map(str::to_owned)
        .collect()
}

fn claims_path(word: &str) -> bool {
    let tops = [
        "crates/",
        "ztunnel/",
        "waypoint/",
        "control-plane/",
        "node-agent/",
        "cli/",
        "proto/",
        "tests/",
        "benches/",
        "xtask/",
        "docs/",
        "manifests/",
        ".ci/",
    ];
    tops.iter().any(|top| word.starts_with(top))
}

fn is_true(root: &Path, name: &str, sources: &[(String, String)]) -> bool {
    if claims_path(name) && !name.contains("::") {
        return root.join(name.trim_end_matches('/')).exists();
    }
    let name = name.trim_end_matches("()");
    let item = name.rsplit("::").next().unwrap_or(name);
    let owner = name.rsplit("::").nth(1);
    sources.iter().any(|(path, text)| {
        defines(text, item)
            && owner.is_none_or(|owner| {
                defines(text, owner)
                    || text.contains(&format!("impl {owner}"))
                    || text.contains(&format!("for {owner}"))
                    || path.contains(&format!("/{owner}"))
                    || path
                        .replace('-', "_")
                        .contains(&owner.replace("isobar_", ""))
            })
    })
}

fn defines(text: &str, item: &str) -> bool {
    [
        "fn ", "struct ", "enum ", "trait ", "type ", "const ", "mod ", "static ",
    ]
    .iter()
    .any(|word| {
        let wanted = format!("{word}{item}");
        text.match_indices(&wanted).any(|(at, _)| {
            text[at + wanted.len()..]
                .chars()
                .next()
                .is_none_or(|c| !c.is_alphanumeric() && c != '_')
        })
    }) || text.contains(&format!("    {item},"))
        || text.contains(&format!("    {item}("))
        || text.contains(&format!("    {item} {{"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_document_claims() {
        let text = "see `crates/net/src/lib.rs` and `Snapshot::draft`, not `cargo run` nor `word`, but `accept()`";
        let found: Vec<_> = names(text).into_iter().collect();
        assert_eq!(
            found,
            ["Snapshot::draft", "accept()", "crates/net/src/lib.rs"]
        );
    }

    #[test]
    fn items_are_looked_for_as_definitions() {
        let sources = vec![(
            "a/src/b.rs".to_owned(),
            "impl Pool { pub fn open(&self) {} }".to_owned(),
        )];
        let root = Path::new("/nonexistent");
        assert!(is_true(root, "Pool::open", &sources));
        assert!(!is_true(root, "Pool::close", &sources));
        assert!(!is_true(root, "Pond::open", &sources));
        assert!(!is_true(root, "crates/none.rs", &sources));
    }
}

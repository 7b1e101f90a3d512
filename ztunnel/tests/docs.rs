//! The operator's pages name everything there is, and what they name exists.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use isobar_types::Reason;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

fn sources(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Texts between back quotes.
fn quoted(page: &str) -> BTreeSet<&str> {
    page.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

/// Upper-case words in string literals of the code that reads the environment.
fn variables(source: &str) -> BTreeSet<&str> {
    let literals = source
        .lines()
        .flat_map(|line| line.split('"').skip(1).step_by(2));
    literals
        .filter(|text| text.len() > 3 && text.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter(|text| {
            text.bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        })
        .collect()
}

#[test]
fn every_reason_code_is_explained() {
    let page = page("ztunnel.md");
    let named = quoted(&page);
    let missing: Vec<_> = Reason::ALL
        .iter()
        .map(|r| r.as_str())
        .filter(|r| !named.contains(r))
        .collect();
    assert!(missing.is_empty(), "not in docs/ztunnel.md: {missing:?}");
}

#[test]
fn every_variable_is_explained() {
    let page = page("ztunnel.md");
    let named = quoted(&page);
    let config = root().join("ztunnel/src/config");
    let mut missing = BTreeSet::new();
    for file in ["environment.rs", "section.rs", "proxy_config.rs"] {
        let source = std::fs::read_to_string(config.join(file)).unwrap();
        for variable in variables(&source) {
            // A prefix stands with a star.
            let starred = format!("{variable}*");
            if !named.contains(variable) && !named.contains(starred.as_str()) {
                missing.insert(variable.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/ztunnel.md: {missing:?}");
    let own = std::fs::read_to_string(config.join("environment.rs")).unwrap();
    assert!(variables(&own).len() > 25, "the search finds the variables");
}

#[test]
fn every_difference_has_its_test() {
    let page = page("differences.md");
    let mut all = String::new();
    for folder in ["ztunnel", "crates", "tests"] {
        sources(&root().join(folder), &mut all);
    }
    let mut rows = 0;
    for row in page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("---"))
    {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        if last == "test" {
            continue;
        }
        rows += 1;
        let test = last.trim_matches('`');
        // Whether each check has a test is told by `make checks`.
        let number = test.strip_prefix("check_").and_then(|t| t.get(..2));
        let check = number.is_some_and(|n| (1..=50).contains(&n.parse().unwrap_or(0)));
        let found = check || all.contains(&format!("fn {test}"));
        assert!(
            found,
            "docs/differences.md names a test that does not exist: {test}"
        );
    }
    assert!(rows > 15, "the search finds the rows");
}

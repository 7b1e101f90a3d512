//! The dashboards ask only for metrics that exist.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Folders of the programs and of what they count with.
const SOURCES: [&str; 6] = [
    "ztunnel/src",
    "waypoint/src",
    "control-plane/src",
    "node-agent/src",
    "crates/telemetry/src",
    "crates/xds/src",
];
/// What ends the names of samples of one metric.
const ENDINGS: [&str; 4] = ["_total", "_bucket", "_sum", "_count"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Texts under the key, wherever they stand.
fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value.as_str() {
                    Some(text) if name == key => found.push(text),
                    _ => under(value, key, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| under(value, key, found)),
        _ => {}
    }
}

/// Words of an expression that are names of metrics: they begin like ours do.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| {
        let families = [
            "istio_",
            "isobar_",
            "pilot_",
            "citadel_",
            "workload_manager_",
            "process_",
        ];
        families.iter().any(|family| word.starts_with(family))
    })
}

#[test]
fn every_metric_of_a_dashboard_exists() {
    let mut text = String::new();
    for folder in SOURCES {
        sources(&root().join(folder), &mut text);
    }
    let mut asked = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("manifests/dashboards")).unwrap() {
        let file = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let board: Value = serde_json::from_str(&file).unwrap();
        let mut expressions = Vec::new();
        under(&board, "expr", &mut expressions);
        assert!(expressions.len() > 10, "{}", board["title"]);
        for expression in expressions {
            let found: Vec<_> = metrics(expression).map(str::to_owned).collect();
            assert!(!found.is_empty(), "{expression}");
            asked.extend(found);
        }
    }
    for metric in asked {
        let stem = ENDINGS
            .iter()
            .find_map(|ending| metric.strip_suffix(ending));
        let names = [Some(&*metric), stem];
        let exists = names
            .iter()
            .flatten()
            .any(|name| text.contains(&format!("\"{name}\"")));
        assert!(exists, "nothing counts {metric}");
    }
}

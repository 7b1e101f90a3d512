//! What is said while a cluster is changed.

use anstyle::{AnsiColor, Style};
use serde_json::{Map, Value, json};
use similar::{ChangeTag, TextDiff};

use crate::output::{Format, print, print_value};

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Created,
    Changed,
    Unchanged,
    Removed,
    Kept,
}

impl Change {
    const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
            Self::Kept => "kept",
        }
    }
}

/// Lines for people as they come, or one value for programs at the end.
#[derive(Debug)]
pub(super) struct Report {
    format: Format,
    changes: Vec<Value>,
    notes: Vec<Value>,
}

impl Report {
    pub(super) const fn new(format: Format) -> Self {
        Self {
            format,
            changes: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Something that a user should know.
    pub(super) fn note(&mut self, text: &str) -> anyhow::Result<()> {
        self.notes.push(text.into());
        self.line(&format!("note: {text}\n"))
    }

    /// What is waited for. Not part of the value for programs.
    pub(super) fn progress(&self, text: &str) -> anyhow::Result<()> {
        self.line(&format!("{text}\n"))
    }

    /// An object that was written or removed.
    pub(super) fn change(&mut self, change: Change, object: &Value) -> anyhow::Result<()> {
        let (word, object) = (change.word(), label(object));
        self.changes
            .push(json!({ "change": word, "object": object }));
        self.line(&format!("{word:<10}{object}\n"))
    }

    /// An object that would be written or removed, as a diff.
    pub(super) fn difference(
        &mut self,
        before: Option<&Value>,
        after: Option<&Value>,
        object: &Value,
    ) -> anyhow::Result<()> {
        let text = |value: Option<&Value>| -> anyhow::Result<String> {
            value.map_or(Ok(String::new()), |value| {
                Ok(serde_saphyr::to_string(&own(value))?)
            })
        };
        let (old, new) = (text(before)?, text(after)?);
        let change = match (before, after) {
            (None, _) => Change::Created,
            (_, None) => Change::Removed,
            _ if old == new => Change::Unchanged,
            _ => Change::Changed,
        };
        self.change(change, object)?;
        if change == Change::Unchanged {
            return Ok(());
        }
        self.line(&diff(&old, &new))
    }

    /// Prints the value for programs.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        if self.format == Format::Table {
            return Ok(());
        }
        print_value(
            &json!({ "changes": self.changes, "notes": self.notes }),
            self.format,
        )
    }

    fn line(&self, text: &str) -> anyhow::Result<()> {
        match self.format {
            Format::Table => print(text),
            _ => Ok(()),
        }
    }
}

/// `Kind namespace/name`.
pub(super) fn label(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// Without what the server alone writes.
fn own(object: &Value) -> Value {
    let mut own = object.clone();
    let server = [
        "managedFields",
        "resourceVersion",
        "uid",
        "generation",
        "creationTimestamp",
    ];
    if let Some(map) = own.as_object_mut() {
        map.remove("status");
        if let Some(head) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            head.retain(|key, _| !server.contains(&key.as_str()));
        }
    }
    sorted(&own)
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let entries = entries
                .into_iter()
                .map(|(key, value)| (key.clone(), sorted(value)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// Changed lines with three around them, moved in.
fn diff(old: &str, new: &str) -> String {
    let diff = TextDiff::from_lines(old, new);
    let mut text = String::new();
    for (at, group) in diff.grouped_ops(3).iter().enumerate() {
        if at > 0 {
            text.push_str("    ...\n");
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (sign, style) = match change.tag() {
                ChangeTag::Delete => ('-', AnsiColor::Red.on_default()),
                ChangeTag::Insert => ('+', AnsiColor::Green.on_default()),
                ChangeTag::Equal => (' ', Style::new()),
            };
            let line = change.value().trim_end_matches('\n');
            text.push_str(&format!("  {style}{sign} {line}{style:#}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_shows_what_a_user_changes() {
        let live = json!({
            "kind": "A", "metadata": { "name": "a", "uid": "u", "resourceVersion": "1" },
            "spec": { "b": 1, "a": [1, 2] }, "status": { "x": 1 },
        });
        let after = json!({
            "metadata": { "name": "a", "resourceVersion": "2" }, "kind": "A",
            "spec": { "a": [1, 3], "b": 1 },
        });
        let text = |value: &Value| serde_saphyr::to_string(&own(value)).unwrap();
        let plain = anstream::adapter::strip_str(&diff(&text(&live), &text(&after))).to_string();
        let changed: Vec<_> = plain
            .lines()
            .filter(|line| line.starts_with("  -") || line.starts_with("  +"))
            .collect();
        assert_eq!(changed.len(), 2, "{plain}");
        assert!(
            changed[0].ends_with("- 2") && changed[1].ends_with("- 3"),
            "{plain}"
        );
        assert_eq!(label(&live), "A a");
    }
}

//! YAML as Helm writes it: keys sorted, lists not moved in, quotes only where they are needed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// `value` in block style, without the last line break.
pub(crate) fn block(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text.trim_end_matches('\n').to_owned()
}

/// A text in double quotes.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn write(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => entries(text, value, depth, depth),
        Value::Array(list) if !list.is_empty() => items(text, list, depth),
        leaf => {
            text.push_str(&scalar(leaf));
            text.push('\n');
        }
    }
}

/// The entries of a map; the first one moved in by `first`, which is 0 behind a hyphen.
fn entries(text: &mut String, map: &Value, first: usize, depth: usize) {
    let map = map.as_object().into_iter().flatten();
    let sorted: BTreeMap<&String, &Value> = map.collect();
    for (at, (key, value)) in sorted.into_iter().enumerate() {
        let blanks = if at == 0 { first } else { depth };
        let key = scalar(&Value::from(key.as_str()));
        // Writing to a String cannot fail.
        let _ = write!(text, "{:blanks$}{key}:", "");
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                text.push('\n');
                entries(text, value, depth + 2, depth + 2);
            }
            Value::Array(list) if !list.is_empty() => {
                text.push('\n');
                items(text, list, depth);
            }
            leaf => {
                let _ = writeln!(text, " {}", scalar(leaf));
            }
        }
    }
}

fn items(text: &mut String, list: &[Value], depth: usize) {
    for item in list {
        let _ = write!(text, "{:depth$}- ", "");
        match item {
            Value::Object(map) if !map.is_empty() => entries(text, item, 0, depth + 2),
            Value::Array(inner) if !inner.is_empty() => {
                // A list in a list begins on the same line.
                let mut below = String::new();
                items(&mut below, inner, depth + 2);
                text.push_str(below.trim_start());
            }
            leaf => {
                text.push_str(&scalar(leaf));
                text.push('\n');
            }
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        Value::String(text) if is_plain(text) => text.clone(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

/// True for texts that mean themselves without quotes: a narrower rule than that of YAML.
fn is_plain(text: &str) -> bool {
    let first = text.chars().next();
    let begins = first.is_some_and(|c| c.is_ascii_alphabetic() || c == '/');
    let goes_on = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-+=@()".contains(c) || c == ' ' || c == ':');
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let is_word = words.contains(&text.to_ascii_lowercase().as_str());
    let breaks = text.contains(": ") || text.ends_with([' ', ':']) || text.contains("  ");
    begins && goes_on && !is_word && !breaks || is_quantity(text)
}

/// `100m`, `64Mi`: begins like a number but is none.
fn is_quantity(text: &str) -> bool {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_unit = unit.chars().all(|c| "mkKMGTPEin".contains(c));
    !unit.is_empty() && unit.len() < text.len() && is_unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_are_as_helm_writes_them() {
        let value = json!({
            "requests": { "memory": "64Mi", "cpu": "100m" },
            "none": {}, "empty": [],
            "list": [{ "operator": "Exists", "key": "a" }, "b", ["c", "d"]],
            "texts": { "number": "1", "word": "true", "colon": "a:b", "nothing": "" },
            "port": 80, "on": true, "gone": null,
        });
        let expected = "\
empty: []
gone: null
list:
- key: a
  operator: Exists
- b
- - c
  - d
none: {}
\"on\": true
port: 80
requests:
  cpu: 100m
  memory: 64Mi
texts:
  colon: a:b
  nothing: \"\"
  number: \"1\"
  word: \"true\"";
        assert_eq!(block(&value), expected);
        let read: Value = serde_saphyr::from_str(&block(&value)).unwrap();
        assert_eq!(read, value);
    }
}

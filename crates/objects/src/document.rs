//! YAML and JSON text to JSON values, one document at a time.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

use crate::places::Node;

/// One document of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    /// Line of its first line, from 1.
    pub(crate) line: u32,
    pub(crate) text: &'a str,
    pub(crate) syntax: Syntax,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    Yaml,
    Json,
}

/// Text that is no document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Line in the file, from 1.
    pub(crate) line: Option<u32>,
    pub(crate) message: String,
}

/// Cuts a text into documents that hold something. YAML is cut at lines that start with `---`,
/// which YAML allows nowhere inside a document, so that a broken one does not take the rest with
/// it.
pub(crate) fn split<'a>(file: &Path, text: &'a str) -> Vec<Document<'a>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if file.extension().is_some_and(|end| end == "json") {
        let whole = Document {
            line: 1,
            text,
            syntax: Syntax::Json,
        };
        return Some(whole)
            .filter(|whole| !whole.text.trim().is_empty())
            .into_iter()
            .collect();
    }
    let mut documents = Vec::new();
    let (mut start, mut first_line) = (0, 1);
    let (mut at, mut line) = (0, 1);
    let mut push = |from: usize, to: usize, line: u32| {
        let text = &text[from..to];
        if holds_something(text) {
            documents.push(Document {
                line,
                text,
                syntax: Syntax::Yaml,
            });
        }
    };
    for row in text.split_inclusive('\n') {
        if is_marker(row) && at > start {
            push(start, at, first_line);
            (start, first_line) = (at, line);
        }
        at += row.len();
        line += 1;
    }
    push(start, at, first_line);
    documents
}

fn is_marker(row: &str) -> bool {
    row.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// False for documents of blank lines, comments and markers only.
fn holds_something(text: &str) -> bool {
    text.lines().any(|row| {
        let row = row.strip_prefix("---").unwrap_or(row).trim();
        !(row.is_empty() || row.starts_with('#') || row == "...")
    })
}

impl Document<'_> {
    /// The document as JSON; YAML numbers, booleans and anchors are resolved.
    pub(crate) fn value(&self) -> Result<Value, Broken> {
        match self.syntax {
            Syntax::Json => serde_json::from_str(self.text).map_err(|error| Broken {
                line: u32::try_from(error.line()).ok().filter(|line| *line > 0),
                message: format!("not valid JSON: {error}"),
            }),
            Syntax::Yaml => self.yaml(),
        }
    }

    pub(crate) fn yaml<T: for<'a> Deserialize<'a>>(&self) -> Result<T, Broken> {
        let options = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
            let line = error.location().and_then(|at| self.file_line(at.line()));
            let message = match &error {
                serde_saphyr::Error::DuplicateMappingKey { key, location } => {
                    self.twice(key.as_deref(), *location)
                }
                error => first_sentence(&error.to_string()),
            };
            Broken {
                line,
                message: format!("not valid YAML: {message}"),
            }
        })
    }

    /// Names a key that a map has again at `again`, and where it had it first. In a block the keys
    /// of one map stand in one column, so the nearest one above is the one.
    fn twice(&self, key: Option<&str>, again: Location) -> String {
        let Some(key) = key else {
            return "a map has the same key twice".to_owned();
        };
        let options = serde_saphyr::options! {
            with_snippet: false,
            duplicate_keys: DuplicateKeyPolicy::FirstWins,
        };
        let mut above = None;
        if let Ok(root) = serde_saphyr::from_str_with_options::<Spanned<Node>>(self.text, options) {
            root.value.each_key(&mut |one| {
                let at = one.defined;
                let stands_above = at.line() < again.line() && at.column() == again.column();
                if one.value == key && stands_above {
                    above = above.max(Some(at.line()));
                }
            });
        }
        let lines = (
            above.and_then(|line| self.file_line(line)),
            self.file_line(again.line()),
        );
        match lines {
            (Some(first), Some(second)) => {
                format!("key {key:?} is there twice, in lines {first} and {second}")
            }
            _ => format!("key {key:?} is there twice"),
        }
    }

    fn file_line(&self, line: u64) -> Option<u32> {
        let line = u32::try_from(line).ok().filter(|line| *line > 0)?;
        self.line.checked_add(line - 1)
    }
}

/// Parser messages can hold snippets over many lines; a finding is one sentence.
fn first_sentence(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim();
    line.strip_prefix("error: ")
        .unwrap_or(line)
        .trim_end_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(u32, String)> {
        split(Path::new("a.yaml"), text)
            .iter()
            .map(|document| (document.line, document.text.to_owned()))
            .collect()
    }

    #[test]
    fn documents_are_cut_at_markers() {
        let text = "# head\n---\na: 1\n--- # second\nb: |\n  ---\n  x\n---\n---\n# only words\n";
        assert_eq!(
            lines(text),
            [
                (2, "---\na: 1\n".to_owned()),
                (4, "--- # second\nb: |\n  ---\n  x\n".to_owned()),
            ]
        );
        assert_eq!(lines("\u{feff}a: 1\r\n---\r\nb: 2").len(), 2);
        assert!(lines("").is_empty());
        assert!(lines("---\n...\n").is_empty());
    }

    #[test]
    fn broken_text_says_where() {
        let text = "a: 1\n---\nb: [1\nc: 2\n";
        let documents = split(Path::new("a.yaml"), text);
        assert!(documents[0].value().is_ok());
        let broken = documents[1].value().unwrap_err();
        assert!(broken.line.is_some_and(|line| line >= 3), "{broken:?}");
        assert!(broken.message.starts_with("not valid YAML: "), "{broken:?}");
        assert!(!broken.message.contains('\n'));

        let json = split(Path::new("a.json"), "{\n\"a\": }");
        assert_eq!(json[0].value().unwrap_err().line, Some(2));
    }

    #[test]
    fn duplicate_keys_are_refused() {
        let text = "# head\n---\nm:\n- name: a\n- name: b\n  x: {name: c}\n  name: d\n";
        let broken = split(Path::new("a.yaml"), text)[0].value().unwrap_err();
        assert_eq!(broken.line, Some(7));
        assert_eq!(
            broken.message,
            "not valid YAML: key \"name\" is there twice, in lines 5 and 7"
        );
        let flow = split(Path::new("a.yaml"), "{a: 1, a: 2}\n")[0].value();
        assert_eq!(
            flow.unwrap_err().message,
            "not valid YAML: key \"a\" is there twice"
        );
    }

    #[test]
    fn words_of_yaml_1_1_stay_words_or_become_booleans_as_kubectl_has_them() {
        let value = |text| split(Path::new("a.yaml"), text)[0].value().unwrap();
        assert_eq!(value("a: true\n")["a"], true);
        assert_eq!(value("a: \"true\"\n")["a"], "true");
        assert_eq!(value("a: 1.10\n")["a"], 1.1);
        assert!(value("a:\n")["a"].is_null());
    }
}

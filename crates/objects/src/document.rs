//! YAML and JSON text to JSON values, one document at a time, with lines.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

use crate::strict::push_key;

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

    fn yaml<T: for<'a> Deserialize<'a>>(&self) -> Result<T, Broken> {
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

    /// The line in the file of the field at `path`, or of its nearest parent that is written.
    /// Reads the text again, so it is only for messages.
    pub(crate) fn line_of(&self, path: &str) -> Option<u32> {
        let root: Spanned<Node> = self.yaml().ok()?;
        let mut nearest = self.line;
        let mut here = String::new();
        let mut node = &root.value;
        'descend: while here != path {
            match node {
                Node::Leaf => break,
                Node::Map(entries) => {
                    for (key, child) in entries {
                        let mut longer = here.clone();
                        push_key(&mut longer, &key.value);
                        if leads_to(&longer, path) {
                            nearest = self.file_line(key.defined.line()).unwrap_or(nearest);
                            (here, node) = (longer, child);
                            continue 'descend;
                        }
                    }
                    break;
                }
                Node::List(items) => {
                    for (index, child) in items.iter().enumerate() {
                        let longer = format!("{here}[{index}]");
                        if leads_to(&longer, path) {
                            nearest = self.file_line(child.defined.line()).unwrap_or(nearest);
                            (here, node) = (longer, &child.value);
                            continue 'descend;
                        }
                    }
                    break;
                }
            }
        }
        Some(nearest)
    }
}

fn leads_to(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Parser messages can hold snippets over many lines; a finding is one sentence.
fn first_sentence(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim();
    line.strip_prefix("error: ")
        .unwrap_or(line)
        .trim_end_matches('.')
        .to_owned()
}

/// The shape of a document, with the place of every key and item.
enum Node {
    Leaf,
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Node)>),
}

impl Node {
    fn each_key(&self, found: &mut dyn FnMut(&Spanned<String>)) {
        match self {
            Self::Leaf => {}
            Self::List(items) => items.iter().for_each(|item| item.value.each_key(found)),
            Self::Map(entries) => {
                for (key, child) in entries {
                    found(key);
                    child.each_key(found);
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_some<D: de::Deserializer<'de>>(self, inner: D) -> Result<Node, D::Error> {
                inner.deserialize_any(self)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(Shape)
    }
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
    fn fields_have_lines() {
        let text = "---\nspec:\n  http:\n  - name: a\n    route:\n    - weight: 1\n      x: 2\n  m:\n    \"a.b/c\": z\n";
        let document = split(Path::new("a.yaml"), text)[0];
        for (path, line) in [
            ("spec", 2),
            ("spec.http[0].name", 4),
            ("spec.http[0].route[0].weight", 6),
            ("spec.http[0].route[0].x", 7),
            ("spec.http[0].route[0].missing", 6),
            ("spec.http[7]", 3),
            ("spec.m[a.b/c]", 9),
            ("nothing", 1),
            ("", 1),
        ] {
            assert_eq!(document.line_of(path), Some(line), "{path}");
        }
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

//! Where the fields of a document stand, so that findings can name a line.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::document::{Document, Syntax};

/// Brackets in a key in brackets that are tried as its end: whoever writes more has the line of the map.
const MOST_BRACKETS: usize = 16;

/// A document that all objects in it share, for the lines of what is wrong with them.
#[derive(Debug)]
pub(crate) struct Source {
    /// Line of its first line in the file, from 1.
    line: u32,
    text: Box<str>,
    syntax: Syntax,
    /// Made for the first finding: reading costs as much as reading the document did.
    places: OnceLock<Option<Place>>,
}

impl Source {
    pub(crate) fn of(document: &Document<'_>) -> Arc<Self> {
        Arc::new(Self {
            line: document.line,
            text: document.text.into(),
            syntax: document.syntax,
            places: OnceLock::new(),
        })
    }

    /// Line of its first line in the file, from 1.
    pub(crate) const fn first_line(&self) -> u32 {
        self.line
    }

    /// The line in the file of the field at `path`, or of its nearest parent that is written.
    pub(crate) fn line_of(&self, path: &str) -> u32 {
        let Some(root) = self.places.get_or_init(|| self.read()) else {
            return self.line;
        };
        let (mut nearest, mut place, mut rest) = (self.line, root, path);
        while let Some(step) = place.step(rest) {
            nearest = self.file_line(step.line).unwrap_or(nearest);
            (place, rest) = (step.place, step.rest);
        }
        nearest
    }

    fn read(&self) -> Option<Place> {
        let document = Document {
            line: self.line,
            text: &self.text,
            syntax: self.syntax,
        };
        let root: Spanned<Node> = document.yaml().ok()?;
        Some(Place::of(root.value))
    }

    fn file_line(&self, line: u32) -> Option<u32> {
        self.line.checked_add(line.checked_sub(1)?)
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        (self.line, self.syntax, &self.text) == (other.line, other.syntax, &other.text)
    }
}

impl Eq for Source {}

/// A value, and the lines of what it holds: in the document, from 1; 0 where none is known.
#[derive(Debug)]
enum Place {
    Leaf,
    List(Vec<(u32, Place)>),
    Map(BTreeMap<Box<str>, (u32, Place)>),
}

/// One value further down.
struct Step<'a, 'b> {
    line: u32,
    place: &'a Place,
    /// What is left of the path.
    rest: &'b str,
}

impl Place {
    fn of(node: Node) -> Self {
        let number = |line: u64| u32::try_from(line).unwrap_or_default();
        match node {
            Node::Leaf => Self::Leaf,
            Node::List(items) => {
                let items = items.into_iter();
                let items = items.map(|item| (number(item.defined.line()), Self::of(item.value)));
                Self::List(items.collect())
            }
            Node::Map(entries) => {
                let entries = entries.into_iter().map(|(key, child)| {
                    let line = number(key.defined.line());
                    (key.value.into_boxed_str(), (line, Self::of(child)))
                });
                Self::Map(entries.collect())
            }
        }
    }

    fn step<'b>(&self, path: &'b str) -> Option<Step<'_, 'b>> {
        if path.is_empty() {
            return None;
        }
        let (found, rest) = match self {
            Self::Leaf => return None,
            Self::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                (items.get(index.parse::<usize>().ok()?)?, rest)
            }
            Self::Map(entries) => match path.strip_prefix('[') {
                // A key may have brackets of its own.
                Some(inner) => {
                    let ends = inner.match_indices(']').take(MOST_BRACKETS);
                    let mut parts = ends.map(|(end, _)| (&inner[..end], &inner[end + 1..]));
                    parts.find_map(|(key, rest)| {
                        let is_end = rest.is_empty() || rest.starts_with(['.', '[']);
                        Some((entries.get(key).filter(|_| is_end)?, rest))
                    })?
                }
                None => {
                    let path = path.strip_prefix('.').unwrap_or(path);
                    let (key, rest) = path.split_at(path.find(['.', '[']).unwrap_or(path.len()));
                    (entries.get(key)?, rest)
                }
            },
        };
        let (line, place) = found;
        Some(Step {
            line: *line,
            place,
            rest,
        })
    }
}

/// The shape of a document, with the place of every key and item.
pub(crate) enum Node {
    Leaf,
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Node)>),
}

impl Node {
    pub(crate) fn each_key(&self, found: &mut dyn FnMut(&Spanned<String>)) {
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
    use std::path::Path;

    use super::*;
    use crate::document::split;

    #[test]
    fn fields_have_lines() {
        let text = "---\nspec:\n  http:\n  - name: a\n    route:\n    - weight: 1\n      x: 2\n  m:\n    \"a.b/c\": z\n    \"a]b\": {c: 1}\n";
        let source = Source::of(&split(Path::new("a.yaml"), text)[0]);
        for (path, line) in [
            ("spec", 2),
            ("spec.http[0].name", 4),
            ("spec.http[0].route[0].weight", 6),
            ("spec.http[0].route[0].x", 7),
            ("spec.http[0].route[0].missing", 6),
            ("spec.http[7]", 3),
            ("spec.http[0", 3),
            ("spec.m[a.b/c]", 9),
            ("spec.m[a]b].c", 10),
            ("spec.m[a.b/c]x", 8),
            ("nothing", 1),
            ("", 1),
        ] {
            assert_eq!(source.line_of(path), line, "{path}");
        }
        let second = "a: 1\n---\nb:\n  c: 1\n";
        let source = Source::of(&split(Path::new("a.yaml"), second)[1]);
        assert_eq!((source.line_of("b.c"), source.line_of("x")), (4, 2));
    }
}

//! Reads typed values out of JSON and notes every field that the type does not have.
//!
//! Unlike serde's usual readers it knows, at each unknown field, which names would have been
//! right, and at the first wrong type, where in the object it is. Null counts as absent, but not in a list.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::{Map, Value};

/// What a reading noted.
#[derive(Debug, Default)]
pub(crate) struct Strict {
    unknown: RefCell<Vec<UnknownField>>,
    failure: RefCell<Option<Failure>>,
}

/// A field that the type does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnknownField {
    /// Path of the field itself.
    pub(crate) path: String,
    /// Its own name.
    pub(crate) name: String,
    /// Names that would have been right.
    pub(crate) candidates: &'static [&'static str],
}

/// The first value that has no place in the type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Path of the value.
    pub(crate) path: String,
    /// What is wrong.
    pub(crate) message: String,
}

impl Strict {
    pub(crate) fn into_parts(self) -> (Vec<UnknownField>, Option<Failure>) {
        (self.unknown.into_inner(), self.failure.into_inner())
    }
}

/// Reads a `T`; `None` after a failure, which `strict` then holds.
pub(crate) fn from_value<T: DeserializeOwned>(value: &Value, strict: &Strict) -> Option<T> {
    let reader = Reader {
        value,
        path: Path::Root,
        strict,
    };
    T::deserialize(reader).ok()
}

/// Adds a key to a path: `spec.http`, `metadata.labels[istio.io/rev]`.
pub(crate) fn push_key(path: &mut String, key: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(plain) {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    } else {
        path.push('[');
        path.push_str(key);
        path.push(']');
    }
}

#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Self::Root => {}
            Self::Key(parent, key) => {
                parent.write(out);
                push_key(out, key);
            }
            Self::Index(parent, index) => {
                parent.write(out);
                out.push_str(&format!("[{index}]"));
            }
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }
}

#[derive(Debug)]
struct ReadError(String);

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

struct Reader<'a> {
    value: &'a Value,
    path: Path<'a>,
    strict: &'a Strict,
}

impl<'a> Reader<'a> {
    /// Notes where the first error came from: the innermost reader sees it first.
    fn noted<T>(
        path: Path<'_>,
        strict: &Strict,
        result: Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        if let Err(error) = &result {
            let mut failure = strict.failure.borrow_mut();
            if failure.is_none() {
                *failure = Some(Failure {
                    path: path.text(),
                    message: error.0.clone(),
                });
            }
        }
        result
    }

    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Self {
            value,
            path,
            strict,
        } = self;
        let result = match value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Number(number) => visit_number(number, visitor),
            Value::String(text) => visitor.visit_str(text),
            Value::Array(list) => visitor.visit_seq(Items {
                list: list.iter().enumerate(),
                path,
                strict,
            }),
            Value::Object(map) => visitor.visit_map(Entries {
                entries: map.iter(),
                value: None,
                known: None,
                path,
                strict,
            }),
        };
        Self::noted(path, strict, result)
    }

    fn fields<'de, V: Visitor<'de>>(
        self,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        let map = match self.value {
            Value::Object(map) => map,
            Value::Null => &EMPTY,
            // Serde would take its items for the fields, and an empty list for no field at all.
            Value::Array(_) => {
                let wrong = de::Error::invalid_type(de::Unexpected::Seq, &visitor);
                return Self::noted(self.path, self.strict, Err(wrong));
            }
            _ => return self.any(visitor),
        };
        let result = visitor.visit_map(Entries {
            entries: map.iter(),
            value: None,
            known: Some(known),
            path: self.path,
            strict: self.strict,
        });
        Self::noted(self.path, self.strict, result)
    }
}

fn visit_number<'de, V: Visitor<'de>>(
    number: &serde_json::Number,
    visitor: V,
) -> Result<V::Value, ReadError> {
    if let Some(number) = number.as_u64() {
        visitor.visit_u64(number)
    } else if let Some(number) = number.as_i64() {
        visitor.visit_i64(number)
    } else {
        visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN))
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.value.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.fields(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let (path, strict) = (self.path, self.strict);
        match self.value {
            Value::String(word) => {
                let word: de::value::StrDeserializer<'_, ReadError> =
                    word.as_str().into_deserializer();
                Self::noted(path, strict, visitor.visit_enum(word))
            }
            _ => self.any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    list: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    path: Path<'a>,
    strict: &'a Strict,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ReadError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, ReadError> {
        let Some((index, value)) = self.list.next() else {
            return Ok(None);
        };
        let path = Path::Index(&self.path, index);
        // An entry that says nothing is forgotten text: as a rule it would hold for everything.
        if value.is_null() {
            let wrong = ReadError("there is nothing in this entry of the list".to_owned());
            return Reader::noted(path, self.strict, Err(wrong));
        }
        let result = seed.deserialize(Reader {
            value,
            path,
            strict: self.strict,
        });
        Reader::noted(path, self.strict, result).map(Some)
    }
}

struct Entries<'a> {
    entries: serde_json::map::Iter<'a>,
    value: Option<(&'a str, &'a Value)>,
    known: Option<&'static [&'static str]>,
    path: Path<'a>,
    strict: &'a Strict,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, ReadError> {
        for (key, value) in self.entries.by_ref() {
            if let Some(known) = self.known {
                if !known.contains(&key.as_str()) {
                    self.strict.unknown.borrow_mut().push(UnknownField {
                        path: Path::Key(&self.path, key).text(),
                        name: key.clone(),
                        candidates: known,
                    });
                    continue;
                }
                if value.is_null() {
                    continue;
                }
            }
            self.value = Some((key, value));
            let key: de::value::StrDeserializer<'_, ReadError> = key.as_str().into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let (key, value) = self
            .value
            .take()
            .ok_or_else(|| ReadError("a value was asked for before its key".to_owned()))?;
        let path = Path::Key(&self.path, key);
        let result = seed.deserialize(Reader {
            value,
            path,
            strict: self.strict,
        });
        // Also what is found wrong with a value after it was read, a duration for example.
        Reader::noted(path, self.strict, result)
    }
}

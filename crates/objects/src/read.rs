use std::path::Path;

use serde_json::Value;

use crate::finding::Finding;
use crate::kinds::ObjectRef;
use crate::object::Object;

/// One object read from text.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadObject {
    /// Its identity.
    pub reference: ObjectRef,
    /// The object.
    pub object: Object,
    /// Line of its document, from 1.
    pub line: u32,
}

/// What a text holds.
#[derive(Debug, Clone, Default)]
pub struct ReadText {
    /// Objects that are valid.
    pub objects: Vec<ReadObject>,
    /// What is wrong or worth knowing.
    pub findings: Vec<Finding>,
}

/// Reads a YAML text of one or more documents, or a JSON text when the file's name ends in
/// `.json`. Never fails as a whole: each document and object stands for itself.
#[must_use]
pub fn read_text(_file: &Path, _text: &str) -> ReadText {
    ReadText::default()
}

/// Reads one object given as JSON, with the same rules. The object is `None` if a finding is an
/// error, or if the mesh does not use its kind.
#[must_use]
pub fn read_value(_value: &Value) -> (Option<Object>, Vec<Finding>) {
    (None, Vec::new())
}

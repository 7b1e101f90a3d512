use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use isobar_types::Str;
use serde_json::{Value, json};

use crate::code::Code;
use crate::document;
use crate::finding::{Finding, Severity};
use crate::kinds::{self, Kind, ObjectRef, Recognised};
use crate::mesh_config;
use crate::nameless;
use crate::names;
use crate::object::Object;
use crate::places::Source;
use crate::strict::{Strict, UnknownField};
use crate::support;
use crate::targets;
use crate::validate::validate_fields;

/// Findings of one object that are told. A file of mistakes would hold as many as it has lines, and
/// nobody reads those.
const MOST_FINDINGS: usize = 100;

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
pub fn read_text(file: &Path, text: &str) -> ReadText {
    let mut raw = raw_objects(file, text);
    let mut objects = Vec::new();
    for entry in raw.objects {
        let (object, mut findings) = typed(entry.kind, &entry.value);
        entry.place(&mut findings);
        raw.findings.append(&mut findings);
        objects.extend(object.map(|object| ReadObject {
            reference: entry.reference.clone(),
            object,
            line: entry.line,
        }));
    }
    ReadText {
        objects,
        findings: raw.findings,
    }
}

/// Reads one object given as JSON, with the same rules. The object is `None` if a finding is an
/// error, or if the mesh does not use its kind.
#[must_use]
pub fn read_value(value: &Value) -> (Option<Object>, Vec<Finding>) {
    match identify(value) {
        Identity::Used(kind, reference, value) => {
            let (object, findings) = typed(kind, &value);
            let about = |finding: Finding| finding.about(&reference);
            (object, findings.into_iter().map(about).collect())
        }
        Identity::Not { finding, .. } => (None, vec![finding]),
    }
}

/// An object as it stands in a file: identity known, content not looked at yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawObject {
    pub(crate) reference: ObjectRef,
    pub(crate) kind: Kind,
    pub(crate) value: Value,
    pub(crate) file: Arc<Path>,
    /// Line of its document, from 1.
    pub(crate) line: u32,
    /// `None` where the text is not at hand.
    source: Option<Arc<Source>>,
    /// Path of the object in its document, where that is a `List`.
    inside: String,
    /// Why its name cannot be read, where that is so: then it is never valid.
    pub(crate) nameless: Option<Finding>,
}

impl RawObject {
    /// An object that an earlier life of the process read from this line of a file; its text is
    /// not at hand any more. Nothing if it is none that the mesh uses.
    pub(crate) fn recalled(file: Arc<Path>, line: u32, value: &Value) -> Option<Self> {
        let Identity::Used(kind, reference, value) = identify(value) else {
            return None;
        };
        Some(Self {
            reference,
            kind,
            value,
            file,
            line,
            source: None,
            inside: String::new(),
            nameless: None,
        })
    }

    /// Fills in file, object and line.
    pub(crate) fn place(&self, findings: &mut [Finding]) {
        for finding in findings {
            finding.file = Some(Arc::clone(&self.file));
            finding.object = Some(self.reference.clone());
            finding.line = Some(self.line_of(&finding.field));
        }
    }

    fn line_of(&self, field: &str) -> u32 {
        let path = match (self.inside.as_str(), field) {
            ("", _) => field.to_owned(),
            (inside, "") => inside.to_owned(),
            (inside, field) => format!("{inside}.{field}"),
        };
        let source = self.source.as_ref();
        source.map_or(self.line, |source| source.line_of(&path))
    }

    /// True if the field is written in this document, so that a finding about it belongs here.
    pub(crate) fn mentions(&self, field: &str) -> bool {
        let mut value = &self.value;
        for part in field.split('.') {
            let (key, inner) = part
                .split_once('[')
                .map_or((part, None), |(key, rest)| (key, Some(rest)));
            let Some(next) = value.get(key) else {
                return false;
            };
            // Lists are replaced as a whole by a merge: who wrote the list wrote the item.
            if inner.is_some() {
                return true;
            }
            value = next;
        }
        true
    }
}

/// Which objects may hide behind something that could not be read: those stay as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hidden {
    /// Any.
    Any,
    /// Any object of that namespace and name: the kind was not understood.
    Named(String, String),
    /// Any object of that kind: its name was not understood.
    OfKind(Str, Str),
    /// That object: it is written, and was never valid.
    One(ObjectRef),
}

impl Hidden {
    pub(crate) fn covers(&self, object: &ObjectRef) -> bool {
        match self {
            Self::Any => true,
            Self::Named(namespace, name) => {
                *object.name == **name
                    && (object.namespace.is_empty() || *object.namespace == **namespace)
            }
            Self::OfKind(group, kind) => object.group == *group && object.kind == *kind,
            Self::One(one) => object == one,
        }
    }
}

/// Everything in a text, before types.
#[derive(Debug, Default)]
pub(crate) struct RawText {
    pub(crate) objects: Vec<RawObject>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) hidden: Vec<Hidden>,
    /// What has no name that can be read and must not be left out all the same.
    pub(crate) nameless: Vec<RawObject>,
}

pub(crate) fn raw_objects(file: &Path, text: &str) -> RawText {
    let file: Arc<Path> = file.into();
    let mut raw = RawText::default();
    for document in document::split(&file, text) {
        match document.value() {
            Ok(value) => raw.take(&file, &Source::of(&document), &value, String::new()),
            Err(broken) => {
                raw.hidden.push(Hidden::Any);
                raw.findings.push(Finding {
                    file: Some(Arc::clone(&file)),
                    line: broken.line.or(Some(document.line)),
                    ..Finding::error("", broken.message).of(Code::UNREADABLE)
                });
            }
        }
    }
    raw
}

impl RawText {
    fn take(&mut self, file: &Arc<Path>, source: &Arc<Source>, value: &Value, inside: String) {
        if value.get("kind").and_then(Value::as_str) == Some("List")
            && let Some(Value::Array(items)) = value.get("items")
        {
            for (index, item) in items.iter().enumerate() {
                let dot = if inside.is_empty() { "" } else { "." };
                let inside = format!("{inside}{dot}items[{index}]");
                self.take(file, source, item, inside);
            }
            return;
        }
        match identify(value) {
            Identity::Used(kind, reference, value) => self.objects.push(RawObject {
                reference,
                kind,
                value,
                file: Arc::clone(file),
                line: source.first_line(),
                source: Some(Arc::clone(source)),
                inside,
                nameless: None,
            }),
            Identity::Not { finding, hidden } => {
                let policy = nameless::policy(file, source.first_line(), &inside, value);
                self.nameless
                    .extend(policy.map(|(reference, value)| RawObject {
                        reference,
                        kind: Kind::AuthorizationPolicy,
                        value,
                        file: Arc::clone(file),
                        line: source.first_line(),
                        source: Some(Arc::clone(source)),
                        inside: inside.clone(),
                        nameless: Some(finding.clone()),
                    }));
                let path = if inside.is_empty() {
                    finding.field.clone()
                } else {
                    format!("{inside}.{}", finding.field)
                };
                self.hidden.extend(hidden);
                self.findings.push(Finding {
                    file: Some(Arc::clone(file)),
                    line: Some(source.line_of(&path)),
                    field: path,
                    ..finding
                });
            }
        }
    }
}

enum Identity {
    /// Kind, identity, and the value with its namespace filled in.
    Used(Kind, ObjectRef, Value),
    /// Nothing for the mesh; `hidden` when it may have been meant to be.
    Not {
        finding: Finding,
        hidden: Option<Hidden>,
    },
}

fn written_namespace(value: &Value) -> Option<&Value> {
    let namespace = value.get("metadata")?.get("namespace")?;
    Some(namespace).filter(|namespace| !namespace.is_null())
}

fn identify(value: &Value) -> Identity {
    let not = |finding, hidden| Identity::Not { finding, hidden };
    if !value.is_object() {
        let finding = Finding::error(
            "",
            "not an object: a map with apiVersion, kind and metadata",
        );
        return not(finding.of(Code::NO_IDENTITY), Some(Hidden::Any));
    }
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let head = |field: &str| {
        let head = value.get("metadata").and_then(|head| head.get(field));
        head.and_then(Value::as_str).unwrap_or_default()
    };
    let (api_version, kind_word, name) = (text("apiVersion"), text("kind"), head("name"));
    let written = written_namespace(value);
    let namespace = written
        .and_then(targets::text)
        .filter(|one| !one.is_empty());
    let namespace = namespace.as_deref().unwrap_or("default");
    for (field, word) in [("kind", kind_word), ("apiVersion", api_version)] {
        if word.is_empty() {
            return not(
                Finding::error(field, format!("{field} is missing")).of(Code::NO_IDENTITY),
                Some(Hidden::Any),
            );
        }
    }
    let mut recognised = kinds::recognise(api_version, kind_word);
    if recognised == Recognised::Used(Kind::ConfigMap) && !mesh_config::is_one(name, value) {
        recognised = Recognised::Unused;
    }
    let Recognised::Used(kind) = recognised else {
        let object = ObjectRef {
            group: kinds::split_api_version(api_version).0.into(),
            kind: kind_word.into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        let finding = not_used(&recognised, api_version, kind_word).about(&object);
        // A finding about a kind that was meant otherwise may hide an object that was there.
        let hidden = finding
            .is_error()
            .then(|| Hidden::Named(namespace.to_owned(), name.to_owned()));
        return not(finding, hidden);
    };
    if !names::is_object_name(name) {
        let message = unnamed(value, name);
        let finding = Finding::error("metadata.name", message).of(Code::NO_IDENTITY);
        let hidden = Hidden::OfKind(kind.group().into(), kind.as_str().into());
        return not(
            finding.about(&ObjectRef::new(kind, namespace, name)),
            Some(hidden),
        );
    }
    let reference = ObjectRef::new(kind, namespace, name);
    let mut value = value.clone();
    // What is no text stays as it is, and is told.
    if kind.is_namespaced() && written.is_none_or(Value::is_string) {
        value["metadata"]["namespace"] = json!(namespace);
    }
    Identity::Used(kind, reference, value)
}

/// Why `name` is none.
fn unnamed(value: &Value, name: &str) -> String {
    let written = value.get("metadata").and_then(|head| head.get("name"));
    if let Some(odd) = written.filter(|name| !name.is_string()) {
        format!("{odd} is not a text: put the value in quotes")
    } else if name.is_empty() {
        "metadata.name is missing".to_owned()
    } else if name.len() > 253 {
        format!(
            "the name is longer than 253 characters: it has {}",
            name.len()
        )
    } else {
        format!("{name:?} is not a name: lower-case letters, digits, \"-\" and \".\"")
    }
}

fn not_used(recognised: &Recognised, api_version: &str, kind: &str) -> Finding {
    match recognised {
        Recognised::Unused => Finding::warning(
            "kind",
            format!("kind {kind} is not used by the mesh; it is left alone"),
        )
        .of(Code::KIND_NOT_USED),
        Recognised::NotYet => Finding::new(
            Severity::Unsupported,
            "kind",
            format!("not supported yet: kind {kind} of {api_version}; it has no effect"),
        ),
        Recognised::WrongVersion(right) => Finding::error(
            "apiVersion",
            format!("kind {kind} is not known in apiVersion {api_version}"),
        )
        .of(Code::UNKNOWN_KIND)
        .with_hint(format!("write apiVersion: {right}")),
        Recognised::Unknown | Recognised::Used(_) => {
            let finding = Finding::error(
                "kind",
                format!("unknown kind {kind} of apiVersion {api_version}"),
            );
            finding.of(Code::UNKNOWN_KIND).with_hint(
                match names::nearest(kind, kinds::known_words()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => {
                        let used: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
                        format!("the mesh reads {}", used.join(", "))
                    }
                },
            )
        }
    }
}

/// Reads and validates an object of a known kind. The object is there if no finding is an error.
/// Findings lack file, line and object.
pub(crate) fn typed(kind: Kind, value: &Value) -> (Option<Object>, Vec<Finding>) {
    let strict = Strict::default();
    let object = Object::deserialize(kind, value, &strict);
    let (unknown, failure) = strict.into_parts();
    let mut findings: Vec<Finding> = unknown.iter().map(unknown_field).collect();
    if let (None, Some(failure)) = (&object, failure) {
        let finding = Finding::error(failure.path, failure.message.clone());
        findings.push(match quotes_missing(&failure.message) {
            true => finding.with_hint("put the value in quotes"),
            false => finding,
        });
    }
    if let Some(object) = &object {
        findings.extend(validate_fields(object));
        findings.extend(support::unsupported(kind, value));
    }
    let valid = !findings.iter().any(Finding::is_error);
    (object.filter(|_| valid), at_most(MOST_FINDINGS, findings))
}

/// The worst of them, and how many more there are.
fn at_most(most: usize, mut findings: Vec<Finding>) -> Vec<Finding> {
    if findings.len() <= most {
        return findings;
    }
    // What keeps the object from counting is never among the others.
    findings.sort_by_key(|finding| Reverse(finding.severity));
    let others = findings.split_off(most);
    if let Some(worst) = others.first() {
        let text = format!("{} more findings are not shown", others.len());
        let more = Finding::new(worst.severity, "", text);
        findings.push(more.with_hint("first mend what is shown of this object"));
    }
    findings
}

pub(crate) fn unknown_field(unknown: &UnknownField) -> Finding {
    let finding = Finding::error(
        unknown.path.clone(),
        format!("unknown field {:?}", unknown.name),
    )
    .of(Code::UNKNOWN_FIELD);
    match names::nearest(&unknown.name, unknown.candidates.iter().copied()) {
        Some(near) => finding.with_hint(format!("did you mean {near}?")),
        None if unknown.candidates.len() <= 12 && !unknown.candidates.is_empty() => {
            finding.with_hint(format!("fields here: {}", unknown.candidates.join(", ")))
        }
        None => finding,
    }
}

/// `8080` and `true` where a text is wanted: the usual slip of YAML.
fn quotes_missing(message: &str) -> bool {
    message.ends_with("expected a string")
        && ["integer", "floating point", "boolean"]
            .iter()
            .any(|word| message.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_mistakes_is_told_of_the_worst_and_how_many_more_there_are() {
        let mut text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                        metadata: {name: vs, namespace: shop}\nspec:\n  hosts: [a]\n  http:\n"
            .to_owned();
        for number in 0..250 {
            text.push_str(&format!("  - nam{number}: x\n"));
        }
        let read = read_text(Path::new("a.yaml"), &text);
        assert!(read.objects.is_empty());
        let all = read.findings;
        assert_eq!(all.len(), MOST_FINDINGS + 1);
        assert!(all.iter().all(|one| one.is_error() && one.object.is_some()));
        assert_eq!(all[99].field, "spec.http[99].nam99");
        assert_eq!(all[99].line, Some(106));
        let more: usize = all[100].message.split(' ').next().unwrap().parse().unwrap();
        assert!(more >= 150, "{}", all[100]);

        let said = |severity, number: usize| Finding::new(severity, number.to_string(), "x");
        let mixed = (0..4).map(|n| match n {
            2 => said(Severity::Error, n),
            n => said(Severity::Warning, n),
        });
        let told = at_most(2, mixed.collect());
        let fields: Vec<&str> = told.iter().map(|one| &*one.field).collect();
        assert_eq!(fields, ["2", "0", ""]);
        assert_eq!(told[2].severity, Severity::Warning);
        assert!(told[2].message.starts_with("2 more"), "{}", told[2]);
    }

    /// Lines are looked up in one reading of the document, whichever of its objects is wrong.
    #[test]
    fn objects_of_one_document_share_its_text() {
        let item = "- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {x: 1}}\n";
        let text = format!("apiVersion: v1\nkind: List\nitems:\n{item}{item}");
        let raw = raw_objects(Path::new("a.yaml"), &text);
        let [one, other] = &raw.objects[..] else {
            panic!("{:?}", raw.findings);
        };
        let sources = one.source.as_ref().zip(other.source.as_ref());
        assert!(sources.is_some_and(|(one, other)| Arc::ptr_eq(one, other)));
        assert_eq!((one.line_of("spec.x"), other.line_of("spec.x")), (4, 5));
    }
}

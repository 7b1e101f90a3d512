//! Policies without a name that can be read. Nothing says which object one is, but what it is about can be
//! read of it: nobody shall find everything allowed there.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::kinds::{self, Kind, ObjectRef, Recognised};
use crate::targets::text;

/// A policy that stands in its place in a file, under a name made of that place; nothing for other kinds.
pub(crate) fn policy(
    file: &Path,
    line: u32,
    inside: &str,
    value: &Value,
) -> Option<(ObjectRef, Value)> {
    let word = |field: &str| value.get(field).and_then(Value::as_str);
    let kind = Kind::AuthorizationPolicy;
    if kinds::recognise(word("apiVersion")?, word("kind")?) != Recognised::Used(kind) {
        return None;
    }
    let head = value.get("metadata");
    let namespace = head.and_then(|head| text(head.get("namespace")?));
    let namespace = namespace.filter(|namespace| !namespace.is_empty());
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    let name = place(file, line, inside);
    let mut made = value.clone();
    let head = head.and_then(Value::as_object).cloned();
    let mut head = head.unwrap_or_else(Map::new);
    head.insert("name".to_owned(), json!(name));
    head.insert("namespace".to_owned(), json!(namespace));
    made["metadata"] = Value::Object(head);
    Some((ObjectRef::new(kind, &namespace, &name), made))
}

/// Letters and digits of a place, its last ones: two places have two names.
fn place(file: &Path, line: u32, inside: &str) -> String {
    let written = format!("{}-{line}-{inside}", file.display()).to_ascii_lowercase();
    let words = written.split(|letter: char| !letter.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let name = words.join("-");
    let from = name.len().saturating_sub(200);
    format!("nameless-{}", name[from..].trim_start_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(metadata: &Value) -> Option<(ObjectRef, Value)> {
        let value = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": metadata, "spec": { "rules": 7 },
        });
        policy(Path::new("/etc/mesh/Wall.yaml"), 12, "items[3]", &value)
    }

    #[test]
    fn a_policy_is_called_after_its_place() {
        let name = "nameless-etc-mesh-wall-yaml-12-items-3";
        for (metadata, namespace) in [
            (json!(null), "default"),
            (json!("wall"), "default"),
            (json!(["wall"]), "default"),
            (json!({ "name": 7, "namespace": "shop" }), "shop"),
            (json!({ "name": "Wall", "namespace": 7 }), "7"),
        ] {
            let (reference, value) = made(&metadata).unwrap();
            let kind = Kind::AuthorizationPolicy;
            assert_eq!(
                reference,
                ObjectRef::new(kind, namespace, name),
                "{metadata}"
            );
            assert_eq!(value["metadata"]["name"], name);
            assert_eq!(value["metadata"]["namespace"], namespace);
            let stands = crate::invalid::refusal(kind, &value);
            assert!(stands.is_some(), "{metadata}");
        }
        let labels = json!({ "namespace": "shop", "labels": 7 });
        let (_, value) = made(&labels).unwrap();
        assert!(crate::invalid::refusal(Kind::AuthorizationPolicy, &value).is_some());
    }

    #[test]
    fn other_kinds_stand_for_nothing() {
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": 7 });
        assert_eq!(policy(Path::new("a"), 1, "", &service), None);
        assert_eq!(policy(Path::new("a"), 1, "", &json!(7)), None);
    }

    #[test]
    fn long_places_make_names_that_are_names() {
        let long = format!("/{}/{}", "ä".repeat(300), "b-".repeat(300));
        let name = place(Path::new(&long), 7, "");
        assert!(crate::names::is_object_name(&name), "{name}");
        assert!(name.ends_with("-7"));
    }
}

use std::collections::BTreeMap;
use std::path::Path;

use isobar_objects::{ObjectRef, read_value};
use serde_json::Value;

use super::Wanted;

/// Objects that files in the writer's directory are about, and which of them were written as a
/// whole. Patches are not compared: the first plan writes them anew or takes them back.
pub(super) fn left_behind(dir: &Path) -> BTreeMap<ObjectRef, Wanted> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "earlier writes cannot be listed");
            return BTreeMap::new();
        }
    };
    let mut all: BTreeMap<ObjectRef, Wanted> = BTreeMap::new();
    let values = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .filter_map(|path| std::fs::read(&path).ok().map(|bytes| (path, bytes)))
        .filter_map(|(path, bytes)| Some((path, serde_json::from_slice::<Value>(&bytes).ok()?)));
    for (path, value) in values {
        let Some(object) = reference(&value) else {
            continue;
        };
        let entry = all.entry(object).or_default();
        if path.to_string_lossy().ends_with(".patch.json") {
            entry.patch = Some(value);
        } else {
            entry.object = read_value(&value).0;
        }
    }
    all
}

fn reference(value: &Value) -> Option<ObjectRef> {
    let api_version = value.get("apiVersion")?.as_str()?;
    let metadata = value.get("metadata")?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().into();
    Some(ObjectRef {
        group: api_version
            .split_once('/')
            .map_or("", |(group, _)| group)
            .into(),
        kind: text(value.get("kind")),
        namespace: text(metadata.get("namespace")),
        name: text(metadata.get("name")),
    })
}

use std::collections::BTreeMap;
use std::path::Path;

use isobar_objects::ObjectRef;
use serde_json::Value;

use super::Wanted;

/// Objects that files in the writer's directory are about. What they hold is not compared: the
/// first plan writes them anew or takes them back.
pub(super) fn left_behind(dir: &Path) -> BTreeMap<ObjectRef, Wanted> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "earlier writes cannot be listed");
            return BTreeMap::new();
        }
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .filter_map(|path| std::fs::read(path).ok())
        .filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .filter_map(|value| reference(&value))
        .map(|object| (object, Wanted::default()))
        .collect()
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

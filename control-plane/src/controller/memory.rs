use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use isobar_objects::{Object, ObjectHead, ObjectRef, ObjectSet, read_value};
use serde_json::Value;

use super::Wanted;
use super::gateway::CLASS_NAME;
use crate::model::is_managed;
use crate::revision::Revision;

/// How to find what earlier lives of this process, or other replicas, wrote.
#[derive(Debug, Clone)]
pub(crate) enum Earlier {
    /// In the folder that only it writes.
    InFolder(PathBuf),
    /// Among all objects, by label: those of waypoints of these classes that a control plane of this name
    /// made. What an earlier life said about objects of others is found by writing it anew.
    OfClasses(Vec<String>, Revision),
}

impl Earlier {
    /// True where others write too.
    pub(super) const fn is_shared(&self) -> bool {
        matches!(self, Self::OfClasses(..))
    }

    /// What was written and may not be wanted any more.
    pub(super) fn find(&self, set: &ObjectSet) -> BTreeMap<ObjectRef, Wanted> {
        match self {
            Self::InFolder(dir) => left_behind(dir),
            Self::OfClasses(classes, revision) => {
                let mut found = BTreeMap::new();
                of_classes(&set.deployments, classes, revision, &mut found);
                of_classes(&set.services, classes, revision, &mut found);
                of_classes(&set.service_accounts, classes, revision, &mut found);
                found
            }
        }
    }
}

/// Other control planes manage waypoints too: the class and the revision tell whose they are.
fn of_classes<T>(
    all: &isobar_objects::ObjectMap<T>,
    classes: &[String],
    revision: &Revision,
    found: &mut BTreeMap<ObjectRef, Wanted>,
) where
    T: ObjectHead + Clone,
    Object: From<T>,
{
    let ours = all.iter().filter(|one| {
        let class = one.label(CLASS_NAME).unwrap_or_default();
        let is_of_class = classes.iter().any(|ours| ours == class);
        is_managed(one.labels()) && is_of_class && revision.made(one.labels())
    });
    for one in ours {
        let wanted = Wanted {
            object: Some(one.object.clone().into()),
            patch: None,
        };
        found.insert(one.reference(), wanted);
    }
}

/// Objects that files in the writer's directory are about, and which of them were written as a
/// whole. Patches are not compared: the first plan writes them anew or takes them back.
fn left_behind(dir: &Path) -> BTreeMap<ObjectRef, Wanted> {
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

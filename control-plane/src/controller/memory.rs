use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use isobar_objects::{Object, ObjectHead, ObjectRef, ObjectSet, read_value};
use isobar_types::labels;
use serde_json::{Value, json};

use super::gateway::CLASS_NAME;
use super::{Wanted, status};
use crate::model::{BOUND_ACCOUNT, is_managed};
use crate::revision::Revision;

/// How to find what earlier lives of this process, or other replicas, wrote.
#[derive(Debug, Clone)]
pub(crate) enum Earlier {
    /// In the folder that only it writes.
    InFolder(PathBuf),
    /// Among all objects: by label those of waypoints of these classes that a control plane of this name
    /// made, and by what is said on them those of others that it tells of.
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
                for object in told(set).filter(|one| revision.tells(set, one)) {
                    // Unlike anything wanted: written anew if it is still to be said, and else taken back.
                    found.entry(object).or_default().patch = Some(json!({}));
                }
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

/// Objects that carry conditions or annotations as we write them. Whether they are ours the writer
/// knows, who takes back nothing of others.
fn told(set: &ObjectSet) -> impl Iterator<Item = ObjectRef> + use<'_> {
    fn of<T: ObjectHead>(all: &isobar_objects::ObjectMap<T>) -> impl Iterator<Item = ObjectRef> {
        all.iter().map(|one| one.reference())
    }
    let conditioned = of(&set.services)
        .chain(of(&set.authorization_policies))
        .chain(of(&set.peer_authentications))
        .chain(of(&set.virtual_services))
        .chain(of(&set.destination_rules))
        .chain(of(&set.service_entries))
        .chain(of(&set.workload_entries))
        .chain(of(&set.rate_limit_policies))
        .chain(of(&set.istio_gateways));
    let conditioned = conditioned.filter(|one| status::says_ours(set, one));
    let sticky = set.services.iter();
    let sticky = sticky.filter(|one| one.annotation(BOUND_ACCOUNT).is_some());
    let latched = set.service_accounts.iter();
    let latched = latched.filter(|one| one.annotation(labels::WAYPOINT_LATCHED).is_some());
    conditioned
        .chain(sticky.map(|one| one.reference()))
        .chain(latched.map(|one| one.reference()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::golden_tests::objects;

    #[test]
    fn what_an_earlier_life_said_of_others_is_found() {
        let set = objects(
            "---
apiVersion: v1
kind: Service
metadata: {name: bound, namespace: shop}
spec: {ports: [{port: 80}]}
status: {conditions: [{type: istio.io/WaypointBound, status: 'False', reason: R, message: m, lastTransitionTime: '2026-01-01T00:00:00Z'}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: latched, namespace: shop, annotations: {isobar.dev/waypoint-latched: w1}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: told, namespace: shop}
spec: {}
status: {conditions: [{type: ZtunnelAccepted, status: 'True'}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: of-others, namespace: shop}
spec: {}
status: {conditions: [{type: Reconciled, status: 'True'}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop, labels: {istio.io/rev: canary}}
spec: {}
status: {conditions: [{type: ZtunnelAccepted, status: 'True'}]}
",
        );
        let earlier = Earlier::OfClasses(Vec::new(), Revision::default());
        let found = earlier.find(&set);
        let names: Vec<&str> = found.keys().map(|one| &*one.name).collect();
        assert_eq!(names, ["bound", "latched", "told"]);
        let is_patch = |one: &Wanted| one.object.is_none() && one.patch.is_some();
        assert!(found.values().all(is_patch));
    }
}

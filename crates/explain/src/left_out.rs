//! Policies that do not count, because the control plane looks at neither their namespace nor them.

use std::sync::Arc;

use isobar_control_plane::Started;
use isobar_objects::{Code, Kind, ObjectHead, ObjectMap, ObjectRef, ObjectSet, Published};
use serde::{Serialize, Serializer};

use crate::diagnosis::{Diagnosis, Gravity};

/// Label that says which control plane an object is for.
const REVISION: &str = "istio.io/rev";

/// A policy that does not count for the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// The policy, as `KIND NAMESPACE/NAME`.
    #[serde(serialize_with = "as_text")]
    pub policy: ObjectRef,
    /// Why: what follows "does not count: ".
    pub because: String,
}

fn as_text<S: Serializer>(object: &ObjectRef, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(object)
}

/// Of all objects those that count for a control plane started so, and the policies that do not.
pub(crate) fn counting(started: &Started, all: ObjectSet) -> (ObjectSet, Vec<LeftOut>) {
    let all = Published {
        objects: Arc::new(all),
        ..Published::default()
    };
    let all = Arc::new(all);
    let counting = started.counts(&all);
    let left_out = left_out(started, &all.objects, &counting.objects);
    (ObjectSet::clone(&counting.objects), left_out)
}

fn references<T: ObjectHead>(all: &ObjectMap<T>) -> Vec<ObjectRef> {
    all.iter().map(|one| one.reference()).collect()
}

fn left_out(started: &Started, all: &ObjectSet, counting: &ObjectSet) -> Vec<LeftOut> {
    let mut policies = references(&all.authorization_policies);
    policies.extend(references(&all.peer_authentications));
    policies.extend(references(&all.rate_limit_policies));
    policies.retain(|policy| counting.labels(policy).is_none());
    let why = |policy: &ObjectRef| {
        let labels = all.labels(policy);
        match labels.and_then(|labels| labels.get(REVISION)) {
            Some(name) if started.looks_at(all, &policy.namespace) => of_revision(started, name),
            _ => format!("its namespace {} is not selected", policy.namespace),
        }
    };
    let all = policies.into_iter();
    all.map(|policy| LeftOut {
        because: why(&policy),
        policy,
    })
    .collect()
}

fn of_revision(started: &Started, name: &str) -> String {
    let more = match started.knows(name) {
        Some(true) => "another control plane is called so, and it counts there",
        Some(false) => "no control plane is called so, and it counts for nobody",
        None => "where no control plane is called so, it counts for nobody",
    };
    format!("it belongs to revision {name}: {more}")
}

/// Says of each policy why it does not count, and whether the root namespace is left out as a whole.
/// `all` are all objects.
pub(crate) fn told(started: &Started, all: &ObjectSet, left_out: Vec<LeftOut>) -> Vec<Diagnosis> {
    let warning = |code, object: ObjectRef, text: String| {
        Diagnosis::new(Gravity::Warning, code, Some(object), text)
    };
    let policies = left_out.into_iter().map(|LeftOut { policy, because }| {
        let text = format!(
            "does not count for control plane {}: {because}",
            started.name()
        );
        warning(Code::LEFT_OUT, policy, text)
    });
    let mut found: Vec<Diagnosis> = policies.collect();
    let root = started.root_namespace();
    if !started.looks_at(all, root) {
        let text = format!(
            "discovery selectors leave out {root}, the root namespace: its policies for the whole mesh \
             count for nobody"
        );
        let namespace = ObjectRef::new(Kind::Namespace, "", root);
        found.push(warning(Code::ROOT_LEFT_OUT, namespace, text));
    }
    found
}

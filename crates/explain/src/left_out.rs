//! Policies that do not count, because the control plane looks at neither their namespace nor them.

use isobar_control_plane::Started;
use isobar_objects::{Code, Kind, ObjectHead, ObjectMap, ObjectRef, ObjectSet};

use crate::diagnosis::{Diagnosis, Gravity};

/// Label that says which control plane an object is for.
const REVISION: &str = "istio.io/rev";

fn references<T: ObjectHead>(all: &ObjectMap<T>) -> Vec<ObjectRef> {
    all.iter().map(|one| one.reference()).collect()
}

/// Says of each policy among `all` that is not among `counting`, which are the objects that count for a
/// control plane started so, why it is not; and whether the root namespace is left out as
/// a whole.
pub(crate) fn left_out(all: &ObjectSet, counting: &ObjectSet, started: &Started) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    let mut policies = references(&all.authorization_policies);
    policies.extend(references(&all.peer_authentications));
    policies.extend(references(&all.rate_limit_policies));
    for policy in policies {
        if counting.labels(&policy).is_some() {
            continue;
        }
        let labels = all.labels(&policy);
        let why = match labels.and_then(|labels| labels.get(REVISION)) {
            Some(name) if started.looks_at(all, &policy.namespace) => format!(
                "belongs to revision {name}: where no control plane is called so, it counts for nobody"
            ),
            _ => format!("namespace {} is not selected", policy.namespace),
        };
        let text = format!("does not count for control plane {}: {why}", started.name());
        found.push(Diagnosis::new(
            Gravity::Warning,
            Code::LEFT_OUT,
            Some(policy),
            text,
        ));
    }
    let root = started.root_namespace();
    if !started.looks_at(all, root) {
        let text = format!(
            "discovery selectors leave out {root}, the root namespace: its policies for the whole mesh \
             count for nobody"
        );
        let namespace = ObjectRef::new(Kind::Namespace, "", root);
        found.push(Diagnosis::new(
            Gravity::Warning,
            Code::ROOT_LEFT_OUT,
            Some(namespace),
            text,
        ));
    }
    found
}

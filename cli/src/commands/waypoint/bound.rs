use isobar_objects::{
    Kind, Namespace, ObjectHead, ObjectRef, ObjectSet, Origin, Pod, Service, ServiceAccount,
};
use isobar_types::labels;

use super::{Objects, place_of};

/// What names a waypoint in its label, and where that is written: the namespace, accounts, services
/// and pods.
pub(super) fn bound(objects: &ObjectSet, namespace: &str, name: &str) -> Vec<(ObjectRef, Origin)> {
    fn of<T: ObjectHead>(
        objects: &ObjectSet,
        namespace: &str,
        name: &str,
        all: &mut Vec<(ObjectRef, Origin)>,
    ) {
        for held in T::map(objects).iter() {
            let own = if T::KIND == Kind::Namespace {
                held.name()
            } else {
                held.namespace()
            };
            let place = held.label(labels::USE_WAYPOINT_NAMESPACE).unwrap_or(own);
            if held.label(labels::USE_WAYPOINT) == Some(name) && place == namespace {
                all.push((held.reference(), held.origin.clone()));
            }
        }
    }
    let mut all = Vec::new();
    of::<Namespace>(objects, namespace, name, &mut all);
    of::<ServiceAccount>(objects, namespace, name, &mut all);
    of::<Service>(objects, namespace, name, &mut all);
    of::<Pod>(objects, namespace, name, &mut all);
    all
}

/// Who binds what to a waypoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bindings {
    /// Labels that this command wrote; taking them back unbinds the object.
    pub(super) ours: Vec<ObjectRef>,
    /// Labels in files of the user's, also where this command wrote the same one on top.
    pub(super) yours: Vec<(ObjectRef, Origin)>,
}

impl Bindings {
    pub(super) fn of(objects: &Objects, namespace: &str, name: &str) -> Self {
        let below: Vec<ObjectRef> = bound(&objects.users, namespace, name)
            .into_iter()
            .map(|(reference, _)| reference)
            .collect();
        let (yours, ours): (Vec<_>, Vec<_>) = bound(&objects.now(), namespace, name)
            .into_iter()
            .partition(|(one, _)| below.contains(one) || !objects.wrote(one));
        Self {
            ours: ours.into_iter().map(|(reference, _)| reference).collect(),
            yours,
        }
    }
}

/// `KIND NAMESPACE/NAME (FILE:LINE)`, one after the other.
pub(super) fn text(bound: &[(ObjectRef, Origin)]) -> String {
    let list: Vec<_> = bound
        .iter()
        .map(|(reference, origin)| format!("{reference} ({})", place_of(origin)))
        .collect();
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use isobar_objects::OverlayWriter;
    use serde_json::json;

    const NAMED: &str = "apiVersion: v1
kind: Namespace
metadata: {name: hello, labels: {istio.io/use-waypoint: waypoint}}
";

    fn label_patch() -> serde_json::Value {
        json!({ "metadata": { "labels": { labels::USE_WAYPOINT: "waypoint" } } })
    }

    #[test]
    fn a_label_in_a_file_is_the_users_whatever_lies_on_top() {
        let (base, overlay) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = || {
            let base = [base.path().to_owned()];
            Objects::in_folders(&base, overlay.path()).unwrap()
        };
        let writer = OverlayWriter::new(overlay.path().join("cli")).unwrap();
        let file = base.path().join("namespace.yaml");
        std::fs::write(
            &file,
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: hello}\n",
        )
        .unwrap();
        let namespace = ObjectRef::new(Kind::Namespace, "", "hello");
        writer.merge(&namespace, &label_patch()).unwrap();
        let found = Bindings::of(&open(), "hello", "waypoint");
        assert_eq!(
            (found.ours, found.yours.len()),
            (vec![namespace.clone()], 0)
        );

        std::fs::write(&file, NAMED).unwrap();
        let found = Bindings::of(&open(), "hello", "waypoint");
        assert_eq!(found.ours, []);
        assert_eq!(
            text(&found.yours),
            format!("Namespace hello ({}:1)", file.display())
        );

        writer.remove(&namespace).unwrap();
        assert_eq!(Bindings::of(&open(), "hello", "waypoint").yours.len(), 1);
        assert_eq!(Bindings::of(&open(), "hello", "other"), Bindings::default());
    }
}

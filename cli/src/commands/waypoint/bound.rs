use std::fmt;

use isobar_objects::istio::ServiceEntry;
use isobar_objects::{
    Kind, Namespace, ObjectHead, ObjectRef, ObjectSet, Origin, Pod, Service, ServiceAccount,
};
use isobar_types::labels;
use serde_json::{Value, json};

use super::{Objects, place_of};

/// How many objects are told of.
const TOLD: usize = 10;
/// Value of a label by which an object uses no waypoint.
const NONE: &str = "none";

/// What names a waypoint in a label, and where that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Naming {
    pub(super) object: ObjectRef,
    pub(super) origin: Origin,
    /// As the one that takes this share of the calls, in words; otherwise it takes all the others.
    pub(super) second: Option<String>,
}

impl Naming {
    /// The label that names it.
    pub(super) const fn key(&self) -> &'static str {
        match self.second {
            Some(_) => labels::USE_WAYPOINT_CANARY,
            None => labels::USE_WAYPOINT,
        }
    }
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.second {
            Some(share) => write!(f, "{} (canary, {share})", self.object),
            None => self.object.fmt(f),
        }
    }
}

/// What names a waypoint: namespaces, accounts, services, entries and pods.
pub(super) fn bound(objects: &ObjectSet, namespace: &str, name: &str) -> Vec<Naming> {
    let mut all = Vec::new();
    let waypoint = (namespace, name);
    first::<Namespace>(objects, waypoint, &mut all);
    first::<ServiceAccount>(objects, waypoint, &mut all);
    first::<Service>(objects, waypoint, &mut all);
    first::<ServiceEntry>(objects, waypoint, &mut all);
    first::<Pod>(objects, waypoint, &mut all);
    second::<Namespace>(objects, waypoint, &mut all);
    second::<Service>(objects, waypoint, &mut all);
    second::<ServiceEntry>(objects, waypoint, &mut all);
    all
}

fn first<T: ObjectHead>(objects: &ObjectSet, waypoint: (&str, &str), all: &mut Vec<Naming>) {
    let keys = (labels::USE_WAYPOINT, labels::USE_WAYPOINT_NAMESPACE);
    for held in T::map(objects).iter() {
        if names(&held.object, keys, waypoint) {
            all.push(Naming {
                object: held.reference(),
                origin: held.origin.clone(),
                second: None,
            });
        }
    }
}

fn second<T: ObjectHead>(objects: &ObjectSet, waypoint: (&str, &str), all: &mut Vec<Naming>) {
    let name = labels::USE_WAYPOINT_CANARY;
    let keys = (name, labels::USE_WAYPOINT_CANARY_NAMESPACE);
    for held in T::map(objects).iter() {
        if names(&held.object, keys, waypoint) {
            let weight = held.annotation(labels::USE_WAYPOINT_CANARY_WEIGHT);
            all.push(Naming {
                object: held.reference(),
                origin: held.origin.clone(),
                second: Some(format!("{} %", weight.unwrap_or("0"))),
            });
        }
    }
}

/// True if it names the waypoint of its own namespace that is called `name`.
pub(super) fn is_bound(objects: &ObjectSet, object: &ObjectRef, name: &str) -> bool {
    let own = match &*object.kind {
        "Namespace" => &object.name,
        _ => &object.namespace,
    };
    let all = objects.labels(object);
    all.is_some_and(|all| {
        let around = all.get(labels::USE_WAYPOINT_NAMESPACE);
        all.get(labels::USE_WAYPOINT).is_some_and(|it| it == name)
            && around.is_none_or(|around| **around == **own)
    })
}

/// The change that makes it name the waypoint of its own namespace that is called `name`.
pub(super) fn binding(objects: &ObjectSet, object: &ObjectRef, name: &str) -> Value {
    let mut change = json!({ "metadata": { "labels": { labels::USE_WAYPOINT: name } } });
    let all = objects.labels(object);
    if all.is_some_and(|all| all.contains_key(labels::USE_WAYPOINT_NAMESPACE)) {
        // With it the label would name a waypoint of that namespace.
        change["metadata"]["labels"][labels::USE_WAYPOINT_NAMESPACE] = Value::Null;
    }
    change
}

/// Says which objects keep another waypoint when the label of their namespace is moved to `name`.
pub(super) fn warn_of_apart(objects: &ObjectSet, namespace: &str, name: &str) {
    let all = apart(objects, namespace, name);
    if all.is_empty() {
        return;
    }
    let first = all[..all.len().min(TOLD)].join(", ");
    let more = match all.len() - all.len().min(TOLD) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    anstream::eprintln!(
        "warning: these stay with the waypoint that their own label {} names: {first}{more}. Name {name} \
         there, or remove the label, for each that is to follow its namespace",
        labels::USE_WAYPOINT
    );
}

/// Objects of a namespace that name another waypoint in a label of their own, each with that name: they
/// keep it when the namespace's label changes.
fn apart(objects: &ObjectSet, namespace: &str, name: &str) -> Vec<String> {
    let mut all = Vec::new();
    others::<ServiceAccount>(objects, (namespace, name), &mut all);
    others::<Service>(objects, (namespace, name), &mut all);
    others::<ServiceEntry>(objects, (namespace, name), &mut all);
    others::<Pod>(objects, (namespace, name), &mut all);
    all
}

fn others<T: ObjectHead>(objects: &ObjectSet, waypoint: (&str, &str), all: &mut Vec<String>) {
    let keys = (labels::USE_WAYPOINT, labels::USE_WAYPOINT_NAMESPACE);
    for held in T::map(objects).in_namespace(waypoint.0) {
        let named = held
            .label(keys.0)
            .filter(|named| ![NONE, ""].contains(named));
        if let Some(named) = named.filter(|_| !names(&held.object, keys, waypoint)) {
            all.push(format!("{} ({named})", held.reference()));
        }
    }
}

/// True if labels of `object` name the waypoint and, where it is another one, its namespace.
fn names<T: ObjectHead>(object: &T, keys: (&str, &str), (namespace, name): (&str, &str)) -> bool {
    let own = match T::KIND {
        Kind::Namespace => object.name(),
        _ => object.namespace(),
    };
    object.label(keys.0) == Some(name) && object.label(keys.1).unwrap_or(own) == namespace
}

/// Who binds what to a waypoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bindings {
    /// Labels that this command wrote; taking them back unbinds the object.
    pub(super) ours: Vec<ObjectRef>,
    /// Labels in files of the user's, also where this command wrote the same one on top. Second
    /// waypoints are always named by users.
    pub(super) yours: Vec<Naming>,
}

impl Bindings {
    pub(super) fn of(objects: &Objects, namespace: &str, name: &str) -> Self {
        let below: Vec<ObjectRef> = bound(&objects.users, namespace, name)
            .into_iter()
            .map(|one| one.object)
            .collect();
        let (yours, ours): (Vec<_>, Vec<_>) = bound(&objects.now(), namespace, name)
            .into_iter()
            .partition(|one| {
                one.second.is_some() || below.contains(&one.object) || !objects.wrote(&one.object)
            });
        Self {
            ours: ours.into_iter().map(|one| one.object).collect(),
            yours,
        }
    }

    /// True if nothing but a share of some calls passes it.
    pub(super) fn is_second(&self) -> bool {
        self.ours.is_empty() && self.yours.iter().all(|one| one.second.is_some())
    }
}

/// `KIND NAMESPACE/NAME (FILE:LINE)`, one after the other.
pub(super) fn text(bound: &[Naming]) -> String {
    let list: Vec<_> = bound
        .iter()
        .map(|one| format!("{one} ({})", place_of(&one.origin)))
        .collect();
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use isobar_objects::OverlayWriter;

    const NAMED: &str = "apiVersion: v1
kind: Namespace
metadata: {name: hello, labels: {istio.io/use-waypoint: waypoint}}
";

    fn label_patch() -> Value {
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

    #[test]
    fn what_names_a_waypoint_of_another_namespace_is_bound_whole() {
        let (name, around) = (labels::USE_WAYPOINT, labels::USE_WAYPOINT_NAMESPACE);
        let namespace = |labels: Value| -> isobar_objects::Object {
            let head = json!({ "metadata": { "name": "shop", "labels": labels } });
            serde_json::from_value::<Namespace>(head).unwrap().into()
        };
        let shop = ObjectRef::new(Kind::Namespace, "", "shop");
        for (labels, expected) in [
            (json!({}), false),
            (json!({ name: "ours" }), true),
            (json!({ name: "ours", around: "shop" }), true),
            (json!({ name: "ours", around: "infra" }), false),
            (json!({ name: "theirs", around: "infra" }), false),
        ] {
            let objects = ObjectSet::of([namespace(labels.clone())]);
            assert_eq!(is_bound(&objects, &shop, "ours"), expected, "{labels}");
            let mut after = json!({ "metadata": { "labels": labels } });
            isobar_objects::merge_patch(&mut after, &binding(&objects, &shop, "ours"));
            assert_eq!(after["metadata"]["labels"], json!({ name: "ours" }));
        }
    }

    #[test]
    fn who_names_another_waypoint_does_not_follow_its_namespace() {
        let service = |name: &str, labels: Value| -> isobar_objects::Object {
            let head = json!({ "name": name, "namespace": "shop", "labels": labels });
            let service: Service = serde_json::from_value(json!({ "metadata": head })).unwrap();
            service.into()
        };
        let (own, of) = (labels::USE_WAYPOINT, labels::USE_WAYPOINT_NAMESPACE);
        let objects = ObjectSet::of([
            service("follows", json!({})),
            service("same", json!({ own: "ours" })),
            service("without", json!({ own: "none" })),
            service("other", json!({ own: "theirs" })),
            service("far", json!({ own: "ours", of: "far" })),
            super::super::apply::tests::account("shop", "reviews", "theirs"),
            super::super::apply::tests::account("elsewhere", "reviews", "theirs"),
        ]);
        assert_eq!(
            apart(&objects, "shop", "ours"),
            [
                "ServiceAccount shop/reviews (theirs)",
                "Service shop/far (ours)",
                "Service shop/other (theirs)"
            ]
        );
    }

    #[test]
    fn who_names_a_second_waypoint_is_known_with_its_share() {
        let (base, overlay) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let text = "apiVersion: v1
kind: Namespace
metadata: {name: hello, labels: {istio.io/use-waypoint: waypoint, istio.io/use-waypoint-canary: next}}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: hello
  labels: {istio.io/use-waypoint-canary: next, istio.io/use-waypoint-canary-namespace: far}
  annotations: {istio.io/use-waypoint-canary-weight: \"30\"}
spec: {ports: [{port: 80}]}
";
        std::fs::write(base.path().join("all.yaml"), text).unwrap();
        // The command wrote something else onto the namespace.
        let writer = OverlayWriter::new(overlay.path().join("cli")).unwrap();
        let namespace = ObjectRef::new(Kind::Namespace, "", "hello");
        writer.merge(&namespace, &label_patch()).unwrap();
        let objects = Objects::in_folders(&[base.path().to_owned()], overlay.path()).unwrap();
        let of = |namespace: &str, name: &str| {
            let found = Bindings::of(&objects, namespace, name);
            let names: Vec<String> = found.yours.iter().map(ToString::to_string).collect();
            (found.ours.len(), names, found.is_second())
        };
        let first = vec!["Namespace hello".to_owned()];
        assert_eq!(of("hello", "waypoint"), (0, first, false));
        let second = vec!["Namespace hello (canary, 0 %)".to_owned()];
        assert_eq!(of("hello", "next"), (0, second, true));
        let far = vec!["Service hello/web (canary, 30 %)".to_owned()];
        assert_eq!(of("far", "next"), (0, far, true));
    }
}

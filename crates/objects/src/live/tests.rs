use serde_json::{Value, json};

use super::*;
use crate::istio::Action;

fn namespace(name: &str) -> ServedObject {
    let value = json!({"metadata": {"name": name}});
    ServedObject::read(Kind::Namespace, &value)
}

fn route(name: &str, host: &str, created: &str) -> ServedObject {
    let spec = json!({
        "hosts": [host],
        "http": [{"route": [{"destination": {"host": host}}]}],
    });
    with_spec(Kind::VirtualService, name, created, &spec)
}

fn with_spec(kind: Kind, name: &str, created: &str, spec: &Value) -> ServedObject {
    let value = json!({
        "apiVersion": kind.api_version(), "kind": kind.as_str(),
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
        "spec": spec,
    });
    ServedObject::read(kind, &value)
}

fn names(published: &Published) -> Vec<String> {
    let routes = published.objects.virtual_services.iter();
    routes.map(|one| one.head_name()).collect()
}

trait HeadName {
    fn head_name(&self) -> String;
}

impl HeadName for Arc<crate::Held<VirtualService>> {
    fn head_name(&self) -> String {
        self.metadata.name.clone().unwrap_or_default()
    }
}

#[test]
fn a_new_list_swaps_a_kind_and_leaves_the_others() {
    let mut live = LiveSet::new();
    live.replace(Kind::Namespace, vec![namespace("a"), namespace("b")]);
    live.put(route("r", "x.example", "2026-01-01T00:00:00Z"));
    let first = live.publish().unwrap();
    assert_eq!((first.objects.len(), first.synced), (3, true));
    assert!(live.publish().is_none());

    live.replace(Kind::Namespace, vec![namespace("a"), namespace("b")]);
    assert!(live.publish().is_none(), "the same list is no change");

    live.replace(Kind::Namespace, vec![namespace("b"), namespace("c")]);
    let second = live.publish().unwrap();
    let changes = second.objects.changes_since(&first.objects);
    let words: Vec<_> = changes
        .iter()
        .map(|change| (change.what, &*change.object.name))
        .collect();
    use crate::ChangeKind::{Added, Removed};
    assert_eq!(words, [(Added, "c"), (Removed, "a")]);
}

#[test]
fn a_list_in_parts_counts_as_a_whole_and_keeps_what_is_new_only() {
    let labelled = |name: &str, mode: &str| {
        let value = json!({"metadata": {"name": name, "labels": {"mode": mode}}});
        ServedObject::read(Kind::Namespace, &value)
    };
    let kind = Kind::Namespace;
    let mut live = LiveSet::new();
    live.replace(
        kind,
        vec![labelled("a", "x"), labelled("b", "x"), labelled("c", "x")],
    );
    let first = live.publish().unwrap();

    live.list(kind, vec![labelled("a", "x"), labelled("b", "y")]);
    let listing = &live.listings[&kind];
    assert_eq!((listing.same.len(), listing.others.len()), (1, 1));
    assert!(live.publish().is_none(), "a part is nothing");
    // It breaks off, and the next one is another.
    live.unlist(kind);
    live.list(kind, vec![labelled("b", "x")]);
    live.replace(kind, vec![labelled("c", "y"), labelled("d", "x")]);
    assert!(live.listings.is_empty());
    let second = live.publish().unwrap();
    let changes = second.objects.changes_since(&first.objects);
    let words: Vec<_> = changes
        .iter()
        .map(|change| (change.what, &*change.object.name))
        .collect();
    use crate::ChangeKind::{Added, Changed, Removed};
    assert_eq!(words, [(Changed, "c"), (Added, "d"), (Removed, "a")]);
}

#[test]
fn a_list_brings_back_what_was_not_valid_or_had_something_to_be_said() {
    let kind = Kind::AuthorizationPolicy;
    let time = "2026-01-01T00:00:00Z";
    let policy = |spec: Value| with_spec(kind, "p", time, &spec);
    let good = json!({"action": "ALLOW", "rules": [{}]});
    let mut live = LiveSet::new();
    live.put(policy(good.clone()));
    live.put(policy(json!({"acton": "DENY"})));
    assert!(!live.publish().unwrap().invalid.is_empty());
    // The good version is in force all the time, but it was not the present one.
    live.list(kind, vec![policy(good)]);
    live.replace(kind, Vec::new());
    let now = live.publish().unwrap();
    assert_eq!(now.objects.authorization_policies.len(), 1);
    assert!(now.invalid.is_empty() && now.findings.is_empty());
    live.replace(Kind::VirtualService, vec![route("r", "x.example", time)]);
    let of_routes = |live: &mut LiveSet| live.publish().map(|now| names(&now));
    assert_eq!(of_routes(&mut live), Some(vec!["r".to_owned()]));
    live.list(Kind::VirtualService, vec![route("r", "x.example", time)]);
    live.replace(Kind::VirtualService, Vec::new());
    assert_eq!(of_routes(&mut live), None);
}

#[test]
fn findings_are_made_anew_when_something_they_follow_from_changes() {
    let pod = |node: &str| {
        let value = json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        });
        ServedObject::read(Kind::Pod, &value)
    };
    let service = json!({
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"ports": [{"port": 80}]},
    });
    let mut live = LiveSet::new();
    live.put(route("r", "cart", "2026-01-01T00:00:00Z"));
    live.put(pod("a"));
    let first = live.publish().unwrap();
    assert!(!first.findings.is_empty(), "there is no Service cart");
    live.put(pod("b"));
    let second = live.publish().unwrap();
    assert!(Arc::ptr_eq(&first.findings, &second.findings));
    live.put(ServedObject::read(Kind::Service, &service));
    assert!(live.publish().unwrap().findings.is_empty());
}

#[test]
fn an_invalid_version_leaves_the_last_good_one_in_force() {
    let time = "2026-01-01T00:00:00Z";
    let policy = |spec: Value| with_spec(Kind::AuthorizationPolicy, "p", time, &spec);
    let mut live = LiveSet::new();
    live.put(policy(json!({"acton": "DENY"})));
    let never = live.publish().unwrap();
    let reference = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p");
    let refuses = |published: &Published| {
        let all = published.objects.authorization_policies.iter();
        let all = all.map(|one| (one.spec.action, one.spec.rules.len()));
        all.collect::<Vec<_>>() == [(Action::Deny, 1)]
    };
    assert!(refuses(&never), "nothing is known of it");
    let told = |published: &Published| {
        let told = published.invalid.get(&reference);
        told.map(|told| (told.instead, told.message.clone()))
    };
    let why = "spec.acton: unknown field \"acton\"".to_owned();
    assert_eq!(told(&never), Some((Instead::Refusal, why.clone())));

    live.put(policy(json!({"acton": "DENY", "action": "AUDIT"})));
    let audit = live.publish().unwrap();
    assert!(audit.objects.authorization_policies.is_empty());
    assert_eq!(
        told(&audit),
        Some((Instead::Nothing, why.clone())),
        "it would refuse nothing"
    );

    live.put(policy(json!({"action": "ALLOW", "rules": [{}]})));
    let good = live.publish().unwrap();
    assert!(good.invalid.is_empty() && !refuses(&good));
    assert!(good.findings.iter().all(|one| !one.is_error()));
    live.put(policy(json!({"acton": "DENY"})));
    let bad = live.publish().unwrap();
    assert_eq!(bad.objects.authorization_policies.len(), 1);
    assert!(bad.findings.iter().any(Finding::is_error));
    assert!(!bad.may_hide(&reference) && !refuses(&bad));
    assert_eq!(told(&bad), Some((Instead::LastGood, why)));

    live.remove(&reference);
    let gone = live.publish().unwrap();
    assert!(gone.objects.authorization_policies.is_empty());
    assert!(gone.findings.is_empty() && gone.invalid.is_empty());
}

#[test]
fn what_has_no_effect_is_told_as_long_as_it_is_there() {
    let kind = Stranger::find("telemetry.istio.io", "Telemetry").unwrap();
    let object = kind.object("shop", "t");
    let mut live = LiveSet::new();
    live.replace_strangers(kind, vec![object.clone()]);
    let told = live.publish().unwrap();
    assert_eq!(told.findings[0].object.as_ref(), Some(&object));
    assert_eq!(told.findings[0].code, crate::code::Code::NOT_HONOURED);
    assert!(told.invalid.is_empty() && told.objects.is_empty());
    live.put_stranger(kind, object.clone());
    assert!(live.publish().is_none(), "nothing new");
    live.replace_strangers(kind, Vec::new());
    assert!(live.publish().unwrap().findings.is_empty());
    live.put_stranger(kind, object.clone());
    live.remove(&object);
    assert!(live.publish().unwrap().findings.is_empty());
}

#[test]
fn a_version_that_is_not_valid_brings_its_generation_and_status() {
    let policy = |generation: i64, action: &str, status: Value| {
        let value = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop", "generation": generation},
            "spec": {"action": action}, "status": status,
        });
        ServedObject::read(Kind::AuthorizationPolicy, &value)
    };
    let reference = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p");
    let mut live = LiveSet::new();
    live.put(policy(1, "ALLOW", json!({"a": 1})));
    live.put(policy(2, "ALOW", json!({"a": 2})));
    let second = live.publish().unwrap();
    assert_eq!(second.invalid[&reference].generation, Some(2));
    let held = second.objects.authorization_policies.get("shop", "p");
    let held = &held.unwrap().object;
    assert_eq!(held.spec.action, Action::Allow, "the last good one");
    assert_eq!(held.status, Some(json!({"a": 2})));
    live.put(policy(3, "ALOW", json!({"a": 2})));
    let third = live.publish().unwrap();
    assert_eq!(third.invalid[&reference].generation, Some(3));
}

/// A version of an object with this UID.
fn version(kind: Kind, uid: &str, spec: &Value) -> ServedObject {
    let value = json!({
        "apiVersion": kind.api_version(), "kind": kind.as_str(),
        "metadata": {"name": "p", "namespace": "shop", "uid": uid},
        "spec": spec, "status": {"of": "now"},
    });
    ServedObject::read(kind, &value)
}

#[test]
fn what_was_kept_counts_for_the_very_object_until_it_is_valid() {
    let kind = Kind::AuthorizationPolicy;
    let reference = ObjectRef::new(kind, "shop", "p");
    let wrong = json!({"acton": "ALLOW"});
    let good = version(kind, "one", &json!({"action": "ALLOW", "rules": [{}]}));
    let kept = Recalled::from([(reference.clone(), good.object.unwrap())]);
    let state = |live: &mut LiveSet| {
        let told = live.publish().unwrap();
        let held = told.objects.authorization_policies.get("shop", "p");
        let held = held.map(|held| (held.spec.action, held.status.clone()));
        (held, told.invalid.get(&reference).map(|one| one.instead))
    };
    let status = Some(json!({"of": "now"}));
    let last = (
        Some((Action::Allow, status.clone())),
        Some(Instead::LastGood),
    );
    let refusal = (Some((Action::Deny, status)), Some(Instead::Refusal));

    // Known before the object is, and after.
    let mut early = LiveSet::new();
    early.recall(kept.clone());
    early.put(version(kind, "one", &wrong));
    assert_eq!(state(&mut early), last);
    let mut late = LiveSet::new();
    late.put(version(kind, "one", &wrong));
    assert_eq!(state(&mut late), refusal);
    late.recall(kept.clone());
    assert_eq!(state(&mut late), last);
    late.recall(Recalled::new());
    late.put(version(kind, "one", &json!({"acto": "DENY"})));
    assert_eq!(state(&mut late), last, "what is in force stays");

    // Another object of the name inherits nothing, neither of the record nor of what was seen.
    let mut other = LiveSet::new();
    other.recall(kept);
    other.put(version(kind, "two", &wrong));
    assert_eq!(state(&mut other), refusal);
    late.put(version(kind, "two", &wrong));
    assert_eq!(state(&mut late), refusal);
    let audit = version(kind, "one", &json!({"action": "AUDIT"}));
    early.put(audit);
    assert_eq!(state(&mut early).1, None, "valid again");
}

#[test]
fn a_route_that_was_kept_has_its_hosts() {
    let kind = Kind::VirtualService;
    let spec = json!({
        "hosts": ["x.example"],
        "http": [{"route": [{"destination": {"host": "x.example"}}]}],
    });
    let good = version(kind, "one", &spec).object.unwrap();
    let mut live = LiveSet::new();
    live.recall(Recalled::from([(good.reference(), good)]));
    live.put(version(kind, "one", &json!({"hosts": 7})));
    let told = live.publish().unwrap();
    assert_eq!(names(&told), ["p"]);
    let reference = ObjectRef::new(kind, "shop", "p");
    assert_eq!(told.invalid[&reference].instead, Instead::LastGood);
    live.remove(&reference);
    assert!(live.publish().unwrap().objects.is_empty());
}

#[test]
fn the_older_route_has_a_host_and_loses_it_only_by_going() {
    let mut live = LiveSet::new();
    live.put(route("new", "x.example", "2026-01-02T00:00:00Z"));
    live.put(route("old", "x.example", "2026-01-01T00:00:00Z"));
    let both = live.publish().unwrap();
    assert_eq!(names(&both), ["old"]);
    let refused = both.findings.iter().filter(|one| one.is_error());
    assert_eq!(refused.count(), 1);

    live.remove(&ObjectRef::new(Kind::VirtualService, "shop", "old"));
    let one = live.publish().unwrap();
    assert_eq!(names(&one), ["new"]);
    assert!(one.findings.iter().all(|one| !one.is_error()));

    live.put(route("old", "x.example", "2026-01-01T00:00:00Z"));
    assert_eq!(
        names(&live.publish().unwrap()),
        ["new"],
        "who has it keeps it"
    );
}

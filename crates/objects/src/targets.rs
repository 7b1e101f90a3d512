//! What an AuthorizationPolicy that is not valid is about, read of it reference by reference: one that
//! makes no sense takes nothing from those beside it.

use serde_json::Value;

use crate::istio::TargetReference;
use crate::kinds::{GATEWAY_GROUP, ISTIO_NETWORKING};
use crate::validate::is_usable_target;

/// Kinds that a policy can be about, and their groups.
const KINDS: [(&str, &str); 4] = [
    ("", "Service"),
    (ISTIO_NETWORKING, "ServiceEntry"),
    (GATEWAY_GROUP, "Gateway"),
    (GATEWAY_GROUP, "GatewayClass"),
];

/// What `targetRefs` and `targetRef` of a policy in `namespace` name, as far as they can be read.
///
/// A reference without a name that can be read counts for nothing beside one that a policy can be
/// about; where there is no such one, nothing is known of the target, and the list is empty, as it is
/// where nothing is referred to. Where only the kind or the group cannot be read it is whatever has
/// that name. `None` if every reference can be read, and no policy can be about any of them.
pub(crate) fn read_targets(spec: &Value, namespace: &str) -> Option<Vec<TargetReference>> {
    let mut unread = false;
    let mut any = false;
    let mut targets = Vec::new();
    for value in [spec.get("targetRefs"), spec.get("targetRef")] {
        for reference in entries(value) {
            any = true;
            let found = read(reference);
            unread |= found.is_empty();
            targets.extend(found);
        }
    }
    targets.retain(|target| is_usable_target(target, namespace));
    (!targets.is_empty() || unread || !any).then_some(targets)
}

/// The entries of a list, as far as there are any.
pub(crate) fn entries(value: Option<&Value>) -> &[Value] {
    match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list.as_slice(),
        // A list of one, without its dash.
        Some(one) => std::slice::from_ref(one),
    }
}

/// What one reference may name; empty if its name cannot be read.
fn read(reference: &Value) -> Vec<TargetReference> {
    let text = |field: &str| reference.get(field).and_then(text);
    let Some(name) = text("name").filter(|name| !name.is_empty()) else {
        return Vec::new();
    };
    let word = |field: &str| reference.get(field)?.as_str().map(str::to_owned);
    let (group, kind) = (word("group"), word("kind").filter(|kind| !kind.is_empty()));
    let namespace = text("namespace").unwrap_or_default();
    let target = |group: &str, kind: &str| TargetReference {
        group: group.to_owned(),
        kind: kind.to_owned(),
        name: name.clone(),
        namespace: namespace.clone(),
    };
    if let (Some(group), Some(kind)) = (&group, &kind) {
        return vec![target(group, kind)];
    }
    let may_be = |(of, word): &&(&str, &str)| {
        let group = group.as_deref().map(|group| match group {
            "core" => "",
            group => group,
        });
        group.is_none_or(|group| group == *of) && kind.as_deref().is_none_or(|kind| kind == *word)
    };
    let possible: Vec<_> = KINDS
        .iter()
        .filter(may_be)
        .map(|(group, kind)| target(group, kind))
        .collect();
    if possible.is_empty() {
        // It was read, and is nothing that a policy can be about.
        let (group, kind) = (group.unwrap_or_default(), kind.unwrap_or_default());
        return vec![target(&group, &kind)];
    }
    possible
}

/// A text, or what was meant as one: YAML takes `007` and `on` for something else.
pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn targets(references: &Value) -> Option<Vec<String>> {
        let found = read_targets(&json!({ "targetRefs": references }), "shop")?;
        let named = found.iter().map(|one| format!("{}/{}", one.kind, one.name));
        Some(named.collect())
    }

    fn named(all: &[&str]) -> Option<Vec<String>> {
        Some(all.iter().map(|&one| one.to_owned()).collect())
    }

    #[test]
    fn one_that_cannot_be_read_takes_nothing_from_the_others() {
        let cart = json!({ "kind": "Service", "group": "", "name": "cart" });
        for odd in [
            json!(7),
            json!(null),
            json!({}),
            json!({ "kind": "Service", "name": ["a"] }),
            json!({ "kind": "Pod", "group": "", "name": "b" }),
        ] {
            assert_eq!(targets(&json!([odd, cart])), named(&["Service/cart"]));
        }
        let foreign = json!({ "kind": "Service", "name": "cart", "namespace": "other" });
        assert_eq!(targets(&json!([foreign, cart])), named(&["Service/cart"]));
        assert_eq!(targets(&cart), named(&["Service/cart"]), "no list");
        let port = json!({ "kind": "Service", "name": 8080, "group": "" });
        assert_eq!(targets(&json!([port])), named(&["Service/8080"]));
    }

    #[test]
    fn where_no_name_can_be_read_nothing_is_known() {
        for unknown in [
            json!([7]),
            json!("cart"),
            json!([{ "kind": "Service", "name": {} }]),
            json!([{ "kind": "Service", "nmae": "cart" }]),
            json!([{ "kind": "Pod", "name": "b" }, 7]),
        ] {
            assert_eq!(targets(&unknown), named(&[]), "{unknown}");
        }
        assert_eq!(targets(&json!([])), named(&[]), "nothing is referred to");
        let pods = json!([{ "kind": "Pod", "group": "", "name": "b" }]);
        assert_eq!(targets(&pods), None);
        assert_eq!(targets(&json!([{ "kind": "Pod", "name": "b" }])), None);
    }

    #[test]
    fn without_kind_or_group_it_is_whatever_has_the_name() {
        let all = ["Service/x", "ServiceEntry/x", "Gateway/x", "GatewayClass/x"];
        assert_eq!(targets(&json!([{ "name": "x" }])), named(&all));
        let kind = json!([{ "name": "x", "kind": 7, "group": GATEWAY_GROUP }]);
        assert_eq!(targets(&kind), named(&all[2..]));
        let group = json!([{ "name": "x", "kind": "Gateway", "group": [] }]);
        assert_eq!(targets(&group), named(&["Gateway/x"]));
        let other = json!([{ "name": "x", "kind": 7, "group": "example.org" }]);
        assert_eq!(targets(&other), None);
        // What is there and wrong is not read as if it were not there.
        let wrong = json!([{ "name": "x", "kind": "Gateway", "group": "" }]);
        assert_eq!(targets(&wrong), None);
        let single = json!({ "targetRef": { "name": "x", "kind": "Service" } });
        let found = read_targets(&single, "shop").unwrap();
        assert_eq!(found.len(), 1);
    }
}

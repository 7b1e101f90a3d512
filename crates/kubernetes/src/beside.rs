//! What others say in a list that is one value to the server: a write of ours would take it with it.

use isobar_types::labels;
use kube::api::DynamicObject;
use serde_json::{Value, json};

/// Conditions on objects of Istio's kinds that a control plane writes, besides those that begin with
/// our own name.
const TOLD: [&str; 3] = ["Accepted", "WaypointAccepted", "ZtunnelAccepted"];
/// How conditions of our own are called.
const OWN: &str = "isobar.dev/";

/// The parents of a route are one list to the server: what other controllers said of theirs is
/// written along with ours.
pub(crate) fn parents(now: &Value, ours: &Value) -> Value {
    let of = |status: &Value| status["parents"].as_array().cloned().unwrap_or_default();
    let mut parents = of(now);
    parents.retain(|one| one["controllerName"] != labels::ROUTE_CONTROLLER);
    parents.extend(of(ours));
    parents.into()
}

/// The conditions to write where the definition of the kind makes them one value, as Istio's own
/// definitions do: those of others and `ours`. `None` where each condition is somebody's, as with our
/// definitions, and where nobody else has said anything.
pub(crate) fn conditions(now: &DynamicObject, ours: &Value) -> Option<Value> {
    if !are_one_value(now) {
        return None;
    }
    let of = |status: &Value| {
        let all = status["conditions"].as_array();
        all.cloned().unwrap_or_default()
    };
    let ours = of(ours);
    let mut all = of(&now.data["status"]);
    all.retain(|one| {
        let kind = one["type"].as_str().unwrap_or_default();
        let is_said = ours.iter().any(|own| own["type"] == one["type"]);
        !is_said && !kind.starts_with(OWN) && !TOLD.contains(&kind)
    });
    (!all.is_empty()).then(|| {
        all.extend(ours);
        all.into()
    })
}

/// True if somebody has written the conditions, and the server does not tell one from the other: it
/// remembers the elements of a list that it can tell apart by their keys.
fn are_one_value(now: &DynamicObject) -> bool {
    let managers = now.metadata.managed_fields.as_deref().unwrap_or_default();
    managers.iter().any(|one| {
        let fields = one.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields["f:status"]["f:conditions"] == json!({}))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_of_their_parents_stays() {
        let parent = |name: &str, controller: &str| json!({"parentRef": {"name": name}, "controllerName": controller});
        let (foreign, own) = ("example.org/gateway", labels::ROUTE_CONTROLLER);
        let now = json!({"parents": [parent("a", foreign), parent("b", own)]});
        let ours = json!({"parents": [parent("c", own)]});
        let both = json!([parent("a", foreign), parent("c", own)]);
        assert_eq!(parents(&now, &ours), both);
        let left = json!([parent("a", foreign)]);
        assert_eq!(parents(&now, &json!({})), left);
    }

    #[test]
    fn conditions_of_others_are_written_along_where_the_list_is_one_value() {
        let said = |kinds: &[&str]| -> Value {
            let all = kinds.iter().map(|kind| json!({"type": kind}));
            json!({"conditions": all.collect::<Vec<_>>()})
        };
        let object = |remembered: &Value, kinds: &[&str]| -> DynamicObject {
            let fields = json!({"f:status": {"f:conditions": remembered}});
            serde_json::from_value(json!({
                "metadata": {"name": "a", "managedFields": [
                    {"manager": "them", "operation": "Apply", "fieldsV1": {"f:spec": {}}},
                    {"manager": "them", "operation": "Apply", "fieldsV1": fields},
                ]},
                "status": said(kinds),
            }))
            .unwrap()
        };
        let there = ["Reconciled", "isobar.dev/Accepted", "WaypointAccepted"];
        let one_value = object(&json!({}), &there);
        let ours = said(&["ZtunnelAccepted"]);
        let both = said(&["Reconciled", "ZtunnelAccepted"]);
        assert_eq!(
            conditions(&one_value, &ours),
            Some(both["conditions"].clone())
        );
        let left = said(&["Reconciled"])["conditions"].clone();
        assert_eq!(conditions(&one_value, &json!({})), Some(left));
        let told_apart = object(&json!({"k:{\"type\":\"Reconciled\"}": {}}), &there);
        assert_eq!(conditions(&told_apart, &ours), None);
        let only_ours = object(&json!({}), &there[1..]);
        assert_eq!(conditions(&only_ours, &ours), None);
    }
}

use std::collections::BTreeMap;

use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::model::Verdict;

/// When each condition last changed its status, so that it is not touched while it stays.
#[derive(Debug, Default)]
pub(super) struct Transitions {
    since: BTreeMap<(ObjectRef, String), (bool, String)>,
}

impl Transitions {
    /// One condition as Kubernetes writes it.
    pub(super) fn condition(
        &mut self,
        set: &ObjectSet,
        verdict: &Verdict,
        now: Timestamp,
    ) -> Value {
        let key = (verdict.object.clone(), verdict.condition.to_owned());
        let fresh = || {
            (
                verdict.holds,
                now.round(jiff::Unit::Second).unwrap_or(now).to_string(),
            )
        };
        let entry = self
            .since
            .entry(key)
            .or_insert_with(|| written(set, verdict).unwrap_or_else(fresh));
        if entry.0 != verdict.holds {
            *entry = fresh();
        }
        json!({
            "type": verdict.condition,
            "status": if verdict.holds { "True" } else { "False" },
            "reason": verdict.reason,
            "message": verdict.message,
            "lastTransitionTime": entry.1,
            "observedGeneration": generation(set, &verdict.object),
        })
    }
}

/// The status and time of a condition that an earlier life of this process wrote.
fn written(set: &ObjectSet, verdict: &Verdict) -> Option<(bool, String)> {
    let status = status_of(set, &verdict.object)?;
    let condition = status
        .get("conditions")?
        .as_array()?
        .iter()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(verdict.condition))?;
    let holds = condition.get("status")?.as_str()? == "True";
    let time = condition.get("lastTransitionTime")?.as_str()?;
    Some((holds, time.to_owned()))
}

/// The status of an object whose kind carries conditions of ours.
fn status_of(set: &ObjectSet, object: &ObjectRef) -> Option<Value> {
    let (namespace, name) = (&*object.namespace, &*object.name);
    match object.known()? {
        Kind::Service => {
            let status = set.services.get(namespace, name)?.status.as_ref()?;
            serde_json::to_value(status).ok()
        }
        Kind::Gateway => set.gateways.get(namespace, name)?.status.clone(),
        Kind::AuthorizationPolicy => set
            .authorization_policies
            .get(namespace, name)?
            .status
            .clone(),
        Kind::VirtualService => set.virtual_services.get(namespace, name)?.status.clone(),
        Kind::DestinationRule => set.destination_rules.get(namespace, name)?.status.clone(),
        _ => None,
    }
}

fn generation(set: &ObjectSet, object: &ObjectRef) -> i64 {
    fn of<T: ObjectHead>(set: &ObjectSet, object: &ObjectRef) -> Option<i64> {
        T::map(set)
            .get(&object.namespace, &object.name)?
            .head()
            .generation
    }
    let generation = match object.known() {
        Some(Kind::Service) => of::<isobar_objects::Service>(set, object),
        Some(Kind::Gateway) => of::<isobar_objects::gateway_api::Gateway>(set, object),
        Some(Kind::AuthorizationPolicy) => {
            of::<isobar_objects::istio::AuthorizationPolicy>(set, object)
        }
        Some(Kind::VirtualService) => of::<isobar_objects::istio::VirtualService>(set, object),
        Some(Kind::DestinationRule) => of::<isobar_objects::istio::DestinationRule>(set, object),
        _ => None,
    };
    generation.unwrap_or_default()
}

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{Kind, ObjectRef, merge_patch};
use isobar_types::labels;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::status::Transitions;
use super::{Wanted, WaypointPods, edge, gateway};
use crate::engine::Planned;
use crate::model::{BOUND_ACCOUNT, Verdict};

/// Kinds whose status carries conditions of ours. Nothing is written on pods and accounts.
const CONDITIONED: [Kind; 7] = [
    Kind::Service,
    Kind::Gateway,
    Kind::AuthorizationPolicy,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::ServiceEntry,
    Kind::RateLimitPolicy,
];

/// Everything that should be written for one plan, and what stays as it is.
pub(super) fn desired(
    planned: &Planned,
    pods: &WaypointPods,
    transitions: &mut Transitions,
    now: Timestamp,
) -> (BTreeMap<ObjectRef, Wanted>, BTreeSet<ObjectRef>) {
    let set = &planned.published.objects;
    let plan = &planned.plan;
    let mut wanted: BTreeMap<ObjectRef, Wanted> = BTreeMap::new();
    let mut kept = BTreeSet::new();
    let mut verdicts: Vec<Verdict> = plan.verdicts.clone();
    for facts in &plan.gateways {
        let rendered = gateway::render(set, facts, pods);
        kept.extend(rendered.kept);
        for object in rendered.objects {
            let reference = object.reference();
            wanted.entry(reference).or_default().object = Some(object);
        }
        patch(&mut wanted, &rendered.gateway, &rendered.status);
        if let Some(listeners) = edge::listeners(set, facts, now) {
            patch(&mut wanted, &rendered.gateway, &listeners);
        }
        verdicts.extend(rendered.verdicts);
    }
    conditions(&mut wanted, planned, &verdicts, transitions, now);
    for route in &plan.routes {
        let parents = transitions.parents(set, &route.object, &route.parents, now);
        patch(
            &mut wanted,
            &route.object,
            &json!({ "status": { "parents": parents } }),
        );
    }
    for (account, latch) in &plan.latches {
        let object = ObjectRef::new(Kind::ServiceAccount, &account.namespace, &account.name);
        let exists = set
            .service_accounts
            .get(&account.namespace, &account.name)
            .is_some();
        if exists && latch.is_some() {
            let annotations = json!({ labels::WAYPOINT_LATCHED: latch.as_deref() });
            patch(
                &mut wanted,
                &object,
                &json!({ "metadata": { "annotations": annotations } }),
            );
        }
    }
    for service in &plan.services {
        if let Some(account) = &service.sticky {
            let object = ObjectRef::new(Kind::Service, &service.key.namespace, &service.key.name);
            let annotations = json!({ BOUND_ACCOUNT: &**account });
            patch(
                &mut wanted,
                &object,
                &json!({ "metadata": { "annotations": annotations } }),
            );
        }
    }
    for (entry, addresses) in &plan.allocated {
        let object = ObjectRef::new(Kind::ServiceEntry, &entry.namespace, &entry.name);
        let list = addresses
            .iter()
            .map(|given| json!({ "value": given.value, "host": given.host }));
        let list: Vec<Value> = list.collect();
        patch(
            &mut wanted,
            &object,
            &json!({ "status": { "addresses": list } }),
        );
    }
    fill(&mut wanted);
    (wanted, kept)
}

/// One patch per object carries the same keys whenever it is written, so that a later patch takes
/// back what an earlier one set.
fn fill(wanted: &mut BTreeMap<ObjectRef, Wanted>) {
    for (object, want) in wanted {
        let Some(patch) = &mut want.patch else {
            continue;
        };
        let annotated = |key: &str| json!({ "metadata": { "annotations": { key: Value::Null } } });
        let mut whole = match object.known() {
            Some(Kind::Service) => {
                let mut whole = annotated(BOUND_ACCOUNT);
                whole["status"] = json!({ "conditions": Value::Null });
                whole
            }
            Some(Kind::ServiceAccount) => annotated(labels::WAYPOINT_LATCHED),
            Some(Kind::ServiceEntry) => {
                json!({ "status": { "addresses": Value::Null, "conditions": Value::Null } })
            }
            _ => continue,
        };
        overlay(&mut whole, patch);
        *patch = whole;
    }
}

/// Like a merge, but nulls of `below` stay where `above` has nothing.
fn overlay(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                overlay(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}

fn conditions(
    wanted: &mut BTreeMap<ObjectRef, Wanted>,
    planned: &Planned,
    verdicts: &[Verdict],
    transitions: &mut Transitions,
    now: Timestamp,
) {
    let set = &planned.published.objects;
    let mut by_object: BTreeMap<&ObjectRef, BTreeMap<&str, Value>> = BTreeMap::new();
    for verdict in verdicts {
        let known = verdict.object.known();
        if known.is_some_and(|kind| CONDITIONED.contains(&kind)) {
            let condition = transitions.condition(set, verdict, now);
            by_object
                .entry(&verdict.object)
                .or_default()
                .insert(verdict.condition, condition);
        }
    }
    for (object, conditions) in by_object {
        let list: Vec<Value> = conditions.into_values().collect();
        patch(wanted, object, &json!({ "status": { "conditions": list } }));
    }
}

fn patch(wanted: &mut BTreeMap<ObjectRef, Wanted>, object: &ObjectRef, more: &Value) {
    let patch = wanted
        .entry(object.clone())
        .or_default()
        .patch
        .get_or_insert_with(|| json!({}));
    merge_patch(patch, more);
}

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{Kind, ObjectRef, ObjectSet, Published, merge_patch};
use isobar_types::labels;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::status::Transitions;
use super::{Wanted, WaypointPods, edge, gateway};
use crate::engine::Planned;
use crate::model::{BOUND_ACCOUNT, Plan, Verdict, invalid};
use crate::revision::Revision;

/// Kinds whose status carries conditions of ours. Nothing is written on pods and accounts.
const CONDITIONED: [Kind; 11] = [
    Kind::Service,
    Kind::Gateway,
    Kind::GatewayClass,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::RateLimitPolicy,
    Kind::IstioGateway,
];

/// What one plan leads to.
#[derive(Debug, Default)]
pub(super) struct Desired {
    /// What should be written.
    pub(super) wanted: BTreeMap<ObjectRef, Wanted>,
    /// What stays as it is.
    pub(super) kept: BTreeSet<ObjectRef>,
    /// What another control plane writes, whoever wrote it before.
    pub(super) of_others: BTreeSet<ObjectRef>,
}

/// Everything that should be written for one plan.
pub(super) fn desired(
    planned: &Planned,
    pods: &WaypointPods,
    transitions: &mut Transitions,
    now: Timestamp,
) -> Desired {
    let set = &planned.published.objects;
    let plan = &planned.plan;
    let mut wanted: BTreeMap<ObjectRef, Wanted> = BTreeMap::new();
    let mut kept = BTreeSet::new();
    let mut of_others = BTreeSet::new();
    let revision = &pods.revision;
    let mut verdicts: Vec<Verdict> = plan.verdicts.clone();
    verdicts.retain(|verdict| tells(revision, &planned.published, &verdict.object));
    for facts in &plan.gateways {
        if !revision.runs(set, &facts.key.namespace, &facts.key.name) {
            of_others.extend(gateway::made_for(set, &facts.key));
            continue;
        }
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
    invalid::contradict(&planned.published.invalid, &mut verdicts);
    conditions(&mut wanted, planned, &verdicts, transitions, now);
    let told = |object: &ObjectRef| revision.tells(set, object);
    for route in plan.routes.iter().filter(|route| told(&route.object)) {
        let published = &planned.published;
        let parents = transitions.parents(published, &route.object, &route.parents, now);
        patch(
            &mut wanted,
            &route.object,
            &json!({ "status": { "parents": parents } }),
        );
    }
    if revision.is_default() {
        annotations(&mut wanted, set, plan);
    }
    for (entry, addresses) in &plan.allocated {
        let object = ObjectRef::new(Kind::ServiceEntry, &entry.namespace, &entry.name);
        if !told(&object) {
            continue;
        }
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
    Desired {
        wanted,
        kept,
        of_others,
    }
}

/// True if what there is to say about the object is for this control plane to write. Nothing is known
/// of some but that they are not valid.
fn tells(revision: &Revision, published: &Published, object: &ObjectRef) -> bool {
    let set = &published.objects;
    match published.invalid.get(object) {
        Some(invalid) if !set.contains(object) => revision.tells_one_with(&invalid.labels),
        _ => revision.tells(set, object),
    }
}

/// What is remembered on accounts and Services themselves.
fn annotations(wanted: &mut BTreeMap<ObjectRef, Wanted>, set: &ObjectSet, plan: &Plan) {
    for (account, latch) in &plan.latches {
        let object = ObjectRef::new(Kind::ServiceAccount, &account.namespace, &account.name);
        let exists = set
            .service_accounts
            .get(&account.namespace, &account.name)
            .is_some();
        if exists && latch.is_some() {
            let annotations = json!({ labels::WAYPOINT_LATCHED: latch.as_deref() });
            patch(
                wanted,
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
                wanted,
                &object,
                &json!({ "metadata": { "annotations": annotations } }),
            );
        }
    }
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
    let mut by_object: BTreeMap<&ObjectRef, BTreeMap<&str, Value>> = BTreeMap::new();
    for verdict in verdicts {
        let known = verdict.object.known();
        if known.is_some_and(|kind| CONDITIONED.contains(&kind)) {
            let condition = transitions.condition(&planned.published, verdict, now);
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

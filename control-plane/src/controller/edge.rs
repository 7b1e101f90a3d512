//! What is other where a Gateway stands at the edge of the mesh: ports, and the status of listeners.

use isobar_objects::gateway_api::Gateway;
use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::listeners;
use crate::model::{GatewayFacts, ListenerFacts, Verdict};

/// Opens the listeners' ports in the Service, which is for callers from outside.
pub(super) fn service(mut service: Value, facts: &GatewayFacts) -> Value {
    let Some(listeners) = &facts.listeners else {
        return service;
    };
    // What the cluster's own way to the outside is not there yet is for the user to say: an annotation
    // of `spec.infrastructure` decides.
    let annotations = &service["metadata"]["annotations"];
    let kind = annotations["networking.istio.io/service-type"].as_str();
    service["spec"]["type"] = kind.unwrap_or("LoadBalancer").into();
    if let Some(ports) = service["spec"]["ports"].as_array_mut() {
        ports.extend(distinct(listeners).into_iter().map(|listener| {
            json!({
                "name": format!("port-{}", listener.port), "port": listener.port,
                "targetPort": listener.port, "protocol": "TCP",
            })
        }));
    }
    service
}

/// Opens the listeners' ports in the pods, which need no rights for low numbers.
pub(super) fn deployment(mut deployment: Value, facts: &GatewayFacts) -> Value {
    let Some(listeners) = &facts.listeners else {
        return deployment;
    };
    let pod = &mut deployment["spec"]["template"]["spec"];
    pod["securityContext"]["sysctls"] =
        json!([{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }]);
    if let Some(ports) = pod["containers"][0]["ports"].as_array_mut() {
        ports.extend(distinct(listeners).into_iter().map(
            |listener| json!({ "name": format!("port-{}", listener.port), "containerPort": listener.port }),
        ));
    }
    deployment
}

/// One listener for each port.
fn distinct(listeners: &[ListenerFacts]) -> Vec<&ListenerFacts> {
    let mut all: Vec<&ListenerFacts> = Vec::new();
    for listener in listeners.iter().filter(|one| one.served) {
        if all.iter().all(|have| have.port != listener.port) {
            all.push(listener);
        }
    }
    all
}

/// Whether anything is served.
pub(super) fn accepted(reference: &ObjectRef, listeners: &[ListenerFacts]) -> Verdict {
    let bad = listeners.iter().filter_map(|one| {
        let (_, why) = one.problem.as_ref()?;
        Some(format!("listener {}: {why}", one.name))
    });
    let bad: Vec<String> = bad.collect();
    if bad.is_empty() {
        let text = "a gateway at the edge of the mesh";
        return Verdict::holds(reference.clone(), "Accepted", "Accepted", text);
    }
    Verdict::fails(
        reference.clone(),
        "Accepted",
        "ListenersNotValid",
        bad.join("; "),
    )
}

/// The status of the listeners, of waypoints too. What has not changed keeps its time.
pub(super) fn listeners(set: &ObjectSet, facts: &GatewayFacts, now: Timestamp) -> Option<Value> {
    let gateway = set.gateways.get(&facts.key.namespace, &facts.key.name)?;
    let (told, ready) = match &facts.listeners {
        Some(told) => (told.clone(), facts.ready),
        None => (listeners::of_waypoint(gateway), facts.programmed),
    };
    let list = told.iter().map(|listener| {
        let kinds = listener.kinds.iter();
        let kinds = kinds.map(|kind| json!({ "group": Kind::HttpRoute.group(), "kind": kind }));
        json!({
            "name": listener.name,
            "supportedKinds": kinds.collect::<Vec<_>>(),
            "attachedRoutes": listener.attached,
            "conditions": conditions(gateway, listener, ready, now),
        })
    });
    Some(json!({ "status": { "listeners": list.collect::<Vec<_>>() } }))
}

fn conditions(
    gateway: &Gateway,
    listener: &ListenerFacts,
    ready: bool,
    now: Timestamp,
) -> Vec<Value> {
    let problem = listener.problem.as_ref();
    let refers = |word: &str| matches!(word, "InvalidCertificateRef" | "RefNotPermitted");
    let other = problem.filter(|(word, _)| !refers(word));
    let reference = problem.filter(|(word, _)| refers(word));
    let waits = ("Pending", "no pod of this gateway is ready".to_owned());
    let late = (!ready).then_some(&waits);
    let all = [
        ("Accepted", other, "Accepted"),
        ("ResolvedRefs", reference, "ResolvedRefs"),
        ("Programmed", problem.or(late), "Programmed"),
    ];
    let before = gateway.gateway_status().unwrap_or_default().listeners;
    let before = before.into_iter().find(|one| one.name == listener.name);
    let before = before.map(|one| one.conditions).unwrap_or_default();
    let told = all.into_iter().map(|(name, problem, well)| {
        let status = if problem.is_none() { "True" } else { "False" };
        let mut same = before.iter();
        let same = same.find(|one| one.type_ == name && one.status == status);
        let rounded = now.round(jiff::Unit::Second).unwrap_or(now).to_string();
        let since = same.and_then(|one| serde_json::to_value(&one.last_transition_time).ok());
        json!({
            "type": name,
            "status": status,
            "reason": problem.map_or(well, |(word, _)| word),
            "message": problem.map_or("", |(_, text)| text.as_str()),
            "lastTransitionTime": since.unwrap_or_else(|| rounded.into()),
            "observedGeneration": gateway.head().generation.unwrap_or_default(),
        })
    });
    told.collect()
}

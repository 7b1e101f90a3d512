use std::borrow::Cow;
use std::collections::BTreeMap;

use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet, Published};
use isobar_types::labels;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::model::{BOUND, ParentStatus, Verdict};

/// How conditions of our own are called, and those that have Istio's names.
const OWN: &str = "isobar.dev/";
const TOLD: [&str; 4] = [BOUND, "Accepted", "WaypointAccepted", "ZtunnelAccepted"];
/// Bytes of a message. An API server takes 32 KiB of them in objects of the Gateway API, and refuses the
/// whole status otherwise.
const LONGEST: usize = 4096;

/// When each condition last changed its status, so that it is not touched while it stays.
#[derive(Debug, Default)]
pub(super) struct Transitions {
    since: BTreeMap<(ObjectRef, String), (bool, String)>,
}

impl Transitions {
    /// One condition as Kubernetes writes it.
    pub(super) fn condition(
        &mut self,
        published: &Published,
        verdict: &Verdict,
        now: Timestamp,
    ) -> Value {
        let set = &published.objects;
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
            "message": cut(&verdict.message),
            "lastTransitionTime": entry.1,
            "observedGeneration": generation(published, &verdict.object),
        })
    }
}

impl Transitions {
    /// What is told about a route, by parent, as Kubernetes writes it.
    pub(super) fn parents(
        &mut self,
        published: &Published,
        object: &ObjectRef,
        parents: &[ParentStatus],
        now: Timestamp,
    ) -> Value {
        let told = route_status(&published.objects, object);
        let generation = generation(published, object);
        let list = parents.iter().enumerate().map(|(at, parent)| {
            let reference = serde_json::to_value(&parent.parent).unwrap_or_default();
            let own = told.as_ref().and_then(|told| {
                let mut all = told.get("parents")?.as_array()?.iter();
                all.find(|one| one.get("parentRef") == Some(&reference))
            });
            let conditions = parent.conditions.iter().map(|one| {
                let key = (object.clone(), format!("{at}/{}", one.condition));
                let fresh = || {
                    let rounded = now.round(jiff::Unit::Second).unwrap_or(now);
                    (one.holds, rounded.to_string())
                };
                let before = || own.and_then(|own| written_in(own, one.condition));
                let entry = self.since.entry(key);
                let entry = entry.or_insert_with(|| before().unwrap_or_else(fresh));
                if entry.0 != one.holds {
                    *entry = fresh();
                }
                json!({
                    "type": one.condition,
                    "status": if one.holds { "True" } else { "False" },
                    "reason": one.reason,
                    "message": cut(&one.message),
                    "lastTransitionTime": entry.1,
                    "observedGeneration": generation,
                })
            });
            let conditions: Vec<Value> = conditions.collect();
            json!({
                "parentRef": reference,
                "controllerName": labels::ROUTE_CONTROLLER,
                "conditions": conditions,
            })
        });
        list.collect()
    }
}

/// What a condition has of a message; `isobar analyze` has all of it.
fn cut(message: &str) -> Cow<'_, str> {
    match message.len() <= LONGEST {
        true => message.into(),
        false => {
            let end = message.floor_char_boundary(LONGEST);
            format!("{} (and more: isobar analyze)", &message[..end]).into()
        }
    }
}

fn route_status(set: &ObjectSet, object: &ObjectRef) -> Option<Value> {
    let (namespace, name) = (&*object.namespace, &*object.name);
    match object.known()? {
        Kind::HttpRoute => set.http_routes.get(namespace, name)?.status.clone(),
        Kind::GrpcRoute => set.grpc_routes.get(namespace, name)?.status.clone(),
        Kind::TcpRoute => set.tcp_routes.get(namespace, name)?.status.clone(),
        Kind::TlsRoute => set.tls_routes.get(namespace, name)?.status.clone(),
        _ => None,
    }
}

/// The status and time of a condition that an earlier life of this process wrote.
fn written(set: &ObjectSet, verdict: &Verdict) -> Option<(bool, String)> {
    written_in(&status_of(set, &verdict.object)?, verdict.condition)
}

/// True for an object with a condition as this process writes them: so another life of it may have.
pub(super) fn says_ours(set: &ObjectSet, object: &ObjectRef) -> bool {
    let Some(status) = status_of(set, object) else {
        return false;
    };
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|one| {
        let kind = one["type"].as_str().unwrap_or_default();
        kind.starts_with(OWN) || TOLD.contains(&kind)
    })
}

fn written_in(status: &Value, name: &str) -> Option<(bool, String)> {
    let condition = status
        .get("conditions")?
        .as_array()?
        .iter()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(name))?;
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
        Kind::ServiceEntry => set.service_entries.get(namespace, name)?.status.clone(),
        Kind::DestinationRule => set.destination_rules.get(namespace, name)?.status.clone(),
        Kind::RateLimitPolicy => set.rate_limit_policies.get(namespace, name)?.status.clone(),
        Kind::IstioGateway => set.istio_gateways.get(namespace, name)?.status.clone(),
        Kind::GatewayClass => set.gateway_classes.get("", name)?.status.clone(),
        Kind::WorkloadEntry => set.workload_entries.get(namespace, name)?.status.clone(),
        Kind::PeerAuthentication => {
            let held = set.peer_authentications.get(namespace, name)?;
            held.status.clone()
        }
        _ => None,
    }
}

/// Of the version that was judged, which is not always the one in force.
fn generation(published: &Published, object: &ObjectRef) -> i64 {
    if let Some(invalid) = published.invalid.get(object) {
        return invalid.generation.unwrap_or_default();
    }
    let set = &published.objects;
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
        Some(Kind::RateLimitPolicy) => {
            of::<isobar_objects::rate_limit::RateLimitPolicy>(set, object)
        }
        Some(Kind::DestinationRule) => of::<isobar_objects::istio::DestinationRule>(set, object),
        Some(Kind::PeerAuthentication) => {
            of::<isobar_objects::istio::PeerAuthentication>(set, object)
        }
        Some(Kind::GatewayClass) => of::<isobar_objects::gateway_api::GatewayClass>(set, object),
        Some(Kind::WorkloadEntry) => of::<isobar_objects::istio::WorkloadEntry>(set, object),
        Some(Kind::IstioGateway) => of::<isobar_objects::istio::IstioGateway>(set, object),
        Some(Kind::HttpRoute) => of::<isobar_objects::gateway_api::HttpRoute>(set, object),
        Some(Kind::GrpcRoute) => of::<isobar_objects::gateway_api::GrpcRoute>(set, object),
        Some(Kind::TcpRoute) => of::<isobar_objects::gateway_api::TcpRoute>(set, object),
        Some(Kind::TlsRoute) => of::<isobar_objects::gateway_api::TlsRoute>(set, object),
        Some(Kind::ServiceEntry) => of::<isobar_objects::istio::ServiceEntry>(set, object),
        _ => None,
    };
    generation.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_has_the_beginning_of_a_long_message() {
        assert_eq!(cut("short"), "short");
        let long = "ä".repeat(LONGEST);
        let told = cut(&long);
        assert!(
            told.len() < LONGEST + 64 && told.ends_with("isobar analyze)"),
            "{told}"
        );
    }
}

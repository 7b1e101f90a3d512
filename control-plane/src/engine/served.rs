//! What is served, from plans.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use isobar_proto::isobar::v1::WorkloadLabels;
use isobar_proto::istio::workload::{Address, Workload, address};
use isobar_types::Str;
use prost::Message;

use crate::metrics::Metrics;
use crate::model::{KeptKeys, Outcome, Patch, Plan, WaypointPlan, WorkloadPlan};
use crate::xds::catalog::{Catalog, Instance, Resource, WaypointResources};
use crate::xds::kind::Kind;
use crate::xds::resources::{Resources, share};

/// Order inside an Address response: what others refer to first.
const WAYPOINT_SERVICE: u8 = 0;
const WAYPOINT_POD: u8 = 1;
const SERVICE: u8 = 2;
const WORKLOAD: u8 = 3;

/// Serialises messages, and counts it.
pub(super) struct Press<'m>(pub(super) &'m Metrics);

impl Press<'_> {
    fn resource<M: Message>(&self, kind: Kind, name: &str, message: &M) -> Resource {
        self.0.serialised(kind.label());
        Resource::new(kind, name, message)
    }
}

/// What a patch changes; `None` where that is nothing a client could see.
pub(super) fn patched(
    patch: &Patch,
    previous: &Catalog,
    keys: &KeptKeys,
    press: &Press<'_>,
) -> Option<Catalog> {
    let (mut puts, mut gone) = (Vec::new(), Vec::new());
    for pod in &patch.pods {
        match &pod.workload {
            Outcome::Same => {}
            Outcome::Put(one) => {
                let is_waypoint = one.instance_of.is_some();
                puts.push(workload(one.wire.clone(), is_waypoint, press));
            }
            Outcome::Gone => gone.push(pod.uid.as_str().into()),
        }
    }
    let addresses = previous.addresses.patched(puts, &gone);
    let waypoints = relabelled(patch, previous, keys, press);
    if Arc::ptr_eq(&addresses, &previous.addresses) && waypoints.is_none() {
        return None;
    }
    Some(Catalog {
        revision: previous.revision + 1,
        addresses,
        authorizations: previous.authorizations.clone(),
        outbound: previous.outbound.clone(),
        waypoints: waypoints.unwrap_or_else(|| previous.waypoints.clone()),
        instances: previous.instances.clone(),
        changing: 0,
        names: OnceLock::new(),
    })
}

/// Values of the labels that each waypoint's rules name, with those of changed pods; `None` if they
/// are as before.
fn relabelled(
    patch: &Patch,
    previous: &Catalog,
    keys: &KeptKeys,
    press: &Press<'_>,
) -> Option<BTreeMap<Str, WaypointResources>> {
    let mut all = None;
    for (waypoint, keys) in keys.iter().filter(|(_, keys)| !keys.is_empty()) {
        let waypoint: Str = waypoint.to_string().into();
        let Some(before) = previous.waypoints.get(&waypoint) else {
            continue;
        };
        let before = &before[Kind::WorkloadLabels.index()];
        let (mut puts, mut gone) = (Vec::new(), Vec::new());
        for pod in &patch.pods {
            let labels = pod.labels.iter().flatten();
            let labels = labels.filter(|(key, _)| keys.contains(*key));
            let message = WorkloadLabels {
                uid: pod.uid.clone(),
                labels: labels.map(|(k, v)| (k.clone(), v.clone())).collect(),
            };
            if message.labels.is_empty() {
                gone.push(pod.uid.as_str().into());
            } else {
                puts.push(press.resource(Kind::WorkloadLabels, &pod.uid, &message));
            }
        }
        let after = before.patched(puts, &gone);
        if !Arc::ptr_eq(before, &after) {
            let all = all.get_or_insert_with(|| previous.waypoints.clone());
            if let Some(kinds) = all.get_mut(&waypoint) {
                kinds[Kind::WorkloadLabels.index()] = after;
            }
        }
    }
    all
}

/// Serialises a plan; what did not change is shared with `previous`. Workloads are taken out of it one
/// by one: all of them as messages, beside all of them as bytes, would be the most that is ever in memory.
pub(super) fn catalog(plan: &mut Plan, previous: &Catalog, press: &Press<'_>) -> Catalog {
    let workloads = std::mem::take(&mut plan.workloads);
    let authorizations = plan.authorizations.iter().map(|policy| {
        let name = format!("{}/{}", policy.namespace, policy.name);
        press.resource(Kind::Authorization, &name, policy)
    });
    let outbound = plan.outbound.iter().map(|policy| {
        let name = isobar_state::convert::outbound_policy_name(policy);
        press.resource(Kind::OutboundPolicy, &name, policy)
    });
    let none = WaypointResources::default();
    let waypoints = plan
        .waypoints
        .iter()
        .map(|waypoint| {
            let key: Str = waypoint.key.to_string().into();
            let before = previous.waypoints.get(&key).unwrap_or(&none);
            let kinds = waypoint_resources(waypoint, before, press);
            (key, kinds)
        })
        .collect();
    let instances = plan
        .instances
        .iter()
        .map(|instance| {
            let gateway = Instance {
                gateway: instance.gateway.to_string().into(),
                identity: instance.identity.clone(),
                uid: instance.uid.clone(),
            };
            (instance.pod.to_string().into(), gateway)
        })
        .collect();
    Catalog {
        revision: previous.revision + 1,
        addresses: share(&previous.addresses, addresses(plan, workloads, press)),
        authorizations: share(&previous.authorizations, authorizations),
        outbound: share(&previous.outbound, outbound),
        waypoints,
        instances,
        changing: 0,
        names: OnceLock::new(),
    }
}

fn addresses(
    plan: &Plan,
    workloads: Vec<WorkloadPlan>,
    press: &Press<'_>,
) -> impl Iterator<Item = Resource> {
    let services = plan.services.iter().map(|service| {
        let name = format!("{}/{}", service.wire.namespace, service.wire.hostname);
        let message = Address {
            r#type: Some(address::Type::Service(service.wire.clone())),
        };
        Resource {
            rank: if service.is_waypoint {
                WAYPOINT_SERVICE
            } else {
                SERVICE
            },
            ..press.resource(Kind::Address, &name, &message)
        }
    });
    let entries = plan.entries.iter().map(|service| {
        let name = format!("{}/{}", service.namespace, service.hostname);
        let message = Address {
            r#type: Some(address::Type::Service(service.clone())),
        };
        Resource {
            rank: SERVICE,
            ..press.resource(Kind::Address, &name, &message)
        }
    });
    let workloads = workloads
        .into_iter()
        .map(|one| workload(one.wire, one.instance_of.is_some(), press));
    services.chain(entries).chain(workloads)
}

fn workload(workload: Workload, is_waypoint: bool, press: &Press<'_>) -> Resource {
    let needs = workload.authorization_policies.iter();
    let needs = needs.map(|key| key.as_str().into()).collect();
    let name = workload.uid.clone();
    let message = Address {
        r#type: Some(address::Type::Workload(workload)),
    };
    Resource {
        rank: if is_waypoint { WAYPOINT_POD } else { WORKLOAD },
        needs,
        ..press.resource(Kind::Address, &name, &message)
    }
}

fn waypoint_resources(
    waypoint: &WaypointPlan,
    before: &WaypointResources,
    press: &Press<'_>,
) -> WaypointResources {
    let key = |namespace: &str, name: &str| format!("{namespace}/{name}");
    let mut kinds: WaypointResources = Default::default();
    let mut put = |kind: Kind, fresh: Vec<Resource>| {
        let shared: Arc<Resources> = share(&before[kind.index()], fresh);
        kinds[kind.index()] = shared;
    };
    let own = press.resource(
        Kind::Waypoint,
        &waypoint.key.to_string(),
        &waypoint.waypoint,
    );
    put(Kind::Waypoint, vec![own]);
    let credentials = waypoint.credentials.iter().map(|credential| {
        let name = key(&credential.namespace, &credential.name);
        press.resource(Kind::Credential, &name, credential)
    });
    put(Kind::Credential, credentials.collect());
    let policies = waypoint.authorizations.iter().map(|policy| {
        let name = key(&policy.namespace, &policy.name);
        press.resource(Kind::WaypointAuthorization, &name, policy)
    });
    put(Kind::WaypointAuthorization, policies.collect());
    let rates = waypoint.rate_limits.iter().map(|limits| {
        let name = key(&limits.namespace, &limits.name);
        press.resource(Kind::RateLimitPolicy, &name, limits)
    });
    put(Kind::RateLimitPolicy, rates.collect());
    let labels = waypoint.labels.iter();
    let labels = labels.map(|one| press.resource(Kind::WorkloadLabels, &one.uid, one));
    put(Kind::WorkloadLabels, labels.collect());
    let rules = waypoint.rules.iter().map(|rule| {
        let name = key(&rule.namespace, &rule.name);
        press.resource(Kind::DestinationRule, &name, rule)
    });
    put(Kind::DestinationRule, rules.collect());
    let routes = waypoint.routes.iter().map(|route| {
        let name = key(&route.namespace, &route.name);
        press.resource(Kind::VirtualService, &name, route)
    });
    put(Kind::VirtualService, routes.collect());
    kinds
}

//! Gateways at the edge of the mesh: which pods are one, and what configures them.

use std::collections::BTreeMap;

use isobar_objects::istio::IstioGateway;
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1::waypoint::Traffic;
use isobar_types::NamespacedName;

use super::gateways::{Gateways, WaypointGateway};
use super::plan::InstancePlan;
use super::pods::PodFacts;
use super::settings::Settings;

/// What makes a gateway one at the edge.
#[derive(Debug, Default)]
pub(crate) struct Edge<'a> {
    /// Istio's Gateways that select its pods; none for one of the Gateway API.
    pub(crate) istio: Vec<&'a IstioGateway>,
    /// Labels of its pods.
    pub(crate) labels: BTreeMap<String, String>,
}

/// The pods that Istio's Gateways select, put together by account and by who selects them: these are told
/// the same. A label makes a pod no waypoint and takes it out of none.
pub(crate) fn of_istio<'a>(
    set: &'a ObjectSet,
    pods: &[PodFacts<'_>],
    settings: &Settings,
) -> Gateways<'a> {
    let mut all = Gateways::new();
    if set.istio_gateways.is_empty() {
        return all;
    }
    for pod in pods {
        let chosen: Vec<&IstioGateway> = set
            .istio_gateways
            .iter()
            .map(|gateway| &gateway.object)
            .filter(|gateway| selects(gateway, pod))
            .collect();
        if chosen.is_empty() {
            continue;
        }
        let names = chosen
            .iter()
            .map(|g| format!("{}.{}", g.namespace(), g.name()));
        // No object has a colon in its name.
        let name = format!("{}:{}", pod.account, names.collect::<Vec<_>>().join("+"));
        let key = NamespacedName {
            namespace: pod.key.namespace.clone(),
            name: name.into(),
        };
        let group = all.entry(key.clone()).or_insert_with(|| {
            let edge = Edge {
                istio: chosen,
                labels: pod.labels.clone(),
            };
            WaypointGateway::at_edge(key, pod.identity(&settings.trust_domain), edge)
        });
        if let Some(edge) = &mut group.edge {
            // What they have in common.
            edge.labels
                .retain(|name, value| pod.labels.get(name) == Some(value));
        }
        group.pods.push(pod.key.clone());
        group.ready |= pod.ready;
    }
    all
}

fn selects(gateway: &IstioGateway, pod: &PodFacts<'_>) -> bool {
    let wanted = &gateway.spec.selector;
    let has = |(key, value): (&String, &String)| pod.labels.get(key) == Some(value);
    !wanted.is_empty() && wanted.iter().all(has)
}

/// The pods of gateways that Istio's objects make.
pub(crate) fn instances<'a>(
    pods: &'a [PodFacts<'_>],
    gateways: &'a Gateways<'_>,
) -> impl Iterator<Item = InstancePlan> + 'a {
    let edges = gateways.values().filter(|one| one.gateway.is_none());
    edges.flat_map(move |edge| {
        let own = pods.iter().filter(|pod| edge.pods.contains(&pod.key));
        own.map(|pod| InstancePlan {
            pod: pod.key.clone(),
            uid: pod.uid.into(),
            gateway: edge.key.clone(),
            identity: edge.identity.clone(),
        })
    })
}

/// It takes no traffic of the mesh.
pub(crate) const TRAFFIC: Traffic = Traffic::None;

//! Gateways at the edge of the mesh: which pods are one, and what configures them.

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::ObjectSet;
use isobar_objects::istio::IstioGateway;
use isobar_proto::isobar::v1::waypoint::Traffic;
use isobar_types::NamespacedName;
use isobar_types::labels::GATEWAY_NAME;
use xxhash_rust::xxh64::xxh64;

use super::gateways::{Gateways, MANAGED, WaypointGateway};
use super::plan::InstancePlan;
use super::pods::PodFacts;
use super::settings::Settings;

/// Labels that a controller gives to the pods of one template: new ones with every rollout.
const OF_TEMPLATE: [&str; 3] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
];

/// What makes a gateway one at the edge.
#[derive(Debug, Default)]
pub(crate) struct Edge<'a> {
    /// Istio's Gateways that select its pods; none for one of the Gateway API.
    pub(crate) istio: Vec<&'a IstioGateway>,
    /// Labels of its pods, each set of them once.
    pub(crate) labels: BTreeSet<BTreeMap<String, String>>,
}

/// The pods that Istio's Gateways select, put together by account and labels: these are told the same,
/// whatever Gateways there are, and go on under the same name when one is added. A label makes a pod no
/// waypoint and takes it out of none.
pub(crate) fn of_istio<'a>(
    set: &'a ObjectSet,
    pods: &[PodFacts<'_>],
    settings: &Settings,
) -> Gateways<'a> {
    let mut all = Gateways::new();
    if set.istio_gateways.is_empty() {
        return all;
    }
    for pod in pods.iter().filter(|pod| !is_of_mesh(pod, settings)) {
        let chosen: Vec<&IstioGateway> = set
            .istio_gateways
            .in_namespace(&pod.key.namespace)
            .map(|gateway| &gateway.object)
            .filter(|gateway| selects(gateway, pod.labels))
            .collect();
        if chosen.is_empty() {
            continue;
        }
        // No object has a colon in its name.
        let name = format!("{}:{:016x}", pod.account, hash(pod.labels));
        let key = NamespacedName {
            namespace: pod.key.namespace.clone(),
            name: name.into(),
        };
        let group = all.entry(key.clone()).or_insert_with(|| {
            let edge = Edge {
                istio: chosen,
                labels: BTreeSet::new(),
            };
            WaypointGateway::at_edge(key, pod.identity(&settings.trust_domain), edge)
        });
        if let Some(edge) = &mut group.edge {
            edge.labels.insert(pod.labels.clone());
        }
        group.pods.push(pod.key.clone());
        group.ready |= pod.ready;
    }
    all
}

/// True if a Gateway selects pods of its namespace with these labels. Who may write Gateways somewhere
/// must not configure pods of others, so namespaces are for the caller to compare; and pods of the
/// Gateway API have their own Gateway. Labels of a template do not count: all pods of a group are
/// selected by the same Gateways.
pub(crate) fn selects(gateway: &IstioGateway, labels: &BTreeMap<String, String>) -> bool {
    let wanted = &gateway.spec.selector;
    let has = |(key, value): (&String, &String)| {
        !OF_TEMPLATE.contains(&key.as_str()) && labels.get(key) == Some(value)
    };
    let is_other = labels.contains_key(GATEWAY_NAME) || labels.contains_key(MANAGED);
    !is_other && !wanted.is_empty() && wanted.iter().all(has)
}

/// True for pods of the mesh itself, which run as accounts that may do more than a gateway.
fn is_of_mesh(pod: &PodFacts<'_>, settings: &Settings) -> bool {
    let mut accounts = settings.own_accounts.iter();
    accounts.any(|own| own.namespace == pod.key.namespace && own.name == pod.account)
}

fn hash(labels: &BTreeMap<String, String>) -> u64 {
    let lasting = labels
        .iter()
        .filter(|(key, _)| !OF_TEMPLATE.contains(&key.as_str()));
    // Neither sign can be in a label.
    let text: String = lasting
        .flat_map(|(key, value)| [key, "=", value, ","])
        .collect();
    xxh64(text.as_bytes(), 0)
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

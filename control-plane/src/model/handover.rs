//! Bindings to waypoints that change. Proxies learn of it one after the other, so for a while what is
//! bound has to be reachable by the way that was and by the way that comes: else the first or the last
//! to learn of it is refused. The control plane takes it in two steps, each of which every proxy
//! confirms before the next one.

use std::collections::{BTreeMap, BTreeSet};

use isobar_proto::istio::workload as wire;
use isobar_proto::istio::workload::gateway_address::Destination;
use isobar_types::NamespacedName;

use super::bindings::{Remembered, remembered};
use super::gateways::Gateways;
use super::plan::Plan;
use super::pods::PodFacts;
use super::service_entries::EntryPlan;
use super::services::ServicePlan;
use super::settings::Settings;
use super::workloads::{Memberships, WorkloadPlan, uid};

/// The waypoints that callers are sent to, as they are published.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Front {
    waypoint: Option<wire::GatewayAddress>,
    weighted: Vec<wire::WeightedWaypoint>,
}

/// Namespace and host name of a waypoint's Service.
pub(crate) type Host = (String, String);

impl Front {
    fn of_service(service: &wire::Service) -> Self {
        Self {
            waypoint: service.waypoint.clone(),
            weighted: service.weighted_waypoints.clone(),
        }
    }

    /// That of a pod.
    pub(crate) fn of_workload(workload: &wire::Workload) -> Self {
        Self {
            waypoint: workload.waypoint.clone(),
            weighted: Vec::new(),
        }
    }

    /// True where callers go directly.
    pub(crate) fn is_bare(&self) -> bool {
        self.waypoint.is_none() && self.weighted.is_empty()
    }

    fn gateways(&self) -> impl Iterator<Item = &wire::GatewayAddress> {
        let weighted = self.weighted.iter().filter_map(|w| w.destination.as_ref());
        self.waypoint.iter().chain(weighted)
    }

    /// Who they are.
    pub(crate) fn hosts(&self) -> BTreeSet<Host> {
        self.gateways().filter_map(host).collect()
    }

    /// Waypoints of this one that `other` does not have.
    fn without(&self, other: &Self) -> Vec<wire::GatewayAddress> {
        let others = other.hosts();
        let is_others = |one: &&wire::GatewayAddress| host(one).is_none_or(|h| others.contains(&h));
        let mut left: Vec<_> = self.gateways().filter(|one| !is_others(one)).collect();
        left.dedup();
        left.into_iter().cloned().collect()
    }
}

fn host(gateway: &wire::GatewayAddress) -> Option<Host> {
    match gateway.destination.as_ref()? {
        Destination::Hostname(name) => Some((name.namespace.clone(), name.hostname.clone())),
        Destination::Address(_) => None,
    }
}

/// How far a change of a binding has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Callers go as before; what is bound, and the waypoint that comes, take the new way already.
    Opened,
    /// Callers go the new way; what is bound, and the waypoint that goes, still take the old one.
    Turned,
}

/// One binding that changes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Handover {
    /// The waypoints that were in front before.
    pub(crate) before: Front,
    /// How far it has come.
    pub(crate) step: Step,
}

impl Handover {
    /// What callers are told instead of `now`, and who may bring traffic besides.
    fn during(&self, now: Front) -> (Front, Vec<wire::GatewayAddress>) {
        match self.step {
            Step::Opened => (self.before.clone(), now.without(&self.before)),
            Step::Turned => {
                let also = self.before.without(&now);
                (now, also)
            }
        }
    }
}

/// What holds of bindings besides what objects say.
#[derive(Debug, Default)]
pub(crate) struct Handovers {
    /// Those that change, by the name of what is bound: `namespace/hostname`, or the uid of a workload.
    pub(crate) running: BTreeMap<String, Handover>,
    /// Those of accounts that were in force in the plan before.
    pub(super) accounts: Remembered,
}

/// What stands in front of everything that has something in front, by the same names.
pub(crate) type Fronts = BTreeMap<String, Front>;

impl Handovers {
    /// Keeps in mind which accounts were bound in a plan: the next one may have less to go by.
    pub(crate) fn remember(&mut self, plan: &Plan) {
        self.accounts = remembered(plan);
    }

    /// The waypoints that were go on serving what they served: they are told its policies and rules.
    pub(super) fn keep_serving(
        &self,
        services: &mut [ServicePlan],
        entries: &mut [EntryPlan<'_>],
        gateways: &Gateways<'_>,
    ) {
        if self.running.is_empty() {
            return;
        }
        let services = services.iter_mut().map(|s| (&s.wire, &mut s.waypoints));
        let entries = entries.iter_mut().map(|e| (&e.wire, &mut e.waypoints));
        for (wire, waypoints) in services.chain(entries) {
            for key in self.before(&service_name(wire), gateways) {
                if !waypoints.contains(&key) {
                    waypoints.push(key);
                }
            }
        }
    }

    /// Pods go on taking traffic from the waypoints that were.
    pub(super) fn keep_taking(
        &self,
        memberships: &mut Memberships,
        pods: &[PodFacts<'_>],
        gateways: &Gateways<'_>,
        settings: &Settings,
    ) {
        if self.running.is_empty() {
            return;
        }
        for pod in pods {
            let before = self.before(&uid(&settings.cluster_id, &pod.key), gateways);
            if !before.is_empty() {
                let of = memberships.entry(pod.key.clone()).or_default();
                of.waypoints.accept(before);
            }
        }
    }

    /// Writes the way that is open for callers now, and the other one beside it.
    ///
    /// Returns what stands in front of everything once this is over.
    pub(super) fn publish(
        &self,
        services: &mut [ServicePlan],
        entries: &mut [EntryPlan<'_>],
        workloads: &mut [WorkloadPlan],
    ) -> Fronts {
        let mut fronts = Fronts::new();
        let services = services.iter_mut().map(|service| &mut service.wire);
        let entries = entries.iter_mut().map(|entry| &mut entry.wire);
        for wire in services.chain(entries) {
            let front = Front::of_service(wire);
            if front.is_bare() && self.running.is_empty() {
                continue;
            }
            let name = service_name(wire);
            if let Some(handover) = self.running.get(&name) {
                let (now, also) = handover.during(front.clone());
                wire.waypoint = now.waypoint;
                wire.weighted_waypoints = now.weighted;
                wire.also_waypoints = also;
            }
            if !front.is_bare() {
                fronts.insert(name, front);
            }
        }
        for wire in workloads.iter_mut().map(|workload| &mut workload.wire) {
            let front = Front::of_workload(wire);
            if let Some(handover) = self.running.get(&wire.uid) {
                let (now, also) = handover.during(front.clone());
                wire.waypoint = now.waypoint;
                wire.also_waypoints = also;
                wire.also_direct = front.is_bare() && handover.step == Step::Opened;
            }
            if !front.is_bare() {
                fronts.insert(wire.uid.clone(), front);
            }
        }
        fronts
    }

    /// Waypoints that were in front of what is called `name`.
    fn before(&self, name: &str, gateways: &Gateways<'_>) -> Vec<NamespacedName> {
        let Some(handover) = self.running.get(name) else {
            return Vec::new();
        };
        let hosts = handover.before.hosts();
        let waypoints = gateways.values().filter(|gateway| {
            let mut hosts = hosts.iter();
            hosts.any(|(namespace, name)| {
                **namespace == *gateway.key.namespace && *name == gateway.hostname
            })
        });
        waypoints.map(|gateway| gateway.key.clone()).collect()
    }
}

/// Waypoints that can take traffic.
pub(super) fn usable(gateways: &Gateways<'_>) -> BTreeSet<Host> {
    let usable = gateways.values().filter(|gateway| gateway.ready);
    usable
        .map(|gateway| (gateway.key.namespace.to_string(), gateway.hostname.clone()))
        .collect()
}

/// What a service is called among resources.
pub(crate) fn service_name(service: &wire::Service) -> String {
    format!("{}/{}", service.namespace, service.hostname)
}

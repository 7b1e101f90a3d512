//! What a decision looks up and a snapshot does not have, in the words of discovery: for proxies that
//! ask for addresses one by one. What is unknown once it has been asked for does not exist.

use std::collections::BTreeSet;
use std::net::IpAddr;

use isobar_types::NetworkAddress;

use crate::gateway::{find, is_reserved};
use crate::inbound::{Authority, InboundCall};
use crate::outbound::OutboundCall;
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddress, Workload};

/// Names to ask for before [`crate::outbound::route`]: `network/address` or `namespace/hostname`.
/// What is learnt may lead to more: ask until nothing new is named.
#[must_use]
pub fn before_route(snapshot: &Snapshot, call: &OutboundCall<'_>) -> BTreeSet<String> {
    let mut names = Names::new(snapshot, &call.source.namespace);
    let ip = call.destination.ip().to_canonical();
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return names.unknown;
    }
    names.at(call.network, ip);
    if *call.network != *call.source.network {
        names.at(&call.source.network, ip);
    }
    names.unknown
}

/// Names to ask for before [`crate::inbound::resolve`] and [`crate::authorize()`]: the services of the
/// workload, and the waypoints that its traffic may have to come through.
#[must_use]
pub fn before_inbound(snapshot: &Snapshot, call: &InboundCall<'_>) -> BTreeSet<String> {
    let workload = call.workload;
    let mut names = Names::new(snapshot, &workload.namespace);
    names.workload(workload);
    for gateway in &workload.also_waypoints {
        names.gateway(gateway);
    }
    for key in workload.services.keys() {
        match snapshot.service(key) {
            Some(service) => {
                for gateway in service.accepted_waypoints() {
                    names.gateway(gateway);
                }
            }
            None => {
                names.unknown.insert(key.to_string());
            }
        }
    }
    if let Authority::Address(to) = call.authority
        && to.ip() != call.local_ip.to_canonical()
        && !to.ip().is_loopback()
    {
        names.at(call.network, to.ip());
    }
    names.unknown
}

struct Names<'a> {
    snapshot: &'a Snapshot,
    namespace: &'a str,
    unknown: BTreeSet<String>,
}

impl<'a> Names<'a> {
    fn new(snapshot: &'a Snapshot, namespace: &'a str) -> Self {
        Self {
            snapshot,
            namespace,
            unknown: BTreeSet::new(),
        }
    }

    /// What is at an address, and what that refers to.
    fn at(&mut self, network: &str, ip: IpAddr) {
        let at = NetworkAddress::new(network.into(), ip);
        let snapshot = self.snapshot;
        let service = snapshot.service_by_vip(&at, Some(self.namespace));
        let workload = snapshot.workload_by_address(&at);
        // A range says nothing about what is inside it.
        if snapshot.by_vip.get(&at).is_none() && workload.is_none() {
            self.unknown.insert(at.to_string());
        }
        if let Some(workload) = workload {
            self.workload(workload);
        }
        let Some(service) = service else { return };
        let weighted = service.weighted_waypoints.iter().map(|w| &w.destination);
        for gateway in service.waypoint.iter().chain(weighted) {
            self.gateway(gateway);
        }
        for endpoint in snapshot.endpoints(&service.key) {
            self.workload(&endpoint.workload);
        }
    }

    fn workload(&mut self, workload: &Workload) {
        let gateways = [&workload.waypoint, &workload.network_gateway];
        for gateway in gateways.into_iter().flatten() {
            self.gateway(gateway);
        }
    }

    /// The gateway, and the way to it where it is on another network.
    fn gateway(&mut self, gateway: &GatewayAddress) {
        if is_reserved(gateway) {
            return;
        }
        let Some(found) = find(self.snapshot, gateway, self.namespace) else {
            self.unknown.insert(gateway.destination.to_string());
            return;
        };
        let members = found.members(self.snapshot);
        let further = members.iter().filter_map(|m| m.network_gateway.as_ref());
        for further in further.filter(|further| !is_reserved(further)) {
            if find(self.snapshot, further, self.namespace).is_none() {
                self.unknown.insert(further.destination.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Choosing an endpoint of a service; reusable by whoever holds a snapshot.

use isobar_types::{Reason, Str};

use crate::outbound::Refusal;
use crate::outlier::Avoided;
use crate::service::{BalanceMode, Endpoint, HealthPolicy, RoutingScope, Service};
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// What the endpoints are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be the next hop of a call to the service.
    Call,
    /// To serve as waypoint: an application tunnel may stand in for a missing service port.
    Waypoint,
}

/// An endpoint that may be chosen, and the port to use there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Its port.
    pub port: u16,
}

/// The endpoints of `service` that may take a call of `source` to `port`: ready, with a share of
/// the traffic, with that port, and of the best rank by the service's routing preference. Never
/// empty.
///
/// # Errors
/// [`Reason::NoSuchPort`] if the service does not have the port, [`Reason::NoHealthyUpstream`] if
/// nothing remains.
pub fn endpoints<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    port: u16,
    source: &Workload,
    purpose: Purpose,
) -> Result<Vec<Candidate<'a>>, Refusal> {
    let none = Avoided::default();
    endpoints_but(snapshot, service, port, source, purpose, &none)
}

pub(crate) fn no_such_port(service: &Service, port: u16) -> Refusal {
    Refusal::new(
        Reason::NoSuchPort,
        format!(
            "service {}/{} has no port {port}; its ports: {}",
            service.key.namespace,
            service.name,
            service.ports.listing()
        ),
    )
}

/// True if nothing but its own failures keeps an endpoint out.
pub(crate) fn usable(service: &Service, endpoint: &Endpoint) -> bool {
    endpoint.workload.healthy || service.health_policy() != HealthPolicy::OnlyHealthy
}

/// As [`endpoints`], without those to avoid.
pub(crate) fn endpoints_but<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    port: u16,
    source: &Workload,
    purpose: Purpose,
    avoided: &Avoided,
) -> Result<Vec<Candidate<'a>>, Refusal> {
    let service_target = service.ports.target(port);
    if service_target.is_none() && purpose == Purpose::Call {
        return Err(no_such_port(service, port));
    }
    let mut counts = Counts::default();
    let mut best = Vec::new();
    let mut best_rank = 0;
    for endpoint in snapshot.endpoints(&service.key) {
        counts.all += 1;
        if !usable(service, endpoint) {
            counts.unhealthy += 1;
            continue;
        }
        // Before the ranks as well: so a failing zone gives way to the next one.
        if avoided.contains(&endpoint.workload) {
            counts.ejected += 1;
            continue;
        }
        // Before the ranks: a near zone without any share must not hide the next one.
        if endpoint.workload.capacity == 0 {
            counts.without_share += 1;
            continue;
        }
        let Some(port) = endpoint_port(endpoint, port, service_target, purpose) else {
            counts.without_port += 1;
            continue;
        };
        let Some(rank) = reachable(endpoint, source)
            .then(|| rank(service, source, &endpoint.workload))
            .flatten()
        else {
            counts.unreachable += 1;
            continue;
        };
        if best.is_empty() || rank > best_rank {
            best.clear();
            best_rank = rank;
        }
        if rank == best_rank {
            best.push(Candidate { endpoint, port });
        }
    }
    if best.is_empty() {
        return Err(Refusal::new(
            Reason::NoHealthyUpstream,
            counts.explain(service, port),
        ));
    }
    Ok(best)
}

/// Chooses by weight: the shares of all dice are those of the workloads' capacities. `None` if
/// there is nothing, or if every capacity is 0 (which [`endpoints`] never gives).
#[must_use]
pub fn pick<'a>(candidates: &[Candidate<'a>], dice: u64) -> Option<Candidate<'a>> {
    let weight = |c: &Candidate<'_>| u64::from(c.endpoint.workload.capacity);
    let total: u64 = candidates.iter().map(weight).sum();
    let mut at = dice.checked_rem(total)?;
    candidates
        .iter()
        .find(|candidate| match at.checked_sub(weight(candidate)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
        .copied()
}

/// A second, independent throw made from the first (splitmix64).
#[must_use]
pub const fn next_dice(dice: u64) -> u64 {
    let z = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Default)]
struct Counts {
    all: usize,
    unhealthy: usize,
    ejected: usize,
    without_share: usize,
    without_port: usize,
    unreachable: usize,
}

impl Counts {
    fn explain(&self, service: &Service, port: u16) -> String {
        let name = format!("{}/{}", service.key.namespace, service.name);
        if self.all == 0 {
            return format!("service {name} has no endpoints: does its selector match any pod?");
        }
        let out = match self.ejected {
            0 => String::new(),
            n => format!(", {n} out after failed connections (outlierDetection)"),
        };
        format!(
            "service {name} has no usable endpoint for port {port}: of {} endpoints {} not ready, \
             {} of capacity 0, {} without that port, {} not reachable from here{out}",
            self.all, self.unhealthy, self.without_share, self.without_port, self.unreachable
        )
    }
}

fn endpoint_port(
    endpoint: &Endpoint,
    port: u16,
    service_target: Option<u16>,
    purpose: Purpose,
) -> Option<u16> {
    let mapped = endpoint.ports.target(port).filter(|p| *p != 0);
    let by_service = service_target.filter(|p| *p != 0);
    let by_tunnel = match (purpose, endpoint.workload.application_tunnel) {
        (Purpose::Waypoint, Some(tunnel)) => tunnel.port.map(|_| port),
        _ => None,
    };
    mapped.or(by_service).or(by_tunnel)
}

fn reachable(endpoint: &Endpoint, source: &Workload) -> bool {
    let workload = &endpoint.workload;
    if workload.network == source.network {
        !workload.addresses.is_empty() || !workload.hostname.is_empty()
    } else {
        // Crossing needs a gateway; without one the address means nothing here.
        workload.network_gateway.is_some()
    }
}

/// Higher is closer; `None`: not allowed at all. `reference` A.5 lists the values.
fn rank(service: &Service, source: &Workload, workload: &Workload) -> Option<usize> {
    let Some(balancing) = &service.load_balancing else {
        return Some(0);
    };
    let preference = &balancing.routing_preference[..];
    match balancing.mode {
        BalanceMode::Standard | BalanceMode::Passthrough => Some(0),
        BalanceMode::Strict => preference
            .iter()
            .all(|scope| same(*scope, source, workload))
            .then_some(0),
        BalanceMode::Failover => Some(failover_rank(preference, source, workload)),
    }
}

fn failover_rank(preference: &[RoutingScope], source: &Workload, workload: &Workload) -> usize {
    let leading = |scopes: &[RoutingScope]| {
        scopes
            .iter()
            .take_while(|scope| same(**scope, source, workload))
            .count()
    };
    // The network comes before everything: any endpoint inside beats every one outside, and
    // those outside are ranked among themselves by the rest.
    match preference {
        [RoutingScope::Network, rest @ ..] => {
            if same(RoutingScope::Network, source, workload) {
                leading(preference) + rest.len()
            } else {
                leading(rest)
            }
        }
        other => leading(other),
    }
}

fn same(scope: RoutingScope, a: &Workload, b: &Workload) -> bool {
    fn field(scope: RoutingScope, w: &Workload) -> &Str {
        match scope {
            RoutingScope::Region => &w.locality.region,
            RoutingScope::Zone => &w.locality.zone,
            RoutingScope::Subzone => &w.locality.subzone,
            RoutingScope::Node => &w.node,
            RoutingScope::Cluster => &w.cluster_id,
            RoutingScope::Network => &w.network,
        }
    }
    field(scope, a) == field(scope, b)
}

#[cfg(test)]
mod tests;

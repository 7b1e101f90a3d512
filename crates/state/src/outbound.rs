//! Where a connection of a local workload goes. The order of the steps is the behaviour of Istio's
//! ztunnel; what differs is that a refusal says why.

mod hop;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_types::{Identity, NetworkAddress, Reason, labels, ports};

pub use hop::NextHop;
use hop::at_address;

use crate::balance::{self, Candidate, Purpose, next_dice};
use crate::egress::{Listed, listed};
use crate::gateway::{Dicing, Resolved, any_member, resolve_gateway, resolve_waypoint_but};
use crate::outlier::{Avoided, Ejections, Place};
use crate::service::Service;
use crate::snapshot::{AddressObject, Snapshot};
use crate::workload::{GatewayAddress, Workload};

/// A captured connection of a local workload.
#[derive(Debug, Clone, Copy)]
pub struct OutboundCall<'a> {
    /// The local workload.
    pub source: &'a Workload,
    /// Address the application connected from.
    pub source_ip: IpAddr,
    /// Original destination.
    pub destination: SocketAddr,
    /// Network of this node.
    pub network: &'a str,
    /// Whether the caller can open a tunnel inside a tunnel. Without that, endpoints of other
    /// networks are chosen only where there is no other, and the refusal says what is missing.
    pub crosses_networks: bool,
    /// Endpoints to leave out; `None` where nobody counts failures.
    pub ejections: Option<&'a dyn Ejections>,
}

/// A connection that is not made, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// For metrics and logs.
    pub reason: Reason,
    /// Names what is wrong and the way out.
    pub detail: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

/// Decides where a captured connection goes. `dice` is any random number; equal dice on an equal
/// snapshot give equal answers.
///
/// # Errors
/// A [`Refusal`] where the connection must not be made; never a silent way around a waypoint.
pub fn route(snapshot: &Snapshot, call: &OutboundCall<'_>, dice: u64) -> Result<NextHop, Refusal> {
    route_but(snapshot, call, &[], dice)
}

/// Decides once more, for a call that could not be connected to the endpoints in `tried`: as [`route`]
/// would if they were not there. So the next rank of endpoints may take it; the way stays the same one,
/// through the waypoint or direct.
///
/// # Errors
/// As [`route`]; where there is no endpoint but those that were tried.
pub fn route_again(
    snapshot: &Snapshot,
    call: &OutboundCall<'_>,
    tried: &[Place],
    dice: u64,
) -> Result<NextHop, Refusal> {
    let hop = route_but(snapshot, call, tried, dice).or_else(|refusal| {
        // Without another way through the gateway of another network, who is on this one may take it.
        let near = OutboundCall {
            crosses_networks: false,
            ..*call
        };
        let near = route_but(snapshot, &near, tried, dice);
        near.map_err(|_| refusal)
    })?;
    match hop.endpoint() {
        Some(workload) if !tried.contains(&Place::from(&**workload)) => Ok(hop),
        _ => Err(Refusal::new(
            Reason::NoHealthyUpstream,
            "there is no other endpoint",
        )),
    }
}

fn route_but(
    snapshot: &Snapshot,
    call: &OutboundCall<'_>,
    tried: &[Place],
    dice: u64,
) -> Result<NextHop, Refusal> {
    let canonical = call.destination.ip().to_canonical();
    let to = SocketAddr::new(canonical, call.destination.port());
    let call = &OutboundCall {
        destination: to,
        ..*call
    };
    if to.ip().is_loopback() && ports::is_reserved(to.port()) {
        return Err(Refusal::new(
            Reason::ReservedPort,
            format!("port {} belongs to the mesh itself", to.port()),
        ));
    }
    let client = Some(&*call.source.namespace);
    let here = NetworkAddress::new(call.network.into(), to.ip());
    let addressed = match snapshot.object_at(&here, client) {
        Some(AddressObject::Service(service)) => Some(service),
        Some(AddressObject::Workload(_)) | None => None,
    };
    if let Some(service) = addressed
        && let Some(gateway) = service_waypoint(service, dice)
    {
        let owner = owner_of(service);
        let dice = next_dice(dice);
        return via_waypoint(snapshot, call, gateway, Some(service), &owner, tried, dice);
    }
    let there = if *call.network == *call.source.network {
        here
    } else {
        NetworkAddress::new(call.source.network.clone(), to.ip())
    };
    // From here on services come first: an address that is both a workload's and a service's is
    // balanced, yet it was not "addressed to a service" above.
    if let Some(service) = snapshot.service_by_vip(&there, client) {
        return to_service(snapshot, call, service, addressed.is_some(), tried, dice);
    }
    let closed = snapshot.is_registry_only(&call.source.namespace);
    match (snapshot.workload_by_address(&there), addressed) {
        (Some(workload), _) if closed => {
            registered(snapshot, call, workload, dice)?;
            to_workload(snapshot, call, workload, tried, dice)
        }
        (Some(workload), _) => to_workload(snapshot, call, workload, tried, dice),
        (None, Some(service)) if !service.is_passthrough() => Err(Refusal::new(
            Reason::NoHealthyUpstream,
            format!("{} is not on the caller's network", owner_of(service)),
        )),
        (None, _) if closed => Err(Refusal::new(
            Reason::UnknownDestination,
            format!(
                "{to} is no service or workload of the mesh, and namespace {} may reach nothing \
                 else: its label {} (or the mesh's default) is REGISTRY_ONLY",
                call.source.namespace,
                labels::OUTBOUND_TRAFFIC_POLICY
            ),
        )),
        (None, _) => Ok(NextHop::Passthrough(to)),
    }
}

/// The waypoint that calls to a service have to pass: one of the weighted ones if their total is
/// positive, else the single one.
#[must_use]
pub fn service_waypoint(service: &Service, dice: u64) -> Option<&GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let total: u64 = weighted.iter().map(|w| u64::from(w.weight)).sum();
    let Some(mut at) = dice.checked_rem(total) else {
        return service.waypoint.as_ref();
    };
    weighted
        .iter()
        .find(|w| match at.checked_sub(u64::from(w.weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
        .map(|w| &w.destination)
}

/// How to reach a chosen endpoint of a service; for callers that balance by themselves.
/// `destination` is the original one: its address is kept where the workload owns it, and its
/// family is preferred otherwise.
///
/// # Errors
/// If the workload has no address in the source's network.
pub fn reach(
    candidate: Candidate<'_>,
    service: Option<&Arc<Service>>,
    source: &Workload,
    destination: IpAddr,
) -> Result<NextHop, Refusal> {
    let workload = &candidate.endpoint.workload;
    hop(workload, service, source, destination, candidate.port)
}

fn to_service(
    snapshot: &Snapshot,
    call: &OutboundCall<'_>,
    service: &Arc<Service>,
    addressed_to_service: bool,
    tried: &[Place],
    dice: u64,
) -> Result<NextHop, Refusal> {
    let to = call.destination;
    if service.is_passthrough() {
        let closed = snapshot.is_registry_only(&call.source.namespace);
        if closed && !service.ports.is_empty() && service.ports.target(to.port()).is_none() {
            return Err(balance::no_such_port(service, to.port()));
        }
        return Ok(NextHop::Passthrough(to));
    }
    let avoided = Avoided::of(snapshot, service, call.ejections).and(tried);
    let source = call.source;
    let mut all = balance::endpoints_but(
        snapshot,
        service,
        to.port(),
        source,
        Purpose::Call,
        &avoided,
    )?;
    if !call.crosses_networks {
        all = prefer_own_network(all, call.source);
    }
    let chosen = balance::pick(&all, next_dice(dice)).ok_or_else(|| {
        Refusal::new(
            Reason::NoHealthyUpstream,
            format!("every endpoint of {} has capacity 0", owner_of(service)),
        )
    })?;
    let workload = &chosen.endpoint.workload;
    if workload.network != call.source.network {
        let names = &service.subject_alt_names[..];
        let dice = next_dice(dice);
        return across(
            snapshot,
            call,
            (workload, names),
            service,
            Dicing { tried, dice },
        );
    }
    if !addressed_to_service
        && let Some(gateway) = &workload.waypoint
        && !from_gateway(snapshot, call, gateway)
    {
        let owner = format!("workload {}", workload.display_name());
        return via_waypoint(snapshot, call, gateway, None, &owner, tried, dice);
    }
    reach(chosen, Some(service), call.source, to.ip())
}

/// The way to `workload`, which is on another network and was chosen for a call to `service`: its
/// gateway, and through it the end that proves one of `names`.
fn across(
    snapshot: &Snapshot,
    call: &OutboundCall<'_>,
    (workload, names): (&Arc<Workload>, &[Identity]),
    service: &Arc<Service>,
    dicing: Dicing<'_>,
) -> Result<NextHop, Refusal> {
    if !call.crosses_networks {
        return Err(other_network(workload, call.source));
    }
    let refuse = |why: &str| {
        let owner = owner_of(service);
        let far = &workload.network;
        Refusal::new(
            Reason::NoHealthyUpstream,
            format!("{owner} is to be reached on network {far:?}, but {why}"),
        )
    };
    let gateway = workload
        .network_gateway
        .as_ref()
        .ok_or_else(|| refuse("that network has no gateway"))?;
    // Without a name nobody could prove to be the destination, and the gateway is not.
    if names.is_empty() {
        return Err(refuse("no identity is known for the far end"));
    }
    let prefer = call.destination.ip();
    let found = resolve_gateway(snapshot, gateway, call.source, prefer, dicing)
        .map_err(|why| refuse(&format!("its gateway cannot be used: {why}")))?;
    Ok(NextHop::DoubleTunnel {
        to: found.to,
        authority: format!("{}:{}", service.key.hostname, call.destination.port()),
        expect_gateway: found.expect(),
        expect: names.to_vec(),
        gateway: found.workload,
        service: Arc::clone(service),
    })
}

fn prefer_own_network<'a>(all: Vec<Candidate<'a>>, source: &Workload) -> Vec<Candidate<'a>> {
    let own: Vec<_> = all
        .iter()
        .filter(|c| c.endpoint.workload.network == source.network)
        .copied()
        .collect();
    if own.is_empty() { all } else { own }
}

/// Refuses what the registry does not hold at a workload's own address.
fn registered(
    snapshot: &Snapshot,
    call: &OutboundCall<'_>,
    workload: &Workload,
    dice: u64,
) -> Result<(), Refusal> {
    let (to, namespace) = (call.destination, &call.source.namespace);
    let detail = match listed(snapshot, workload, to.port()) {
        Listed::Open => return Ok(()),
        Listed::NoPort => format!(
            "{to} is an endpoint of a ServiceEntry that does not list that port, and namespace \
             {namespace} may reach nothing else (REGISTRY_ONLY)"
        ),
        Listed::Guarded(service) => {
            let gateway = service_waypoint(service, dice);
            if gateway.is_some_and(|gateway| from_gateway(snapshot, call, gateway)) {
                return Ok(());
            }
            format!(
                "{to} is an endpoint of {}, and would be reached past its waypoint, which \
                 namespace {namespace} may not (REGISTRY_ONLY): call it by its name",
                owner_of(service)
            )
        }
    };
    Err(Refusal::new(Reason::UnknownDestination, detail))
}

fn to_workload(
    snapshot: &Snapshot,
    call: &OutboundCall<'_>,
    workload: &Arc<Workload>,
    tried: &[Place],
    dice: u64,
) -> Result<NextHop, Refusal> {
    let to = call.destination;
    if let Some(gateway) = &workload.waypoint
        && !from_gateway(snapshot, call, gateway)
    {
        let owner = format!("workload {}", workload.display_name());
        return via_waypoint(snapshot, call, gateway, None, &owner, tried, dice);
    }
    hop(workload, None, call.source, to.ip(), to.port())
}

/// True if the caller is itself a workload of the gateway.
fn from_gateway(snapshot: &Snapshot, call: &OutboundCall<'_>, gateway: &GatewayAddress) -> bool {
    let identity = call.source.identity();
    any_member(snapshot, gateway, &call.source.namespace, |member| {
        snapshot.has_identity(member, &identity)
            && Snapshot::owns(member, call.source_ip.to_canonical())
    })
}

fn via_waypoint(
    snapshot: &Snapshot,
    call: &OutboundCall<'_>,
    gateway: &GatewayAddress,
    service: Option<&Arc<Service>>,
    owner: &str,
    tried: &[Place],
    dice: u64,
) -> Result<NextHop, Refusal> {
    let to = call.destination;
    let source = call.source;
    let dicing = Dicing { tried, dice };
    let waypoint = match resolve_waypoint_but(snapshot, gateway, source, to.ip(), owner, dicing)? {
        Resolved::Here(waypoint) => waypoint,
        Resolved::Elsewhere(workload, of) => {
            let names = of.as_ref().map_or(&[][..], |s| &s.subject_alt_names);
            let service = service.ok_or_else(|| other_network(&workload, source))?;
            let dice = next_dice(dice);
            return across(
                snapshot,
                call,
                (&workload, names),
                service,
                Dicing { tried, dice },
            );
        }
    };
    Ok(NextHop::Tunnel {
        to: waypoint.to,
        authority: to.to_string(),
        expect: waypoint.expect(),
        workload: waypoint.workload,
        service: service.cloned(),
        via_waypoint: true,
    })
}

fn hop(
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    source: &Workload,
    destination: IpAddr,
    port: u16,
) -> Result<NextHop, Refusal> {
    if workload.network != source.network {
        return Err(other_network(workload, source));
    }
    match choose_address(workload, service.map(|s| &**s), destination) {
        Some(ip) => Ok(at_address(workload, service, ip, port)),
        None if !workload.hostname.is_empty() => Ok(NextHop::Resolve {
            hostname: workload.hostname.clone(),
            port,
            prefer_v6: destination.is_ipv6(),
            workload: Arc::clone(workload),
            service: service.cloned(),
        }),
        None => Err(Refusal::new(
            Reason::NoHealthyUpstream,
            format!("workload {} has no address", workload.display_name()),
        )),
    }
}

fn other_network(workload: &Workload, source: &Workload) -> Refusal {
    Refusal::new(
        Reason::NoHealthyUpstream,
        format!(
            "workload {} is on network {:?}, the caller on {:?}: calls across networks are not \
             supported here",
            workload.display_name(),
            &*workload.network,
            &*source.network
        ),
    )
}

/// The address to use for a workload: the one asked for if it is its own; else the first of the
/// same family that the service allows; else the first that the service allows.
pub(crate) fn choose_address(
    workload: &Workload,
    service: Option<&Service>,
    destination: IpAddr,
) -> Option<IpAddr> {
    let destination = destination.to_canonical();
    if workload.addresses.contains(&destination) {
        return Some(destination);
    }
    let allowed = |ip: &&IpAddr| service.is_none_or(|s| s.ip_families.allows(**ip));
    let mut of_family = workload.addresses.iter().filter(allowed);
    of_family
        .clone()
        .find(|ip| ip.is_ipv4() == destination.is_ipv4())
        .or_else(|| of_family.next())
        .copied()
}

fn owner_of(service: &Service) -> String {
    format!("service {}/{}", service.key.namespace, service.name)
}

#[cfg(test)]
mod checks;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;

//! What a tunnel's authority means here, and whether this waypoint serves it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use isobar_route::Listener;
use isobar_state::inbound::Authority;
use isobar_state::{GatewayAddress, GatewayDestination, Service, Workload};
use isobar_types::{NetworkAddress, Reason};

use crate::attribution::{KNOWN_WITHIN, Peer};
use crate::edge;
use crate::world::{Own, View, World};

/// What a caller wants to reach.
#[derive(Debug, Clone)]
pub enum Target {
    /// A service port.
    Service(Arc<Service>),
    /// A pod, by its own address: no other may answer.
    Workload(Arc<Workload>),
    /// A port of this gateway, open to callers from outside.
    Listener(Arc<Listener>),
}

/// A target with the address it was asked by.
#[derive(Debug, Clone)]
pub struct Addressed {
    /// The object.
    pub target: Target,
    /// Address and port as dialled; for a host name the service's first address.
    pub destination: SocketAddr,
    /// The authority as sent.
    pub authority: String,
    /// It was asked for by address, not by a host name.
    pub by_address: bool,
}

/// Why a tunnel is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRefusal {
    /// HTTP status of the CONNECT reply.
    pub status: u16,
    /// For log and metric.
    pub reason: Reason,
    /// Names what is wrong.
    pub detail: String,
}

impl TargetRefusal {
    /// True if what discovery brings next may make it good.
    fn may_be_early(&self) -> bool {
        matches!(
            self.reason,
            Reason::UnknownDestination | Reason::WaypointNotAllowed | Reason::WaypointNotReady
        )
    }
}

fn refuse(status: u16, reason: Reason, detail: String) -> TargetRefusal {
    TargetRefusal {
        status,
        reason,
        detail,
    }
}

/// Finds the object an authority names and makes sure that this waypoint serves it.
///
/// # Errors
/// 400 for what is no authority, 404 for what is not known, 403 for what another waypoint serves,
/// 503 before this waypoint knows itself.
pub fn resolve(
    view: &View,
    own: &Own,
    authority: &str,
    caller_namespace: &str,
) -> Result<Addressed, TargetRefusal> {
    let parsed =
        Authority::parse(authority).map_err(|e| refuse(400, Reason::BadRequest, e.to_string()))?;
    let (target, destination) = find(view, own, &parsed, caller_namespace).ok_or_else(|| {
        let detail = format!("{authority} is neither a service nor a pod of the mesh");
        refuse(404, Reason::UnknownDestination, detail)
    })?;
    served(view, own, &target)?;
    if let Target::Service(service) = &target {
        has_port(service, destination.port())?;
    }
    Ok(Addressed {
        target,
        destination,
        authority: authority.to_owned(),
        by_address: matches!(parsed, Authority::Address(_)),
    })
}

/// As [`resolve`], but gives discovery a moment before it refuses: a caller's node proxy and this
/// waypoint learn of a new service or binding at the same time, and either may be the first.
///
/// # Errors
/// As [`resolve`].
pub async fn resolve_in_time(
    world: &World,
    authority: &str,
    caller_namespace: &str,
) -> Result<Addressed, TargetRefusal> {
    let (mut snapshots, mut tables) = (world.store.versions(), world.feed.versions());
    let end = tokio::time::Instant::now() + KNOWN_WITHIN;
    loop {
        // Marked before loading: a version published in between wakes the wait below.
        snapshots.borrow_and_update();
        tables.borrow_and_update();
        let found = resolve(&world.view(), &world.own, authority, caller_namespace);
        if !matches!(&found, Err(refusal) if refusal.may_be_early()) {
            return found;
        }
        let changed = async {
            tokio::select! {
                changed = snapshots.changed() => changed,
                changed = tables.changed() => changed,
            }
        };
        match tokio::time::timeout_at(end, changed).await {
            Ok(Ok(())) => {}
            // The senders live in this very world, so only the time can be over.
            Ok(Err(_)) | Err(_) => return found,
        }
    }
}

/// Whether what was addressed before is still there and served by this waypoint.
///
/// # Errors
/// As [`resolve`] would say now.
pub fn again(
    view: &View,
    world: &World,
    before: &Addressed,
    peer: &Peer,
) -> Result<(), TargetRefusal> {
    if let Target::Listener(listener) = &before.target {
        return edge::again(view, &world.credentials, listener);
    }
    if let Target::Workload(workload) = &before.target
        && view.snapshot.workload_by_uid(&workload.uid).is_none()
    {
        return Ok(());
    }
    let now = resolve(view, &world.own, &before.authority, peer.namespace())?;
    let same = match (&before.target, &now.target) {
        (Target::Service(before), Target::Service(now)) => before.key == now.key,
        (Target::Workload(before), Target::Workload(now)) => before.uid == now.uid,
        _ => false,
    };
    if same {
        return Ok(());
    }
    let detail = format!("{} is something else by now", before.authority);
    Err(refuse(404, Reason::UnknownDestination, detail))
}

/// True for what this waypoint serves only until every proxy knows that it does not any more: callers
/// should come again and find the way that holds now.
pub(crate) fn is_leaving(view: &View, own: &Own, addressed: &Addressed) -> bool {
    let us = |gateway: &GatewayAddress| is_us(view, own, gateway);
    match &addressed.target {
        Target::Service(service) => view.snapshot.service(&service.key).is_some_and(|s| {
            let mut weighted = s.weighted_waypoints.iter().map(|w| &w.destination);
            s.also_waypoints.iter().any(us) && !s.waypoint.iter().any(us) && !weighted.any(us)
        }),
        Target::Workload(workload) => {
            let now = view.snapshot.workload_by_uid(&workload.uid);
            now.is_some_and(|w| w.also_waypoints.iter().any(us) && !w.waypoint.iter().any(us))
        }
        Target::Listener(_) => false,
    }
}

fn find(
    view: &View,
    own: &Own,
    authority: &Authority,
    caller_namespace: &str,
) -> Option<(Target, SocketAddr)> {
    let snapshot = &view.snapshot;
    match authority {
        Authority::Address(to) => {
            let at = NetworkAddress::new(own.network.clone(), to.ip());
            let destination = SocketAddr::new(at.ip, to.port());
            if let Some(service) = snapshot.service_by_vip(&at, Some(caller_namespace)) {
                return Some((Target::Service(service.clone()), destination));
            }
            if let Some(listener) = edge::in_tunnels(view, own, destination) {
                return Some((Target::Listener(listener), destination));
            }
            let workload = snapshot.workload_by_address(&at)?;
            Some((Target::Workload(workload.clone()), destination))
        }
        Authority::Host { host, port } => {
            let service = snapshot.service_by_hostname(host, Some(caller_namespace))?;
            let first = service.vips.iter().find(|v| v.network == own.network);
            let ip = first.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |v| v.ip);
            Some((Target::Service(service.clone()), SocketAddr::new(ip, *port)))
        }
    }
}

/// True if a service is to be reached through this waypoint, by its host name.
#[must_use]
pub fn names_us(view: &View, service: &Service) -> bool {
    let own = view.own_hostname();
    let mut named = service.accepted_waypoints();
    named.any(|gateway| match &gateway.destination {
        GatewayDestination::Hostname(host) => Some(host) == own.as_ref(),
        GatewayDestination::Address(_) => false,
    })
}

fn has_port(service: &Service, port: u16) -> Result<(), TargetRefusal> {
    if service.ports.target(port).is_some() {
        return Ok(());
    }
    let detail = format!(
        "service {} has no port {port}; its ports: {}",
        service.key,
        service.ports.listing()
    );
    Err(refuse(404, Reason::NoSuchPort, detail))
}

/// A waypoint serves what names it, of the kind of traffic its Gateway asks for.
fn served(view: &View, own: &Own, target: &Target) -> Result<(), TargetRefusal> {
    let Some(info) = view.tables.waypoint() else {
        let detail = "this waypoint has not received its own description yet".to_owned();
        return Err(refuse(503, Reason::WaypointNotReady, detail));
    };
    let (what, takes, names_us) = match target {
        Target::Listener(_) => return Ok(()),
        Target::Service(service) => {
            let mut named = service.accepted_waypoints();
            let ours = named.any(|gateway| is_us(view, own, gateway));
            (format!("service {}", service.key), info.for_services, ours)
        }
        Target::Workload(workload) => {
            let ours = workload.accepted_waypoints().any(|g| is_us(view, own, g));
            (
                format!("pod {}", workload.display_name()),
                info.for_workloads,
                ours,
            )
        }
    };
    if !names_us {
        let detail = format!("{what} does not use the waypoint {}", info.name);
        return Err(refuse(403, Reason::WaypointNotAllowed, detail));
    }
    if !takes {
        let detail = format!(
            "the waypoint {} does not take this kind of traffic: see istio.io/waypoint-for",
            info.name
        );
        return Err(refuse(403, Reason::WaypointNotAllowed, detail));
    }
    Ok(())
}

fn is_us(view: &View, own: &Own, gateway: &GatewayAddress) -> bool {
    match &gateway.destination {
        GatewayDestination::Hostname(host) => view.own_hostname().as_ref() == Some(host),
        GatewayDestination::Address(at) => {
            let own_address = NetworkAddress::new(own.network.clone(), own.ip);
            let service = view.snapshot.service_by_vip(at, None);
            *at == own_address
                || service.is_some_and(|s| view.own_hostname().as_ref() == Some(&s.key))
        }
    }
}

impl Addressed {
    /// The address that was dialled, if it is one of that service.
    #[must_use]
    pub fn dialled(&self, service: &Service) -> Option<IpAddr> {
        let own = self.service().is_some_and(|own| own.key == service.key);
        let ip = self.destination.ip();
        (own && !ip.is_unspecified() && self.by_address).then_some(ip)
    }

    /// Connections go on without TLS of ours around them, whatever the rules of their destination.
    pub(crate) fn is_raw(&self) -> bool {
        matches!(&self.target, Target::Listener(listener) if listener.raw)
    }

    /// Host name for logs and telemetry; `None` for a pod's own address.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        match &self.target {
            Target::Service(service) => Some(service),
            Target::Workload(_) | Target::Listener(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;

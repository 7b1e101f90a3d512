use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_types::{CLUSTER_DOMAIN, Identity, NamespacedHostname, NetworkAddress, Reason, Str};

use crate::balance::{self, Purpose};
use crate::outbound::{Refusal, choose_address};
use crate::outlier::{Avoided, Place};
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddress, GatewayDestination, Workload};

/// Host names under this suffix never exist: the control plane writes one where the waypoint that
/// an object names may not be used.
const RESERVED_SUFFIX: &str = ".waypoint.isobar.invalid";

/// One endpoint of a waypoint, ready to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waypoint {
    /// HBONE address.
    pub to: SocketAddr,
    /// The chosen workload.
    pub workload: Arc<Workload>,
    /// The service it was chosen from, if the reference names one.
    pub service: Option<Arc<Service>>,
}

impl Waypoint {
    /// Identities the waypoint may show: its own, and those its service lists.
    #[must_use]
    pub fn expect(&self) -> Vec<Identity> {
        expected_identities(self.service.as_deref(), &self.workload)
    }
}

/// The service's listed identities, then the workload's own.
pub(crate) fn expected_identities(service: Option<&Service>, workload: &Workload) -> Vec<Identity> {
    let own = workload.identity();
    let listed = service.map_or(&[][..], |s| &s.subject_alt_names[..]);
    let mut all: Vec<_> = listed.iter().filter(|i| **i != own).cloned().collect();
    all.push(own);
    all
}

/// Where a chosen endpoint of a waypoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// On the caller's network.
    Here(Waypoint),
    /// On another one: the endpoint, and the waypoint's service. The way leads through the
    /// network's gateway.
    Elsewhere(Arc<Workload>, Option<Arc<Service>>),
}

/// Finds one endpoint of the waypoint that `owner` (for messages: `service default/web`) uses.
/// There is no fallback: what cannot be resolved is refused. `prefer` is the original destination,
/// whose family guides the choice of an address.
///
/// # Errors
/// [`Reason::WaypointMissing`] for an unknown host name or address, [`Reason::WaypointNotReady`]
/// without a usable endpoint, [`Reason::WaypointNotAllowed`] for a reserved name.
pub fn resolve_waypoint(
    snapshot: &Snapshot,
    gateway: &GatewayAddress,
    source: &Workload,
    prefer: IpAddr,
    owner: &str,
    dice: u64,
) -> Result<Resolved, Refusal> {
    let tried = &[];
    resolve_waypoint_but(
        snapshot,
        gateway,
        source,
        prefer,
        owner,
        Dicing { tried, dice },
    )
}

/// What an endpoint is chosen by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dicing<'a> {
    /// Those that are not chosen.
    pub(crate) tried: &'a [Place],
    /// Any number.
    pub(crate) dice: u64,
}

/// As [`resolve_waypoint`], without the endpoints that were tried.
pub(crate) fn resolve_waypoint_but(
    snapshot: &Snapshot,
    gateway: &GatewayAddress,
    source: &Workload,
    prefer: IpAddr,
    owner: &str,
    dicing: Dicing<'_>,
) -> Result<Resolved, Refusal> {
    let name = gateway_name(gateway);
    if is_reserved(gateway) {
        return Err(Refusal::new(
            Reason::WaypointNotAllowed,
            format!(
                "{owner} names a waypoint that it may not use or that does not take this kind of \
                 traffic: see the object's status, or change its istio.io/use-waypoint label"
            ),
        ));
    }
    let chosen = choose(snapshot, gateway, source, prefer, Purpose::Waypoint, dicing);
    chosen.map_err(|failure| match failure {
        Failure::Unknown => Refusal::new(
            Reason::WaypointMissing,
            format!(
                "{owner} uses waypoint {name}, which does not exist: create it with `isobar \
                 waypoint apply`, or remove the istio.io/use-waypoint label"
            ),
        ),
        Failure::Unusable(why) => Refusal::new(
            Reason::WaypointNotReady,
            format!("{owner} uses waypoint {name}, which is not ready: {why}"),
        ),
    })
}

/// Finds one endpoint of a network gateway, as for an ordinary call to it.
///
/// # Errors
/// With what is missing: a bare address that is neither a service's nor a workload's will not do.
pub(crate) fn resolve_gateway(
    snapshot: &Snapshot,
    gateway: &GatewayAddress,
    source: &Workload,
    prefer: IpAddr,
    dicing: Dicing<'_>,
) -> Result<Waypoint, String> {
    let name = gateway_name(gateway);
    match choose(snapshot, gateway, source, prefer, Purpose::Call, dicing) {
        Ok(Resolved::Here(found)) => Ok(found),
        Ok(Resolved::Elsewhere(workload, _)) => Err(format!(
            "{name} leads to network {:?} itself",
            &*workload.network
        )),
        Err(Failure::Unknown) => Err(format!("neither a service nor a workload is at {name}")),
        Err(Failure::Unusable(why)) => Err(why),
    }
}

enum Failure {
    Unknown,
    Unusable(String),
}

fn choose(
    snapshot: &Snapshot,
    gateway: &GatewayAddress,
    source: &Workload,
    prefer: IpAddr,
    purpose: Purpose,
    Dicing { tried, dice }: Dicing<'_>,
) -> Result<Resolved, Failure> {
    let prefer = match &gateway.destination {
        GatewayDestination::Address(address) => address.ip,
        GatewayDestination::Hostname(_) => prefer,
    };
    let found = find(snapshot, gateway, &source.namespace).ok_or(Failure::Unknown)?;
    let (workload, service, port) = match found {
        Found::Workload(workload) => (workload, None, gateway.hbone_port),
        Found::Service(service) => {
            let port = gateway.hbone_port;
            let avoided = Avoided::default().and(tried);
            let all = balance::endpoints_but(snapshot, service, port, source, purpose, &avoided);
            let candidates = all.map_err(|refusal| Failure::Unusable(refusal.detail))?;
            let chosen = balance::pick(&candidates, dice)
                .ok_or_else(|| Failure::Unusable("every endpoint has capacity 0".to_owned()))?;
            (&chosen.endpoint.workload, Some(service), chosen.port)
        }
    };
    if workload.network != source.network {
        let (workload, service) = (Arc::clone(workload), service.cloned());
        return Ok(Resolved::Elsewhere(workload, service));
    }
    let ip = choose_address(workload, service.map(|s| &**s), prefer)
        .ok_or_else(|| Failure::Unusable(format!("{} has no address", workload.display_name())))?;
    Ok(Resolved::Here(Waypoint {
        to: SocketAddr::new(ip, port),
        workload: Arc::clone(workload),
        service: service.cloned(),
    }))
}

/// What a gateway's reference leads to.
pub(crate) enum Found<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

impl<'a> Found<'a> {
    /// The workloads behind it, ready or not.
    pub(crate) fn members(&self, snapshot: &'a Snapshot) -> Vec<&'a Arc<Workload>> {
        match self {
            Self::Workload(workload) => vec![*workload],
            Self::Service(service) => {
                let all = snapshot.endpoints(&service.key);
                all.map(|endpoint| &endpoint.workload).collect()
            }
        }
    }
}

pub(crate) fn find<'a>(
    snapshot: &'a Snapshot,
    gateway: &GatewayAddress,
    client_namespace: &str,
) -> Option<Found<'a>> {
    match &gateway.destination {
        GatewayDestination::Hostname(host) => by_hostname(snapshot, host),
        GatewayDestination::Address(address) => {
            by_address(snapshot, address, Some(client_namespace))
        }
    }
}

fn by_hostname<'a>(snapshot: &'a Snapshot, host: &NamespacedHostname) -> Option<Found<'a>> {
    if let Some(service) = snapshot.service(host) {
        return Some(Found::Service(service));
    }
    snapshot
        .workloads_by_hostname(host)
        .first()
        .map(Found::Workload)
}

fn by_address<'a>(
    snapshot: &'a Snapshot,
    address: &NetworkAddress,
    client_namespace: Option<&str>,
) -> Option<Found<'a>> {
    if let Some(service) = snapshot.service_by_vip(address, client_namespace) {
        return Some(Found::Service(service));
    }
    snapshot.workload_by_address(address).map(Found::Workload)
}

/// True if `is_it` holds for one of the workloads behind a gateway, ready or not.
pub(crate) fn any_member(
    snapshot: &Snapshot,
    gateway: &GatewayAddress,
    client_namespace: &str,
    is_it: impl Fn(&Workload) -> bool,
) -> bool {
    match find(snapshot, gateway, client_namespace) {
        Some(Found::Service(service)) => snapshot
            .endpoints(&service.key)
            .any(|endpoint| is_it(&endpoint.workload)),
        Some(Found::Workload(workload)) => is_it(workload),
        None => false,
    }
}

/// True if a peer with this identity is the gateway.
pub(crate) fn has_identity(
    snapshot: &Snapshot,
    gateway: &GatewayAddress,
    client_namespace: &str,
    identity: &Identity,
) -> bool {
    let listed = match find(snapshot, gateway, client_namespace) {
        Some(Found::Service(service)) => {
            let mut names = service.subject_alt_names.iter();
            names.any(|name| snapshot.mean_one(name, identity))
        }
        _ => false,
    };
    listed
        || any_member(snapshot, gateway, client_namespace, |w| {
            snapshot.has_identity(w, identity)
        })
}

pub(crate) fn is_reserved(gateway: &GatewayAddress) -> bool {
    match &gateway.destination {
        GatewayDestination::Hostname(host) => host.hostname.ends_with(RESERVED_SUFFIX),
        GatewayDestination::Address(_) => false,
    }
}

/// `namespace/name` of a gateway in this cluster, its host name or address otherwise.
pub(crate) fn gateway_name(gateway: &GatewayAddress) -> String {
    let host: &Str = match &gateway.destination {
        GatewayDestination::Hostname(host) => &host.hostname,
        GatewayDestination::Address(address) => return address.ip.to_string(),
    };
    let suffix = format!(".svc.{CLUSTER_DOMAIN}");
    match host
        .strip_suffix(suffix.as_str())
        .and_then(|short| short.split_once('.'))
    {
        Some((name, namespace)) => format!("{namespace}/{name}"),
        None => host.to_string(),
    }
}

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_types::{CLUSTER_DOMAIN, Identity, NamespacedHostname, NetworkAddress, Reason, Str};

use crate::balance::{self, Purpose};
use crate::outbound::{Refusal, choose_address};
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
) -> Result<Waypoint, Refusal> {
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
    let missing = || {
        Refusal::new(
            Reason::WaypointMissing,
            format!(
                "{owner} uses waypoint {name}, which does not exist: create it with `isobar \
                 waypoint apply`, or remove the istio.io/use-waypoint label"
            ),
        )
    };
    let not_ready = |why: String| {
        Refusal::new(
            Reason::WaypointNotReady,
            format!("{owner} uses waypoint {name}, which is not ready: {why}"),
        )
    };
    let prefer = match &gateway.destination {
        GatewayDestination::Address(address) => address.ip,
        GatewayDestination::Hostname(_) => prefer,
    };
    match find(snapshot, gateway, source).ok_or_else(missing)? {
        Found::Service(service) => {
            let port = gateway.hbone_port;
            let candidates = balance::endpoints(snapshot, service, port, source, Purpose::Waypoint)
                .map_err(|refusal| not_ready(refusal.detail))?;
            let chosen = balance::pick(&candidates, dice)
                .ok_or_else(|| not_ready("every endpoint has capacity 0".to_owned()))?;
            let workload = &chosen.endpoint.workload;
            let ip = choose_address(workload, Some(service), prefer)
                .ok_or_else(|| not_ready(format!("{} has no address", workload.display_name())))?;
            Ok(Waypoint {
                to: SocketAddr::new(ip, chosen.port),
                workload: Arc::clone(workload),
                service: Some(Arc::clone(service)),
            })
        }
        Found::Workload(workload) => {
            let ip = choose_address(workload, None, prefer)
                .ok_or_else(|| not_ready(format!("{} has no address", workload.display_name())))?;
            Ok(Waypoint {
                to: SocketAddr::new(ip, gateway.hbone_port),
                workload: Arc::clone(workload),
                service: None,
            })
        }
    }
}

enum Found<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

fn find<'a>(
    snapshot: &'a Snapshot,
    gateway: &GatewayAddress,
    source: &Workload,
) -> Option<Found<'a>> {
    match &gateway.destination {
        GatewayDestination::Hostname(host) => by_hostname(snapshot, host),
        GatewayDestination::Address(address) => {
            by_address(snapshot, address, Some(&source.namespace))
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
    match member_set(snapshot, gateway, client_namespace) {
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
    let listed = match member_set(snapshot, gateway, client_namespace) {
        Some(Found::Service(service)) => service.subject_alt_names.contains(identity),
        _ => false,
    };
    listed
        || any_member(snapshot, gateway, client_namespace, |w| {
            w.has_identity(identity)
        })
}

fn member_set<'a>(
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

fn is_reserved(gateway: &GatewayAddress) -> bool {
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

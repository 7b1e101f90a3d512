//! What the authority of a tunnel means at the workload where it ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_types::{NetworkAddress, Reason, Str, ports};

use crate::gateway::any_member;
use crate::service::Service;
use crate::snapshot::{AddressObject, Snapshot};
use crate::workload::{GatewayAddress, Workload};

/// Parsed `:authority` of a CONNECT request: always with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// `10.0.0.1:80`, `[fd00::1]:80`.
    Address(SocketAddr),
    /// `web.default.svc.cluster.local:80`; the host in lower case.
    Host {
        /// Host name.
        host: Str,
        /// Port.
        port: u16,
    },
}

/// An authority that is neither `ADDRESS:PORT` nor `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither ADDRESS:PORT nor HOST:PORT")]
pub struct AuthorityError(pub String);

impl Authority {
    /// Reads an authority.
    ///
    /// # Errors
    /// Without a port, with port 0, with user information, or with characters no host name has.
    pub fn parse(text: &str) -> Result<Self, AuthorityError> {
        let wrong = || AuthorityError(text.chars().take(300).collect());
        if let Ok(address) = text.parse::<SocketAddr>() {
            if address.port() == 0 {
                return Err(wrong());
            }
            let ip = address.ip().to_canonical();
            return Ok(Self::Address(SocketAddr::new(ip, address.port())));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
        if !digits || port == 0 || host.is_empty() || host.len() > 253 || !host.bytes().all(good) {
            return Err(wrong());
        }
        Ok(Self::Host {
            host: host.to_ascii_lowercase().into(),
            port,
        })
    }
}

/// A CONNECT request that arrived at a local workload.
#[derive(Debug, Clone, Copy)]
pub struct InboundCall<'a> {
    /// The workload whose listener took it.
    pub workload: &'a Workload,
    /// Local address of the accepted connection.
    pub local_ip: IpAddr,
    /// Where the peer wants to go.
    pub authority: &'a Authority,
    /// Network of this node.
    pub network: &'a str,
}

/// Where the tunnel's content goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The workload's own address and the port to dial.
    pub to: SocketAddr,
    /// The application expects a PROXY protocol header first.
    pub proxy_protocol: bool,
    /// The service named by the authority.
    pub service: Option<Arc<Service>>,
}

/// A tunnel that is refused, with the status of the reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct InboundRefusal {
    /// HTTP status of the reply to CONNECT.
    pub status: u16,
    /// For metrics and logs.
    pub reason: Reason,
    /// Names what is wrong.
    pub detail: String,
}

fn refuse(status: u16, reason: Reason, detail: String) -> InboundRefusal {
    InboundRefusal {
        status,
        reason,
        detail,
    }
}

/// Validates the destination and finds the port; the address is always the local one.
///
/// # Errors
/// 400 for an address that is not this workload's business, 503 for an unknown port or host name
/// and for the mesh's own ports.
pub fn resolve(snapshot: &Snapshot, call: &InboundCall<'_>) -> Result<Target, InboundRefusal> {
    let local = call.local_ip.to_canonical();
    let (port, service) = match call.authority {
        Authority::Address(to) => {
            if !accepts_address(snapshot, call, to.ip()) {
                return Err(refuse(
                    400,
                    Reason::UnknownDestination,
                    format!(
                        "{to} is neither an address of workload {} nor something it is the \
                         waypoint of",
                        call.workload.display_name()
                    ),
                ));
            }
            (to.port(), None)
        }
        Authority::Host { host, port } => {
            let (port, service) = host_target(snapshot, call.workload, host, *port)?;
            (port, Some(service))
        }
    };
    if ports::is_reserved(port) {
        return Err(refuse(
            503,
            Reason::ReservedPort,
            format!("port {port} belongs to the mesh itself"),
        ));
    }
    let tunnel = call.workload.application_tunnel;
    Ok(Target {
        to: SocketAddr::new(local, tunnel.and_then(|t| t.port).unwrap_or(port)),
        proxy_protocol: tunnel.is_some_and(|t| t.proxy_protocol),
        service,
    })
}

fn accepts_address(snapshot: &Snapshot, call: &InboundCall<'_>, ip: IpAddr) -> bool {
    if ip.to_canonical() == call.local_ip.to_canonical() {
        return true;
    }
    // The application behind the tunnel is a proxy itself and validates.
    if call.workload.application_tunnel.is_some() {
        return true;
    }
    is_waypoint_of(snapshot, call.workload, call.local_ip, call.network, ip)
}

/// True if `workload` (owner of `local_ip`) is an endpoint of a waypoint of what is at `ip`.
#[must_use]
pub fn is_waypoint_of(
    snapshot: &Snapshot,
    workload: &Workload,
    local_ip: IpAddr,
    network: &str,
    ip: IpAddr,
) -> bool {
    let local_ip = local_ip.to_canonical();
    let mine = |gateway: &GatewayAddress| {
        any_member(snapshot, gateway, &workload.namespace, |member| {
            member.uid == workload.uid || member.addresses.contains(&local_ip)
        })
    };
    let address = NetworkAddress::new(network.into(), ip);
    match snapshot.object_at(&address, Some(&workload.namespace)) {
        Some(AddressObject::Workload(target)) => target.accepted_waypoints().any(mine),
        Some(AddressObject::Service(service)) => service.accepted_waypoints().any(mine),
        None => false,
    }
}

fn host_target(
    snapshot: &Snapshot,
    workload: &Workload,
    host: &str,
    port: u16,
) -> Result<(u16, Arc<Service>), InboundRefusal> {
    let service = snapshot
        .service_by_hostname(host, Some(&workload.namespace))
        .ok_or_else(|| {
            refuse(
                503,
                Reason::UnknownDestination,
                format!("no service has the host name {host}"),
            )
        })?;
    let mapped = snapshot
        .endpoint(&service.key, &workload.uid)
        .and_then(|endpoint| endpoint.ports.target(port))
        .filter(|target| *target != 0);
    mapped
        .or_else(|| service.ports.target(port).filter(|target| *target != 0))
        .map(|target| (target, Arc::clone(service)))
        .ok_or_else(|| {
            refuse(
                503,
                Reason::NoSuchPort,
                format!(
                    "service {}/{} has no port {port} at workload {}; its ports: {}",
                    service.key.namespace,
                    service.name,
                    workload.display_name(),
                    service.ports.listing()
                ),
            )
        })
}

#[cfg(test)]
mod tests;

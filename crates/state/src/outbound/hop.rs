//! What a decision about a captured connection says.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_types::{AddressText, Identity, Str, ports};

use crate::gateway::expected_identities;
use crate::service::Service;
use crate::workload::{TunnelProtocol, Workload};

/// Where to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextHop {
    /// The original destination, unchanged: unknown to the mesh, or a service that stands for
    /// itself.
    Passthrough(SocketAddr),
    /// Plain TCP to a workload outside the mesh.
    Direct {
        /// Address to connect to.
        to: SocketAddr,
        /// The workload.
        workload: Arc<Workload>,
        /// The service the call was for.
        service: Option<Arc<Service>>,
    },
    /// A workload known by DNS name only: resolve it, then ask [`NextHop::resolved`].
    Resolve {
        /// Name to resolve.
        hostname: Str,
        /// Port to connect to.
        port: u16,
        /// Prefer addresses of IPv6.
        prefer_v6: bool,
        /// The workload.
        workload: Arc<Workload>,
        /// The service the call was for.
        service: Option<Arc<Service>>,
    },
    /// An HBONE tunnel.
    Tunnel {
        /// Address of the tunnel's end.
        to: SocketAddr,
        /// `:authority` of the CONNECT request.
        authority: String,
        /// One of these the peer must show.
        expect: Vec<Identity>,
        /// The workload at the tunnel's end.
        workload: Arc<Workload>,
        /// The service the call was for; with a waypoint, the waypointed one.
        service: Option<Arc<Service>>,
        /// The tunnel ends at a waypoint, not at the destination.
        via_waypoint: bool,
    },
    /// A tunnel inside a tunnel, to another network: the outer one ends at the gateway of that
    /// network, which passes the inner one on, unread, to the destination or its waypoint.
    DoubleTunnel {
        /// Address of the gateway.
        to: SocketAddr,
        /// `:authority` of both CONNECT requests: host name and port of the service.
        authority: String,
        /// One of these the gateway must show.
        expect_gateway: Vec<Identity>,
        /// One of these the inner tunnel's end must show. Never the gateway's own.
        expect: Vec<Identity>,
        /// The gateway.
        gateway: Arc<Workload>,
        /// The service the call was for.
        service: Arc<Service>,
    },
}

/// The way to a workload of the caller's network whose address is known.
pub(super) fn at_address(
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    ip: IpAddr,
    port: u16,
) -> NextHop {
    let (workload_owned, service_owned) = (Arc::clone(workload), service.cloned());
    match workload.tunnel {
        TunnelProtocol::Hbone => NextHop::Tunnel {
            to: SocketAddr::new(ip, ports::HBONE),
            authority: AddressText::from(SocketAddr::new(ip, port))
                .as_str()
                .to_owned(),
            expect: expected_identities(service.map(|s| &**s), workload),
            workload: workload_owned,
            service: service_owned,
            via_waypoint: false,
        },
        TunnelProtocol::None => NextHop::Direct {
            to: SocketAddr::new(ip, port),
            workload: workload_owned,
            service: service_owned,
        },
    }
}

impl NextHop {
    /// The next hop once the host name of [`NextHop::Resolve`] is known to be at `ip`. Any other
    /// stays what it is.
    #[must_use]
    pub fn resolved(&self, ip: IpAddr) -> Self {
        match self {
            Self::Resolve {
                port,
                workload,
                service,
                ..
            } => at_address(workload, service.as_ref(), ip.to_canonical(), *port),
            other => other.clone(),
        }
    }
}

impl NextHop {
    /// The service that balancing here has chosen an endpoint of; none where a waypoint balances.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Passthrough(_)
            | Self::Tunnel {
                via_waypoint: true, ..
            } => None,
            Self::Direct { service, .. }
            | Self::Resolve { service, .. }
            | Self::Tunnel { service, .. } => service.as_ref(),
            Self::DoubleTunnel { service, .. } => Some(service),
        }
    }
}

impl NextHop {
    /// The endpoint and the service that balancing here has chosen it for. Of a service on another
    /// network only the gateway is known, which stands for many.
    #[must_use]
    pub fn chosen(&self) -> Option<(&Arc<Service>, &Arc<Workload>)> {
        match self {
            Self::Passthrough(_)
            | Self::DoubleTunnel { .. }
            | Self::Tunnel {
                via_waypoint: true, ..
            } => None,
            Self::Direct {
                service, workload, ..
            }
            | Self::Resolve {
                service, workload, ..
            }
            | Self::Tunnel {
                service, workload, ..
            } => Some((service.as_ref()?, workload)),
        }
    }
}

impl NextHop {
    /// What a connection is made to: for an endpoint on another network, of which nothing is known, the
    /// gateway's pod. None where that is no endpoint among others.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Tunnel {
                via_waypoint: true,
                workload,
                ..
            }
            | Self::DoubleTunnel {
                gateway: workload, ..
            } => Some(workload),
            other => other.chosen().map(|(_, workload)| workload),
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passthrough(to) => write!(f, "passthrough to {to}"),
            Self::Direct { to, workload, .. } => {
                write!(f, "plain TCP to {} at {to}", workload.display_name())
            }
            Self::DoubleTunnel {
                to,
                authority,
                gateway,
                ..
            } => {
                let name = gateway.display_name();
                write!(
                    f,
                    "double HBONE through gateway {name} at {to} for {authority}"
                )
            }
            Self::Resolve { hostname, port, .. } => write!(f, "resolve {hostname} for port {port}"),
            Self::Tunnel {
                to,
                authority,
                workload,
                via_waypoint,
                ..
            } => {
                let kind = if *via_waypoint { "waypoint " } else { "" };
                let name = workload.display_name();
                write!(f, "HBONE to {kind}{name} at {to} for {authority}")
            }
        }
    }
}

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use isobar_types::{Identity, NamespacedHostname, NetworkAddress, Str};

use crate::workload::{GatewayAddress, PortMap, Workload};

/// A host name with ports. Made by [`crate::convert::service`] from `istio.workload.Service`.
/// Its endpoints are in the snapshot: [`crate::Snapshot::endpoints`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Name of the object.
    pub name: Str,
    /// Key: namespace and full host name.
    pub key: NamespacedHostname,
    /// Virtual addresses.
    pub vips: Vec<NetworkAddress>,
    /// Virtual address ranges, each in its network.
    pub cidr_vips: Vec<(Str, IpNet)>,
    /// Service port to target port.
    pub ports: PortMap,
    /// Declared protocols by service port; ports that declare none are left out.
    pub protocols: Vec<(u16, AppProtocol)>,
    /// Identities accepted besides those of the endpoints.
    pub subject_alt_names: Vec<Identity>,
    /// Waypoint that traffic to the service has to pass.
    pub waypoint: Option<GatewayAddress>,
    /// Several waypoints with shares; where the total is positive they replace `waypoint`.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Waypoints that traffic may come through besides those, while a binding changes.
    pub also_waypoints: Vec<GatewayAddress>,
    /// How endpoints are chosen; `None`: all equal.
    pub load_balancing: Option<LoadBalancing>,
    /// Address families of the service.
    pub ip_families: IpFamilies,
    /// True for the owner of a host name that several objects claim.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

/// The protocol a service port declares (`appProtocol`, or the port's name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque TCP.
    Tcp,
    /// TLS that nobody on the way may end.
    Tls,
}

impl Service {
    /// Every waypoint that traffic to the service may come through.
    pub fn accepted_waypoints(&self) -> impl Iterator<Item = &GatewayAddress> {
        let weighted = self.weighted_waypoints.iter().map(|w| &w.destination);
        self.waypoint
            .iter()
            .chain(weighted)
            .chain(&self.also_waypoints)
    }

    /// What the port declares; `None` where it has to be found out.
    #[must_use]
    pub fn protocol(&self, port: u16) -> Option<AppProtocol> {
        self.protocols
            .iter()
            .find_map(|(declared, protocol)| (*declared == port).then_some(*protocol))
    }

    /// True for a service that stands for itself: calls go to the original destination.
    #[must_use]
    pub fn is_passthrough(&self) -> bool {
        self.mode() == BalanceMode::Passthrough
    }

    pub(crate) fn mode(&self) -> BalanceMode {
        self.load_balancing
            .as_ref()
            .map_or(BalanceMode::Standard, |lb| lb.mode)
    }

    pub(crate) fn health_policy(&self) -> HealthPolicy {
        self.load_balancing
            .as_ref()
            .map_or(HealthPolicy::OnlyHealthy, |lb| lb.health_policy)
    }

    /// True if clients in `namespace` may see the service; an unknown client sees public ones only.
    #[must_use]
    pub fn visible_from(&self, namespace: Option<&str>) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => namespace == Some(&*self.key.namespace),
        }
    }
}

/// One waypoint of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// Which.
    pub destination: GatewayAddress,
    /// Share, relative to the sum of all.
    pub weight: u32,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancing {
    /// Closeness to prefer, the most important first.
    pub routing_preference: Vec<RoutingScope>,
    /// How binding the preference is.
    pub mode: BalanceMode,
    /// Whether unready endpoints take traffic.
    pub health_policy: HealthPolicy,
}

/// One kind of closeness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoutingScope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// How binding a routing preference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BalanceMode {
    /// Not at all: all endpoints are equal.
    Standard,
    /// Only endpoints that match every entry.
    Strict,
    /// The best match there is.
    Failover,
    /// No balancing: the original destination.
    Passthrough,
}

/// Whether unready endpoints take traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HealthPolicy {
    /// No.
    OnlyHealthy,
    /// Yes (`publishNotReadyAddresses`).
    AllowAll,
}

/// Address families of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpFamilies {
    /// Whatever endpoints have.
    Automatic,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// True if an endpoint address of that family may be used.
    #[must_use]
    pub const fn allows(self, ip: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }
}

/// Who may see a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// Everybody.
    Public,
    /// Clients in its namespace.
    Namespace,
}

/// A workload as endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload as of this snapshot.
    pub workload: Arc<Workload>,
    /// Where it listens for the service's ports; a port may be missing.
    pub ports: PortMap,
}

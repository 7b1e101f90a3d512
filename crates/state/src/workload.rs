use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use isobar_types::{Identity, NamespacedHostname, NamespacedName, NetworkAddress, Str};

/// One workload as every proxy sees it: a pod, a `WorkloadEntry`, or an aggregate of a remote
/// network. Made by [`crate::convert::workload`] from `istio.workload.Workload`. What it has in
/// common with its like is read as if it were its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Key of the resource, unique in the mesh; `CLUSTER//Pod/NAMESPACE/NAME` for pods.
    pub uid: Str,
    /// Name of the pod or entry.
    pub name: Ending,
    /// Node the workload runs on; empty outside Kubernetes.
    pub node: Str,
    /// Addresses, the preferred one first, canonical; may be empty.
    pub addresses: Few<IpAddr>,
    /// The workload is ready to take traffic.
    pub healthy: bool,
    /// What it has in common with other pods of its owner.
    pub profile: Arc<Profile>,
}

/// What pods of one owner have in common: stored once for all of them, as most of a mesh's memory
/// would be copies of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Kubernetes namespace.
    pub namespace: Str,
    /// Service account; never empty.
    pub service_account: Str,
    /// Trust domain; never empty.
    pub trust_domain: Str,
    /// DNS name to resolve where there is no address; empty otherwise.
    pub hostname: Str,
    /// Network the addresses are valid in.
    pub network: Str,
    /// Whether the addresses are those of the host and shared with others.
    pub network_mode: NetworkMode,
    /// Cluster; never empty.
    pub cluster_id: Str,
    /// How peers reach it.
    pub tunnel: TunnelProtocol,
    /// The workload terminates HBONE itself (waypoints, gateways).
    pub native_tunnel: bool,
    /// What the workload wants behind its end of a tunnel.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Waypoint that traffic to the workload's own addresses has to pass.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints that traffic may come through besides that, while a binding changes.
    pub also_waypoints: Vec<GatewayAddress>,
    /// Traffic may come past the waypoint too, while a binding ends.
    pub also_direct: bool,
    /// Gateway to cross where the workload is on another network.
    pub network_gateway: Option<GatewayAddress>,
    /// Value of the label of the same meaning, for telemetry.
    pub canonical_name: Str,
    /// Value of the label of the same meaning, for telemetry.
    pub canonical_revision: Str,
    /// Kind of the owner, for telemetry.
    pub workload_type: WorkloadType,
    /// Name of the owner, for telemetry.
    pub workload_name: Str,
    /// Policies that select this workload.
    pub authorization_policies: Vec<NamespacedName>,
    /// Services this workload is an endpoint of, and where it listens for them.
    pub services: ServicePorts,
    /// Where it runs.
    pub locality: Locality,
    /// Relative share of traffic; 0 takes none.
    pub capacity: u32,
}

impl Deref for Workload {
    type Target = Profile;

    fn deref(&self) -> &Profile {
        &self.profile
    }
}

impl Profile {
    /// Every waypoint of its own that traffic may come through.
    pub fn accepted_waypoints(&self) -> impl Iterator<Item = &GatewayAddress> {
        self.waypoint.iter().chain(&self.also_waypoints)
    }
}

/// A text that mostly is the end of another one, as the name of a pod is of its uid, and then is not
/// stored once more.
#[derive(Clone)]
pub struct Ending {
    of: Str,
    /// Where it begins, in bytes.
    from: u32,
}

impl Ending {
    /// `text`, as the end of `of` if it is that.
    #[must_use]
    pub fn of(of: &Str, text: &str) -> Self {
        let from = of
            .strip_suffix(text)
            .map(|before| u32::try_from(before.len()));
        match from {
            Some(Ok(from)) => Self {
                of: Str::clone(of),
                from,
            },
            _ => Str::from(text).into(),
        }
    }
}

impl From<Str> for Ending {
    fn from(of: Str) -> Self {
        Self { of, from: 0 }
    }
}

impl Deref for Ending {
    type Target = str;

    fn deref(&self) -> &str {
        self.of.get(self.from as usize..).unwrap_or_default()
    }
}

impl PartialEq for Ending {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Ending {}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// A list that mostly has one item, which then lies in it.
#[derive(Clone, PartialEq, Eq)]
pub enum Few<T> {
    /// One item.
    One(T),
    /// None or several.
    Many(Arc<[T]>),
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Many(items) => items,
        }
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(mut items: Vec<T>) -> Self {
        match items.pop() {
            Some(item) if items.is_empty() => Self::One(item),
            Some(item) => {
                items.push(item);
                Self::Many(items.into())
            }
            None => Self::Many(items.into()),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Few<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Services by key, ascending, with the ports of a workload for each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ServicePorts(Box<[(NamespacedHostname, PortMap)]>);

impl ServicePorts {
    /// All services with their ports.
    pub fn iter(&self) -> impl Iterator<Item = (&NamespacedHostname, &PortMap)> {
        self.0.iter().map(|(key, ports)| (key, ports))
    }

    /// The services.
    pub fn keys(&self) -> impl Iterator<Item = &NamespacedHostname> {
        self.0.iter().map(|(key, _)| key)
    }

    /// True without any service.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(NamespacedHostname, PortMap)> for ServicePorts {
    /// The last of several entries for one service counts.
    fn from_iter<I: IntoIterator<Item = (NamespacedHostname, PortMap)>>(services: I) -> Self {
        let map: BTreeMap<_, _> = services.into_iter().collect();
        Self(map.into_iter().collect())
    }
}

impl Workload {
    /// The SPIFFE identity the workload's certificate carries.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// Address look-up keys: none for workloads on the host's network, whose address is not theirs.
    pub fn network_addresses(&self) -> impl Iterator<Item = NetworkAddress> + '_ {
        self.addresses_in(NetworkMode::Standard)
    }

    /// Addresses of the host, for workloads on its network; of others none.
    pub fn host_addresses(&self) -> impl Iterator<Item = NetworkAddress> + '_ {
        self.addresses_in(NetworkMode::HostNetwork)
    }

    fn addresses_in(&self, mode: NetworkMode) -> impl Iterator<Item = NetworkAddress> + '_ {
        let indexed = self.network_mode == mode;
        self.addresses
            .iter()
            .filter(move |_| indexed)
            .map(|ip| NetworkAddress::new(self.network.clone(), *ip))
    }

    /// `namespace/name`, as messages name workloads.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Service port to target port, ascending by service port. Target 0: only endpoints know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PortMap(Arc<[(u16, u16)]>);

impl PortMap {
    /// The target of `service_port`; `None` if the port is not there.
    #[must_use]
    pub fn target(&self, service_port: u16) -> Option<u16> {
        let at = self.0.binary_search_by_key(&service_port, |p| p.0).ok()?;
        self.0.get(at).map(|p| p.1)
    }

    /// All pairs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.0.iter().copied()
    }

    /// True without any port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The service ports, for messages: `80, 443`; `none` if empty.
    #[must_use]
    pub fn listing(&self) -> String {
        if self.0.is_empty() {
            return "none".to_owned();
        }
        let ports: Vec<_> = self.0.iter().map(|p| p.0.to_string()).collect();
        ports.join(", ")
    }
}

impl FromIterator<(u16, u16)> for PortMap {
    /// The last of several entries for one service port counts.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ports: I) -> Self {
        let map: BTreeMap<u16, u16> = ports.into_iter().collect();
        Self(map.into_iter().collect())
    }
}

/// How a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// Plain TCP.
    None,
    /// HTTP/2 CONNECT over mutual TLS on port 15008.
    Hbone,
}

/// Whose addresses a workload's are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// Its own.
    Standard,
    /// The node's, shared with whatever else runs there: not usable as a key.
    HostNetwork,
}

/// Kind of a workload's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkloadType {
    /// A Deployment (and everything unknown).
    Deployment,
    /// A `CronJob`.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    /// Lower-case name, as in telemetry.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// What comes out of the tunnel at the workload's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// The connection starts with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Port that replaces the one asked for.
    pub port: Option<u16>,
}

/// Where a workload runs; empty strings are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region.
    pub region: Str,
    /// Zone in the region.
    pub zone: Str,
    /// Subzone in the zone.
    pub subzone: Str,
}

/// A reference to a waypoint or network gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// Who it is.
    pub destination: GatewayDestination,
    /// Its HBONE port.
    pub hbone_port: u16,
}

/// How a gateway is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// A service, or a workload with that host name.
    Hostname(NamespacedHostname),
    /// An address of a service or workload.
    Address(NetworkAddress),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(host) => host.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.destination, self.hbone_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_not_stored_once_more() {
        let uid = Str::from("Kubernetes//Pod/ns/web-1");
        let name = Ending::of(&uid, "web-1");
        assert_eq!((&*name, Str::strong_count(&uid)), ("web-1", 2));
        assert_eq!(name, Ending::from(Str::from("web-1")));
        for other in ["", "web", "x/ns/web-1"] {
            assert_eq!(&*Ending::of(&uid, other), other);
        }
        assert_eq!(format!("{name} {name:?}"), "web-1 \"web-1\"");
    }
}

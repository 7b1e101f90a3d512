use std::collections::BTreeMap;

use isobar_proto::istio::workload as wire;
use serde::{Deserialize, Serialize};

use super::{LocalError, address, bad};

type Ports = BTreeMap<u16, u16>;

/// One workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Workload {
    /// Its key; required.
    pub uid: String,
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account; `default` if empty.
    pub service_account: String,
    /// Trust domain; the usual one if empty.
    pub trust_domain: String,
    /// Network of its addresses.
    pub network: String,
    /// Node it runs on.
    pub node: String,
    /// Addresses.
    pub workload_ips: Vec<String>,
    /// Name to resolve where there is no address.
    pub hostname: String,
    /// How it is reached.
    pub protocol: Protocol,
    /// Whether it shares the node's addresses.
    pub network_mode: NetworkMode,
    /// Name of the owner.
    pub workload_name: String,
    /// Kind of the owner: deployment, cronjob, pod or job.
    pub workload_type: String,
    /// Canonical name.
    pub canonical_name: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// Whether it speaks HBONE itself.
    pub native_tunnel: bool,
    /// Delivery to another port, with or without a PROXY header.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Waypoint of the workload.
    pub waypoint: Option<Gateway>,
    /// Gateway of its network.
    pub network_gateway: Option<Gateway>,
    /// Keys of the policies bound to it.
    pub authorization_policies: Vec<String>,
    /// Whether it takes traffic.
    pub status: Status,
    /// Cluster id.
    pub cluster_id: String,
    /// Where it runs.
    pub locality: Locality,
    /// Weight in balancing; 1 if absent.
    pub capacity: Option<u32>,
    /// Services it backs, by `namespace/host`: service port to its own port.
    pub services: BTreeMap<String, Ports>,
}

/// One service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Service {
    /// Name of the object.
    pub name: String,
    /// Kubernetes namespace; required.
    pub namespace: String,
    /// Host name; required.
    pub hostname: String,
    /// Addresses, `network/ip`.
    pub vips: Vec<String>,
    /// Service port to target port.
    pub ports: Ports,
    /// Identities endpoints may also have.
    pub subject_alt_names: Vec<String>,
    /// Waypoint of the service.
    pub waypoint: Option<Gateway>,
    /// Waypoints that share its traffic.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How endpoints are chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Address families offered.
    pub ip_families: Option<IpFamilies>,
    /// Whether it is the one of its name that others mean.
    pub canonical: bool,
    /// Who may know it.
    pub visibility: Visibility,
}

/// A waypoint or network gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Gateway {
    /// `network/ip` or `namespace/host`.
    pub destination: String,
    /// Its HBONE port.
    pub hbone_mtls_port: u16,
}

/// One of several waypoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedWaypoint {
    /// Which.
    pub destination: Gateway,
    /// Share, relative to the sum.
    pub weight: u32,
}

/// Delivery to another port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationTunnel {
    /// With a PROXY header or without.
    pub protocol: TunnelHeader,
    /// The port; that of the request if absent.
    pub port: Option<u16>,
}

/// Where something runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Part of the zone.
    pub subzone: String,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// What to prefer, most important first.
    pub routing_preferences: Vec<Scope>,
    /// What the preference means.
    pub mode: Mode,
    /// Whether unhealthy endpoints count.
    pub health_policy: HealthPolicy,
}

macro_rules! words {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $wire:path {
            $first:ident = $first_text:literal => $first_to:ident,
            $($word:ident = $text:literal => $to:ident,)+
        }
    )+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "each is the word of the dump")]
        pub enum $name {
            #[default]
            #[serde(rename = $first_text)]
            $first,
            $(#[serde(rename = $text)] $word,)+
        }

        impl $name {
            fn wire(self) -> i32 {
                match self {
                    Self::$first => <$wire>::$first_to.into(),
                    $(Self::$word => <$wire>::$to.into(),)+
                }
            }
        }
    )+};
}

words! {
    /// How a workload is reached.
    Protocol: wire::TunnelProtocol { Tcp = "TCP" => None, Hbone = "HBONE" => Hbone, }
    /// Whether a workload shares the node's addresses.
    NetworkMode: wire::NetworkMode { Standard = "Standard" => Standard, Host = "HostNetwork" => HostNetwork, }
    /// Whether a workload takes traffic.
    Status: wire::WorkloadStatus { Healthy = "Healthy" => Healthy, Unhealthy = "Unhealthy" => Unhealthy, }
    /// With a PROXY header or without.
    TunnelHeader: wire::application_tunnel::Protocol { Plain = "NONE" => None, Proxy = "PROXY" => Proxy, }
    /// Who may know a service.
    Visibility: wire::service::Visibility { Public = "Public" => Public, Namespace = "Namespace" => Namespace, }
    /// Address families of a service.
    IpFamilies: wire::IpFamilies { Dual = "Dual" => Dual, V4 = "IPv4" => Ipv4Only, V6 = "IPv6" => Ipv6Only, }
    /// What a routing preference means.
    Mode: wire::load_balancing::Mode {
        Standard = "Standard" => UnspecifiedMode, Strict = "Strict" => Strict,
        Failover = "Failover" => Failover, Passthrough = "Passthrough" => Passthrough,
    }
    /// Whether unhealthy endpoints count.
    HealthPolicy: wire::load_balancing::HealthPolicy {
        OnlyHealthy = "OnlyHealthy" => OnlyHealthy, AllowAll = "AllowAll" => AllowAll,
    }
    /// What endpoints may have in common with the caller.
    Scope: wire::load_balancing::Scope {
        Region = "Region" => Region, Zone = "Zone" => Zone, Subzone = "Subzone" => Subzone,
        Node = "Node" => Node, Cluster = "Cluster" => Cluster, Network = "Network" => Network,
    }
}

impl Workload {
    pub(super) fn wire(&self, object: &str) -> Result<wire::Address, LocalError> {
        let optional = |gateway: &Option<Gateway>| {
            let gateway = gateway.as_ref();
            gateway.map(|g| g.wire(object)).transpose()
        };
        let services = self.services.iter();
        let workload = wire::Workload {
            uid: self.uid.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            trust_domain: self.trust_domain.clone(),
            network: self.network.clone(),
            node: self.node.clone(),
            addresses: self
                .workload_ips
                .iter()
                .map(|text| address(object, "workloadIps", text))
                .collect::<Result<_, _>>()?,
            hostname: self.hostname.clone(),
            tunnel_protocol: self.protocol.wire(),
            network_mode: self.network_mode.wire(),
            workload_name: self.workload_name.clone(),
            workload_type: self.kind(object)?.into(),
            canonical_name: self.canonical_name.clone(),
            canonical_revision: self.canonical_revision.clone(),
            native_tunnel: self.native_tunnel,
            application_tunnel: self.application_tunnel.as_ref().map(|tunnel| {
                wire::ApplicationTunnel {
                    protocol: tunnel.protocol.wire(),
                    port: tunnel.port.unwrap_or(0).into(),
                }
            }),
            waypoint: optional(&self.waypoint)?,
            network_gateway: optional(&self.network_gateway)?,
            authorization_policies: self.authorization_policies.clone(),
            status: self.status.wire(),
            cluster_id: self.cluster_id.clone(),
            locality: Some(wire::Locality {
                region: self.locality.region.clone(),
                zone: self.locality.zone.clone(),
                subzone: self.locality.subzone.clone(),
            }),
            capacity: self.capacity,
            services: services
                .map(|(key, map)| (key.clone(), wire::PortList { ports: ports(map) }))
                .collect(),
            ..wire::Workload::default()
        };
        Ok(wire::Address {
            r#type: Some(wire::address::Type::Workload(workload)),
        })
    }

    fn kind(&self, object: &str) -> Result<wire::WorkloadType, LocalError> {
        match self.workload_type.as_str() {
            "" | "deployment" => Ok(wire::WorkloadType::Deployment),
            "cronjob" => Ok(wire::WorkloadType::Cronjob),
            "pod" => Ok(wire::WorkloadType::Pod),
            "job" => Ok(wire::WorkloadType::Job),
            other => Err(bad(
                object,
                "workloadType",
                other,
                "deployment, cronjob, pod or job",
            )),
        }
    }
}

impl Service {
    pub(super) fn wire(&self, object: &str) -> Result<wire::Address, LocalError> {
        let waypoints = self.weighted_waypoints.iter();
        let service = wire::Service {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
            addresses: self
                .vips
                .iter()
                .map(|text| network_address(object, "vips", text))
                .collect::<Result<_, _>>()?,
            ports: ports(&self.ports),
            subject_alt_names: self.subject_alt_names.clone(),
            waypoint: self.waypoint.as_ref().map(|g| g.wire(object)).transpose()?,
            weighted_waypoints: waypoints
                .map(|w| {
                    Ok(wire::WeightedWaypoint {
                        destination: Some(w.destination.wire(object)?),
                        weight: w.weight,
                    })
                })
                .collect::<Result<_, LocalError>>()?,
            load_balancing: self.load_balancer.as_ref().map(|lb| wire::LoadBalancing {
                routing_preference: lb.routing_preferences.iter().map(|s| s.wire()).collect(),
                mode: lb.mode.wire(),
                health_policy: lb.health_policy.wire(),
            }),
            ip_families: self.ip_families.map_or(0, IpFamilies::wire),
            canonical: self.canonical,
            visibility: self.visibility.wire(),
            ..wire::Service::default()
        };
        Ok(wire::Address {
            r#type: Some(wire::address::Type::Service(service)),
        })
    }
}

impl Gateway {
    fn wire(&self, object: &str) -> Result<wire::GatewayAddress, LocalError> {
        use wire::gateway_address::Destination;
        let destination = match network_address(object, "destination", &self.destination) {
            Ok(address) => Destination::Address(address),
            Err(error) => match self.destination.split_once('/') {
                Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() => {
                    Destination::Hostname(wire::NamespacedHostname {
                        namespace: namespace.to_owned(),
                        hostname: hostname.to_owned(),
                    })
                }
                _ => return Err(error),
            },
        };
        Ok(wire::GatewayAddress {
            destination: Some(destination),
            hbone_mtls_port: self.hbone_mtls_port.into(),
        })
    }
}

/// `network/ip`; the network may be empty.
fn network_address(
    object: &str,
    field: &'static str,
    text: &str,
) -> Result<wire::NetworkAddress, LocalError> {
    let (network, ip) = text
        .split_once('/')
        .ok_or_else(|| bad(object, field, text, "network/address"))?;
    Ok(wire::NetworkAddress {
        network: network.to_owned(),
        address: address(object, field, ip)?,
        length: None,
    })
}

fn ports(map: &Ports) -> Vec<wire::Port> {
    let pairs = map.iter();
    pairs
        .map(|(service, target)| wire::Port {
            service_port: (*service).into(),
            target_port: (*target).into(),
            ..wire::Port::default()
        })
        .collect()
}

use std::collections::BTreeMap;
use std::net::IpAddr;

use isobar_proto::istio::workload as wire;
use isobar_types::{
    DEFAULT_CLUSTER_ID, DEFAULT_TRUST_DOMAIN, NamespacedHostname, NamespacedName, NetworkAddress,
};

use super::fields::{
    gateway, hostname_key, ip, known, namespace, net, or_default, own, port, required,
};
use super::{ConvertError, Interner};
use crate::service::{
    AppProtocol, BalanceMode, HealthPolicy, IpFamilies, LoadBalancing, RoutingScope, Service,
    Visibility, WeightedWaypoint,
};
use crate::workload::{
    ApplicationTunnel, Ending, Locality, NetworkMode, PortMap, Profile, ServicePorts,
    TunnelProtocol, Workload, WorkloadType,
};

/// Account of a workload whose `service_account` is empty.
const DEFAULT_ACCOUNT: &str = "default";

/// Converts a workload.
///
/// # Errors
/// When a field cannot be understood.
pub fn workload(w: &wire::Workload, interner: &mut Interner) -> Result<Workload, ConvertError> {
    let optional_gateway = |field: &str, value: &Option<wire::GatewayAddress>, i: &mut Interner| {
        value.as_ref().map(|g| gateway(field, g, i)).transpose()
    };
    let profile = Profile {
        namespace: interner.intern(&w.namespace),
        service_account: or_default(&w.service_account, DEFAULT_ACCOUNT, interner),
        trust_domain: or_default(&w.trust_domain, DEFAULT_TRUST_DOMAIN, interner),
        hostname: interner.intern(&w.hostname),
        network: interner.intern(&w.network),
        network_mode: match known("network_mode", w.network_mode)? {
            wire::NetworkMode::Standard => NetworkMode::Standard,
            wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        cluster_id: or_default(&w.cluster_id, DEFAULT_CLUSTER_ID, interner),
        tunnel: tunnel_protocol(w.tunnel_protocol)?,
        native_tunnel: w.native_tunnel,
        application_tunnel: w
            .application_tunnel
            .as_ref()
            .map(application_tunnel)
            .transpose()?,
        waypoint: optional_gateway("waypoint", &w.waypoint, interner)?,
        also_waypoints: also_waypoints(&w.also_waypoints, interner)?,
        also_direct: w.also_direct,
        network_gateway: optional_gateway("network_gateway", &w.network_gateway, interner)?,
        canonical_name: interner.intern(&w.canonical_name),
        canonical_revision: interner.intern(&w.canonical_revision),
        workload_type: workload_type(w.workload_type),
        workload_name: interner.intern(&w.workload_name),
        authorization_policies: w
            .authorization_policies
            .iter()
            .enumerate()
            .map(|(at, key)| policy_key(&format!("authorization_policies[{at}]"), key, interner))
            .collect::<Result<_, _>>()?,
        services: services(&w.services, interner)?,
        locality: w
            .locality
            .as_ref()
            .map_or_else(Locality::default, |l| Locality {
                region: interner.intern(&l.region),
                zone: interner.intern(&l.zone),
                subzone: interner.intern(&l.subzone),
            }),
        // Absent is not zero: an explicit zero takes no traffic.
        capacity: w.capacity.unwrap_or(1),
    };
    let uid = own("uid", &w.uid)?;
    Ok(Workload {
        name: Ending::of(&uid, &w.name),
        uid,
        node: interner.intern(&w.node),
        addresses: addresses(&w.addresses)?.into(),
        healthy: match known("status", w.status)? {
            wire::WorkloadStatus::Healthy => true,
            wire::WorkloadStatus::Unhealthy => false,
        },
        profile: interner.share(profile),
    })
}

/// In the order given, each once.
fn addresses(list: &[Vec<u8>]) -> Result<Vec<IpAddr>, ConvertError> {
    let mut all = Vec::with_capacity(list.len());
    for (at, bytes) in list.iter().enumerate() {
        let ip = ip(&format!("addresses[{at}]"), bytes)?;
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    Ok(all)
}

/// Converts a service; listed identities that are none are left out with a warning, since leaving
/// one out can only refuse more.
///
/// # Errors
/// When a field cannot be understood.
pub fn service(
    s: &wire::Service,
    interner: &mut Interner,
    warnings: &mut Vec<String>,
) -> Result<Service, ConvertError> {
    let key = NamespacedHostname {
        namespace: namespace(&s.namespace, interner)?,
        hostname: required("hostname", &s.hostname, interner)?,
    };
    let mut vips = Vec::new();
    let mut cidr_vips = Vec::new();
    for (at, address) in s.addresses.iter().enumerate() {
        let field = format!("addresses[{at}]");
        let network = interner.intern(&address.network);
        let bits = u32::try_from(address.address.len() * 8).unwrap_or(u32::MAX);
        match address.length {
            Some(length) if length != bits => {
                cidr_vips.push((network, net(&field, &address.address, length)?));
            }
            _ => vips.push(NetworkAddress::new(network, ip(&field, &address.address)?)),
        }
    }
    // A key twice in the wire list must not be twice in the index.
    vips.sort();
    vips.dedup();
    cidr_vips.sort();
    cidr_vips.dedup();
    Ok(Service {
        name: interner.intern(&s.name),
        vips,
        cidr_vips,
        ports: port_map("ports", &s.ports)?,
        protocols: s.ports.iter().filter_map(declared_protocol).collect(),
        subject_alt_names: identities(&key, &s.subject_alt_names, warnings),
        waypoint: s
            .waypoint
            .as_ref()
            .map(|g| gateway("waypoint", g, interner))
            .transpose()?,
        weighted_waypoints: s
            .weighted_waypoints
            .iter()
            .enumerate()
            .map(|(at, w)| weighted_waypoint(&format!("weighted_waypoints[{at}]"), w, interner))
            .collect::<Result<_, _>>()?,
        also_waypoints: also_waypoints(&s.also_waypoints, interner)?,
        load_balancing: s.load_balancing.as_ref().map(load_balancing).transpose()?,
        ip_families: match known("ip_families", s.ip_families)? {
            wire::IpFamilies::Automatic => IpFamilies::Automatic,
            wire::IpFamilies::Ipv4Only => IpFamilies::V4,
            wire::IpFamilies::Ipv6Only => IpFamilies::V6,
            wire::IpFamilies::Dual => IpFamilies::Dual,
        },
        canonical: s.canonical,
        visibility: match wire::service::Visibility::try_from(s.visibility) {
            Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
            Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
        },
        key,
    })
}

/// An unknown value is treated as undeclared: the protocol is then found out from the first bytes.
fn declared_protocol(port: &wire::Port) -> Option<(u16, AppProtocol)> {
    let protocol = match wire::AppProtocol::try_from(port.app_protocol) {
        Ok(wire::AppProtocol::Http11) => AppProtocol::Http1,
        Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
        Ok(wire::AppProtocol::Unknown) | Err(_) => return None,
    };
    Some((u16::try_from(port.service_port).ok()?, protocol))
}

fn identities(
    key: &NamespacedHostname,
    names: &[String],
    warnings: &mut Vec<String>,
) -> Vec<isobar_types::Identity> {
    let mut identities = Vec::with_capacity(names.len());
    for name in names {
        match name.parse() {
            Ok(identity) => identities.push(identity),
            Err(error) => warnings.push(format!("{key}: subject_alt_names: {error}")),
        }
    }
    identities
}

fn weighted_waypoint(
    field: &str,
    w: &wire::WeightedWaypoint,
    interner: &mut Interner,
) -> Result<WeightedWaypoint, ConvertError> {
    let destination = w
        .destination
        .as_ref()
        .ok_or_else(|| ConvertError::Missing {
            field: format!("{field}.destination"),
        })?;
    Ok(WeightedWaypoint {
        destination: gateway(&format!("{field}.destination"), destination, interner)?,
        weight: w.weight,
    })
}

fn also_waypoints(
    all: &[wire::GatewayAddress],
    interner: &mut Interner,
) -> Result<Vec<crate::workload::GatewayAddress>, ConvertError> {
    let all = all.iter().enumerate();
    all.map(|(at, one)| gateway(&format!("also_waypoints[{at}]"), one, interner))
        .collect()
}

fn load_balancing(lb: &wire::LoadBalancing) -> Result<LoadBalancing, ConvertError> {
    use wire::load_balancing as lb_wire;
    let scopes = lb.routing_preference.iter().enumerate().map(|(at, scope)| {
        let field = format!("load_balancing.routing_preference[{at}]");
        Ok(match known(&field, *scope)? {
            lb_wire::Scope::Region => RoutingScope::Region,
            lb_wire::Scope::Zone => RoutingScope::Zone,
            lb_wire::Scope::Subzone => RoutingScope::Subzone,
            lb_wire::Scope::Node => RoutingScope::Node,
            lb_wire::Scope::Cluster => RoutingScope::Cluster,
            lb_wire::Scope::Network => RoutingScope::Network,
            lb_wire::Scope::UnspecifiedScope => {
                return Err(ConvertError::Unsupported {
                    field,
                    value: "UNSPECIFIED_SCOPE",
                });
            }
        })
    });
    Ok(LoadBalancing {
        routing_preference: scopes.collect::<Result<_, _>>()?,
        mode: match known("load_balancing.mode", lb.mode)? {
            lb_wire::Mode::UnspecifiedMode => BalanceMode::Standard,
            lb_wire::Mode::Strict => BalanceMode::Strict,
            lb_wire::Mode::Failover => BalanceMode::Failover,
            lb_wire::Mode::Passthrough => BalanceMode::Passthrough,
        },
        health_policy: match known("load_balancing.health_policy", lb.health_policy)? {
            lb_wire::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            lb_wire::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, ConvertError> {
    match known("tunnel_protocol", value)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::None),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => Err(ConvertError::Unsupported {
            field: "tunnel_protocol".to_owned(),
            value: "LEGACY_ISTIO_MTLS",
        }),
    }
}

fn application_tunnel(t: &wire::ApplicationTunnel) -> Result<ApplicationTunnel, ConvertError> {
    use wire::application_tunnel::Protocol;
    let port = port("application_tunnel.port", t.port)?;
    Ok(ApplicationTunnel {
        proxy_protocol: match known("application_tunnel.protocol", t.protocol)? {
            Protocol::None => false,
            Protocol::Proxy => true,
        },
        port: (port != 0).then_some(port),
    })
}

/// Only telemetry looks at it, so an unknown kind is no reason to reject a workload.
fn workload_type(value: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(wire::WorkloadType::Pod) => WorkloadType::Pod,
        Ok(wire::WorkloadType::Job) => WorkloadType::Job,
        Ok(wire::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
    }
}

fn services(
    services: &BTreeMap<String, wire::PortList>,
    interner: &mut Interner,
) -> Result<ServicePorts, ConvertError> {
    services
        .iter()
        .map(|(key, list)| {
            let ports = port_map(&format!("services[{key:?}].ports"), &list.ports)?;
            Ok((hostname_key("services", key, interner)?, ports))
        })
        .collect()
}

fn port_map(field: &str, ports: &[wire::Port]) -> Result<PortMap, ConvertError> {
    ports
        .iter()
        .enumerate()
        .map(|(at, p)| {
            Ok((
                port(&format!("{field}[{at}].service_port"), p.service_port)?,
                port(&format!("{field}[{at}].target_port"), p.target_port)?,
            ))
        })
        .collect()
}

fn policy_key(
    field: &str,
    key: &str,
    interner: &mut Interner,
) -> Result<NamespacedName, ConvertError> {
    let parsed = NamespacedName::parse(key).ok_or_else(|| ConvertError::Key {
        field: field.to_owned(),
        key: key.to_owned(),
    })?;
    Ok(NamespacedName {
        namespace: interner.intern(&parsed.namespace),
        name: interner.intern(&parsed.name),
    })
}

//! Back to wire messages: what is in force, as a control plane would have sent it. Converting the
//! message again gives an equal object; fields this crate has no use for are gone.

use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::IpNet;
use isobar::outbound_policy::Kind;
use isobar_proto::isobar::v1 as isobar;
use isobar_proto::istio::{security, workload as wire};
use isobar_types::{NamespacedHostname, NetworkAddress};

use crate::outlier::OutlierRule;
use crate::policy::{
    Action, Authorization, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, TextMatch,
};
use crate::service::{
    AppProtocol, BalanceMode, HealthPolicy, IpFamilies, LoadBalancing, RoutingScope, Service,
    Visibility, WeightedWaypoint,
};
use crate::snapshot::Snapshot;
use crate::workload::{
    ApplicationTunnel, GatewayAddress, GatewayDestination, Locality, NetworkMode, PortMap,
    TunnelProtocol, Workload, WorkloadType,
};

/// The message of a workload.
#[must_use]
pub fn address_of_workload(w: &Workload) -> wire::Address {
    wire::Address {
        r#type: Some(wire::address::Type::Workload(workload(w))),
    }
}

/// The message of a service.
#[must_use]
pub fn address_of_service(s: &Service) -> wire::Address {
    wire::Address {
        r#type: Some(wire::address::Type::Service(service(s))),
    }
}

fn workload(w: &Workload) -> wire::Workload {
    wire::Workload {
        uid: w.uid.to_string(),
        name: w.name.to_string(),
        namespace: w.namespace.to_string(),
        service_account: w.service_account.to_string(),
        trust_domain: w.trust_domain.to_string(),
        node: w.node.to_string(),
        addresses: w.addresses.iter().copied().map(bytes).collect(),
        hostname: w.hostname.to_string(),
        network: w.network.to_string(),
        network_mode: match w.network_mode {
            NetworkMode::Standard => wire::NetworkMode::Standard,
            NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        }
        .into(),
        cluster_id: w.cluster_id.to_string(),
        tunnel_protocol: match w.tunnel {
            TunnelProtocol::None => wire::TunnelProtocol::None,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        native_tunnel: w.native_tunnel,
        application_tunnel: w.application_tunnel.map(application_tunnel),
        waypoint: w.waypoint.as_ref().map(gateway),
        also_waypoints: w.also_waypoints.iter().map(gateway).collect(),
        also_direct: w.also_direct,
        network_gateway: w.network_gateway.as_ref().map(gateway),
        canonical_name: w.canonical_name.to_string(),
        canonical_revision: w.canonical_revision.to_string(),
        workload_type: match w.workload_type {
            WorkloadType::Deployment => wire::WorkloadType::Deployment,
            WorkloadType::CronJob => wire::WorkloadType::Cronjob,
            WorkloadType::Pod => wire::WorkloadType::Pod,
            WorkloadType::Job => wire::WorkloadType::Job,
        }
        .into(),
        workload_name: w.workload_name.to_string(),
        authorization_policies: w
            .authorization_policies
            .iter()
            .map(ToString::to_string)
            .collect(),
        status: if w.healthy {
            wire::WorkloadStatus::Healthy
        } else {
            wire::WorkloadStatus::Unhealthy
        }
        .into(),
        services: w
            .services
            .iter()
            .map(|(key, map)| (key.to_string(), wire::PortList { ports: ports(map) }))
            .collect(),
        locality: locality(&w.locality),
        capacity: Some(w.capacity),
        ..Default::default()
    }
}

fn service(s: &Service) -> wire::Service {
    let exact = s.vips.iter().map(network_address);
    let ranges = s.cidr_vips.iter().map(|(network, range)| {
        let (address, length) = range_parts(range);
        wire::NetworkAddress {
            network: network.to_string(),
            address,
            length: Some(length),
        }
    });
    let mut ports = ports(&s.ports);
    for port in &mut ports {
        let declared = u16::try_from(port.service_port).ok();
        port.app_protocol = declared.and_then(|p| s.protocol(p)).map_or(0, app_protocol);
    }
    wire::Service {
        name: s.name.to_string(),
        namespace: s.key.namespace.to_string(),
        hostname: s.key.hostname.to_string(),
        addresses: exact.chain(ranges).collect(),
        ports,
        subject_alt_names: s
            .subject_alt_names
            .iter()
            .map(ToString::to_string)
            .collect(),
        waypoint: s.waypoint.as_ref().map(gateway),
        weighted_waypoints: s.weighted_waypoints.iter().map(weighted).collect(),
        also_waypoints: s.also_waypoints.iter().map(gateway).collect(),
        load_balancing: s.load_balancing.as_ref().map(load_balancing),
        ip_families: match s.ip_families {
            IpFamilies::Automatic => wire::IpFamilies::Automatic,
            IpFamilies::V4 => wire::IpFamilies::Ipv4Only,
            IpFamilies::V6 => wire::IpFamilies::Ipv6Only,
            IpFamilies::Dual => wire::IpFamilies::Dual,
        }
        .into(),
        canonical: s.canonical,
        visibility: match s.visibility {
            Visibility::Public => wire::service::Visibility::Public,
            Visibility::Namespace => wire::service::Visibility::Namespace,
        }
        .into(),
        ..Default::default()
    }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A range of full length keeps its length too: without one it would be an address.
fn range_parts(range: &IpNet) -> (Vec<u8>, u32) {
    (bytes(range.addr()), u32::from(range.prefix_len()))
}

fn network_address(address: &NetworkAddress) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: address.network.to_string(),
        address: bytes(address.ip),
        length: None,
    }
}

fn application_tunnel(t: ApplicationTunnel) -> wire::ApplicationTunnel {
    use wire::application_tunnel::Protocol;
    wire::ApplicationTunnel {
        protocol: if t.proxy_protocol {
            Protocol::Proxy
        } else {
            Protocol::None
        }
        .into(),
        port: u32::from(t.port.unwrap_or(0)),
    }
}

fn locality(l: &Locality) -> Option<wire::Locality> {
    (*l != Locality::default()).then(|| wire::Locality {
        region: l.region.to_string(),
        zone: l.zone.to_string(),
        subzone: l.subzone.to_string(),
    })
}

fn gateway(g: &GatewayAddress) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    wire::GatewayAddress {
        destination: Some(match &g.destination {
            GatewayDestination::Hostname(NamespacedHostname {
                namespace,
                hostname,
            }) => Destination::Hostname(wire::NamespacedHostname {
                namespace: namespace.to_string(),
                hostname: hostname.to_string(),
            }),
            GatewayDestination::Address(address) => Destination::Address(network_address(address)),
        }),
        hbone_mtls_port: u32::from(g.hbone_port),
    }
}

fn weighted(w: &WeightedWaypoint) -> wire::WeightedWaypoint {
    wire::WeightedWaypoint {
        destination: Some(gateway(&w.destination)),
        weight: w.weight,
    }
}

fn ports(map: &PortMap) -> Vec<wire::Port> {
    map.iter()
        .map(|(service_port, target_port)| wire::Port {
            service_port: u32::from(service_port),
            target_port: u32::from(target_port),
            app_protocol: 0,
        })
        .collect()
}

fn app_protocol(protocol: AppProtocol) -> i32 {
    match protocol {
        AppProtocol::Http1 => wire::AppProtocol::Http11,
        AppProtocol::Http2 => wire::AppProtocol::Http2,
        AppProtocol::Grpc => wire::AppProtocol::Grpc,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::Tls => wire::AppProtocol::Tls,
    }
    .into()
}

fn load_balancing(lb: &LoadBalancing) -> wire::LoadBalancing {
    use wire::load_balancing as to;
    let scope = |scope: &RoutingScope| match scope {
        RoutingScope::Region => to::Scope::Region,
        RoutingScope::Zone => to::Scope::Zone,
        RoutingScope::Subzone => to::Scope::Subzone,
        RoutingScope::Node => to::Scope::Node,
        RoutingScope::Cluster => to::Scope::Cluster,
        RoutingScope::Network => to::Scope::Network,
    };
    wire::LoadBalancing {
        routing_preference: lb
            .routing_preference
            .iter()
            .map(|s| scope(s).into())
            .collect(),
        mode: match lb.mode {
            BalanceMode::Standard => to::Mode::UnspecifiedMode,
            BalanceMode::Strict => to::Mode::Strict,
            BalanceMode::Failover => to::Mode::Failover,
            BalanceMode::Passthrough => to::Mode::Passthrough,
        }
        .into(),
        health_policy: match lb.health_policy {
            HealthPolicy::OnlyHealthy => to::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => to::HealthPolicy::AllowAll,
        }
        .into(),
    }
}

/// The messages of all outbound policies.
#[must_use]
pub fn outbound_policies(snapshot: &Snapshot) -> Vec<isobar::OutboundPolicy> {
    let all = &snapshot.outbound;
    let egress = all.registry_only.iter().map(|(namespace, only)| {
        Kind::Egress(isobar::Egress {
            namespace: namespace.to_string(),
            registry_only: *only,
        })
    });
    let limits = all.limits.iter().map(|(service, limits)| {
        // A time too long for the wire is none in practice.
        let timeout = limits.connect_timeout.and_then(|t| t.try_into().ok());
        Kind::Limits(isobar::ConnectionLimits {
            namespace: service.namespace.to_string(),
            hostname: service.hostname.to_string(),
            max_connections: limits.max_connections.map_or(0, NonZeroU32::get),
            connect_timeout: timeout,
            outliers: limits.outliers.as_ref().map(outliers),
        })
    });
    let trust = (!all.trust.is_empty()).then(|| {
        let domains = all.trust.iter().map(ToString::to_string).collect();
        Kind::Trust(isobar::Trust { domains })
    });
    let message = |kind| isobar::OutboundPolicy { kind: Some(kind) };
    egress.chain(limits).chain(trust).map(message).collect()
}

fn outliers(rule: &OutlierRule) -> isobar::connection_limits::Outliers {
    isobar::connection_limits::Outliers {
        failures: rule.failures.get(),
        interval: rule.interval.try_into().ok(),
        base_ejection: rule.base_ejection.try_into().ok(),
        max_ejected_percent: rule.max_ejected_percent,
        min_healthy_percent: rule.min_healthy_percent,
    }
}

/// The message of a policy.
#[must_use]
pub fn authorization(a: &Authorization) -> security::Authorization {
    security::Authorization {
        name: a.key.name.to_string(),
        namespace: a.key.namespace.to_string(),
        scope: match a.scope {
            PolicyScope::Global => security::Scope::Global,
            PolicyScope::Namespace => security::Scope::Namespace,
            PolicyScope::WorkloadSelector => security::Scope::WorkloadSelector,
        }
        .into(),
        action: match a.action {
            Action::Allow => security::Action::Allow,
            Action::Deny => security::Action::Deny,
        }
        .into(),
        rules: a.rules.iter().map(rule).collect(),
        dry_run: a.dry_run,
        ..Default::default()
    }
}

fn rule(rule: &Rule) -> security::Rule {
    let clause = |clause: &Clause| security::Clause {
        matches: clause.matches.iter().map(match_of).collect(),
    };
    security::Rule {
        clauses: rule.clauses.iter().map(clause).collect(),
    }
}

fn match_of(m: &Match) -> security::Match {
    let ports = |list: &[u16]| list.iter().map(|p| u32::from(*p)).collect();
    security::Match {
        namespaces: texts(&m.namespaces),
        not_namespaces: texts(&m.not_namespaces),
        principals: texts(&m.principals),
        not_principals: texts(&m.not_principals),
        source_ips: ranges(&m.source_ips),
        not_source_ips: ranges(&m.not_source_ips),
        destination_ips: ranges(&m.destination_ips),
        not_destination_ips: ranges(&m.not_destination_ips),
        destination_ports: ports(&m.destination_ports),
        not_destination_ports: ports(&m.not_destination_ports),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
        ..Default::default()
    }
}

fn texts(list: &[TextMatch]) -> Vec<security::StringMatch> {
    use security::string_match::MatchType;
    let one = |text: &TextMatch| security::StringMatch {
        match_type: Some(match text {
            TextMatch::Exact(text) => MatchType::Exact(text.to_string()),
            TextMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
            TextMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
            TextMatch::Presence => MatchType::Presence(()),
        }),
    };
    list.iter().map(one).collect()
}

fn ranges(list: &[IpNet]) -> Vec<security::Address> {
    let one = |range: &IpNet| {
        let (address, length) = range_parts(range);
        security::Address { address, length }
    };
    list.iter().map(one).collect()
}

fn accounts(list: &[ServiceAccountMatch]) -> Vec<security::ServiceAccountMatch> {
    let one = |account: &ServiceAccountMatch| security::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.service_account.to_string(),
    };
    list.iter().map(one).collect()
}

#[cfg(test)]
mod tests;

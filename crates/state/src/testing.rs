//! Short ways to write a mesh down in tests.

use std::net::{IpAddr, SocketAddr};

use isobar_proto::istio::security as sec;
use isobar_proto::istio::workload as wire;

use crate::{Peer, Snapshot};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn bytes(text: &str) -> Vec<u8> {
    match ip(text) {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A healthy HBONE pod on `node-1` that runs as account NAME.
pub(crate) fn pod(namespace: &str, name: &str, address: &str) -> wire::Workload {
    wire::Workload {
        uid: uid(namespace, name),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
        node: "node-1".to_owned(),
        addresses: vec![bytes(address)],
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        ..Default::default()
    }
}

pub(crate) fn uid(namespace: &str, name: &str) -> String {
    format!("Kubernetes//Pod/{namespace}/{name}")
}

pub(crate) fn host(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}.svc.cluster.local")
}

/// Makes the pod an endpoint of a service with the given port pairs.
pub(crate) fn serves(
    mut pod: wire::Workload,
    namespace: &str,
    name: &str,
    ports: &[(u32, u32)],
) -> wire::Workload {
    let key = format!("{namespace}/{}", host(namespace, name));
    pod.services.insert(
        key,
        wire::PortList {
            ports: port_list(ports),
        },
    );
    pod
}

pub(crate) fn port_list(ports: &[(u32, u32)]) -> Vec<wire::Port> {
    ports
        .iter()
        .map(|(service_port, target_port)| wire::Port {
            service_port: *service_port,
            target_port: *target_port,
            app_protocol: 0,
        })
        .collect()
}

/// A canonical service.
pub(crate) fn service(
    namespace: &str,
    name: &str,
    vip: &str,
    ports: &[(u32, u32)],
) -> wire::Service {
    wire::Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        hostname: host(namespace, name),
        addresses: vec![wire::NetworkAddress {
            address: bytes(vip),
            ..Default::default()
        }],
        ports: port_list(ports),
        canonical: true,
        ..Default::default()
    }
}

pub(crate) fn gateway(namespace: &str, hostname: &str) -> Option<wire::GatewayAddress> {
    use wire::gateway_address::Destination;
    Some(wire::GatewayAddress {
        destination: Some(Destination::Hostname(wire::NamespacedHostname {
            namespace: namespace.to_owned(),
            hostname: hostname.to_owned(),
        })),
        hbone_mtls_port: 15008,
    })
}

pub(crate) fn waypoint(namespace: &str, name: &str) -> Option<wire::GatewayAddress> {
    gateway(namespace, &host(namespace, name))
}

/// The waypoint NAME with one pod at `address`.
pub(crate) fn waypoint_objects(
    namespace: &str,
    name: &str,
    vip: &str,
    address: &str,
) -> Vec<wire::Address> {
    let pod = pod(namespace, name, address);
    let pod = serves(pod, namespace, name, &[(15008, 15008)]);
    vec![
        of_service(service(namespace, name, vip, &[(15008, 15008)])),
        of_workload(wire::Workload {
            native_tunnel: true,
            ..pod
        }),
    ]
}

pub(crate) fn of_workload(w: wire::Workload) -> wire::Address {
    wire::Address {
        r#type: Some(wire::address::Type::Workload(w)),
    }
}

pub(crate) fn of_service(s: wire::Service) -> wire::Address {
    wire::Address {
        r#type: Some(wire::address::Type::Service(s)),
    }
}

pub(crate) fn mesh(addresses: &[wire::Address]) -> Snapshot {
    with_policies(addresses, &[])
}

pub(crate) fn with_policies(
    addresses: &[wire::Address],
    policies: &[sec::Authorization],
) -> Snapshot {
    let mut draft = Snapshot::default().draft();
    for address in addresses {
        draft.upsert_address(address).unwrap();
    }
    for policy in policies {
        draft.upsert_authorization(policy).unwrap();
    }
    draft.finish()
}

/// A peer that runs as NAMESPACE/ACCOUNT; `None` for plaintext.
pub(crate) fn peer(account: Option<(&str, &str)>, address: &str) -> Peer {
    Peer {
        identity: account.map(|(ns, sa)| isobar_types::Identity::new("cluster.local", ns, sa)),
        ip: ip(address),
    }
}

pub(crate) fn exact(text: &str) -> sec::StringMatch {
    use sec::string_match::MatchType;
    sec::StringMatch {
        match_type: Some(MatchType::Exact(text.to_owned())),
    }
}

pub(crate) fn presence() -> sec::StringMatch {
    sec::StringMatch {
        match_type: Some(sec::string_match::MatchType::Presence(())),
    }
}

/// A policy with one rule whose clauses have one match each.
pub(crate) fn policy(
    namespace: &str,
    name: &str,
    scope: sec::Scope,
    action: sec::Action,
    clauses: Vec<sec::Match>,
) -> sec::Authorization {
    let clauses = clauses
        .into_iter()
        .map(|m| sec::Clause { matches: vec![m] })
        .collect();
    sec::Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules: vec![sec::Rule { clauses }],
        ..Default::default()
    }
}

//! A made-up mesh of any size: ten pods to a service, twenty services to a namespace.

use std::net::{IpAddr, Ipv4Addr};

use isobar_proto::istio::workload::{
    Address, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, WorkloadType,
    address::Type,
};
use isobar_state::{Snapshot, Traversal};

const PODS_OF_A_SERVICE: u32 = 10;
const SERVICES_OF_A_NAMESPACE: u32 = 20;

/// Every service and pod, as a control plane tells of them.
pub(crate) fn addresses(pods: u32) -> Vec<Address> {
    let services = (0..pods.div_ceil(PODS_OF_A_SERVICE)).map(service);
    services.chain((0..pods).map(pod)).collect()
}

/// The same, known.
pub(crate) fn snapshot(pods: u32) -> Snapshot {
    let mut draft = Snapshot::empty(Traversal::Required).draft();
    for address in addresses(pods) {
        draft.upsert_address(&address).expect("made to be right");
    }
    draft.finish()
}

pub(crate) fn pod_ip(pod: u32) -> IpAddr {
    Ipv4Addr::from(0x0b00_0000 + pod).into()
}

pub(crate) fn service_ip(service: u32) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + service).into()
}

pub(crate) fn namespace(service: u32) -> String {
    format!("ns-{}", service / SERVICES_OF_A_NAMESPACE)
}

fn hostname(service: u32) -> String {
    format!("svc-{service}.{}.svc.cluster.local", namespace(service))
}

fn service(n: u32) -> Address {
    let IpAddr::V4(address) = service_ip(n) else {
        unreachable!("made from a V4 address")
    };
    let service = Service {
        name: format!("svc-{n}"),
        namespace: namespace(n),
        hostname: hostname(n),
        addresses: vec![NetworkAddress {
            address: address.octets().to_vec(),
            ..Default::default()
        }],
        ports: vec![port()],
        canonical: true,
        ..Default::default()
    };
    Address {
        r#type: Some(Type::Service(service)),
    }
}

fn port() -> Port {
    Port {
        service_port: 80,
        target_port: 8080,
        ..Default::default()
    }
}

fn pod(n: u32) -> Address {
    let service = n / PODS_OF_A_SERVICE;
    let IpAddr::V4(address) = pod_ip(n) else {
        unreachable!("made from a V4 address")
    };
    let name = format!("svc-{service}-7c9f8d6b5-{n:06}");
    let ports = PortList {
        ports: vec![port()],
    };
    let workload = Workload {
        uid: format!("Kubernetes//Pod/{}/{name}", namespace(service)),
        addresses: vec![address.octets().to_vec()],
        namespace: namespace(service),
        service_account: format!("svc-{service}"),
        node: format!("worker-{}", n % 500),
        canonical_name: format!("svc-{service}"),
        canonical_revision: "v1".to_owned(),
        workload_type: WorkloadType::Deployment.into(),
        workload_name: format!("svc-{service}"),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        cluster_id: "Kubernetes".to_owned(),
        services: [(
            format!("{}/{}", namespace(service), hostname(service)),
            ports,
        )]
        .into(),
        name,
        ..Default::default()
    };
    Address {
        r#type: Some(Type::Workload(workload)),
    }
}

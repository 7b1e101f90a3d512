//! A mesh in memory for unit tests: this waypoint, the service `svc` that uses it, and pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::{security, workload as wire};
use isobar_route::{Draft, Tables, TrafficRules};
use isobar_runtime::LocalScope;
use isobar_state::{Service, Workload};
use isobar_types::{Identity, NamespacedHostname};

use crate::names::Names;
use crate::world::{Own, View, World};

pub(crate) const HOST: &str = "svc.default.svc.cluster.local";
pub(crate) const VIP: &str = "10.96.0.1:8080";
pub(crate) const WAYPOINT: &str = "wp.default.svc.cluster.local";

pub(crate) struct Mesh {
    pub(crate) world: World,
}

impl Mesh {
    /// The waypoint knows itself, and `svc` uses it; there are no pods.
    pub(crate) fn new() -> Self {
        let own = Own {
            identity: Identity::new("cluster.local", "default", "wp"),
            pod: "wp-1".into(),
            ip: IpAddr::from([10, 0, 0, 250]),
            network: "".into(),
            cluster_id: "Kubernetes".into(),
        };
        let world = World {
            names: Names::new(Vec::new(), false),
            ..World::new(own)
        };
        let mesh = Self { world };
        mesh.describe(|_| {});
        mesh.service(service());
        mesh
    }

    /// Tells the waypoint who it is.
    pub(crate) fn describe(&self, change: impl FnOnce(&mut proto::Waypoint)) {
        let mut own = proto::Waypoint {
            namespace: "default".into(),
            name: "wp".into(),
            traffic: proto::waypoint::Traffic::All.into(),
            hostname: WAYPOINT.into(),
            ..proto::Waypoint::default()
        };
        change(&mut own);
        self.tables(|tables| tables.set_waypoint(&own).unwrap());
    }

    pub(crate) fn tables(&self, change: impl FnOnce(&mut Draft)) {
        let mut draft = self.world.feed.load().draft();
        change(&mut draft);
        self.world.feed.publish(draft.finish());
    }

    pub(crate) fn labelled(&self, uid: &str, key: &str, value: &str) {
        self.tables(|tables| {
            tables.upsert_labels(&proto::WorkloadLabels {
                uid: uid.into(),
                labels: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            });
        });
    }

    pub(crate) fn service(&self, service: wire::Service) {
        self.put(vec![wire::address::Type::Service(service)]);
    }

    pub(crate) fn pods(&self, pods: impl IntoIterator<Item = wire::Workload>) {
        let pods = pods.into_iter().map(wire::address::Type::Workload);
        self.put(pods.collect());
    }

    /// A policy of node proxies.
    pub(crate) fn policy(&self, policy: &security::Authorization) {
        let mut draft = self.world.store.load().draft();
        draft.upsert_authorization(policy).unwrap();
        self.world.store.publish(draft.finish());
    }

    fn put(&self, all: Vec<wire::address::Type>) {
        let mut draft = self.world.store.load().draft();
        for one in all {
            let address = wire::Address { r#type: Some(one) };
            draft.upsert_address(&address).unwrap();
        }
        self.world.store.publish(draft.finish());
    }

    /// Takes a pod by its name or a service by `namespace/host` away.
    pub(crate) fn remove(&self, name: &str) {
        let mut draft = self.world.store.load().draft();
        assert!(draft.remove_address(name), "there is no {name}");
        self.world.store.publish(draft.finish());
    }

    pub(crate) fn view(&self) -> View {
        self.world.view()
    }

    pub(crate) fn known_service(&self, host: &str) -> Arc<Service> {
        let key = NamespacedHostname {
            namespace: "default".into(),
            hostname: host.into(),
        };
        self.view().snapshot.service(&key).unwrap().clone()
    }

    pub(crate) fn known_pod(&self, uid: &str) -> Arc<Workload> {
        self.view().snapshot.workload_by_uid(uid).unwrap().clone()
    }
}

/// The service `svc` with the ports 8080, as pods have it, and 8443, which is 9443 in them.
pub(crate) fn service() -> wire::Service {
    wire::Service {
        name: "svc".into(),
        namespace: "default".into(),
        hostname: HOST.into(),
        addresses: vec![on_network("", "10.96.0.1")],
        ports: vec![port(8080, 0), port(8443, 9443)],
        waypoint: Some(by_name(WAYPOINT)),
        ..Default::default()
    }
}

pub(crate) fn port(service_port: u32, target_port: u32) -> wire::Port {
    wire::Port {
        service_port,
        target_port,
        app_protocol: 0,
    }
}

pub(crate) fn on_network(network: &str, ip: &str) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: network.into(),
        address: bytes(ip),
        length: None,
    }
}

pub(crate) fn bytes(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A gateway of namespace default by its host name.
pub(crate) fn by_name(host: &str) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    let name = wire::NamespacedHostname {
        namespace: "default".into(),
        hostname: host.into(),
    };
    wire::GatewayAddress {
        destination: Some(Destination::Hostname(name)),
        hbone_mtls_port: 15008,
    }
}

/// A gateway by an address.
pub(crate) fn by_address(network: &str, ip: &str) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    wire::GatewayAddress {
        destination: Some(Destination::Address(on_network(network, ip))),
        hbone_mtls_port: 15008,
    }
}

/// A pod of the service, of account `server`, whose uid is its name. It listens on the service's ports.
pub(crate) fn pod(name: &str, ip: &str) -> wire::Workload {
    let ports = wire::PortList {
        ports: vec![port(8080, 8080), port(8443, 9443)],
    };
    wire::Workload {
        services: BTreeMap::from([(format!("default/{HOST}"), ports)]),
        ..stranger(name, ip)
    }
}

/// A pod of no service.
pub(crate) fn stranger(name: &str, ip: &str) -> wire::Workload {
    wire::Workload {
        uid: name.into(),
        name: name.into(),
        namespace: "default".into(),
        service_account: "server".into(),
        node: "node-1".into(),
        addresses: vec![bytes(ip)],
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        ..Default::default()
    }
}

/// The pods of these names, at 10.0.1.1 and so on.
pub(crate) fn pods(names: &[&str]) -> Vec<wire::Workload> {
    let numbered = names.iter().zip(1..);
    numbered
        .map(|(name, n)| pod(name, &format!("10.0.1.{n}")))
        .collect()
}

pub(crate) fn in_locality(
    pod: wire::Workload,
    region: &str,
    zone: &str,
    subzone: &str,
) -> wire::Workload {
    wire::Workload {
        locality: Some(wire::Locality {
            region: region.into(),
            zone: zone.into(),
            subzone: subzone.into(),
        }),
        ..pod
    }
}

pub(crate) fn service_ref() -> proto::ServiceRef {
    proto::ServiceRef {
        namespace: "default".into(),
        hostname: HOST.into(),
    }
}

/// A rule for the service.
pub(crate) fn rule(policy: proto::TrafficPolicy) -> proto::DestinationRule {
    proto::DestinationRule {
        namespace: "default".into(),
        name: "rule".into(),
        services: vec![service_ref()],
        traffic_policy: Some(policy),
        ..Default::default()
    }
}

/// What a rule means for the service's port 8080.
pub(crate) fn rules(policy: proto::TrafficPolicy) -> Arc<TrafficRules> {
    let mut draft = Tables::default().draft();
    draft.upsert_destination_rule(&rule(policy)).unwrap();
    let key = NamespacedHostname {
        namespace: "default".into(),
        hostname: HOST.into(),
    };
    draft.finish().traffic(&key, None, 8080).clone()
}

/// A rule that says how an endpoint is chosen, and nothing else.
pub(crate) fn balanced(by: proto::traffic_policy::LoadBalancer) -> Arc<TrafficRules> {
    rules(proto::TrafficPolicy {
        load_balancer: by.into(),
        ..Default::default()
    })
}

/// Runs hyper's tasks on this thread.
#[derive(Clone)]
pub(crate) struct LocalExecutor(pub(crate) Rc<LocalScope>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        self.0.spawn("h2", future);
    }
}

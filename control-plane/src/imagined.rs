use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use isobar_objects::enrolment::{EnrolmentRules, decide};
use isobar_objects::{Object, ObjectHead as _, ObjectSet, Origin, Pod, Service, pods_of, uid_from};
use isobar_types::labels;
use k8s_openapi::api::core::v1::{PodCondition, PodIP, PodSpec, PodStatus, ServiceSpec};

use crate::controller::{WaypointPods, waypoint_objects};
use crate::model::{KeptKeys, plan};
use crate::told::settings;

/// Nodes that pods are spread over where nothing says on which one they run.
const NODES: [&str; 2] = ["node-1", "node-2"];

/// The objects of a cluster in which everything that `objects` ask for runs: a pod for every replica,
/// ready, with an address, and redirected if it is enrolled; a waypoint for every Gateway that is one;
/// an address for every Service. What is already there stays as it is. Nothing runs: for tools that
/// are asked about files.
#[must_use]
pub fn imagined(objects: &ObjectSet) -> ObjectSet {
    let mut set = objects.clone();
    let pods = WaypointPods {
        image: "isobar/waypoint".to_owned(),
        control_plane: None,
        ..WaypointPods::default()
    };
    for facts in plan(&set, &settings(), &KeptKeys::default()).gateways {
        for object in waypoint_objects(&set, &facts, &pods) {
            set.insert(object, Origin::nowhere());
        }
    }
    let mut addresses = Addresses::of(&set);
    let services: Vec<Service> = set.services.iter().map(|s| s.object.clone()).collect();
    for service in services
        .into_iter()
        .filter_map(|s| addressed(s, &mut addresses))
    {
        set.insert(Object::from(service), Origin::nowhere());
    }
    let mut pods: Vec<Pod> = set.pods.iter().map(|held| held.object.clone()).collect();
    for deployment in set.deployments.iter() {
        let wanted = pods_of(&deployment.object).into_iter();
        pods.extend(wanted.filter(|pod| set.pods.get(pod.namespace(), pod.name()).is_none()));
    }
    for (number, pod) in pods.into_iter().enumerate() {
        let pod = running(&set, pod, number, &mut addresses);
        set.insert(Object::from(pod), Origin::nowhere());
    }
    set
}

/// The service with an address, if it lacks one that it should have.
fn addressed(mut service: Service, addresses: &mut Addresses) -> Option<Service> {
    let spec = service.spec.get_or_insert_with(ServiceSpec::default);
    let wants = spec.type_.as_deref() != Some("ExternalName")
        && spec.cluster_ip.as_deref().is_none_or(str::is_empty);
    if !wants {
        return None;
    }
    let address = addresses.next([10, 96])?;
    spec.cluster_ip = Some(address.clone());
    spec.cluster_ips = Some(vec![address]);
    Some(service)
}

/// The pod as a kubelet and a node agent would leave it.
fn running(set: &ObjectSet, mut pod: Pod, number: usize, addresses: &mut Addresses) -> Pod {
    if pod.uid().is_empty() {
        pod.metadata.uid = Some(uid_from(&["Pod", pod.namespace(), pod.name()]));
    }
    let node = NODES[number % NODES.len()];
    let spec = pod.spec.get_or_insert_with(PodSpec::default);
    spec.node_name.get_or_insert_with(|| node.to_owned());
    let status = pod.status.get_or_insert_with(PodStatus::default);
    if status.pod_ip.is_none()
        && let Some(ip) = addresses.next([10, 244])
    {
        status.pod_ips = Some(vec![PodIP { ip: ip.clone() }]);
        status.pod_ip = Some(ip);
        status.phase = Some("Running".to_owned());
        status
            .conditions
            .get_or_insert_default()
            .push(PodCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                ..PodCondition::default()
            });
    }
    let namespace = set.namespaces.get("", pod.namespace());
    let enrolled = decide(
        &pod,
        namespace.map(|held| &held.object),
        &EnrolmentRules::default(),
    );
    if enrolled.is_enrolled() {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(labels::REDIRECTION.to_owned(), "enabled".to_owned());
    }
    pod
}

/// Addresses that nobody has.
struct Addresses {
    taken: BTreeSet<String>,
    next: u16,
}

impl Addresses {
    fn of(set: &ObjectSet) -> Self {
        let services = set.services.iter();
        let services = services.filter_map(|s| s.object.spec.as_ref()?.cluster_ip.clone());
        let pods = set.pods.iter();
        let pods = pods.filter_map(|p| p.object.status.as_ref()?.pod_ip.clone());
        Self {
            taken: services.chain(pods).collect(),
            // Leaves room for what clusters give to themselves.
            next: 1024,
        }
    }

    /// `None` when the network is full.
    fn next(&mut self, network: [u8; 2]) -> Option<String> {
        loop {
            let [third, fourth] = self.next.to_be_bytes();
            self.next = self.next.checked_add(1)?;
            let address = Ipv4Addr::new(network[0], network[1], third, fourth).to_string();
            let usable = fourth != 0 && fourth != 255;
            if usable && self.taken.insert(address.clone()) {
                return Some(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::golden_tests::objects;
    use crate::told::told;
    use isobar_proto::istio::workload;

    #[test]
    fn what_the_files_ask_for_runs() {
        let files = objects(
            "apiVersion: v1\nkind: Namespace\n\
             metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}}\n\
             ---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {name: wp, namespace: shop}\n\
             spec: {gatewayClassName: isobar-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
             spec: {selector: {app: cart}, ports: [{port: 80}]}\n\
             ---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: cart, namespace: shop}\n\
             spec: {replicas: 3, selector: {matchLabels: {app: cart}}, template: {metadata: {labels: {app: cart}}, spec: {containers: [{name: c, image: i}]}}}\n",
        );
        let told = told(&imagined(&files));
        let mut carts = 0;
        let mut services = Vec::new();
        for address in told.addresses {
            match address.r#type.unwrap() {
                workload::address::Type::Workload(w) if w.name.starts_with("cart-") => {
                    assert_eq!(w.tunnel_protocol, workload::TunnelProtocol::Hbone as i32);
                    assert_eq!(w.status, workload::WorkloadStatus::Healthy as i32);
                    assert_eq!(w.addresses.len(), 1);
                    carts += 1;
                }
                workload::address::Type::Service(s) => {
                    services.push((s.name, s.waypoint.is_some()))
                }
                workload::address::Type::Workload(_) => {}
            }
        }
        services.sort();
        assert_eq!(carts, 3);
        assert_eq!(
            services,
            [("cart".to_owned(), true), ("wp".to_owned(), false)]
        );
        assert!(told.waypoints.contains_key("shop/wp"));
    }
}

//! Endpoints of Services without a selector, which somebody writes into EndpointSlices: pods by name,
//! and addresses that are no pod.
//!
//! Slices of Services with a selector say what the selector says already, and are not read at all.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use isobar_objects::{EndpointSlice, ObjectHead as _, ObjectSet, Service};
use isobar_proto::istio::workload as wire;
use isobar_types::NamespacedName;
use k8s_openapi::api::core::v1::ServicePort;

use super::pods::PodFacts;
use super::room;
use super::services::{ServicePlan, app_protocol, octets};
use super::settings::Settings;
use super::workloads::{Memberships, WorkloadPlan};

/// Label with the name of the Service that a slice is of.
const SERVICE: &str = "kubernetes.io/service-name";

/// A slice with the Service it is of.
struct Sliced<'a> {
    slice: &'a EndpointSlice,
    object: &'a Service,
    plan: &'a ServicePlan,
    /// TCP ports of the slice, by the name that they have in the Service.
    ports: Vec<wire::Port>,
}

/// Ports of a Service by name.
type Offered<'a> = HashMap<&'a str, &'a ServicePort>;

/// What the endpoints in slices list of their Service, in bytes.
pub(super) fn listed(set: &ObjectSet, services: &[ServicePlan]) -> BTreeMap<NamespacedName, usize> {
    let mut all: BTreeMap<NamespacedName, usize> = BTreeMap::new();
    for one in sliced(set, services) {
        let (key, host) = (&one.plan.key, &one.plan.wire.hostname);
        let of_one = room::bytes(&key.namespace, host, one.ports.len());
        let bytes = all.entry(key.clone()).or_default();
        *bytes = bytes.saturating_add(of_one.saturating_mul(one.slice.endpoints.len()));
    }
    all
}

/// True if a slice of the namespace names pods: a pod then decides about more than itself.
pub(crate) fn name_pods(set: &ObjectSet, namespace: &str) -> bool {
    set.endpoint_slices.in_namespace(namespace).any(|slice| {
        let mut endpoints = slice.endpoints.iter();
        endpoints.any(|endpoint| endpoint.target_ref.is_some())
    })
}

/// Adds pods to the Services whose slices name them: by name, and by uid where one is said.
pub(crate) fn join(
    set: &ObjectSet,
    services: &[ServicePlan],
    pods: &[PodFacts<'_>],
    memberships: &mut Memberships,
) {
    let of_services = sliced(set, services);
    if of_services.is_empty() {
        return;
    }
    let by_name: BTreeMap<(&str, &str), &PodFacts<'_>> = pods
        .iter()
        .map(|pod| ((&*pod.key.namespace, &*pod.key.name), pod))
        .collect();
    for one in of_services {
        for endpoint in one.slice.endpoints.iter() {
            let Some(target) = endpoint.target_ref.as_ref() else {
                continue;
            };
            let namespace = one.slice.namespace();
            let is_near = target
                .namespace
                .as_deref()
                .is_none_or(|other| other == namespace);
            let name = target.name.as_deref().unwrap_or_default();
            let Some(pod) = by_name.get(&(namespace, name)).filter(|_| is_near) else {
                continue;
            };
            let is_same = target.uid.as_deref().is_none_or(|uid| uid == pod.uid);
            if target.kind.as_deref() != Some("Pod") || !is_same || !one.plan.takes(pod) {
                continue;
            }
            let of = memberships.entry(pod.key.clone()).or_default();
            of.ports
                .entry(one.name())
                .or_default()
                .ports
                .extend_from_slice(&one.ports);
            of.waypoints.add(one.plan, one.object);
        }
    }
}

/// Workloads of the endpoints that are no pods, one for each address of each slice.
pub(crate) fn workloads(
    set: &ObjectSet,
    services: &[ServicePlan],
    settings: &Settings,
) -> Vec<WorkloadPlan> {
    let mut all: Vec<wire::Workload> = Vec::new();
    for one in sliced(set, services) {
        let service = one.name();
        let (namespace, name) = (one.slice.namespace(), one.slice.name());
        for endpoint in one.slice.endpoints.iter() {
            let address = endpoint.addresses.first();
            let address = address.and_then(|text| text.parse::<IpAddr>().ok());
            let is_pod = endpoint
                .target_ref
                .as_ref()
                .is_some_and(|target| target.kind.as_deref() == Some("Pod"));
            let Some(address) = address.filter(|_| !is_pod) else {
                continue;
            };
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|all| all.ready).unwrap_or(true);
            let status = match is_ready {
                true => wire::WorkloadStatus::Healthy,
                false => wire::WorkloadStatus::Unhealthy,
            };
            let cluster = &settings.cluster_id;
            all.push(wire::Workload {
                uid: format!(
                    "{cluster}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}"
                ),
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                addresses: vec![octets(address)],
                network: settings.network.to_string(),
                status: status.into(),
                cluster_id: cluster.to_string(),
                services: [(
                    service.clone(),
                    wire::PortList {
                        ports: one.ports.clone(),
                    },
                )]
                .into(),
                network_mode: wire::NetworkMode::HostNetwork.into(),
                ..wire::Workload::default()
            });
        }
    }
    all.sort_by(|a, b| a.uid.cmp(&b.uid));
    all.dedup_by(|a, b| a.uid == b.uid);
    all.into_iter().map(WorkloadPlan::elsewhere).collect()
}

impl Sliced<'_> {
    /// `namespace/hostname` of the Service.
    fn name(&self) -> String {
        format!("{}/{}", self.plan.key.namespace, self.plan.wire.hostname)
    }
}

/// The ports of a Service; of two of a name the first counts.
fn offered(service: &Service) -> Offered<'_> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let mut offered = Offered::new();
    for port in ports.into_iter().flatten() {
        let name = port.name.as_deref().unwrap_or_default();
        offered.entry(name).or_insert(port);
    }
    offered
}

/// TCP ports of a slice that the Service offers.
fn ports(slice: &EndpointSlice, offered: &Offered<'_>) -> Vec<wire::Port> {
    let given = slice.ports.iter().flatten().filter(|port| {
        port.protocol
            .as_deref()
            .is_none_or(|protocol| protocol == "TCP")
    });
    let joined = given.filter_map(|port| {
        let of = offered.get(port.name.as_deref().unwrap_or_default())?;
        Some(wire::Port {
            service_port: u32::try_from(of.port).ok()?,
            target_port: u32::try_from(port.port?).ok().filter(|port| *port != 0)?,
            app_protocol: app_protocol(of).into(),
        })
    });
    joined.collect()
}

/// Slices that count, of Services for whose endpoints there is room.
fn sliced<'a>(set: &'a ObjectSet, services: &'a [ServicePlan]) -> Vec<Sliced<'a>> {
    if set.endpoint_slices.is_empty() {
        return Vec::new();
    }
    let plans: BTreeMap<&NamespacedName, &ServicePlan> = services
        .iter()
        .map(|service| (&service.key, service))
        .collect();
    let mut offered_by: BTreeMap<NamespacedName, Offered<'a>> = BTreeMap::new();
    let slices = set.endpoint_slices.iter().filter_map(|slice| {
        let slice = &slice.object;
        if !matches!(&*slice.address_type, "IPv4" | "IPv6") {
            return None;
        }
        let name = slice.label(SERVICE)?;
        let object = &set.services.get(slice.namespace(), name)?.object;
        let selector = object.spec.as_ref()?.selector.as_ref();
        if selector.is_some_and(|selector| !selector.is_empty()) {
            return None;
        }
        let key = NamespacedName {
            namespace: slice.namespace().into(),
            name: name.into(),
        };
        let plan = plans.get(&key).filter(|plan| !plan.left_out)?;
        let offered = offered_by.entry(key).or_insert_with(|| offered(object));
        Some(Sliced {
            slice,
            object,
            plan,
            ports: ports(slice, offered),
        })
    });
    slices.collect()
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::workload as wire;

    use crate::model::golden_tests::{namespace, objects, pod, reasons, settings};
    use crate::model::room::{OF_NAMESPACE, REASON};
    use crate::model::{KeptKeys, plan};

    const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.7, ports: [{name: sql, port: 5432}, {name: web, port: 80}]}
";

    fn slice(name: &str, endpoints: &str) -> String {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: db}}}}\n\
             addressType: IPv4\nendpoints: {endpoints}\n\
             ports: [{{name: sql, port: 6432}}, {{name: other, port: 1}}, {{name: web, port: 53, protocol: UDP}}]\n"
        )
    }

    fn planned(yaml: &str) -> Vec<wire::Workload> {
        let plan = plan(&objects(yaml), &settings(), &KeptKeys::default());
        plan.workloads.into_iter().map(|one| one.wire).collect()
    }

    const KEY: &str = "shop/db.shop.svc.cluster.local";

    #[test]
    fn addresses_that_are_no_pod_become_workloads() {
        let endpoints =
            "[{addresses: [192.0.2.1]}, {addresses: [192.0.2.2], conditions: {ready: false}}]";
        let all = planned(&format!(
            "{}{SERVICE}{}",
            namespace(""),
            slice("db-1", endpoints)
        ));
        assert_eq!(all.len(), 2);
        let one = &all[0];
        assert_eq!(
            one.uid,
            "Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.1"
        );
        assert_eq!(one.addresses, [vec![192, 0, 2, 1]]);
        assert_eq!(one.network_mode, i32::from(wire::NetworkMode::HostNetwork));
        assert_eq!(one.status, i32::from(wire::WorkloadStatus::Healthy));
        let ports = &one.services[KEY].ports;
        assert_eq!(ports.len(), 1, "{ports:?}");
        assert_eq!((ports[0].service_port, ports[0].target_port), (5432, 6432));
        assert_eq!(all[1].status, i32::from(wire::WorkloadStatus::Unhealthy));
    }

    #[test]
    fn a_pod_that_a_slice_names_is_an_endpoint_and_no_second_workload() {
        let name = |uid: &str| {
            format!(
                "[{{addresses: [10.244.1.2], targetRef: {{kind: Pod, namespace: shop, name: a{uid}}}}}]"
            )
        };
        let all = |uid: &str| {
            let slice = slice("db-1", &name(uid));
            planned(&format!(
                "{}{SERVICE}{}{slice}",
                namespace(""),
                pod("a", "sa", "app: a", true)
            ))
        };
        let right = all("");
        assert_eq!(right.len(), 1);
        assert_eq!(right[0].services[KEY].ports[0].target_port, 6432);
        let wrong = all(", uid: other");
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].services.is_empty());
    }

    #[test]
    fn the_newest_services_have_no_endpoints_where_there_is_no_room() {
        // Each of two Services takes three fifths of it, in two slices.
        let count = OF_NAMESPACE * 3 / 5 / 1000 / 12;
        let list = |key: &str| {
            let ports = (1..=count).map(|port| format!("{{name: p{port}, {key}: {port}}}"));
            ports.collect::<Vec<_>>().join(", ")
        };
        let ports = list("port");
        let addresses = |third: u8| {
            let all =
                (0..500).map(|at| format!("{{addresses: [10.{third}.{}.{}]}}", at / 250, at % 250));
            format!("[{}]", all.collect::<Vec<_>>().join(", "))
        };
        let one = |name: &str, day: u8| {
            let slices = [day, day + 10].map(|third| {
                format!(
                    "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {{name: {name}-{third}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
                     addressType: IPv4\nendpoints: {}\nports: [{ports}]\n",
                    addresses(third)
                )
            });
            format!(
                "---\napiVersion: v1\nkind: Service\n\
                 metadata: {{name: {name}, namespace: shop, creationTimestamp: \"2026-01-0{day}T00:00:00Z\"}}\n\
                 spec: {{clusterIP: 10.96.0.{day}, ports: [{ports}]}}\n{}",
                slices.concat()
            )
        };
        let yaml = format!("{}{}{}", namespace(""), one("new", 2), one("old", 1));
        let plan = plan(&objects(&yaml), &settings(), &KeptKeys::default());
        let services = plan
            .workloads
            .iter()
            .map(|one| one.wire.services.keys().next());
        let names: Vec<_> = services.flatten().collect();
        assert_eq!(names, ["shop/old.shop.svc.cluster.local"; 1000]);
        assert_eq!(reasons(&plan, "Service shop/new"), [REASON]);
        assert!(reasons(&plan, "Service shop/old").is_empty());
        // A pod there is not planned alone.
        assert!(!plan.room.clone().change("shop", 0, 1));
    }

    #[test]
    fn a_service_with_a_selector_has_no_endpoints_besides() {
        let selected = SERVICE.replace("clusterIP", "selector: {app: x}, clusterIP");
        let slice = slice("db-1", "[{addresses: [192.0.2.1]}]");
        assert!(planned(&format!("{}{selected}{slice}", namespace(""))).is_empty());
    }
}

use std::collections::BTreeMap;

use isobar_objects::ObjectSet;
use isobar_proto::isobar::v1 as isobar;
use isobar_proto::istio::{security, workload};
use isobar_types::NamespacedName;

use crate::controller::{WaypointPods, waypoint_verdicts};
use crate::model::{KeptKeys, OutboundTraffic, PortRules, Remedy, Settings, Verdict, plan};

/// What proxies are told about a set of objects in a mesh with default settings, as messages. Nothing
/// runs: for tests and tools that want what a waypoint would get, without a control plane.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Services and workloads, as every proxy gets them.
    pub addresses: Vec<workload::Address>,
    /// L4 policies.
    pub authorizations: Vec<security::Authorization>,
    /// Where workloads may go and how many connections they may hold, for node proxies.
    pub outbound: Vec<isobar::OutboundPolicy>,
    /// What only waypoints get, by `namespace/name` of their Gateway.
    pub waypoints: BTreeMap<String, ToldWaypoint>,
    /// What is not in force as written: the object and a sentence.
    pub complaints: Vec<(String, String)>,
}

/// What one waypoint is told besides addresses.
#[derive(Debug, Clone, Default)]
pub struct ToldWaypoint {
    /// Its own description.
    pub waypoint: isobar::Waypoint,
    /// Routes of the services it serves.
    pub virtual_services: Vec<isobar::VirtualService>,
    /// Rules of the services it can reach.
    pub destination_rules: Vec<isobar::DestinationRule>,
    /// Policies.
    pub authorizations: Vec<isobar::Authorization>,
    /// Rate limits.
    pub rate_limits: Vec<isobar::RateLimitPolicy>,
    /// Values of the label keys that routes and rules name.
    pub labels: Vec<isobar::WorkloadLabels>,
}

/// Plans `set` and tells what would be served.
#[must_use]
pub fn told(set: &ObjectSet) -> Told {
    use workload::address::Type;

    let plan = plan(set, &settings(), &KeptKeys::default());
    let services = plan.services.into_iter().map(|s| s.wire);
    let services = services.chain(plan.entries).map(Type::Service);
    let workloads = plan.workloads.into_iter().map(|w| Type::Workload(w.wire));
    let address = |kind| workload::Address { r#type: Some(kind) };
    let waypoints = plan.waypoints.into_iter().map(|told| {
        let waypoint = ToldWaypoint {
            waypoint: told.waypoint,
            virtual_services: told.routes,
            destination_rules: told.rules,
            authorizations: told.authorizations,
            rate_limits: told.rate_limits,
            labels: told.labels,
        };
        (told.key.to_string(), waypoint)
    });
    let complaints = plan.verdicts.iter().filter(|verdict| !verdict.holds);
    Told {
        addresses: services.chain(workloads).map(address).collect(),
        authorizations: plan.authorizations,
        outbound: plan.outbound,
        waypoints: waypoints.collect(),
        complaints: complaints
            .map(|verdict| (verdict.object.to_string(), verdict.message.clone()))
            .collect(),
    }
}

/// What there is to say about objects: what their statuses would say, waypoints' Gateways included.
#[must_use]
pub fn verdicts(set: &ObjectSet) -> Vec<Verdict> {
    let plan = plan(set, &settings(), &KeptKeys::default());
    let pods = WaypointPods {
        image: String::new(),
        control_plane: None,
        ..WaypointPods::default()
    };
    let of_gateways = plan.gateways.iter();
    let of_gateways = of_gateways.flat_map(|facts| waypoint_verdicts(set, facts, &pods));
    plan.verdicts.into_iter().chain(of_gateways).collect()
}

/// NetworkPolicies that shut what the mesh needs open, and how they would have to be.
#[must_use]
pub fn shut_doors(set: &ObjectSet) -> Vec<Remedy> {
    plan(set, &settings(), &KeptKeys::default()).remedies
}

pub(crate) fn settings() -> Settings {
    Settings {
        trust_domain: isobar_types::DEFAULT_TRUST_DOMAIN.into(),
        cluster_id: "Kubernetes".into(),
        network: "".into(),
        root_namespace: "istio-system".into(),
        cluster_domain: "cluster.local".into(),
        waypoint_classes: vec!["isobar-waypoint".into()],
        own_accounts: NamespacedName::parse("istio-system/ztunnel")
            .into_iter()
            .collect(),
        outbound: OutboundTraffic::AllowAny,
        port_rules: PortRules::Enforce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::golden_tests::{gateway, namespace, objects, pod};

    #[test]
    fn a_waypoint_is_told_its_routes_and_everybody_the_addresses() {
        let yaml = format!(
            "{}{}{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: cart, namespace: shop}}\n\
             spec: {{clusterIP: 10.96.0.7, selector: {{app: cart}}, ports: [{{port: 80}}]}}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: vs, namespace: shop}}\n\
             spec: {{hosts: [cart], http: [{{route: [{{destination: {{host: cart}}}}]}}]}}\n",
            namespace("istio.io/use-waypoint: wp"),
            gateway("wp", ""),
            pod("cart-1", "cart", "app: cart", true),
        );
        let told = told(&objects(&yaml));
        assert_eq!(told.addresses.len(), 2);
        let waypoint = &told.waypoints["shop/wp"];
        assert_eq!(waypoint.virtual_services.len(), 1);
        assert_eq!(waypoint.virtual_services[0].parents.len(), 1);
    }
}

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isobar_objects::enrolment::EnrolmentRules;
use isobar_objects::{
    Held, Kind, ObjectHead as _, ObjectRef, ObjectSet, Pod, WaypointLines, mesh_config_of,
};
use isobar_proto::isobar::v1 as isobar;
use isobar_proto::istio::{security, workload};
use isobar_route::path::Normalization;
use isobar_types::{NamespacedName, labels};

use crate::controller::{WaypointPods, waypoint_verdicts};
use crate::model::{Given, KeptKeys, OutboundTraffic, PortRules, Remedy, Settings, Verdict, plan};
use crate::started::Started;

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
    /// Where it is reached, if somebody else runs it; what it makes of all this is not known then.
    pub foreign: Option<ForeignAddress>,
}

/// Where a waypoint is reached that somebody else runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForeignAddress {
    /// By the host name of its Service.
    Host {
        /// Namespace of the Service.
        namespace: String,
        /// Its full name, in lower case.
        hostname: String,
    },
    /// By the address of a pod or Service, and nothing else.
    Ip(IpAddr),
}

impl ForeignAddress {
    fn of(address: workload::GatewayAddress) -> Option<Self> {
        use workload::gateway_address::Destination;

        Some(match address.destination? {
            Destination::Hostname(host) => Self::Host {
                namespace: host.namespace,
                hostname: host.hostname,
            },
            Destination::Address(at) => match <[u8; 4]>::try_from(&*at.address) {
                Ok(four) => Self::Ip(four.into()),
                Err(_) => Self::Ip(<[u8; 16]>::try_from(&*at.address).ok()?.into()),
            },
        })
    }
}

/// Plans `set` and tells what would be served in a mesh whose installation changed nothing.
#[must_use]
pub fn told(set: &ObjectSet) -> Told {
    told_by(&Started::default(), set)
}

/// Plans `set` and tells what a control plane would serve.
#[must_use]
pub fn told_by(started: &Started, set: &ObjectSet) -> Told {
    use workload::address::Type;

    let plan = plan(set, started.settings(), &KeptKeys::default());
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
            foreign: told.foreign.and_then(ForeignAddress::of),
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
pub fn verdicts_by(started: &Started, set: &ObjectSet) -> Vec<Verdict> {
    let plan = plan(set, started.settings(), &KeptKeys::default());
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
pub fn shut_doors_by(started: &Started, set: &ObjectSet) -> Vec<Remedy> {
    plan(set, started.settings(), &KeptKeys::default()).remedies
}

/// Policies that a waypoint enforces and that may refuse something: what would be let through without
/// it. `root_namespace` is where policies for all waypoints are.
#[must_use]
pub fn guards(set: &ObjectSet, waypoint: &NamespacedName, root_namespace: &str) -> Vec<ObjectRef> {
    use isobar::authorization::Action;

    let mut settings = settings();
    settings.root_namespace = root_namespace.into();
    let istio = labels::ISTIO_WAYPOINT_CLASS.into();
    settings.waypoint_classes.push(istio);
    // Which classes are those of waypoints is the control plane's to say; this one is called one.
    let gateway = set.gateways.get(&waypoint.namespace, &waypoint.name);
    let own = gateway.map(|gateway| gateway.spec.gateway_class_name.clone());
    let own = own.filter(|class| class != labels::GATEWAY_CLASS);
    settings.waypoint_classes.extend(own);
    let plan = plan(set, &settings, &KeptKeys::default());
    let Some(told) = plan.waypoints.iter().find(|told| told.key == *waypoint) else {
        return Vec::new();
    };
    // Of what it takes a share of, the first waypoint keeps the same policies and takes all calls.
    let services = plan.services.iter();
    let shares = services.filter(|one| one.second.as_ref() == Some(waypoint));
    let shares: BTreeSet<&str> = shares.map(|one| &*one.wire.hostname).collect();
    let alone = |whole: bool, services: &[isobar::ServiceRef]| {
        whole || services.iter().any(|one| !shares.contains(&*one.hostname))
    };
    let refuses =
        |policy: &&isobar::Authorization| !policy.dry_run && policy.action() != Action::Audit;
    let policies = told.authorizations.iter().filter(refuses);
    let policies = policies.filter(|one| alone(one.whole_waypoint, &one.services));
    let policies =
        policies.map(|one| ObjectRef::new(Kind::AuthorizationPolicy, &one.namespace, &one.name));
    let limits = told.rate_limits.iter();
    let limits = limits.filter(|one| alone(one.whole_waypoint, &one.services));
    let limits = limits.map(|one| ObjectRef::new(Kind::RateLimitPolicy, &one.namespace, &one.name));
    policies.chain(limits).collect()
}

/// Gateways of waypoints that enforce something, each with pods behind it that are not in the mesh, or have
/// callers past their node proxy: those are reached past the waypoint.
#[must_use]
pub fn passed_by(started: &Started, set: &ObjectSet) -> BTreeMap<ObjectRef, BTreeSet<String>> {
    use workload::gateway_address::Destination;

    let plan = plan(set, started.settings(), &KeptKeys::default());
    let enforcing = plan.waypoints.iter().filter(|one| {
        let policies = one.authorizations.iter().any(|policy| !policy.dry_run);
        (policies || !one.rate_limits.is_empty()) && one.waypoint.listeners.is_empty()
    });
    let enforcing: BTreeMap<&str, &NamespacedName> = enforcing
        .map(|one| (one.waypoint.hostname.as_str(), &one.key))
        .collect();
    let mut found: BTreeMap<ObjectRef, BTreeSet<String>> = BTreeMap::new();
    if enforcing.is_empty() {
        return found;
    }
    let services = plan.services.iter().map(|service| &service.wire);
    let services: BTreeMap<String, &Option<workload::GatewayAddress>> = services
        .map(|wire| {
            (
                format!("{}/{}", wire.namespace, wire.hostname),
                &wire.waypoint,
            )
        })
        .collect();
    let outside = plan.workloads.iter().filter(|one| {
        let pod = set.pods.get(&one.wire.namespace, &one.wire.name);
        let sidecar = |pod: &Held<Pod>| pod.annotation("sidecar.istio.io/status").is_some();
        !one.in_mesh && one.instance_of.is_none() && pod.is_some_and(|pod| !sidecar(pod))
    });
    for wire in outside.map(|one| &one.wire) {
        let of_services = wire.services.keys().filter_map(|name| services.get(name));
        let fronts = std::iter::once(&wire.waypoint).chain(of_services.copied());
        for front in fronts.flatten() {
            if let Some(Destination::Hostname(host)) = &front.destination
                && let Some(key) = enforcing.get(host.hostname.as_str())
            {
                let gateway = ObjectRef::new(Kind::Gateway, &key.namespace, &key.name);
                let pod = format!("{}/{}", wire.namespace, wire.name);
                found.entry(gateway).or_default().insert(pod);
            }
        }
    }
    found
}

pub(crate) fn settings() -> Settings {
    Settings {
        trust_domain: isobar_types::DEFAULT_TRUST_DOMAIN.into(),
        trust_domain_aliases: Vec::new(),
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
        entry_visibilities: None,
        lines: WaypointLines::Usual,
        paths: Normalization::default(),
        traces: None,
        allow_waypoints: false,
        enrolment: EnrolmentRules::default(),
        mesh_config: mesh_config_of("istio-system", None),
        given: Given::default(),
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

    #[test]
    fn what_a_waypoint_guards_is_known() {
        let policy = |name: &str, more: &str, kind: &str, target: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: {name}, namespace: shop}}\n\
                 spec: {{{more}, targetRefs: [{{{kind}, name: {target}}}], \
                 rules: [{{to: [{{operation: {{paths: [/a]}}}}]}}]}}\n"
            )
        };
        let gateways = "group: gateway.networking.k8s.io, kind: Gateway";
        let services = "group: '', kind: Service";
        let yaml = [
            namespace("istio.io/use-waypoint: wp"),
            gateway("wp", ""),
            gateway("other", ""),
            gateway("custom", "").replace("isobar-waypoint", "fast"),
            pod("cart-1", "cart", "app: cart", true),
            "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
             spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{port: 80}]}\n"
                .to_owned(),
            policy("whole", "action: DENY", gateways, "wp"),
            policy("served", "action: ALLOW", services, "cart"),
            policy("watched", "action: AUDIT", gateways, "wp"),
            policy("elsewhere", "action: DENY", gateways, "other"),
            policy("quick", "action: DENY", gateways, "custom"),
            "---\napiVersion: isobar.dev/v1\nkind: RateLimitPolicy\n\
             metadata: {name: few, namespace: shop}\n\
             spec: {targetRefs: [{group: '', kind: Service, name: cart}], limits: [{name: all, requests: 1}]}\n"
                .to_owned(),
        ];
        let set = objects(&yaml.concat());
        let of = |name: &str| -> Vec<String> {
            let key = NamespacedName::parse(&format!("shop/{name}")).unwrap();
            let mut names: Vec<String> = guards(&set, &key, "istio-system")
                .iter()
                .map(|one| one.name.to_string())
                .collect();
            names.sort();
            names
        };
        assert_eq!(of("wp"), ["few", "served", "whole"]);
        assert_eq!(of("other"), ["elsewhere"]);
        assert_eq!(of("custom"), ["quick"], "of a class of its own");
        assert!(of("away").is_empty());

        let second = "istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: other";
        let shared = yaml.concat().replace("istio.io/use-waypoint: wp", second);
        let label = "gateway.networking.k8s.io/gateway-name: wp";
        let set = objects(&(shared + &pod("wp-1", "wp", label, true)));
        let key = NamespacedName::parse("shop/other").unwrap();
        let names = guards(&set, &key, "istio-system");
        let names: Vec<&str> = names.iter().map(|one| &*one.name).collect();
        assert_eq!(names, ["elsewhere"], "the first waypoint keeps the others");
    }

    #[test]
    fn pods_that_are_reached_past_their_waypoint_are_known() {
        let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {name: p, namespace: shop}\nspec: {action: DENY, rules: [{}], targetRefs: \
             [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]}\n";
        let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
             spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{port: 80}]}\n";
        let ambient = ", istio.io/dataplane-mode: ambient";
        let of = |mesh: &str, kind: &str, more: &str| -> Vec<String> {
            let yaml = format!(
                "{}{}{}{}{more}",
                namespace(&format!("istio.io/use-waypoint: wp{mesh}")),
                gateway(
                    "wp",
                    &format!(", labels: {{istio.io/waypoint-for: {kind}}}")
                ),
                pod("cart-1", "cart", "app: cart", true),
                pod("pay-1", "pay", "app: pay", true),
            );
            let found = passed_by(&Started::default(), &objects(&yaml));
            let one = |(gateway, pods): (ObjectRef, BTreeSet<String>)| {
                assert_eq!(gateway.to_string(), "Gateway shop/wp");
                pods
            };
            found.into_iter().flat_map(one).collect()
        };
        let both = format!("{service}{policy}");
        assert_eq!(of("", "service", &both), ["shop/cart-1"]);
        assert_eq!(of("", "all", policy), ["shop/cart-1", "shop/pay-1"]);
        assert!(of("", "service", service).is_empty(), "nothing to enforce");
        assert!(of(ambient, "all", &both).is_empty(), "in the mesh");
    }
}

use std::collections::BTreeMap;

use isobar_objects::gateway_api::{FromNamespaces, Gateway, Listener};
use isobar_objects::{ObjectHead, ObjectSet, selectors};
use isobar_proto::isobar::v1::waypoint::Traffic;
use isobar_proto::istio::workload::{GatewayAddress, NamespacedHostname, gateway_address};
use isobar_types::{Identity, NamespacedName, Str, labels, ports};

use super::foreign::Foreign;
use super::ingress::{self, Edge};
use super::pods::PodFacts;
use super::settings::Settings;
use super::verdict::{Severity, Verdict};

/// Annotation on a Gateway: the account its pods run as, where it is not the Gateway's name.
const GATEWAY_ACCOUNT: &str = "gateway.istio.io/service-account";

/// Annotation on a Gateway: what its Deployment and Service are called, where not as it is.
const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";

/// Label on pods of a Gateway: the name of their Deployment.
pub(crate) const CANONICAL_NAME: &str = "service.istio.io/canonical-name";

/// Label on everything made for a Gateway.
pub(crate) const MANAGED: &str = "gateway.istio.io/managed";
/// Its value for waypoints, as Istio has it.
pub(crate) const MANAGER: &str = "istio.io-mesh-controller";

/// Host name published for an object that names a waypoint it may not use. It never exists, so
/// that every proxy refuses instead of going direct.
const DENIED_HOST: &str = "denied.waypoint.isobar.invalid";

/// Which traffic an object is reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrafficKind {
    /// By service address.
    Service,
    /// By pod address.
    Workload,
}

/// A Gateway that is a waypoint, or what stands at the edge of the mesh.
#[derive(Debug)]
pub(crate) struct WaypointGateway<'a> {
    /// The object; none where Istio's Gateways select pods.
    pub(crate) gateway: Option<&'a Gateway>,
    /// Set for what takes callers from outside, and nothing else.
    pub(crate) edge: Option<Edge<'a>>,
    /// Set for what somebody else runs.
    pub(crate) foreign: Option<Foreign>,
    /// `namespace/name`.
    pub(crate) key: NamespacedName,
    /// Traffic it takes.
    pub(crate) traffic: Traffic,
    /// Name of the Service that it is reached by.
    pub(crate) service: String,
    /// Host name of that Service.
    pub(crate) hostname: String,
    /// Identity its pods run as.
    pub(crate) identity: Identity,
    /// Account it consents to be bound to.
    pub(crate) for_account: Option<Str>,
    /// Its pods, ready or not.
    pub(crate) pods: Vec<NamespacedName>,
    /// At least one of its pods is ready now.
    pub(crate) ready: bool,
    /// Was Programmed before, or is ready now.
    pub(crate) programmed: bool,
    allowed: Allowed<'a>,
}

#[derive(Debug)]
enum Allowed<'a> {
    Same,
    All,
    Nobody,
    Selector(&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector),
}

/// All waypoints, by Gateway key.
pub(crate) type Gateways<'a> = BTreeMap<NamespacedName, WaypointGateway<'a>>;

/// Finds the waypoints among the Gateways, and their pods.
pub(crate) fn waypoints<'a>(
    set: &'a ObjectSet,
    pods: &[PodFacts<'_>],
    settings: &Settings,
) -> Gateways<'a> {
    let mut all: Gateways<'a> = set
        .gateways
        .iter()
        .filter_map(|gateway| read(&gateway.object, set, settings))
        .map(|waypoint| (waypoint.key.clone(), waypoint))
        .collect();
    for pod in pods {
        let Some(waypoint) = instance_of(pod, &all, settings).cloned() else {
            continue;
        };
        if let Some(waypoint) = all.get_mut(&waypoint) {
            waypoint.pods.push(pod.key.clone());
            waypoint.ready |= pod.ready;
            waypoint.programmed |= pod.ready;
            if let Some(edge) = &mut waypoint.edge {
                edge.labels.insert(pod.labels.clone());
            }
        }
    }
    all.extend(ingress::of_istio(set, pods, settings));
    all
}

/// Says of the classes that name this controller that they are served.
pub(crate) fn classes<'a>(
    set: &'a ObjectSet,
    settings: &'a Settings,
) -> impl Iterator<Item = Verdict> + 'a {
    let all = set.gateway_classes.iter();
    let ours = all.filter(|class| class.spec.controller_name == labels::ROUTE_CONTROLLER);
    ours.map(|class| {
        let (object, name) = (class.reference(), class.name());
        let is_waypoint = settings.waypoint_classes.iter().any(|one| one == name);
        if class.spec.parameters_ref.is_some() {
            let text = "spec.parametersRef is not honoured: a ConfigMap with the label \
                        gateway.istio.io/defaults-for-class is";
            return Verdict::fails(object, "Accepted", "InvalidParameters", text)
                .severity(Severity::Warning);
        }
        if is_waypoint || name == labels::GATEWAY_CLASS {
            let text = if is_waypoint {
                "its Gateways are waypoints"
            } else {
                "its Gateways stand at the edge of the mesh"
            };
            return Verdict::holds(object, "Accepted", "Accepted", text);
        }
        let text = "this control plane serves no class of that name";
        Verdict::fails(object, "Accepted", "Unsupported", text).severity(Severity::Warning)
    })
}

/// The waypoint that `pod` is an instance of: by label, and only with the account of that
/// waypoint, so that a label alone exempts nobody.
pub(crate) fn instance_of<'g>(
    pod: &PodFacts<'_>,
    gateways: &'g Gateways<'_>,
    settings: &Settings,
) -> Option<&'g NamespacedName> {
    let name = pod.labels.get(labels::GATEWAY_NAME)?;
    let key = NamespacedName {
        namespace: pod.key.namespace.clone(),
        name: name.as_str().into(),
    };
    let waypoint = gateways.get(&key)?;
    (waypoint.identity == pod.identity(&settings.trust_domain)).then_some(&waypoint.key)
}

/// True for the labels of an object that this control plane made for a Gateway.
pub(crate) fn is_managed(labels: &BTreeMap<String, String>) -> bool {
    labels.get(MANAGED).map(String::as_str) == Some(MANAGER)
}

/// True for the labels of an object that a control plane made for the Gateway of that name.
pub(crate) fn is_made_for(labels: &BTreeMap<String, String>, gateway: &str) -> bool {
    is_managed(labels) && labels.get(labels::GATEWAY_NAME).map(String::as_str) == Some(gateway)
}

/// What the Deployment and the Service of a Gateway are to be called.
pub(crate) fn name_of(gateway: &Gateway) -> &str {
    let asked = gateway.annotation(NAME_OVERRIDE);
    asked.unwrap_or(gateway.name())
}

/// What the Service is called that a Gateway is reached by. When it is to have another name, that is the old
/// one until there is a Service of the new name: no moment without one.
pub(crate) fn service_of<'a>(gateway: &'a Gateway, set: &'a ObjectSet) -> &'a str {
    let (namespace, wanted) = (gateway.namespace(), name_of(gateway));
    let is_own = |labels| is_made_for(labels, gateway.name());
    let there = set.services.get(namespace, wanted);
    if there.is_some_and(|service| is_own(service.labels())) {
        return wanted;
    }
    let mut all = set.services.in_namespace(namespace);
    let before = all.find(|service| is_own(service.labels()));
    before.map_or(wanted, |service| service.name())
}

/// The account a Gateway's pods run as.
pub(crate) fn account_of(gateway: &Gateway) -> &str {
    gateway
        .annotation(GATEWAY_ACCOUNT)
        .unwrap_or(gateway.name())
}

fn read<'a>(
    gateway: &'a Gateway,
    set: &ObjectSet,
    settings: &Settings,
) -> Option<WaypointGateway<'a>> {
    let key = NamespacedName {
        namespace: gateway.namespace().into(),
        name: gateway.name().into(),
    };
    let class = &gateway.spec.gateway_class_name;
    let edge = class == labels::GATEWAY_CLASS;
    let foreign = match edge || settings.waypoint_classes.contains(class) {
        true => None,
        false => Some(Foreign::read(gateway, set, settings)?),
    };
    let service = service_of(gateway, set).to_owned();
    Some(WaypointGateway {
        traffic: match edge {
            true => ingress::TRAFFIC,
            false => traffic(gateway.label(labels::WAYPOINT_FOR)),
        },
        edge: edge.then(Edge::default),
        hostname: match &foreign {
            Some(foreign) => foreign.hostname.clone(),
            None => settings.hostname(&key.namespace, &service),
        },
        service,
        identity: Identity::new(
            settings.trust_domain.clone(),
            key.namespace.clone(),
            account_of(gateway),
        ),
        for_account: gateway
            .annotation(labels::FOR_SERVICE_ACCOUNT)
            .map(Into::into),
        pods: Vec::new(),
        // Its own controller gives it an address when it can take traffic.
        ready: foreign.is_some(),
        programmed: foreign.is_some() || gateway.is_programmed(),
        allowed: allowed(gateway, foreign.as_ref()),
        foreign,
        gateway: Some(gateway),
        key,
    })
}

/// Value of the label that says what a waypoint takes; an unknown word takes nothing.
pub(crate) fn traffic(label: Option<&str>) -> Traffic {
    match label {
        None | Some("service" | "") => Traffic::Service,
        Some("workload") => Traffic::Workload,
        Some("all") => Traffic::All,
        Some(_) => Traffic::None,
    }
}

fn allowed<'a>(gateway: &'a Gateway, foreign: Option<&Foreign>) -> Allowed<'a> {
    let all = &gateway.spec.listeners;
    let bound = foreign.and_then(|foreign| foreign.listener(all));
    let tunnels = |l: &&Listener| l.protocol == "HBONE" && l.port == i32::from(ports::HBONE);
    let listener = bound.or_else(|| all.iter().find(tunnels));
    let namespaces = listener
        .and_then(|l| l.allowed_routes.as_ref())
        .and_then(|routes| routes.namespaces.as_ref());
    let Some(namespaces) = namespaces else {
        return Allowed::Same;
    };
    match (namespaces.from, &namespaces.selector) {
        (FromNamespaces::All, _) => Allowed::All,
        (FromNamespaces::Selector, Some(selector)) => Allowed::Selector(selector),
        (FromNamespaces::Selector | FromNamespaces::None, _) => Allowed::Nobody,
        (FromNamespaces::Same, _) => Allowed::Same,
    }
}

impl<'a> WaypointGateway<'a> {
    /// What Istio's Gateways make of some pods.
    pub(super) fn at_edge(key: NamespacedName, identity: Identity, edge: Edge<'a>) -> Self {
        Self {
            gateway: None,
            edge: Some(edge),
            foreign: None,
            traffic: ingress::TRAFFIC,
            service: String::new(),
            hostname: String::new(),
            identity,
            for_account: None,
            pods: Vec::new(),
            ready: false,
            programmed: false,
            allowed: Allowed::Nobody,
            key,
        }
    }
}

impl WaypointGateway<'_> {
    /// True if objects of `namespace` may use it.
    pub(crate) fn admits(&self, namespace: &str, set: &ObjectSet) -> bool {
        match &self.allowed {
            Allowed::Same => namespace == &*self.key.namespace,
            Allowed::All => true,
            Allowed::Nobody => false,
            Allowed::Selector(selector) => set
                .namespaces
                .get("", namespace)
                .is_some_and(|object| selectors::selects(selector, object.labels())),
        }
    }

    /// True if it takes that kind of traffic.
    pub(crate) const fn takes(&self, kind: TrafficKind) -> bool {
        matches!(
            (self.traffic, kind),
            (Traffic::All, _)
                | (Traffic::Service, TrafficKind::Service)
                | (Traffic::Workload, TrafficKind::Workload)
        )
    }
}

/// How objects refer to the waypoint named `key`, whether it exists or not.
pub(crate) fn address(
    key: &NamespacedName,
    gateways: &Gateways<'_>,
    settings: &Settings,
) -> GatewayAddress {
    let known = gateways.get(key);
    if let Some(foreign) = known.and_then(|gateway| gateway.foreign.as_ref()) {
        return foreign.address.clone();
    }
    let known = known.map(|gateway| gateway.hostname.clone());
    let hostname = known.unwrap_or_else(|| settings.hostname(&key.namespace, &key.name));
    by_host(&key.namespace, hostname)
}

/// What an object refers to when it may not use what it names.
pub(crate) fn denied_address(namespace: &str) -> GatewayAddress {
    by_host(namespace, DENIED_HOST.to_owned())
}

fn by_host(namespace: &str, hostname: String) -> GatewayAddress {
    GatewayAddress {
        destination: Some(gateway_address::Destination::Hostname(NamespacedHostname {
            namespace: namespace.to_owned(),
            hostname,
        })),
        hbone_mtls_port: u32::from(ports::HBONE),
    }
}

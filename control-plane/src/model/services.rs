//! Services: addresses, ports, and the waypoint or waypoints in front of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use isobar_objects::{ObjectHead, ObjectSet, Service};
use isobar_proto::istio::workload as wire;
use isobar_types::{NamespacedName, Str, labels};
use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::bindings::{AccountBinding, BOUND};
use super::gateways::{TrafficKind, denied_address, is_managed};
use super::l7::{Owner, Served};
use super::pods::PodFacts;
use super::selection::{Named, Reference, Selection, Source, fails_open, named, object_reference};
use super::verdict::{Severity, Verdict};

/// Annotation the control plane writes on a Service that is bound through the account of its
/// endpoints; the account. It makes the binding survive an endpoint of another account.
pub(crate) const BOUND_ACCOUNT: &str = "isobar.dev/bound-account";

/// One Service as it is published.
#[derive(Debug)]
pub(crate) struct ServicePlan {
    /// The Service's own key.
    pub(crate) key: NamespacedName,
    /// The message, waypoints included.
    pub(crate) wire: wire::Service,
    /// Waypoints that serve it.
    pub(crate) waypoints: Vec<NamespacedName>,
    /// That of these which takes a share of the calls at most.
    pub(crate) second: Option<NamespacedName>,
    /// If set, only pods of this account are endpoints.
    pub(crate) only_account: Option<Str>,
    /// Value the annotation [`BOUND_ACCOUNT`] has to have.
    pub(crate) sticky: Option<Str>,
    /// True for the Service of a waypoint.
    pub(crate) is_waypoint: bool,
    /// Asks for traffic to pass while its waypoint is away.
    pub(crate) fail_open: bool,
    /// There is no room for its endpoints: it has none.
    pub(super) left_out: bool,
    /// What to tell about it.
    pub(crate) verdicts: Vec<Verdict>,
}

impl ServicePlan {
    /// True for a pod that, if selected, is an endpoint: it runs as the account that is asked for.
    pub(crate) fn takes(&self, pod: &PodFacts<'_>) -> bool {
        let only = self.only_account.as_ref();
        !self.left_out && only.is_none_or(|account| *account == pod.account)
    }

    /// As waypoints see it.
    pub(crate) fn served(&self) -> Served<'_> {
        Served {
            wire: &self.wire,
            owner: Owner::Service(&self.key),
            waypoints: &self.waypoints,
            second: self.second.as_ref(),
            fail_open: self.fail_open,
        }
    }
}

/// Services with the pods that their selectors take.
pub(crate) type Members<'p> = BTreeMap<NamespacedName, Vec<&'p PodFacts<'p>>>;

/// Pods selected by each Service that has a selector. Only pods with the rarest of a selector's labels
/// are looked at: with ten thousand of both, each with each is what a change costs.
pub(crate) fn members<'p>(set: &ObjectSet, pods: &'p [PodFacts<'p>]) -> Members<'p> {
    let mut by_label: HashMap<(&str, &str, &str), Vec<&PodFacts<'_>>> = HashMap::new();
    for pod in pods {
        for (name, value) in pod.labels {
            let place = (&*pod.key.namespace, name.as_str(), value.as_str());
            by_label.entry(place).or_default().push(pod);
        }
    }
    set.services
        .iter()
        .map(|service| {
            let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
            let with = selector.into_iter().flatten().map(|(name, value)| {
                let place = (service.namespace(), name.as_str(), value.as_str());
                by_label.get(&place).map_or(&[][..], |pods| &pods[..])
            });
            let rarest = with.min_by_key(|pods| pods.len()).unwrap_or_default();
            let selected = rarest.iter().filter(|pod| selects(service, pod.labels));
            (key(service), selected.copied().collect())
        })
        .collect()
}

/// True if the Service selects what has these labels.
pub(crate) fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    spec.type_.as_deref() != Some("ExternalName")
        && spec.selector.as_ref().is_some_and(|selector| {
            !selector.is_empty()
                && selector
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
        })
}

fn key(service: &Service) -> NamespacedName {
    NamespacedName {
        namespace: service.namespace().into(),
        name: service.name().into(),
    }
}

/// Plans one Service; `None` for one that only names another host.
pub(crate) fn plan_service(
    service: &Service,
    members: &[&PodFacts<'_>],
    selection: &Selection<'_>,
) -> Option<ServicePlan> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let key = key(service);
    let mut plan = ServicePlan {
        wire: message(service, spec, &key, selection),
        waypoints: Vec::new(),
        second: None,
        only_account: None,
        sticky: None,
        is_waypoint: is_waypoint(service, &key, selection),
        fail_open: fails_open(service.labels()),
        left_out: false,
        verdicts: Vec::new(),
        key,
    };
    if !plan.is_waypoint {
        choose_waypoint(&mut plan, service, members, selection);
    }
    if is_managed(service.labels()) {
        // It is ours, and goes with its Gateway: there is nothing to tell its user.
        plan.verdicts.clear();
    }
    Some(plan)
}

/// The Service of a waypoint is reached directly. The label alone does not make one: the name has
/// to be that of the Gateway too, or the one that it asks for.
fn is_waypoint(service: &Service, key: &NamespacedName, selection: &Selection<'_>) -> bool {
    let Some(name) = service.label(labels::GATEWAY_NAME) else {
        return false;
    };
    let of = NamespacedName {
        namespace: key.namespace.clone(),
        name: name.into(),
    };
    let gateway = selection.gateways.get(&of);
    gateway.is_some_and(|gateway| *key.name == *name || *key.name == *gateway.service)
}

fn choose_waypoint(
    plan: &mut ServicePlan,
    service: &Service,
    members: &[&PodFacts<'_>],
    selection: &Selection<'_>,
) {
    let own = service.labels();
    let namespace = plan.key.namespace.clone();
    let reference = match named(own, &namespace) {
        Named::None => return refuse_direct(plan, service, members, selection),
        Named::Waypoint(waypoint) => Some(object_reference(waypoint, own)),
        Named::Absent => match by_account(plan, service, members, selection) {
            ByAccount::One(reference) => Some(reference),
            ByAccount::Settled => return,
            ByAccount::No => selection.for_namespace(&namespace, own),
        },
    };
    let Some(reference) = reference else { return };
    let front = selection.in_front(&reference, service);
    plan.wire.waypoint = front.address;
    plan.wire.weighted_waypoints = front.weighted;
    plan.waypoints.extend(front.serves);
    plan.second = front.second;
    plan.verdicts.extend(front.verdict);
}

/// A Service may opt out of waypoints, but its endpoints' accounts decide what they take.
fn refuse_direct(
    plan: &mut ServicePlan,
    service: &Service,
    members: &[&PodFacts<'_>],
    selection: &Selection<'_>,
) {
    let namespace = &plan.key.namespace;
    let bound = |pod: &&PodFacts<'_>| {
        let found = selection.for_workload(pod.labels, namespace, &pod.account)?;
        let waypoint = &found.waypoint;
        (found.source == Source::Account)
            .then(|| format!("account {} is bound to waypoint {waypoint}", pod.account))
    };
    let mut reasons: Vec<String> = members.iter().filter_map(bound).collect();
    let all = reasons.len() == members.len();
    reasons.sort_unstable();
    reasons.dedup();
    if reasons.is_empty() {
        return;
    }
    let text = format!(
        "the Service is labelled {}: none, but its endpoints take calls from their waypoint only: {}; \
         {} refused",
        labels::USE_WAYPOINT,
        reasons.join(", "),
        if all {
            "its traffic is"
        } else {
            "calls to those endpoints are"
        },
    );
    let object = service.reference();
    plan.verdicts
        .push(Verdict::fails(object, BOUND, "EndpointsBound", text));
}

enum ByAccount {
    /// No account of its endpoints is bound.
    No,
    /// All its endpoints' accounts lead to this one.
    One(Reference),
    /// Weighted or refused: already in the plan.
    Settled,
}

/// A Service is bound through its account when all its endpoints run as it, and stays so.
fn by_account(
    plan: &mut ServicePlan,
    service: &Service,
    members: &[&PodFacts<'_>],
    selection: &Selection<'_>,
) -> ByAccount {
    let namespace = plan.key.namespace.clone();
    let mut accounts: BTreeMap<Str, u32> = BTreeMap::new();
    for pod in members {
        *accounts.entry(pod.account.clone()).or_default() += 1;
    }
    let bound = |account: &str| match selection.bindings.of(&namespace, account) {
        Some(AccountBinding::Bound {
            waypoint,
            fail_open,
        }) => Some(Reference {
            waypoint: waypoint.clone(),
            source: Source::Account,
            account: Some(account.into()),
            fail_open: *fail_open || fails_open(service.labels()),
        }),
        _ => None,
    };
    let sticky = service.annotation(BOUND_ACCOUNT);
    if let Some((account, reference)) = sticky.and_then(|a| bound(a).map(|r| (a, r))) {
        stick(plan, service, account, &accounts);
        return ByAccount::One(reference);
    }
    let references: BTreeMap<&Str, Reference> = accounts
        .keys()
        .filter_map(|account| bound(account).map(|reference| (account, reference)))
        .collect();
    if references.is_empty() {
        return ByAccount::No;
    }
    if accounts.len() == 1 {
        let only = accounts.keys().next().cloned();
        let reference = references.into_values().next();
        if let (Some(account), Some(reference)) = (only, reference) {
            plan.sticky = Some(account.clone());
            plan.only_account = Some(account);
            return ByAccount::One(reference);
        }
        return ByAccount::No;
    }
    if references.len() == accounts.len() {
        weigh(plan, service, &accounts, &references, selection);
    } else {
        refuse_mixed(plan, service, &accounts, &references);
    }
    ByAccount::Settled
}

fn stick(plan: &mut ServicePlan, service: &Service, account: &str, all: &BTreeMap<Str, u32>) {
    plan.sticky = Some(account.into());
    plan.only_account = Some(account.into());
    let foreign: Vec<&str> = all
        .keys()
        .map(|name| &**name)
        .filter(|name| *name != account)
        .collect();
    if foreign.is_empty() {
        return;
    }
    plan.verdicts.push(
        Verdict::fails(
            service.reference(),
            "isobar.dev/AllEndpointsServed",
            "ForeignAccount",
            format!(
                "bound through account {account}; endpoints of {} are left out",
                foreign.join(", ")
            ),
        )
        .severity(Severity::Warning),
    );
}

/// Endpoints of several accounts, each with a waypoint: traffic is split by endpoints.
fn weigh(
    plan: &mut ServicePlan,
    service: &Service,
    accounts: &BTreeMap<Str, u32>,
    references: &BTreeMap<&Str, Reference>,
    selection: &Selection<'_>,
) {
    let namespace = plan.key.namespace.clone();
    let mut heaviest = 0;
    for (account, reference) in references {
        let weight = accounts.get(*account).copied().unwrap_or_default();
        let selected = selection.resolve(
            reference,
            TrafficKind::Service,
            &namespace,
            service.reference(),
        );
        plan.waypoints.extend(selected.serves);
        let Some(destination) = selected.address else {
            continue;
        };
        if weight > heaviest {
            heaviest = weight;
            plan.wire.waypoint = Some(destination.clone());
        }
        plan.wire.weighted_waypoints.push(wire::WeightedWaypoint {
            destination: Some(destination),
            weight,
        });
    }
    plan.verdicts.push(Verdict::holds(
        service.reference(),
        BOUND,
        "WaypointAccepted",
        format!(
            "endpoints run as {} accounts; traffic is split over their waypoints",
            references.len()
        ),
    ));
}

fn refuse_mixed(
    plan: &mut ServicePlan,
    service: &Service,
    accounts: &BTreeMap<Str, u32>,
    references: &BTreeMap<&Str, Reference>,
) {
    let without: Vec<&str> = accounts
        .keys()
        .filter(|account| !references.contains_key(account))
        .map(|account| &**account)
        .collect();
    plan.wire.waypoint = Some(denied_address(&plan.key.namespace));
    plan.verdicts.push(Verdict::fails(
        service.reference(),
        BOUND,
        "MixedAccounts",
        format!(
            "some endpoints run as an account with a waypoint, those of {} without; \
             traffic to the service is refused",
            without.join(", ")
        ),
    ));
}

fn message(
    service: &Service,
    spec: &ServiceSpec,
    key: &NamespacedName,
    selection: &Selection<'_>,
) -> wire::Service {
    let settings = selection.settings;
    wire::Service {
        name: key.name.to_string(),
        namespace: key.namespace.to_string(),
        hostname: settings.hostname(&key.namespace, &key.name),
        addresses: cluster_ips(spec)
            .map(|ip| wire::NetworkAddress {
                network: settings.network.to_string(),
                address: octets(ip),
                length: None,
            })
            .collect(),
        ports: spec.ports.iter().flatten().filter_map(port).collect(),
        load_balancing: load_balancing(service, spec, selection.set),
        ip_families: ip_families(spec).into(),
        canonical: true,
        ..wire::Service::default()
    }
}

fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = IpAddr> {
    let many = spec.cluster_ips.iter().flatten();
    let one = spec
        .cluster_ip
        .iter()
        .filter(|_| spec.cluster_ips.as_ref().is_none_or(Vec::is_empty));
    many.chain(one).filter_map(|text| text.parse().ok())
}

/// Raw bytes of an address.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn port(port: &ServicePort) -> Option<wire::Port> {
    let target = match &port.target_port {
        None => u32::try_from(port.port).ok()?,
        Some(IntOrString::Int(number)) => u32::try_from(*number).ok()?,
        // Only the endpoints know the number of a named port.
        Some(IntOrString::String(_)) => 0,
    };
    Some(wire::Port {
        service_port: u32::try_from(port.port).ok()?,
        target_port: target,
        app_protocol: app_protocol(port).into(),
    })
}

/// Declared protocol: `appProtocol`, else the port name's prefix.
pub(crate) fn app_protocol(port: &ServicePort) -> wire::AppProtocol {
    if port.protocol.as_deref() == Some("UDP") {
        return wire::AppProtocol::Unknown;
    }
    let name = port.name.as_deref().unwrap_or_default();
    let word = port
        .app_protocol
        .as_deref()
        .unwrap_or_else(|| name.split('-').next().unwrap_or_default());
    protocol(word)
}

/// Protocol by its name, in any case.
pub(crate) fn protocol(word: &str) -> wire::AppProtocol {
    match word.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => wire::AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => wire::AppProtocol::Http2,
        "grpc" => wire::AppProtocol::Grpc,
        "tls" | "https" | "kubernetes.io/wss" => wire::AppProtocol::Tls,
        "tcp" => wire::AppProtocol::Tcp,
        _ => wire::AppProtocol::Unknown,
    }
}

fn ip_families(spec: &ServiceSpec) -> wire::IpFamilies {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    match families {
        [] => wire::IpFamilies::Automatic,
        [one] if one == "IPv6" => wire::IpFamilies::Ipv6Only,
        [_] => wire::IpFamilies::Ipv4Only,
        _ => wire::IpFamilies::Dual,
    }
}

fn load_balancing(
    service: &Service,
    spec: &ServiceSpec,
    set: &ObjectSet,
) -> Option<wire::LoadBalancing> {
    use wire::load_balancing::{Mode, Scope};

    let preference = if spec.internal_traffic_policy.as_deref() == Some("Local") {
        (vec![Scope::Node], Mode::Strict)
    } else {
        match spec.traffic_distribution.as_deref() {
            Some(word) => closeness(word),
            None => distribution(service, set),
        }
    };
    balancing(preference, spec.publish_not_ready_addresses == Some(true))
}

/// What is near, the most important first, and how binding that is.
type Preference = (Vec<wire::load_balancing::Scope>, wire::load_balancing::Mode);

/// What annotations say about distribution: the object's own, else its namespace's.
pub(crate) fn distribution(object: &impl ObjectHead, set: &ObjectSet) -> Preference {
    const ANNOTATION: &str = "networking.istio.io/traffic-distribution";
    let namespace = set.namespaces.get("", object.namespace());
    let word = object
        .annotation(ANNOTATION)
        .or_else(|| namespace.and_then(|n| n.annotation(ANNOTATION)));
    closeness(word.unwrap_or_default())
}

fn closeness(word: &str) -> Preference {
    use wire::load_balancing::{Mode, Scope};

    let zones = [Scope::Network, Scope::Region, Scope::Zone];
    match word.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => (zones.to_vec(), Mode::Failover),
        "prefersamenode" => {
            let more = [Scope::Subzone, Scope::Node];
            (zones.into_iter().chain(more).collect(), Mode::Failover)
        }
        _ => (Vec::new(), Mode::UnspecifiedMode),
    }
}

/// The message; none where there is nothing to say. `everyone`: endpoints that are not ready, too.
pub(crate) fn balancing((scopes, mode): Preference, everyone: bool) -> Option<wire::LoadBalancing> {
    use wire::load_balancing::HealthPolicy;

    if scopes.is_empty() && !everyone {
        return None;
    }
    let health = if everyone {
        HealthPolicy::AllowAll
    } else {
        HealthPolicy::OnlyHealthy
    };
    Some(wire::LoadBalancing {
        routing_preference: scopes.into_iter().map(Into::into).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    })
}

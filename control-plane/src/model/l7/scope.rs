use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{MeshTraces, ObjectHead, ObjectRef, ObjectSet, WaypointLines};
use isobar_proto::isobar::v1 as wire;
use isobar_route::path::Normalization;
use isobar_types::NamespacedName;

use super::super::gateways::WaypointGateway;
use super::super::plan::WaypointPlan;
use super::super::pods::PodFacts;
use super::super::settings::Settings;
use super::super::verdict::{Severity, Verdict};
use super::super::workloads::uid;
use super::authorization::Targets;
use super::credentials::{self, keep_home, with_rules};
use super::delegate::Room;
use super::hosts::{Hosts, exactness};
use super::rate_limit::{self, Rates};
use super::routes::{ListenersTold, Overridden, RouteStatus, ServiceRoutes, service_routes};
use super::served::Served;
use super::target_refs::Places;
use super::visibility::Visible;
use super::{destination_rule, ingress, virtual_service};

/// Condition type for what waypoints do with a route or rule.
pub(super) const CONDITION: &str = "isobar.dev/Accepted";

/// Everything that is scoped to waypoints, converted once.
pub(crate) struct Scoping<'a> {
    pub(super) set: &'a ObjectSet,
    pub(super) hosts: &'a Hosts,
    pub(super) settings: &'a Settings,
    pub(super) places: Places<'a>,
    elsewhere: &'a EndpointLabels,
    pods: &'a [PodFacts<'a>],
    routes: Vec<Visible<wire::VirtualService>>,
    rules: Vec<Visible<wire::DestinationRule>>,
    pub(super) targets: &'a [Targets],
    pub(super) gateway_api: ServiceRoutes,
    pub(super) rates: Vec<Rates>,
}

impl<'a> Scoping<'a> {
    /// Converts routes and rules; tells what is not honoured in them.
    pub(crate) fn new(
        set: &'a ObjectSet,
        places: Places<'a>,
        hosts: &'a Hosts,
        (pods, elsewhere): (&'a [PodFacts<'a>], &'a EndpointLabels),
        targets: &'a [Targets],
        verdicts: &mut Vec<Verdict>,
    ) -> Self {
        let rules = rules(set, hosts, verdicts);
        let mut routes = Vec::new();
        let mut room = Room::default();
        for object in set.virtual_services.iter() {
            if !object.spec.applies_to_mesh() {
                let around = (hosts, places.gateways);
                verdicts.push(ingress::verdict(object, set, around, &mut room));
                continue;
            }
            let scope = (virtual_service::Scope::Mesh, &mut room);
            let converted = virtual_service::convert(object, set, hosts, scope);
            let unknown = unknown_subsets(&converted.wire, &rules);
            let verdict = if converted.problems.is_empty() {
                match unknown {
                    Some(text) if converted.unsupported.is_empty() => {
                        Verdict::fails(object.reference(), CONDITION, "UnknownSubset", text)
                            .severity(Severity::Warning)
                    }
                    _ => accepted(object.reference(), &converted.unsupported),
                }
            } else {
                let text = converted.problems.join("; ");
                Verdict::fails(object.reference(), CONDITION, "Invalid", text)
            };
            let at_gateways = object.spec.gateways.iter().any(|word| word != "mesh");
            verdicts.push(match verdict.holds && at_gateways {
                true => {
                    let around = (hosts, places.gateways);
                    ingress::verdict(object, set, around, &mut room)
                }
                false => verdict,
            });
            routes.push(Visible {
                wire: converted.wire,
                export_to: object.spec.export_to.clone(),
            });
        }
        verdicts.extend(ingress::told(set, places.gateways));
        Self {
            set,
            hosts,
            settings: places.settings,
            places,
            elsewhere,
            pods,
            gateway_api: service_routes(set, hosts, places, &overridden(&routes, places)),
            routes,
            rules,
            targets,
            rates: rate_limit::read(set, places, verdicts),
        }
    }

    /// What is to be told about the routes of the Gateway API, and about listeners at the edge.
    pub(crate) fn told(self) -> (Vec<RouteStatus>, ListenersTold) {
        (self.gateway_api.statuses, self.gateway_api.listeners)
    }
}

/// Rules that count for all callers, and what is told about each.
fn rules(
    set: &ObjectSet,
    hosts: &Hosts,
    verdicts: &mut Vec<Verdict>,
) -> Vec<Visible<wire::DestinationRule>> {
    let mut rules = Vec::new();
    for object in set.destination_rules.iter() {
        if object.spec.workload_selector.is_some() {
            verdicts.push(for_some_callers(object.reference()));
            continue;
        }
        let converted = destination_rule::convert(object, hosts);
        let unusable = credentials::problems(&converted.wire, set);
        verdicts.push(
            match unusable.is_empty() || !converted.unsupported.is_empty() {
                true => accepted(object.reference(), &converted.unsupported),
                false => {
                    let (object, text) = (object.reference(), unusable.join("; "));
                    Verdict::fails(object, CONDITION, "InvalidCertificateRef", text)
                        .severity(Severity::Warning)
                }
            },
        );
        rules.push(Visible {
            wire: converted.wire,
            export_to: object.spec.export_to.clone(),
        });
    }
    rules
}

/// Hosts that a VirtualService routes.
fn overridden(routes: &[Visible<wire::VirtualService>], places: Places<'_>) -> Overridden {
    let claimed = |about: fn(&wire::VirtualService) -> bool| {
        let claimed = places.served().filter(|service| {
            let hostname = service.hostname();
            let mut routes = routes.iter();
            routes.any(|route| {
                let mut hosts = route.wire.hosts.iter();
                let own = route.wire.namespace == *service.namespace();
                own && about(&route.wire) && hosts.any(|host| exactness(host, hostname).is_some())
            })
        });
        let key = |one: Served<'_>| (one.namespace().to_owned(), one.hostname().to_owned());
        claimed.map(key).collect()
    };
    Overridden {
        requests: claimed(|route| !route.http.is_empty()),
        connections: claimed(|route| !route.tls.is_empty() || !route.tcp.is_empty()),
    }
}

pub(super) fn accepted(object: ObjectRef, unsupported: &[String]) -> Verdict {
    if unsupported.is_empty() {
        return Verdict::holds(object, CONDITION, "Accepted", "served to its waypoints");
    }
    let text = format!("not honoured yet: {}", unsupported.join(", "));
    Verdict::fails(object, CONDITION, "UnsupportedValue", text).severity(Severity::Warning)
}

/// A rule with a selector is for the calls of the pods that it takes. A waypoint makes those of everybody: the
/// rule must not count for all, nor stand before one that does.
fn for_some_callers(object: ObjectRef) -> Verdict {
    let text = "not honoured: workloadSelector; a rule for some callers is in force nowhere: remove the field, and \
                it counts for all";
    Verdict::fails(object, CONDITION, "UnsupportedValue", text).severity(Severity::Warning)
}

/// What one waypoint is told. It sees the services it serves, the routes of these, and the rules of
/// every service those routes lead to.
pub(crate) fn plan_waypoint(
    waypoint: &WaypointGateway<'_>,
    scoping: &Scoping<'_>,
    kept_keys: Option<&BTreeSet<String>>,
) -> WaypointPlan {
    let mut plan = match waypoint.edge {
        Some(_) => ingress::plan_edge(waypoint, scoping, kept_keys),
        None => plan_inside(waypoint, scoping, kept_keys),
    };
    plan.waypoint.access_log = access_log(&scoping.settings.lines);
    plan.waypoint.path_normalization = paths(scoping.settings.paths).into();
    plan.waypoint.tracing = scoping.settings.traces.as_ref().map(tracing);
    plan
}

const fn paths(how: Normalization) -> wire::PathNormalization {
    match how {
        Normalization::None => wire::PathNormalization::None,
        Normalization::Base => wire::PathNormalization::Base,
        Normalization::MergeSlashes => wire::PathNormalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes => wire::PathNormalization::DecodeAndMergeSlashes,
    }
}

fn tracing(traces: &MeshTraces) -> wire::Tracing {
    wire::Tracing {
        host: traces.host.clone(),
        port: traces.port.into(),
        per_million: traces.per_million,
    }
}

fn access_log(lines: &WaypointLines) -> Option<wire::AccessLog> {
    let mut told = wire::AccessLog::default();
    match lines {
        WaypointLines::Usual => return None,
        WaypointLines::Off => told.off = true,
        WaypointLines::Text(text) => told.text.clone_from(text),
        WaypointLines::Json(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(name, text)| wire::LogField {
                name: name.clone(),
                text: text.clone(),
            });
            told.json = fields.collect();
        }
    }
    Some(told)
}

fn plan_inside(
    waypoint: &WaypointGateway<'_>,
    scoping: &Scoping<'_>,
    kept_keys: Option<&BTreeSet<String>>,
) -> WaypointPlan {
    let served = scoping.places.served();
    let served: Vec<Served<'_>> = served
        .filter(|one| one.waypoints.contains(&waypoint.key))
        .collect();
    let routes = routes_for(waypoint, &served, scoping);
    let reached = reached(&served, &routes);
    let rules = rules_for(waypoint, &reached, scoping);
    let authorizations = scoping
        .targets
        .iter()
        .filter_map(|targets| targets.for_waypoint(&waypoint.key, &served))
        .collect();
    let (rate_limits, mut label_keys) = rate_limits(&waypoint.key, &served, scoping);
    label_keys.extend(named_keys(&routes, &rules));
    label_keys.extend(kept_keys.into_iter().flatten().cloned());
    let credentials = with_rules(Vec::new(), &rules, scoping.set);
    WaypointPlan {
        key: waypoint.key.clone(),
        waypoint: wire::Waypoint {
            namespace: waypoint.key.namespace.to_string(),
            name: waypoint.key.name.to_string(),
            traffic: waypoint.traffic.into(),
            hostname: waypoint.hostname.clone(),
            for_service_account: waypoint
                .for_account
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
            ..wire::Waypoint::default()
        },
        labels: labels(&label_keys, scoping),
        label_keys,
        routes,
        rules,
        authorizations,
        credentials,
        rate_limits,
        foreign: waypoint.foreign.as_ref().map(|one| one.address.clone()),
    }
}

/// Routes in the waypoint's own namespace or the service's that it may see. Where several claim a service, only
/// those with the most exact host have it as a parent.
fn routes_for(
    waypoint: &WaypointGateway<'_>,
    served: &[Served<'_>],
    scoping: &Scoping<'_>,
) -> Vec<wire::VirtualService> {
    let mut parents: BTreeMap<usize, Vec<wire::ServiceRef>> = BTreeMap::new();
    for service in served {
        let hostname = service.hostname();
        let claims: Vec<(usize, usize)> = scoping
            .routes
            .iter()
            .enumerate()
            .filter(|(_, route)| {
                let (place, here) = (&*route.wire.namespace, &*waypoint.key.namespace);
                let counts = place == service.namespace() || place == here;
                counts && route.is_seen_from(here, place)
            })
            .filter_map(|(at, route)| {
                let exact = route
                    .wire
                    .hosts
                    .iter()
                    .filter_map(|host| exactness(host, hostname));
                exact.max().map(|exact| (exact, at))
            })
            .collect();
        let most = claims.iter().map(|(exact, _)| *exact).max();
        for (exact, at) in claims {
            if Some(exact) == most {
                parents.entry(at).or_default().push(service.reference());
            }
        }
    }
    let written = parents.into_iter().filter_map(|(at, parents)| {
        let route = scoping.routes.get(at)?.wire.clone();
        Some(wire::VirtualService { parents, ..route })
    });
    let attached = served.iter().filter_map(|service| {
        let key = (
            service.namespace().to_owned(),
            service.hostname().to_owned(),
        );
        let rules = scoping.gateway_api.rules.get(&key)?.clone();
        Some(wire::VirtualService {
            parents: vec![service.reference()],
            ..rules
        })
    });
    written.chain(attached).collect()
}

/// Services the waypoint may send requests to, by namespace and host name.
pub(super) type Reached = BTreeSet<(String, String)>;

pub(super) fn reached(served: &[Served<'_>], routes: &[wire::VirtualService]) -> Reached {
    let pair = |service: &wire::ServiceRef| (service.namespace.clone(), service.hostname.clone());
    let mut hosts: Reached = served.iter().map(|one| pair(&one.reference())).collect();
    let destinations = routes.iter().flat_map(destinations);
    hosts.extend(destinations.filter_map(|d| d.service.as_ref()).map(pair));
    hosts
}

/// Every place that a route names.
fn destinations(route: &wire::VirtualService) -> impl Iterator<Item = &wire::Destination> {
    let http = route.http.iter().flat_map(|http| {
        let forward = match &http.action {
            Some(wire::http_route::Action::Forward(forward)) => &forward.destinations[..],
            _ => &[],
        };
        let own = forward.iter().flat_map(|d| &d.mirrors);
        let mirrors = http.mirrors.iter().chain(own);
        let mirrors = mirrors.filter_map(|m| m.destination.as_ref());
        let asked = forward.iter().flat_map(|d| &d.external_auth);
        let asked = http.external_auth.iter().chain(asked);
        let asked = asked.filter_map(|one| one.destination.as_ref());
        let forward = forward.iter().filter_map(|d| d.destination.as_ref());
        forward.chain(mirrors).chain(asked)
    });
    let tls = route.tls.iter().flat_map(|tls| &tls.destinations);
    let tcp = route.tcp.iter().flat_map(|tcp| &tcp.destinations);
    let opaque = tls.chain(tcp).filter_map(|d| d.destination.as_ref());
    http.chain(opaque)
}

/// Subsets that a route names and no DestinationRule makes, as a sentence.
fn unknown_subsets(
    route: &wire::VirtualService,
    rules: &[Visible<wire::DestinationRule>],
) -> Option<String> {
    let made = |hostname: &str, subset: &str| {
        rules.iter().any(|rule| {
            exactness(&rule.wire.host, hostname).is_some()
                && rule.wire.subsets.iter().any(|made| made.name == subset)
        })
    };
    let unknown: BTreeSet<String> = destinations(route)
        .filter(|to| !to.subset.is_empty())
        .filter_map(|to| Some((to, to.service.as_ref()?)))
        .filter(|(to, service)| !made(&service.hostname, &to.subset))
        .map(|(to, _)| format!("{} of {}", to.subset, to.host))
        .collect();
    (!unknown.is_empty()).then(|| {
        let all = unknown.into_iter().collect::<Vec<_>>().join(", ");
        format!(
            "no DestinationRule makes the subset {all}: what is sent there is answered with 503; \
             add it to the rule's subsets, or correct the name"
        )
    })
}

/// For each reachable service, the rules that count, of those the waypoint may see: those of the waypoint's namespace, else of the
/// service's, else of the root namespace; among them the most exact host.
pub(super) fn rules_for(
    waypoint: &WaypointGateway<'_>,
    reached: &Reached,
    scoping: &Scoping<'_>,
) -> Vec<wire::DestinationRule> {
    let mut services: BTreeMap<usize, Vec<wire::ServiceRef>> = BTreeMap::new();
    for (own, hostname) in reached {
        let places: [&str; 3] = [
            &waypoint.key.namespace,
            own,
            &scoping.settings.root_namespace,
        ];
        let claims = places.into_iter().find_map(|namespace| {
            let claims: Vec<(usize, usize)> = scoping
                .rules
                .iter()
                .enumerate()
                .filter(|(_, rule)| {
                    let here = &*waypoint.key.namespace;
                    rule.wire.namespace == namespace && rule.is_seen_from(here, namespace)
                })
                .filter_map(|(at, rule)| Some((exactness(&rule.wire.host, hostname)?, at)))
                .collect();
            (!claims.is_empty()).then_some(claims)
        });
        let claims = claims.unwrap_or_default();
        let most = claims.iter().map(|(exact, _)| *exact).max();
        for (_, at) in claims.into_iter().filter(|(exact, _)| Some(*exact) == most) {
            let service = wire::ServiceRef {
                namespace: own.clone(),
                hostname: hostname.clone(),
            };
            services.entry(at).or_default().push(service);
        }
    }
    services
        .into_iter()
        .filter_map(|(at, services)| {
            let mut rule = scoping.rules.get(at)?.wire.clone();
            keep_home(&mut rule, &waypoint.key.namespace);
            Some(wire::DestinationRule { services, ..rule })
        })
        .collect()
}

/// Limits that a waypoint keeps, and the label keys that they name.
pub(super) fn rate_limits(
    waypoint: &NamespacedName,
    served: &[Served<'_>],
    scoping: &Scoping<'_>,
) -> (Vec<wire::RateLimitPolicy>, BTreeSet<String>) {
    let (mut limits, mut keys) = (Vec::new(), BTreeSet::new());
    for rates in &scoping.rates {
        if let Some(wire) = rates.for_waypoint(waypoint, served) {
            limits.push(wire);
            keys.extend(rates.label_keys().cloned());
        }
    }
    (limits, keys)
}

/// Label keys that some rule or subset names.
pub(super) fn named_keys(
    routes: &[wire::VirtualService],
    rules: &[wire::DestinationRule],
) -> BTreeSet<String> {
    let http = || routes.iter().flat_map(|route| &route.http);
    let limited = http().flat_map(own_limits);
    let limited = limited.flat_map(|policy| &policy.limits);
    let limited = limited.flat_map(|limit| &limit.matches);
    let http = http().flat_map(|http| &http.matches).chain(limited);
    let http = http.flat_map(|one| one.source_labels.keys());
    let tls = routes
        .iter()
        .flat_map(|route| &route.tls)
        .flat_map(|tls| &tls.matches)
        .filter_map(|one| one.l4.as_ref());
    let tcp = routes
        .iter()
        .flat_map(|route| &route.tcp)
        .flat_map(|tcp| &tcp.matches);
    let l4 = tls.chain(tcp).flat_map(|one| one.source_labels.keys());
    let subsets = rules
        .iter()
        .flat_map(|rule| &rule.subsets)
        .flat_map(|subset| subset.labels.keys());
    let named = http.chain(l4).chain(subsets).cloned();
    named.chain(rules.iter().flat_map(compared)).collect()
}

/// Limits that stand in a rule.
fn own_limits(http: &wire::HttpRoute) -> impl Iterator<Item = &wire::RateLimitPolicy> {
    let forward = match &http.action {
        Some(wire::http_route::Action::Forward(forward)) => &forward.destinations[..],
        _ => &[],
    };
    let of_destinations = forward.iter().flat_map(|d| &d.rate_limits);
    http.rate_limits.iter().chain(of_destinations)
}

/// Label keys by which a rule compares callers and endpoints.
fn compared(rule: &wire::DestinationRule) -> impl Iterator<Item = String> {
    let subsets = rule.subsets.iter().map(|s| s.traffic_policy.as_ref());
    let policies = subsets.chain([rule.traffic_policy.as_ref()]).flatten();
    policies
        .flat_map(|policy| {
            let ports = policy.port_level.iter().filter_map(|p| p.policy.as_ref());
            ports.chain([policy])
        })
        .filter_map(|policy| policy.locality.as_ref())
        .flat_map(|locality| &locality.failover_priority)
        .map(|entry| entry.split('=').next().unwrap_or(entry).to_owned())
}

pub(super) fn labels(keys: &BTreeSet<String>, scoping: &Scoping<'_>) -> Vec<wire::WorkloadLabels> {
    if keys.is_empty() {
        return Vec::new();
    }
    let pods = scoping.pods.iter().filter(|pod| !pod.ips.is_empty());
    let pods = pods.map(|pod| (uid(&scoping.settings.cluster_id, &pod.key), pod.labels));
    let elsewhere = scoping.elsewhere.iter();
    pods.chain(elsewhere.map(|(uid, labels)| (uid.clone(), labels)))
        .filter_map(|(uid, labels)| {
            let labels: BTreeMap<String, String> = labels
                .iter()
                .filter(|(key, _)| keys.contains(*key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            (!labels.is_empty()).then_some(wire::WorkloadLabels { uid, labels })
        })
        .collect()
}

/// Labels of endpoints that are no pods, by uid.
pub(crate) type EndpointLabels = BTreeMap<String, BTreeMap<String, String>>;

/// Waypoint by waypoint, the label keys served before.
pub(crate) type KeptKeys = BTreeMap<NamespacedName, BTreeSet<String>>;

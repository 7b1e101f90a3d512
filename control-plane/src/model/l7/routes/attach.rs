//! Which Service or ServiceEntry a route is attached to, and the order of all rules of one host.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::gateway_api::ParentReference;
use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_types::NamespacedName;
use wire::http_route::Action;

use super::super::super::verdict::{Severity, Verdict};
use super::super::hosts::Hosts;
use super::super::served::{Owner, Served};
use super::super::target_refs::Places;
use super::convert::{self, Converted, Entry, OpaqueRule, Rank};
use super::crowd::{Crowded, Room};
use super::edge::{EdgeRules, Edges, ListenersTold};
use super::references::{HostKey, Problem, References, key_of, key_of_host};

/// What is told about one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteStatus {
    /// The route.
    pub(crate) object: ObjectRef,
    /// Of each parent it names.
    pub(crate) parents: Vec<ParentStatus>,
}

/// How a route stands with one parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParentStatus {
    /// The parent as the user wrote it.
    pub(crate) parent: ParentReference,
    /// Accepted, ResolvedRefs and Programmed.
    pub(crate) conditions: Vec<RouteCondition>,
}

/// One condition of a route with a parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteCondition {
    /// Its type.
    pub(crate) condition: &'static str,
    /// Whether it holds.
    pub(crate) holds: bool,
    /// The Gateway API's word for it, where it has one.
    pub(crate) reason: &'static str,
    /// A sentence.
    pub(crate) message: String,
}

impl RouteStatus {
    /// What does not hold, for lists of findings; the conditions themselves stand by parent.
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        let conditions = self.parents.iter().flat_map(|parent| &parent.conditions);
        conditions.filter(|one| !one.holds).map(|one| {
            let text = one.message.clone();
            let verdict = Verdict::fails(self.object.clone(), one.condition, one.reason, text);
            verdict.severity(Severity::Warning)
        })
    }
}

/// All routes: the rules of each host, and what is told about each route.
#[derive(Debug, Default)]
pub(in super::super) struct ServiceRoutes {
    /// By host; `parents` is filled in per waypoint.
    pub(in super::super) rules: BTreeMap<HostKey, wire::VirtualService>,
    /// In the order of kinds and names.
    pub(in super::super) statuses: Vec<RouteStatus>,
    /// Of Gateways at the edge.
    pub(in super::super) edges: BTreeMap<NamespacedName, Vec<EdgeRules>>,
    /// What is told about their listeners.
    pub(in super::super) listeners: ListenersTold,
}

/// Hosts that VirtualServices route: their requests, and their opaque connections.
#[derive(Debug, Default)]
pub(in super::super) struct Overridden {
    pub(in super::super) requests: BTreeSet<HostKey>,
    pub(in super::super) connections: BTreeSet<HostKey>,
}

/// One route, of any kind.
pub(super) struct Route {
    pub(super) object: ObjectRef,
    /// It is not about requests.
    pub(super) opaque: bool,
    pub(super) namespace: String,
    /// Hosts that it is for, where it is attached to a Gateway.
    pub(super) hostnames: Vec<String>,
    created: i64,
    parents: Vec<ParentReference>,
    entries: Vec<Entry>,
    pub(super) rules: Vec<OpaqueRule>,
    /// Of all its rules, in bytes as they are sent.
    pub(super) size: usize,
    pub(super) accepted: Option<Problem>,
    pub(super) resolved: Option<Problem>,
}

/// A route at a Service, a host of a ServiceEntry, or a host of a listener.
pub(super) struct Attachment<'a> {
    pub(super) route: &'a Route,
    /// For callers of this namespace only.
    pub(super) consumer: Option<&'a str>,
    /// 0: every port.
    pub(super) port: u32,
}

/// Where a route is attached: a Service, or each host of a ServiceEntry.
struct Placed<'a> {
    hosts: Vec<Served<'a>>,
    /// 0: every port.
    port: u32,
}

/// Reads all routes. `overridden` are the hosts that a VirtualService routes: its rules count.
pub(in super::super) fn service_routes(
    set: &ObjectSet,
    hosts: &Hosts,
    places: Places<'_>,
    overridden: &Overridden,
) -> ServiceRoutes {
    let references = References::new(set, hosts, places);
    let routes = read(set, &references);
    let mut edges = Edges::new(set, places.gateways);
    let mut attached: BTreeMap<HostKey, (Served<'_>, Vec<Attachment<'_>>)> = BTreeMap::new();
    let mut statuses = Vec::new();
    for route in &routes {
        let overridden = match route.opaque {
            true => &overridden.connections,
            false => &overridden.requests,
        };
        let mut parents = Vec::new();
        for parent in &route.parents {
            let Some(kind) = ParentKind::of(parent) else {
                parents.extend(edges.attach(parent, route));
                continue;
            };
            let placed = place((kind, parent), route, &references);
            parents.push(ParentStatus {
                parent: parent.clone(),
                conditions: conditions(route, &placed, overridden),
            });
            let Ok(placed) = placed else {
                continue;
            };
            for host in placed.hosts {
                let key = key_of_host(&host);
                if !overridden.contains(&key) {
                    let foreign = *route.namespace != *host.namespace();
                    let (_, at) = attached.entry(key).or_insert_with(|| (host, Vec::new()));
                    at.push(Attachment {
                        route,
                        consumer: foreign.then_some(&*route.namespace),
                        port: placed.port,
                    });
                }
            }
        }
        if !parents.is_empty() {
            statuses.push(RouteStatus {
                object: route.object.clone(),
                parents,
            });
        }
    }
    let mut room = Room::default();
    let rules = attached.into_iter().map(|(key, (host, attached))| {
        let crowded = room.without(&attached);
        let rules = rules_of(&host, &attached, &crowded);
        (key, rules)
    });
    let rules = rules.collect();
    let of_edges = edges.rules(&mut room);
    room.tell(&mut statuses);
    ServiceRoutes {
        rules,
        statuses,
        edges: of_edges,
        listeners: edges.told(),
    }
}

fn read(set: &ObjectSet, references: &References<'_>) -> Vec<Route> {
    let http = set.http_routes.iter().map(|object| {
        let converted = convert::http(object, references);
        let hosts = &object.spec.hostnames;
        Route::new(&object.object, &object.spec.parent_refs, converted).of(hosts)
    });
    let grpc = set.grpc_routes.iter().map(|object| {
        let converted = convert::grpc(object, references);
        let hosts = &object.spec.hostnames;
        Route::new(&object.object, &object.spec.parent_refs, converted).of(hosts)
    });
    let tls = set.tls_routes.iter().map(|object| {
        let converted = convert::tls(object, references);
        let hosts = &object.spec.hostnames;
        let route = Route::new(&object.object, &object.spec.parent_refs, converted);
        route.of(hosts).opaque()
    });
    let tcp = set.tcp_routes.iter().map(|object| {
        let converted = convert::tcp(object, references);
        Route::new(&object.object, &object.spec.parent_refs, converted).opaque()
    });
    http.chain(grpc).chain(tls).chain(tcp).collect()
}

impl Route {
    fn new(object: &impl ObjectHead, parents: &[ParentReference], converted: Converted) -> Self {
        let size = converted.size();
        Self {
            size,
            object: object.reference(),
            opaque: false,
            hostnames: Vec::new(),
            namespace: object.namespace().to_owned(),
            created: object.created(),
            parents: parents.to_vec(),
            entries: converted.entries,
            rules: converted.opaque,
            accepted: converted.accepted,
            resolved: converted.resolved,
        }
    }

    fn of(mut self, hostnames: &[String]) -> Self {
        self.hostnames = hostnames.to_vec();
        self
    }

    fn opaque(mut self) -> Self {
        self.opaque = true;
        self
    }
}

/// What a route inside the mesh may be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParentKind {
    Service,
    Entry,
}

impl ParentKind {
    /// `None` for Gateways and what is unknown.
    pub(super) fn of(parent: &ParentReference) -> Option<Self> {
        let kind = parent.kind.as_deref()?;
        let is = |own: Kind| parent.group.as_deref() == Some(own.group()) && kind == own.as_str();
        match () {
            () if is(Kind::Service) => Some(Self::Service),
            () if is(Kind::ServiceEntry) => Some(Self::Entry),
            () => None,
        }
    }
}

fn place<'a>(
    (kind, parent): (ParentKind, &ParentReference),
    route: &Route,
    references: &References<'a>,
) -> Result<Placed<'a>, Problem> {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let none = |message| Problem {
        reason: "NoMatchingParent",
        message,
    };
    let key = key_of(namespace, &parent.name);
    let (what, hosts) = match kind {
        ParentKind::Service => (format!("Service {key}"), references.of_service(&key)),
        ParentKind::Entry => {
            let hosts = references.of_entry(&key, &route.namespace);
            (format!("ServiceEntry {key}"), hosts)
        }
    };
    let Some(first) = hosts.first() else {
        return Err(none(format!("there is no {what}")));
    };
    let named = match &parent.section_name {
        Some(name) => {
            let port = references.port_named(kind, &key, name);
            Some(port.ok_or_else(|| none(format!("{what} has no port named {name:?}")))?)
        }
        None => None,
    };
    let wanted = parent.port.map(u32::from).or(named);
    let Some(port) = wanted else {
        return Ok(Placed { hosts, port: 0 });
    };
    let there = first.wire.ports.iter().any(|p| p.service_port == port);
    if !there || named.is_some_and(|named| named != port) {
        return Err(none(format!("{what} has no port {port}")));
    }
    Ok(Placed { hosts, port })
}

fn conditions(
    route: &Route,
    placed: &Result<Placed<'_>, Problem>,
    overridden: &BTreeSet<HostKey>,
) -> Vec<RouteCondition> {
    let hosts = placed.as_ref().map_or(&[][..], |placed| &placed.hosts);
    let conflict = hosts
        .iter()
        .find(|host| overridden.contains(&key_of_host(host)))
        .map(|host| Problem {
            reason: "Conflicted",
            message: match host.owner {
                Owner::Service(_) => format!("a VirtualService routes {}", host.owner),
                Owner::Entry(_) => format!(
                    "a VirtualService routes host {} of {}",
                    host.hostname(),
                    host.owner
                ),
            },
        });
    let unserved = hosts
        .iter()
        .find(|host| host.waypoints.is_empty())
        .map(|host| Problem {
            reason: "NoWaypoint",
            message: format!("no waypoint serves {}", host.owner),
        });
    let problem = placed.as_ref().err().or(conflict.as_ref());
    let unserved = problem.or(unserved.as_ref());
    stands(
        route,
        problem,
        (unserved, "told to the waypoints of the parent"),
    )
}

/// How a route stands with a parent: what keeps it from being there, and from being served by whoever is told.
pub(super) fn stands(
    route: &Route,
    problem: Option<&Problem>,
    (unserved, programmed): (Option<&Problem>, &str),
) -> Vec<RouteCondition> {
    let accepted = problem.or(route.accepted.as_ref());
    let resolved = route.resolved.as_ref();
    let all = [
        ("Accepted", accepted, "Accepted", "attached"),
        (
            "ResolvedRefs",
            resolved,
            "ResolvedRefs",
            "every destination is there",
        ),
        ("Programmed", unserved, "Programmed", programmed),
    ];
    let all = all.map(|(condition, problem, reason, message)| RouteCondition {
        condition,
        holds: problem.is_none(),
        reason: problem.map_or(reason, |problem| problem.reason),
        message: problem
            .map_or(message, |problem| &problem.message)
            .to_owned(),
    });
    all.into()
}

/// The rules of one host: those of routes in a caller's own namespace take its place for that
/// namespace, then those of the host's own namespace.
fn rules_of(
    service: &Served<'_>,
    attached: &[Attachment<'_>],
    crowded: &Crowded<'_>,
) -> wire::VirtualService {
    let (opaque, attached): (Vec<&Attachment<'_>>, Vec<_>) =
        attached.iter().partition(|a| a.route.opaque);
    let mut http = Vec::new();
    for consumer in consumers(&attached) {
        put(&attached, Some(consumer), crowded, &mut http);
    }
    put(&attached, None, crowded, &mut http);
    // Where no route says anything, a call goes where it was addressed to.
    let everywhere = |a: &&Attachment<'_>| a.consumer.is_none() && a.port == 0;
    if !attached.is_empty() && !attached.iter().any(everywhere) {
        http.push(itself(service));
    }
    let (tls, mut tcp) = connections(&opaque, crowded);
    if !opaque.is_empty() && !opaque.iter().any(everywhere) {
        tcp.push(wire::TcpRoute {
            matches: Vec::new(),
            destinations: vec![back(service)],
        });
    }
    wire::VirtualService {
        namespace: service.namespace().to_owned(),
        // No object has a colon in its name.
        name: match service.owner {
            Owner::Service(key) => format!("{}:routes", key.name),
            Owner::Entry(_) => format!("{}:routes-of-host", service.hostname()),
        },
        hosts: vec![service.hostname().to_owned()],
        http,
        tls,
        tcp,
        ..wire::VirtualService::default()
    }
}

fn consumers<'a>(attached: &[&Attachment<'a>]) -> BTreeSet<&'a str> {
    attached.iter().filter_map(|a| a.consumer).collect()
}

/// Rules for opaque connections: those of callers' own namespaces first, the more exact server name
/// first, then the older route. What no rule of a port takes is refused.
pub(super) fn connections(
    attached: &[&Attachment<'_>],
    crowded: &Crowded<'_>,
) -> (Vec<wire::TlsRoute>, Vec<wire::TcpRoute>) {
    let (mut tls, mut tcp) = (Vec::new(), Vec::new());
    let places = consumers(attached).into_iter().map(Some).chain([None]);
    for consumer in places {
        let mut mine: Vec<_> = attached.iter().filter(|a| a.consumer == consumer).collect();
        mine.sort_by_key(|a| (a.route.created, &a.route.namespace, &a.route.object.name));
        let l4 = |port: u32| wire::L4Match {
            port,
            source_namespace: consumer.unwrap_or_default().to_owned(),
            ..wire::L4Match::default()
        };
        let counts = mine.iter().filter(|_| !crowded.contains(&consumer));
        let rules = counts.flat_map(|a| a.route.rules.iter().map(|rule| (a.port, rule)));
        let mut named = Vec::new();
        for (port, rule) in rules {
            match rule.server_names.as_deref() {
                None => tcp.push(wire::TcpRoute {
                    matches: vec![l4(port)],
                    destinations: rule.destinations.clone(),
                }),
                Some([]) => named.push((None, port, rule)),
                Some(names) => named.extend(names.iter().map(|name| (Some(name), port, rule))),
            }
        }
        // Stable: of equally exact names the older route's comes first.
        named.sort_by_key(|(name, ..)| Reverse(exactness(name.map(String::as_str))));
        tls.extend(named.into_iter().map(|(name, port, rule)| wire::TlsRoute {
            matches: vec![wire::TlsMatch {
                sni_hosts: name.into_iter().cloned().collect(),
                l4: Some(l4(port)),
            }],
            destinations: rule.destinations.clone(),
        }));
        let ports: BTreeSet<u32> = mine.iter().map(|a| a.port).collect();
        tcp.extend(ports.into_iter().map(|port| wire::TcpRoute {
            matches: vec![l4(port)],
            destinations: vec![convert::nowhere()],
        }));
    }
    (tls, tcp)
}

/// How exact a server name is; `None` for every one.
pub(super) fn exactness(server_name: Option<&str>) -> (bool, usize) {
    let exact = server_name.is_some_and(|name| !name.starts_with('*'));
    (exact, server_name.map_or(0, str::len))
}

/// Rules in their order of precedence, then a refusal of what none of them takes; of everything where they
/// do not count.
fn put(
    attached: &[&Attachment<'_>],
    consumer: Option<&str>,
    crowded: &Crowded<'_>,
    http: &mut Vec<wire::HttpRoute>,
) {
    let mine = attached.iter().filter(|a| a.consumer == consumer);
    let mine: Vec<&Attachment<'_>> = mine.copied().collect();
    let of_rest = match crowded.contains(&consumer) {
        true => TOO_MANY,
        false => {
            in_order(&mine, consumer, http);
            NO_ROUTE
        }
    };
    let ports: BTreeSet<u32> = mine.iter().map(|a| a.port).collect();
    for port in ports {
        let mut block = wire::HttpMatch::default();
        narrow(&mut block, port, consumer);
        http.push(refusal(of_rest, vec![block]));
    }
}

/// Rules that refuse: name and status.
const NO_ROUTE: (&str, u32) = ("no route", 404);
pub(super) const TOO_MANY: (&str, u32) = ("too many rules", 500);

pub(super) fn refusal(
    (name, status): (&str, u32),
    matches: Vec<wire::HttpMatch>,
) -> wire::HttpRoute {
    wire::HttpRoute {
        name: name.to_owned(),
        matches,
        action: Some(Action::DirectResponse(wire::DirectResponse {
            status,
            body: Vec::new(),
        })),
        ..wire::HttpRoute::default()
    }
}

fn narrow(block: &mut wire::HttpMatch, port: u32, consumer: Option<&str>) {
    block.port = port;
    consumer
        .unwrap_or_default()
        .clone_into(&mut block.source_namespace);
}

/// Rules in their order of precedence.
pub(super) fn in_order(
    mine: &[&Attachment<'_>],
    consumer: Option<&str>,
    http: &mut Vec<wire::HttpRoute>,
) {
    let mut ordered: Vec<(Order<'_>, &Entry, u32)> = Vec::new();
    for attachment in mine {
        let route = attachment.route;
        for (place, entry) in route.entries.iter().enumerate() {
            let order = (
                Reverse(entry.rank),
                route.created,
                &*route.namespace,
                &*route.object.name,
                place,
            );
            ordered.push((order, entry, attachment.port));
        }
    }
    ordered.sort_by(|a, b| a.0.cmp(&b.0));
    for (_, entry, port) in ordered {
        let mut rule = entry.rule.clone();
        rule.matches
            .iter_mut()
            .for_each(|block| narrow(block, port, consumer));
        http.push(rule);
    }
}

/// The more exact rule first, then the older route, then by name, then by place.
type Order<'a> = (Reverse<Rank>, i64, &'a str, &'a str, usize);

fn itself(service: &Served<'_>) -> wire::HttpRoute {
    wire::HttpRoute {
        name: "default".to_owned(),
        action: Some(Action::Forward(wire::HttpForward {
            destinations: vec![back(service)],
        })),
        ..wire::HttpRoute::default()
    }
}

/// The host that was addressed, as a destination.
fn back(service: &Served<'_>) -> wire::WeightedDestination {
    let destination = wire::Destination {
        service: Some(service.reference()),
        host: service.hostname().to_owned(),
        ..wire::Destination::default()
    };
    wire::WeightedDestination {
        destination: Some(destination),
        weight: 1,
        ..wire::WeightedDestination::default()
    }
}

//! Routes attached to Gateways at the edge of the mesh: which listeners take them, and the rules of each
//! host there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::gateway_api::{FromNamespaces, Gateway, Listener, ParentReference};
use isobar_objects::{Kind, ObjectHead, ObjectSet, selectors};
use isobar_proto::isobar::v1 as wire;
use isobar_types::NamespacedName;
use wire::listener::Protocol;

use super::super::super::gateways::{Gateways, WaypointGateway};
use super::super::super::plan::ListenerFacts;
use super::super::ingress::{ApiServers, api_servers, meet};
use super::attach::{
    Attachment, ParentStatus, Route, TOO_MANY, connections, exactness, in_order, refusal, stands,
};
use super::convert::nowhere;
use super::crowd::{AT_ANOTHER, Crowded, Room};
use super::references::{Problem, key_of};

/// What is told about listeners, by Gateway.
pub(crate) type ListenersTold = BTreeMap<NamespacedName, Vec<ListenerFacts>>;

/// The rules for one host of one listener.
#[derive(Debug, Clone)]
pub(in super::super) struct EdgeRules {
    /// The listener, as it is told on the wire.
    pub(in super::super) listener: String,
    pub(in super::super) host: String,
    /// Without parents.
    pub(in super::super) rules: wire::VirtualService,
}

/// The Gateways at the edge, and what is attached to them.
pub(super) struct Edges<'a> {
    set: &'a ObjectSet,
    all: BTreeMap<&'a NamespacedName, (&'a Gateway, ApiServers)>,
    /// Gateways of ours that take no routes.
    waypoints: BTreeSet<&'a NamespacedName>,
    hung: BTreeMap<&'a NamespacedName, Vec<Hung<'a>>>,
    counts: BTreeMap<(NamespacedName, String), usize>,
}

/// A route at a listener.
struct Hung<'a> {
    route: &'a Route,
    /// The listener's own name: what hangs at one does not count at others.
    section: String,
    listener: String,
    host: String,
}

impl<'a> Edges<'a> {
    pub(super) fn new(set: &'a ObjectSet, gateways: &'a Gateways<'a>) -> Self {
        let edges = gateways.values().filter(|one| one.edge.is_some());
        let all = edges.filter_map(|one| {
            let gateway = one.gateway?;
            Some((&one.key, (gateway, api_servers(gateway, set))))
        });
        // What is told about routes at somebody else's Gateways is for their own controllers to say.
        let ours = |one: &&WaypointGateway<'_>| one.edge.is_none() && one.foreign.is_none();
        let waypoints = gateways.values().filter(ours);
        Self {
            set,
            all: all.collect(),
            waypoints: waypoints.map(|one| &one.key).collect(),
            hung: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Attaches a route; what is to be told, if the parent is a Gateway here.
    pub(super) fn attach(
        &mut self,
        parent: &ParentReference,
        route: &'a Route,
    ) -> Option<ParentStatus> {
        let gateway = parent.kind.as_deref().is_none_or(|kind| kind == "Gateway");
        let group = parent.group.as_deref();
        if !gateway || group.is_some_and(|group| group != Kind::Gateway.group()) {
            return None;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
        let wanted = key_of(namespace, &parent.name);
        let Some((key, (gateway, servers))) = self.all.get_key_value(&wanted) else {
            let is_waypoint = self.waypoints.contains(&wanted);
            return is_waypoint.then(|| refused(parent, route, &wanted));
        };
        let taken = take(parent, route, gateway, servers, self.set);
        if let Ok(places) = &taken {
            let mut names: Vec<_> = places.iter().map(|(name, ..)| name.clone()).collect();
            names.dedup();
            for name in names {
                *self.counts.entry((wanted.clone(), name)).or_default() += 1;
            }
            let hung = self.hung.entry(key).or_default();
            hung.extend(places.iter().map(|(section, listener, host)| Hung {
                route,
                section: section.clone(),
                listener: listener.clone(),
                host: host.clone(),
            }));
        }
        Some(ParentStatus {
            parent: parent.clone(),
            conditions: {
                let problem = taken.as_ref().err();
                stands(route, problem, (problem, "told to the pods of the Gateway"))
            },
        })
    }

    /// The rules of every host, by Gateway.
    pub(super) fn rules(&self, room: &mut Room) -> BTreeMap<NamespacedName, Vec<EdgeRules>> {
        let all = self.hung.iter();
        all.map(|(key, hung)| ((*key).clone(), rules_of(key, hung, room)))
            .collect()
    }

    /// What is told about the listeners.
    pub(super) fn told(&self) -> ListenersTold {
        let all = self.all.iter().map(|(key, (gateway, servers))| {
            let listeners = gateway.spec.listeners.iter();
            let facts = listeners.map(|listener| {
                let server = servers.all.get(&listener.name);
                let counted = ((*key).clone(), listener.name.clone());
                ListenerFacts {
                    name: listener.name.clone(),
                    port: u16::try_from(listener.port).unwrap_or_default(),
                    kinds: kinds(&listener.protocol),
                    attached: self.counts.get(&counted).copied().unwrap_or_default(),
                    served: server.is_some_and(Result::is_ok),
                    problem: server.and_then(|server| match server {
                        Ok(server) => server.flaw().cloned(),
                        Err(flaw) => Some(flaw.clone()),
                    }),
                }
            });
            ((*key).clone(), facts.collect())
        });
        all.collect()
    }
}

/// What is told about a route whose parent is a waypoint: the one listener of it, for tunnels, takes no
/// kind of route, so that none ever counts as attached to it.
fn refused(parent: &ParentReference, route: &Route, waypoint: &NamespacedName) -> ParentStatus {
    let problem = Problem {
        reason: "NotAllowedByListeners",
        message: format!(
            "Gateway {waypoint} is a waypoint, whose listener takes no routes: the parents of a route \
             inside the mesh are the Services that the waypoint serves"
        ),
    };
    ParentStatus {
        parent: parent.clone(),
        conditions: stands(route, Some(&problem), (Some(&problem), "")),
    }
}

/// Kinds of routes that a listener takes.
fn kinds(protocol: &str) -> &'static [&'static str] {
    match protocol {
        "HTTP" | "HTTPS" => &["HTTPRoute", "GRPCRoute"],
        "TLS" => &["TLSRoute"],
        "TCP" => &["TCPRoute"],
        _ => &[],
    }
}

/// Listener by its own name and that on the wire, and host.
type Place = (String, String, String);

/// The listeners and hosts where a route counts.
fn take(
    parent: &ParentReference,
    route: &Route,
    gateway: &Gateway,
    servers: &ApiServers,
    set: &ObjectSet,
) -> Result<Vec<Place>, Problem> {
    let problem = |reason, message| Problem { reason, message };
    let meant = gateway.spec.listeners.iter().filter(|listener| {
        let section = parent.section_name.as_deref();
        let port = parent.port.map(i32::from);
        section.is_none_or(|name| name == listener.name)
            && port.is_none_or(|port| port == listener.port)
    });
    let meant: Vec<&Listener> = meant.collect();
    let key = key_of(gateway.namespace(), gateway.name());
    if meant.is_empty() {
        let text = format!("Gateway {key} has no such listener");
        return Err(problem("NoMatchingParent", text));
    }
    let allowed: Vec<_> = meant
        .iter()
        .filter(|listener| allows(listener, gateway, route, set))
        .collect();
    if allowed.is_empty() {
        let text = format!("no listener of Gateway {key} allows this route");
        return Err(problem("NotAllowedByListeners", text));
    }
    let mut places = Vec::new();
    let mut met = false;
    for listener in allowed {
        let own = listener.hostname.as_deref().filter(|h| !h.is_empty());
        let any = ["*".to_owned()];
        let hosts = match &route.hostnames[..] {
            [] => &any[..],
            some => some,
        };
        let both = hosts
            .iter()
            .filter_map(|host| meet(own.unwrap_or("*"), host));
        let both: BTreeSet<String> = both.collect();
        let Some(Ok(server)) = servers.all.get(&listener.name) else {
            met |= !both.is_empty();
            continue;
        };
        // A host counts at the most exact listener of the port only: who is let in there was decided there.
        let own = own.unwrap_or("*").to_ascii_lowercase();
        let port = u16::try_from(listener.port).unwrap_or_default();
        let exact = both
            .into_iter()
            .filter(|host| servers.claims.is_for(port, &own, host));
        let both: BTreeSet<String> = exact.collect();
        met |= !both.is_empty();
        let opaque = matches!(server.protocol(), Protocol::Tls | Protocol::Tcp);
        let both = both.into_iter().map(|host| match opaque {
            true => "*".to_owned(),
            false => host,
        });
        let both: BTreeSet<String> = both.collect();
        let name = server.listener();
        places.extend(
            both.into_iter()
                .map(|h| (listener.name.clone(), name.to_owned(), h)),
        );
    }
    if !met {
        let text = format!("no listener of Gateway {key} is for a host of this route");
        return Err(problem("NoMatchingListenerHostname", text));
    }
    Ok(places)
}

fn allows(listener: &Listener, gateway: &Gateway, route: &Route, set: &ObjectSet) -> bool {
    let kind = &*route.object.kind;
    let rules = listener.allowed_routes.as_ref();
    let named = rules.map_or(&[][..], |rules| &rules.kinds);
    let right = |one: &isobar_objects::gateway_api::RouteKind| {
        let group = one.group.as_deref();
        one.kind == kind && group.is_none_or(|group| group == Kind::HttpRoute.group())
    };
    if !kinds(&listener.protocol).contains(&kind) || !(named.is_empty() || named.iter().any(right))
    {
        return false;
    }
    let namespaces = rules.and_then(|rules| rules.namespaces.as_ref());
    let from = namespaces.map(|one| one.from).unwrap_or_default();
    match from {
        FromNamespaces::All => true,
        FromNamespaces::Same => route.namespace == gateway.namespace(),
        FromNamespaces::None => false,
        FromNamespaces::Selector => {
            let selector = namespaces.and_then(|one| one.selector.as_ref());
            let place = set.namespaces.get("", &route.namespace);
            selector
                .zip(place)
                .is_some_and(|(selector, place)| selectors::selects(selector, place.labels()))
        }
    }
}

/// Routes at one listener, by host.
type ByHost<'a> = BTreeMap<&'a str, Vec<Attachment<'a>>>;

/// For each host of each listener the rules of every route that takes it, those for the more exact host
/// first.
fn rules_of(gateway: &NamespacedName, hung: &[Hung<'_>], room: &mut Room) -> Vec<EdgeRules> {
    let mut listeners: BTreeMap<(&str, &str), ByHost<'_>> = BTreeMap::new();
    for one in hung {
        let hosts = listeners.entry((&one.listener, &one.section)).or_default();
        let attached = hosts.entry(&one.host).or_default();
        // A route that names the listener twice does so in a row.
        let last = attached.last();
        if last.is_none_or(|have| !std::ptr::eq(have.route, one.route)) {
            attached.push(Attachment {
                route: one.route,
                consumer: None,
                port: 0,
            });
        }
    }
    let mut all = Vec::new();
    for ((listener, _), hosts) in listeners {
        all.extend(hosts.iter().map(|(host, owners)| EdgeRules {
            listener: listener.to_owned(),
            host: (*host).to_owned(),
            rules: wire::VirtualService {
                namespace: gateway.namespace.to_string(),
                // No object has a colon in its name.
                name: format!("{}:{listener}:{host}", gateway.name),
                hosts: vec![(*host).to_owned()],
                ..rules_at((host, owners), &hosts, &gateway.namespace, room)
            },
        }));
    }
    all
}

/// The rules at one host of a Gateway in `home`: its owners', then those of wildcards around it.
fn rules_at(
    (host, owners): (&str, &[Attachment<'_>]),
    hosts: &ByHost<'_>,
    home: &str,
    room: &mut Room,
) -> wire::VirtualService {
    let mut rules = wire::VirtualService::default();
    let crowded = room.without_at_gateway(owners, home);
    if put(owners, &crowded, &mut rules) {
        return rules;
    }
    for wildcard in wildcards_around(host) {
        let Some(attached) = hosts.get(&*wildcard) else {
            continue;
        };
        let crowded = room.without_again(attached, owners, home);
        if put(attached, &crowded, &mut rules) {
            break;
        }
    }
    rules
}

/// Every wildcard that takes all of a host besides itself, the most exact first.
fn wildcards_around(host: &str) -> impl Iterator<Item = String> {
    let own = host.strip_prefix('*').unwrap_or(host);
    let ends = own.char_indices().skip(1).map(|(at, _)| &own[at..]);
    let last = (!own.is_empty()).then_some("");
    ends.chain(last).map(|end| format!("*{end}"))
}

/// Adds the rules of routes for one host, but for those of crowded namespaces: what would be theirs is refused.
/// Whether no request is left for rules behind these.
fn put(
    attached: &[Attachment<'_>],
    crowded: &BTreeSet<&str>,
    rules: &mut wire::VirtualService,
) -> bool {
    let (opaque, requests): (Vec<_>, Vec<_>) = attached.iter().partition(|a| a.route.opaque);
    let is_out = |a: &&Attachment<'_>| crowded.contains(&*a.route.namespace);
    let (out, counts): (Vec<_>, Vec<_>) = requests.into_iter().partition(is_out);
    in_order(&counts, None, &mut rules.http);
    let is_shut = !out.is_empty();
    if is_shut {
        rules.http.push(refusal(TOO_MANY, Vec::new()));
    }
    let (out, counts): (Vec<_>, Vec<_>) = opaque.into_iter().partition(is_out);
    let (mut tls, mut tcp) = connections(&counts, &Crowded::new());
    if !out.is_empty() {
        tls.extend(shut(&out));
        // Stable: of equally exact names those that count come first.
        tls.sort_by_key(|rule| {
            let mut names = rule.matches.iter().flat_map(|one| &one.sni_hosts);
            Reverse(exactness(names.next().map(String::as_str)))
        });
        // As behind those that count.
        if counts.is_empty() {
            tcp.push(wire::TcpRoute {
                matches: Vec::new(),
                destinations: vec![nowhere()],
            });
        }
    }
    rules.tls.extend(tls);
    rules.tcp.extend(tcp);
    is_shut
}

/// Rules that refuse the server names of routes that do not count: a wildcard of somebody else would take
/// these connections. Names of one length are one rule, and a namespace's come to what its routes may: of
/// more only the first are refused.
fn shut(out: &[&Attachment<'_>]) -> impl Iterator<Item = wire::TlsRoute> {
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    let mut all: BTreeMap<(bool, usize), BTreeSet<&str>> = BTreeMap::new();
    for one in out {
        let names = one.route.rules.iter().map(|rule| &rule.server_names);
        for names in names.flatten() {
            if names.is_empty() {
                all.entry(exactness(None)).or_default();
            }
            let used = used.entry(&one.route.namespace).or_default();
            for name in names {
                if *used + name.len() > AT_ANOTHER {
                    break;
                }
                let alike = all.entry(exactness(Some(name))).or_default();
                if alike.insert(name) {
                    *used += name.len();
                }
            }
        }
    }
    let all = all.into_values();
    all.map(|names| wire::TlsRoute {
        matches: vec![wire::TlsMatch {
            sni_hosts: names.into_iter().map(str::to_owned).collect(),
            l4: Some(wire::L4Match::default()),
        }],
        destinations: vec![nowhere()],
    })
}

//! Servers of mode `AUTO_PASSTHROUGH`: the server name says itself where a connection goes, without rules of users.

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::ObjectHead;
use isobar_objects::istio::Location;
use isobar_proto::isobar::v1 as wire;

use super::super::super::gateways::WaypointGateway;
use super::super::scope::{Reached, Scoping, rules_for};
use super::super::served::{Owner, Served};
use super::super::visibility::is_exported;
use super::servers::{IstioServers, Server};
use super::{Listeners, meet};

/// How callers name a port of a host, all of it or a subset.
fn server_name(port: u32, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// What server names of this kind end with, for a server's host.
pub(super) fn pattern(host: &str) -> String {
    match host.starts_with('*') {
        true => host.to_owned(),
        false => format!("*.{host}"),
    }
}

/// For each service that such a server shows and its gateway may see, where its server names lead.
pub(super) fn routes(
    waypoint: &WaypointGateway<'_>,
    servers: &IstioServers,
    scoping: &Scoping<'_>,
    listeners: &mut Listeners<'_>,
) -> Vec<wire::VirtualService> {
    let own: Vec<&Server> = servers.served.iter().filter(|one| one.by_name).collect();
    if own.is_empty() {
        return Vec::new();
    }
    let namespace = &*waypoint.key.namespace;
    let mut shown: BTreeMap<(String, String), (Served<'_>, Vec<wire::ServiceRef>)> =
        BTreeMap::new();
    for service in scoping.places.served() {
        if !is_inside(&service, namespace, scoping) || is_itself(&service, waypoint, scoping) {
            continue;
        }
        let at = own.iter().filter(|server| shows(server, &service));
        let at = at.filter_map(|server| listeners.show(&server.name, "*", false));
        let at: Vec<_> = at.collect();
        if !at.is_empty() {
            let key = (
                service.namespace().to_owned(),
                service.hostname().to_owned(),
            );
            shown.insert(key, (service, at));
        }
    }
    let reached: Reached = shown.keys().cloned().collect();
    let subsets = subsets(&rules_for(waypoint, &reached, scoping));
    let routes = shown.into_iter().map(|(key, (service, parents))| {
        let none = BTreeSet::new();
        let named = subsets.get(&key).unwrap_or(&none).iter();
        let subsets: Vec<&str> = named.map(String::as_str).chain([""]).collect();
        let ports = service.wire.ports.iter();
        let tls = ports.flat_map(|port| {
            let to = |subset: &&str| route(&service, port.service_port, subset);
            subsets.iter().map(to).collect::<Vec<_>>()
        });
        wire::VirtualService {
            namespace: namespace.to_owned(),
            // No object has a colon in its name.
            name: format!("by-name:{}:{}", key.0, key.1),
            parents,
            tls: tls.collect(),
            hosts: vec![key.1],
            ..wire::VirtualService::default()
        }
    });
    routes.collect()
}

/// What lies outside the mesh is not for others to be reached by this way.
fn is_inside(service: &Served<'_>, namespace: &str, scoping: &Scoping<'_>) -> bool {
    if service.hostname().starts_with('*') {
        return false;
    }
    match service.owner {
        Owner::Service(_) => true,
        Owner::Entry(key) => {
            let entry = scoping.set.service_entries.get(&key.namespace, &key.name);
            entry.is_some_and(|entry| {
                entry.spec.location == Location::MeshInternal
                    && is_exported(&entry.spec.export_to, namespace, entry.namespace())
            })
        }
    }
}

/// Its own pods would be sent what they have sent, by the same name, and without an end.
fn is_itself(service: &Served<'_>, waypoint: &WaypointGateway<'_>, scoping: &Scoping<'_>) -> bool {
    let Owner::Service(key) = service.owner else {
        return false;
    };
    let object = scoping.set.services.get(&key.namespace, &key.name);
    let selector = object.and_then(|object| object.spec.as_ref()?.selector.as_ref());
    let Some(selector) = selector.filter(|_| key.namespace == waypoint.key.namespace) else {
        return false;
    };
    let mut pods = waypoint.edge.iter().flat_map(|edge| &edge.labels);
    pods.any(|labels| {
        let mut wanted = selector.iter();
        wanted.all(|(name, value)| labels.get(name) == Some(value))
    })
}

fn shows(server: &Server, service: &Served<'_>) -> bool {
    let host = service.hostname();
    server.hosts.iter().any(|shown| {
        let only = shown.only.as_deref();
        only.is_none_or(|only| only == service.namespace())
            && meet(&shown.host, host).as_deref() == Some(host)
    })
}

/// Names of the subsets that rules make of each service.
fn subsets(rules: &[wire::DestinationRule]) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut all: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for rule in rules {
        for service in &rule.services {
            let key = (service.namespace.clone(), service.hostname.clone());
            let names = rule.subsets.iter().map(|subset| subset.name.clone());
            all.entry(key).or_default().extend(names);
        }
    }
    all
}

fn route(service: &Served<'_>, port: u32, subset: &str) -> wire::TlsRoute {
    let host = service.hostname();
    wire::TlsRoute {
        matches: vec![wire::TlsMatch {
            sni_hosts: vec![server_name(port, subset, host)],
            l4: None,
        }],
        destinations: vec![wire::WeightedDestination {
            destination: Some(wire::Destination {
                service: Some(service.reference()),
                subset: subset.to_owned(),
                port,
                host: host.to_owned(),
                refuse: 0,
            }),
            weight: 1,
            ..wire::WeightedDestination::default()
        }],
    }
}

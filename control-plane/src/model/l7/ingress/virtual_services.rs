//! VirtualServices that are bound to Istio's Gateways.

use std::collections::BTreeSet;

use isobar_objects::istio::VirtualService;
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use wire::listener::Protocol;

use super::super::super::gateways::{Gateways, WaypointGateway};
use super::super::super::verdict::{Severity, Verdict};
use super::super::delegate::Room;
use super::super::hosts::Hosts;
use super::super::scope::{CONDITION, Scoping, accepted};
use super::super::virtual_service::{self, Scope};
use super::super::visibility::is_exported;
use super::claims::Claims;
use super::servers::{IstioServers, Server};
use super::{Listeners, meet};

/// True if `word` in an object of `place` names the Gateway.
fn names(word: &str, place: &str, (namespace, name): (&str, &str)) -> bool {
    match word.split_once('/') {
        Some((".", own)) => place == namespace && own == name,
        Some((other, own)) => other == namespace && own == name,
        None => place == namespace && word == name,
    }
}

/// Rules for the hosts that a Gateway's servers and their own hosts have in common.
pub(super) fn bound(
    waypoint: &WaypointGateway<'_>,
    servers: &IstioServers,
    scoping: &Scoping<'_>,
    listeners: &mut Listeners<'_>,
) -> Vec<wire::VirtualService> {
    let gateways = waypoint.edge.iter().flat_map(|edge| &edge.istio);
    let gateways: Vec<_> = gateways.map(|g| (g.namespace(), g.name())).collect();
    let mut routes = Vec::new();
    let mut room = Room::default();
    for object in scoping.set.virtual_services.iter() {
        let place = object.namespace();
        let words = &object.spec.gateways;
        let own = gateways
            .iter()
            .filter(|gateway| words.iter().any(|word| names(word, place, **gateway)));
        let own: Vec<_> = own.collect();
        if own.is_empty() || !is_exported(&object.spec.export_to, &waypoint.key.namespace, place) {
            continue;
        }
        for gateway in &own {
            let scope = (Scope::Gateway(gateway.0, gateway.1), &mut room);
            let wire = virtual_service::convert(object, scoping.set, scoping.hosts, scope).wire;
            let mine = servers
                .served
                .iter()
                // Where server names say themselves where connections go, rules are not asked.
                .filter(|s| !s.by_name && (s.of.0.as_str(), s.of.1.as_str()) == **gateway);
            let mut places = Places::default();
            for server in mine {
                let claims = &servers.claims;
                shown(server, claims, object, &wire, listeners, &mut places);
            }
            // Bound to several it has other rules at each.
            let name = match own.len() {
                1 => wire.name.clone(),
                _ => format!("{}:{}.{}", wire.name, gateway.0, gateway.1),
            };
            routes.extend(places.rules(wire, &name));
        }
    }
    routes
}

/// Where rules count.
#[derive(Default)]
struct Places {
    parents: Vec<wire::ServiceRef>,
    /// Where TLS is passed on, and the server names that the rules may be for there.
    passed: Vec<wire::ServiceRef>,
    names: BTreeSet<String>,
}

impl Places {
    fn rules(self, wire: wire::VirtualService, name: &str) -> Vec<wire::VirtualService> {
        let mut all = Vec::new();
        if !self.passed.is_empty() {
            all.push(wire::VirtualService {
                // No object has a colon in its name.
                name: match self.parents.is_empty() {
                    true => name.to_owned(),
                    false => format!("{name}:tls"),
                },
                parents: self.passed,
                tls: narrowed(&wire.tls, &self.names),
                // They would take every server name.
                tcp: Vec::new(),
                ..wire.clone()
            });
        }
        if !self.parents.is_empty() {
            all.push(wire::VirtualService {
                name: name.to_owned(),
                parents: self.parents,
                ..wire
            });
        }
        all
    }
}

/// The rules for server names that they may be for.
fn narrowed(rules: &[wire::TlsRoute], names: &BTreeSet<String>) -> Vec<wire::TlsRoute> {
    let any = ["*".to_owned()];
    let narrow = |block: &wire::TlsMatch| {
        let wanted = match &block.sni_hosts[..] {
            [] => &any[..],
            some => some,
        };
        let both = wanted
            .iter()
            .flat_map(|one| names.iter().filter_map(move |name| meet(one, name)));
        let both: BTreeSet<String> = both.collect();
        (!both.is_empty()).then(|| wire::TlsMatch {
            sni_hosts: both.into_iter().collect(),
            l4: block.l4.clone(),
        })
    };
    let every = [wire::TlsMatch::default()];
    let rules = rules.iter().filter_map(|rule| {
        let blocks = match &rule.matches[..] {
            [] => &every[..],
            some => some,
        };
        let matches: Vec<_> = blocks.iter().filter_map(narrow).collect();
        (!matches.is_empty()).then(|| wire::TlsRoute {
            matches,
            ..rule.clone()
        })
    });
    rules.collect()
}

/// Adds the places of one server where the rules count: for a host only where the port has no more exact
/// one for it.
fn shown(
    server: &Server,
    claims: &Claims,
    object: &VirtualService,
    wire: &wire::VirtualService,
    listeners: &mut Listeners<'_>,
    places: &mut Places,
) {
    let there = server.hosts.iter().filter(|shown| {
        let only = shown.only.as_deref();
        only.is_none_or(|only| only == object.namespace())
    });
    // As written too: `shop` at an edge is hardly ever the Service of that name.
    let written = object.spec.hosts.iter().map(String::as_str);
    let hosts: Vec<&str> = written
        .chain(wire.hosts.iter().map(String::as_str))
        .collect();
    let both = there.flat_map(|shown| {
        let both = hosts.iter().filter_map(|host| meet(&shown.host, host));
        both.filter(|host| {
            let opaque = server.protocol == Protocol::Tcp;
            opaque || claims.is_for(server.bind, &shown.host, host)
        })
    });
    let both: BTreeSet<String> = both.collect();
    match server.protocol {
        Protocol::Http | Protocol::Https => {
            let keys = both
                .iter()
                .map(|host| listeners.show(&server.name, host, server.https_redirect));
            places.parents.extend(keys.flatten());
        }
        // Which server name it is is for the rules to say.
        Protocol::Tls | Protocol::Tcp if both.is_empty() => {}
        Protocol::Tls if server.tls.is_none() => {
            places
                .passed
                .extend(listeners.show(&server.name, "*", false));
            places.names.extend(both);
        }
        Protocol::Tls | Protocol::Tcp => {
            places
                .parents
                .extend(listeners.show(&server.name, "*", false))
        }
    }
}

/// What is told about rules that are for gateways only.
pub(in super::super) fn verdict(
    object: &VirtualService,
    set: &ObjectSet,
    (hosts, gateways): (&Hosts, &Gateways<'_>),
    room: &mut Room,
) -> Verdict {
    let place = object.namespace();
    let edges = || gateways.values().filter_map(|one| one.edge.as_ref());
    let mut problems = Vec::new();
    let mut unsupported = Vec::new();
    let words: BTreeSet<&String> = object.spec.gateways.iter().collect();
    for word in words.into_iter().filter(|word| *word != "mesh") {
        let mut all = set.istio_gateways.iter();
        let found = all.find(|g| names(word, place, (g.namespace(), g.name())));
        let Some(found) = found else {
            problems.push(format!("there is no Gateway {word}"));
            continue;
        };
        let own = (found.namespace(), found.name());
        let mut served = edges().flat_map(|edge| &edge.istio);
        if !served.any(|g| (g.namespace(), g.name()) == own) {
            problems.push(format!("no pod is a gateway of Gateway {word}"));
        }
        let scope = (Scope::Gateway(own.0, own.1), &mut *room);
        let converted = virtual_service::convert(object, set, hosts, scope);
        problems.extend(converted.problems);
        unsupported.extend(converted.unsupported);
    }
    unsupported.sort_unstable();
    unsupported.dedup();
    if problems.is_empty() {
        return accepted(object.reference(), &unsupported);
    }
    let text = problems.join("; ");
    Verdict::fails(object.reference(), CONDITION, "Invalid", text).severity(Severity::Warning)
}

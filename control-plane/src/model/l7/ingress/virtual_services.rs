//! VirtualServices that are bound to Istio's Gateways.

use isobar_objects::istio::VirtualService;
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use wire::listener::Protocol;

use super::super::super::gateways::{Gateways, WaypointGateway};
use super::super::super::verdict::{Severity, Verdict};
use super::super::hosts::Hosts;
use super::super::scope::{CONDITION, Scoping, accepted};
use super::super::virtual_service::{self, Scope};
use super::super::visibility::is_exported;
use super::servers::Server;
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
    servers: &[Server],
    scoping: &Scoping<'_>,
    listeners: &mut Listeners<'_>,
) -> Vec<wire::VirtualService> {
    let gateways = waypoint.edge.iter().flat_map(|edge| &edge.istio);
    let gateways: Vec<_> = gateways.map(|g| (g.namespace(), g.name())).collect();
    let mut routes = Vec::new();
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
            let scope = Scope::Gateway(gateway.0, gateway.1);
            let wire = virtual_service::convert(object, scoping.set, scoping.hosts, scope).wire;
            let mine = servers
                .iter()
                .filter(|s| (s.of.0.as_str(), s.of.1.as_str()) == **gateway);
            let mut parents = Vec::new();
            for server in mine {
                parents.extend(shown(server, object, &wire, listeners));
            }
            if parents.is_empty() {
                continue;
            }
            // Bound to several it has other rules at each.
            let name = match own.len() {
                1 => wire.name.clone(),
                _ => format!("{}:{}.{}", wire.name, gateway.0, gateway.1),
            };
            routes.push(wire::VirtualService {
                name,
                parents,
                ..wire
            });
        }
    }
    routes
}

/// The places of one server where the rules count.
fn shown(
    server: &Server,
    object: &VirtualService,
    wire: &wire::VirtualService,
    listeners: &mut Listeners<'_>,
) -> Vec<wire::ServiceRef> {
    let there = server.hosts.iter().filter(|shown| {
        let only = shown.only.as_deref();
        only.is_none_or(|only| only == object.namespace())
    });
    // As written too: `shop` at an edge is hardly ever the Service of that name.
    let written = object.spec.hosts.iter().map(String::as_str);
    let hosts: Vec<&str> = written
        .chain(wire.hosts.iter().map(String::as_str))
        .collect();
    let both = there.flat_map(|shown| hosts.iter().filter_map(|host| meet(&shown.host, host)));
    let mut both: Vec<String> = both.collect();
    both.sort_unstable();
    both.dedup();
    match server.protocol {
        Protocol::Http | Protocol::Https => {
            let keys = both
                .iter()
                .map(|host| listeners.show(&server.name, host, server.https_redirect));
            keys.flatten().collect()
        }
        // Which server name it is is for the rules to say.
        Protocol::Tls | Protocol::Tcp if both.is_empty() => Vec::new(),
        Protocol::Tls | Protocol::Tcp => listeners
            .show(&server.name, "*", false)
            .into_iter()
            .collect(),
    }
}

/// What is told about rules that are for gateways only.
pub(in super::super) fn verdict(
    object: &VirtualService,
    set: &ObjectSet,
    hosts: &Hosts,
    gateways: &Gateways<'_>,
) -> Verdict {
    let place = object.namespace();
    let edges = || gateways.values().filter_map(|one| one.edge.as_ref());
    let mut problems = Vec::new();
    let mut unsupported = Vec::new();
    for word in object.spec.gateways.iter().filter(|word| *word != "mesh") {
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
        let scope = Scope::Gateway(own.0, own.1);
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

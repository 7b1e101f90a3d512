//! What gateways at the edge of the mesh are told: their ports, and the rules that are bound to them.

mod by_name;
mod claims;
pub(super) mod credentials;
mod hosts;
mod servers;
#[cfg(test)]
mod tests;
mod virtual_services;

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_types::labels;
use wire::listener::Protocol;

use super::super::gateways::WaypointGateway;
use super::super::plan::WaypointPlan;
use super::authorization;
use super::credentials::with_rules;
use super::scope::{Scoping, labels, named_keys, rate_limits, reached, rules_for};
use claims::Claims;
pub(super) use hosts::meet;
pub(super) use servers::told;
pub(super) use servers::{ApiServers, api_servers};
use servers::{Server, istio_servers};
pub(super) use virtual_services::verdict;

/// The key of the rules for a host of a listener; no service has a name with a bar in it.
pub(super) fn rules_key(namespace: &str, listener: &str, host: &str) -> wire::ServiceRef {
    wire::ServiceRef {
        namespace: namespace.to_owned(),
        hostname: format!("{listener}|{host}"),
    }
}

/// What one gateway is told.
pub(super) fn plan_edge(
    waypoint: &WaypointGateway<'_>,
    scoping: &Scoping<'_>,
    kept_keys: Option<&BTreeSet<String>>,
) -> WaypointPlan {
    let namespace = &*waypoint.key.namespace;
    let mut listeners = Listeners::new(namespace);
    let mut routes = Vec::new();
    let claims = match waypoint.gateway {
        Some(gateway) => {
            let servers = api_servers(gateway, scoping.set);
            listeners.open_all(servers.good(), &servers.closed);
            let attached = scoping.gateway_api.edges.get(&waypoint.key);
            for rules in attached.into_iter().flatten() {
                if let Some(parent) = listeners.show(&rules.listener, &rules.host, false) {
                    routes.push(wire::VirtualService {
                        parents: vec![parent],
                        ..rules.rules.clone()
                    });
                }
            }
            servers.claims
        }
        None => {
            let servers = istio_servers(waypoint, scoping.set);
            listeners.open_all(servers.served.iter(), &servers.closed);
            routes = virtual_services::bound(waypoint, &servers, scoping, &mut listeners);
            routes.extend(by_name::routes(waypoint, &servers, scoping, &mut listeners));
            servers.claims
        }
    };
    listeners.guard(&claims);
    let listeners = listeners.done();
    let reached = reached(&[], &routes);
    let rules = rules_for(waypoint, &reached, scoping);
    let through = through_waypoint(&reached, scoping);
    let (rate_limits, mut label_keys) = rate_limits(&waypoint.key, &[], scoping);
    label_keys.extend(named_keys(&routes, &rules));
    label_keys.extend(kept_keys.into_iter().flatten().cloned());
    WaypointPlan {
        key: waypoint.key.clone(),
        credentials: with_rules(
            credentials::named(&listeners, scoping.set),
            &rules,
            scoping.set,
        ),
        waypoint: wire::Waypoint {
            namespace: namespace.to_owned(),
            name: waypoint.key.name.to_string(),
            traffic: waypoint.traffic.into(),
            hostname: waypoint.hostname.clone(),
            listeners,
            through_waypoint: through,
            ..wire::Waypoint::default()
        },
        labels: labels(&label_keys, scoping),
        label_keys,
        routes,
        rules,
        authorizations: policies(waypoint, scoping),
        rate_limits,
        foreign: None,
    }
}

/// Policies that name the gateway, and those that select its pods: no node proxy stands before these
/// ports, so they are kept here or nowhere. All pods are told the same, so a policy that selects one of
/// them counts for all; but what lets callers into one pod must not let them into another one that has
/// rules of its own, so there it lets in nobody.
fn policies(waypoint: &WaypointGateway<'_>, scoping: &Scoping<'_>) -> Vec<wire::Authorization> {
    let allows = |one: &wire::Authorization| {
        one.action() == wire::authorization::Action::Allow && !one.dry_run
    };
    let named = scoping.targets.iter();
    let mut all: Vec<_> = named
        .filter_map(|targets| targets.for_waypoint(&waypoint.key, &[]))
        .collect();
    let pods: Vec<&BTreeMap<String, String>> =
        waypoint.edge.iter().flat_map(|edge| &edge.labels).collect();
    let mut guarded = vec![all.iter().any(allows); pods.len()];
    let mut selecting = Vec::new();
    for policy in scoping.set.authorization_policies.iter() {
        let place = policy.namespace();
        let counts =
            place == &*waypoint.key.namespace || place == &*scoping.settings.root_namespace;
        if !counts || policy.spec.targets().next().is_some() {
            continue;
        }
        let selector = policy.spec.selector.as_ref();
        let selects =
            |labels: &&BTreeMap<String, String>| selector.is_none_or(|s| s.selects(labels));
        let chosen: Vec<bool> = pods.iter().map(selects).collect();
        if selector.is_some() && !chosen.contains(&true) {
            continue;
        }
        let wire = wire::Authorization {
            whole_waypoint: true,
            ..authorization::convert(policy)
        };
        if allows(&wire) {
            for (guarded, chosen) in guarded.iter_mut().zip(&chosen) {
                *guarded |= *chosen;
            }
        }
        selecting.push((wire, chosen));
    }
    all.extend(selecting.into_iter().map(|(mut wire, chosen)| {
        let others = guarded.iter().zip(&chosen);
        if allows(&wire)
            && others
                .into_iter()
                .any(|(guarded, chosen)| *guarded && !chosen)
        {
            wire.rules.clear();
        }
        wire
    }));
    all
}

/// Those whose label, or whose Namespace's, asks for it.
fn through_waypoint(
    reached: &BTreeSet<(String, String)>,
    scoping: &Scoping<'_>,
) -> Vec<wire::ServiceRef> {
    let asks = |labels: &BTreeMap<String, String>| {
        let word = labels.get(labels::INGRESS_USE_WAYPOINT);
        word.map(|word| word == "true")
    };
    let wanted = reached.iter().filter(|(namespace, hostname)| {
        let set: &ObjectSet = scoping.set;
        let key = scoping.hosts.service(hostname);
        let own = key.and_then(|key| set.services.get(&key.namespace, &key.name));
        let own = own.and_then(|service| asks(service.labels()));
        let own = own.or_else(|| {
            let entries = set.service_entries.in_namespace(namespace);
            let mut named = entries.filter(|one| one.spec.hosts.contains(hostname));
            named.find_map(|entry| asks(entry.labels()))
        });
        let place = set.namespaces.get("", namespace);
        own.or_else(|| asks(place?.labels())).unwrap_or(false)
    });
    let wanted = wanted.map(|(namespace, hostname)| wire::ServiceRef {
        namespace: namespace.clone(),
        hostname: hostname.clone(),
    });
    wanted.collect()
}

/// Listeners in the making. What is spoken in the clear on one port is one listener.
struct Listeners<'a> {
    namespace: &'a str,
    all: BTreeMap<String, wire::Listener>,
}

impl<'a> Listeners<'a> {
    const fn new(namespace: &'a str) -> Self {
        Self {
            namespace,
            all: BTreeMap::new(),
        }
    }

    /// Opens what is served. What is refused is closed where others share its port: TLS for its hosts ends
    /// there with nobody.
    fn open_all<'s>(&mut self, served: impl Iterator<Item = &'s Server>, closed: &[Server]) {
        for server in served {
            self.open(server);
        }
        for server in closed {
            if self
                .all
                .values()
                .any(|one| one.port == u32::from(server.bind))
            {
                self.open(server);
            }
        }
    }

    /// Hosts that are taken elsewhere on a port do not get the answers of wider hosts here.
    fn guard(&mut self, claims: &Claims) {
        let mut missing = Vec::new();
        for listener in self.all.values() {
            let http = [Protocol::Http.into(), Protocol::Https.into()];
            let port = u16::try_from(listener.port).unwrap_or_default();
            let shown = &listener.virtual_hosts;
            for host in claims.hosts(port) {
                let covered =
                    |one: &wire::VirtualHost| meet(&one.host, host).as_deref() == Some(host);
                let known = shown.iter().any(|one| one.host == host);
                if http.contains(&listener.protocol) && !known && shown.iter().any(covered) {
                    missing.push((listener.name.clone(), host.to_owned()));
                }
            }
        }
        for (listener, host) in missing {
            self.show(&listener, &host, false);
        }
    }

    fn open(&mut self, server: &Server) {
        let protocol = server.protocol.into();
        let opened = self.all.entry(server.name.clone());
        opened.or_insert_with(|| wire::Listener {
            name: server.name.clone(),
            port: u32::from(server.bind),
            service_port: u32::from(server.port),
            protocol,
            server_names: server.server_names(),
            tls: server.tls.clone(),
            raw: server.by_name,
            virtual_hosts: Vec::new(),
        });
        if server.https_redirect {
            for shown in &server.hosts {
                self.show(&server.name, &shown.host, true);
            }
        }
    }

    /// Shows a host there; the key of its rules.
    fn show(&mut self, listener: &str, host: &str, https: bool) -> Option<wire::ServiceRef> {
        let key = rules_key(self.namespace, listener, host);
        let listener = self.all.get_mut(listener)?;
        let known = listener.virtual_hosts.iter_mut().find(|h| h.host == host);
        match known {
            Some(known) => known.https_redirect |= https,
            None => listener.virtual_hosts.push(wire::VirtualHost {
                host: host.to_owned(),
                rules: Some(key.clone()),
                https_redirect: https,
            }),
        }
        Some(key)
    }

    fn done(self) -> Vec<wire::Listener> {
        self.all.into_values().collect()
    }
}

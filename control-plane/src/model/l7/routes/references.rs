//! What routes refer to, and who may.

use std::collections::BTreeMap;

use isobar_objects::gateway_api::BackendRef;
use isobar_objects::{Kind, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_proto::istio::workload::service::Visibility;
use isobar_types::NamespacedName;

use super::super::super::service_entries::EntryPlan;
use super::super::super::services::ServicePlan;
use super::super::hosts::Hosts;
use super::super::rate_limit;
use super::super::served::Served;
use super::super::target_refs::Places;
use super::attach::ParentKind;

/// Status of requests for a destination that is not there (Gateway API, `backendRefs`).
const NOT_RESOLVED: u32 = 500;
/// Kind of destinations that are hosts of ServiceEntries, as Istio has it.
const HOSTNAME: &str = "Hostname";

/// A host: its namespace, and its full name.
pub(in super::super) type HostKey = (String, String);

/// Why a condition does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The Gateway API's word.
    pub(super) reason: &'static str,
    /// A sentence.
    pub(super) message: String,
}

/// A route that refers to something.
pub(super) struct Referrer<'a> {
    pub(super) kind: Kind,
    pub(super) namespace: &'a str,
    /// What it is attached to, where that is one Service or ServiceEntry and nothing else.
    pub(super) parent: Option<(ParentKind, NamespacedName)>,
}

impl Referrer<'_> {
    /// Whoever may say where calls for a Service go may also let them go there. Not so beside other
    /// parents: the rules are the same for all, and would show it to callers of those too, at a Gateway
    /// to everybody.
    fn hangs_at(&self, kind: ParentKind, key: &NamespacedName) -> bool {
        let parent = self.parent.as_ref();
        parent.is_some_and(|(own, at)| *own == kind && at == key)
    }
}

/// Everything routes may refer to.
pub(super) struct References<'a> {
    set: &'a ObjectSet,
    hosts: &'a Hosts,
    services: BTreeMap<&'a NamespacedName, &'a ServicePlan>,
    entries: &'a [EntryPlan<'a>],
}

pub(super) fn key_of_host(host: &Served<'_>) -> HostKey {
    (host.namespace().to_owned(), host.hostname().to_owned())
}

pub(super) fn key_of(namespace: &str, name: &str) -> NamespacedName {
    NamespacedName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

impl<'a> References<'a> {
    pub(super) fn new(set: &'a ObjectSet, hosts: &'a Hosts, places: Places<'a>) -> Self {
        Self {
            set,
            hosts,
            services: places.services.iter().map(|s| (&s.key, s)).collect(),
            entries: places.entries,
        }
    }

    /// A Service, if it is there.
    pub(super) fn of_service(&self, key: &NamespacedName) -> Vec<Served<'a>> {
        let service = self.services.get(key).copied();
        service.map(ServicePlan::served).into_iter().collect()
    }

    /// The hosts of a ServiceEntry, as far as `from` sees it.
    pub(super) fn of_entry(&self, key: &NamespacedName, from: &str) -> Vec<Served<'a>> {
        let seen = |one: &&EntryPlan<'_>| {
            *key.namespace == *from || one.wire.visibility == i32::from(Visibility::Public)
        };
        let own = self.entries.iter().filter(|one| one.key == *key);
        own.filter(seen).map(EntryPlan::served).collect()
    }

    /// The port of a Service or ServiceEntry by its name.
    pub(super) fn port_named(
        &self,
        kind: ParentKind,
        key: &NamespacedName,
        name: &str,
    ) -> Option<u32> {
        if kind == ParentKind::Entry {
            let entry = self.set.service_entries.get(&key.namespace, &key.name)?;
            let port = entry.spec.ports.iter().find(|port| port.name == name);
            return port.map(|port| port.number);
        }
        let service = self.set.services.get(&key.namespace, &key.name)?;
        let ports = service.spec.as_ref()?.ports.as_ref()?;
        let port = ports.iter().find(|port| port.name.as_deref() == Some(name));
        u32::try_from(port?.port).ok()
    }

    /// Limits by their name.
    pub(super) fn limits(&self, namespace: &str, name: &str) -> Option<wire::RateLimitPolicy> {
        let policy = self.set.rate_limit_policies.get(namespace, name)?;
        Some(rate_limit::convert(policy))
    }

    /// A destination as a route names it. One that is not there, or not for that route, answers with
    /// an error.
    pub(super) fn destination(
        &self,
        by: &Referrer<'_>,
        from: &BackendRef,
    ) -> (wire::Destination, Option<Problem>) {
        match self.resolve(by, from) {
            Ok(destination) => (destination, None),
            Err(problem) => {
                let nowhere = wire::Destination {
                    host: from.name.clone(),
                    refuse: NOT_RESOLVED,
                    ..wire::Destination::default()
                };
                (nowhere, Some(problem))
            }
        }
    }

    fn resolve(&self, by: &Referrer<'_>, from: &BackendRef) -> Result<wire::Destination, Problem> {
        let wrong = |reason, message| Err(Problem { reason, message });
        let group = from.group.as_deref().unwrap_or_default();
        let wanted = from.kind.as_deref().unwrap_or("Service");
        if group == Kind::ServiceEntry.group() && wanted == HOSTNAME {
            return self.host(by, from);
        }
        if !group.is_empty() || wanted != "Service" {
            let message = format!("{wanted} {:?} of group {group:?} is no Service", from.name);
            return wrong("InvalidKind", message);
        }
        let place = from.namespace.as_deref().unwrap_or(by.namespace);
        let key = key_of(place, &from.name);
        let own = place == by.namespace || by.hangs_at(ParentKind::Service, &key);
        if !own && !self.grants(by, &key, Kind::Service) {
            let message = format!(
                "no ReferenceGrant in {place} lets {} use Service {key}",
                by.namespace
            );
            return wrong("RefNotPermitted", message);
        }
        let Some(service) = self.services.get(&key) else {
            return wrong("BackendNotFound", format!("there is no Service {key}"));
        };
        let port = from.port.map_or(0, u32::from);
        if !service.wire.ports.iter().any(|p| p.service_port == port) {
            return wrong(
                "BackendNotFound",
                format!("Service {key} has no port {port}"),
            );
        }
        let hostname = &service.wire.hostname;
        Ok(wire::Destination {
            service: Some(self.hosts.reference(hostname, place)),
            port,
            host: from.name.clone(),
            ..wire::Destination::default()
        })
    }

    /// A host of a ServiceEntry, by its name: of the route's own namespace first.
    fn host(&self, by: &Referrer<'_>, from: &BackendRef) -> Result<wire::Destination, Problem> {
        let wrong = |reason, message| Err(Problem { reason, message });
        let name = from.name.trim_end_matches('.').to_ascii_lowercase();
        let place = from.namespace.as_deref();
        let mut all = self.entries.iter().filter(|entry| {
            entry.wire.hostname == name && place.is_none_or(|place| *entry.key.namespace == *place)
        });
        let own = all
            .clone()
            .find(|entry| *entry.key.namespace == *by.namespace);
        let Some(entry) = own.or_else(|| all.find(|entry| entry.wire.canonical)) else {
            return wrong(
                "BackendNotFound",
                format!("no ServiceEntry has the host {name}"),
            );
        };
        let key = &entry.key;
        let allowed = *key.namespace == *by.namespace
            || by.hangs_at(ParentKind::Entry, key)
            || self.grants(by, key, Kind::ServiceEntry);
        if !allowed {
            let message = format!(
                "no ReferenceGrant in {} lets {} use ServiceEntry {key}",
                key.namespace, by.namespace
            );
            return wrong("RefNotPermitted", message);
        }
        let port = from.port.map_or(0, u32::from);
        if !entry.wire.ports.iter().any(|p| p.service_port == port) {
            let message = format!("ServiceEntry {key} has no port {port}");
            return wrong("BackendNotFound", message);
        }
        Ok(wire::Destination {
            service: Some(entry.served().reference()),
            port,
            host: from.name.clone(),
            ..wire::Destination::default()
        })
    }

    fn grants(&self, by: &Referrer<'_>, to: &NamespacedName, kind: Kind) -> bool {
        let mut grants = self.set.reference_grants.in_namespace(&to.namespace);
        grants.any(|grant| {
            let from = grant.spec.from.iter().any(|from| {
                from.group == by.kind.group()
                    && from.kind == by.kind.as_str()
                    && from.namespace == by.namespace
            });
            let mut targets = grant.spec.to.iter();
            from && targets.any(|target| {
                let named = target.name.as_deref();
                target.group == kind.group()
                    && target.kind == kind.as_str()
                    && named.is_none_or(|name| name == &*to.name)
            })
        })
    }
}

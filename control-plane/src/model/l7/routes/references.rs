//! What routes refer to, and who may.

use std::collections::BTreeMap;

use isobar_objects::gateway_api::BackendRef;
use isobar_objects::{Kind, ObjectSet};
use isobar_proto::isobar::v1 as wire;
use isobar_types::NamespacedName;

use super::super::super::services::ServicePlan;
use super::super::hosts::Hosts;

/// Status of requests for a destination that is not there (Gateway API, `backendRefs`).
const NOT_RESOLVED: u32 = 500;

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
    /// Services it is attached to.
    pub(super) parents: Vec<NamespacedName>,
}

/// Everything routes may refer to.
pub(super) struct References<'a> {
    set: &'a ObjectSet,
    hosts: &'a Hosts,
    services: BTreeMap<&'a NamespacedName, &'a ServicePlan>,
}

pub(super) fn key_of(namespace: &str, name: &str) -> NamespacedName {
    NamespacedName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

impl<'a> References<'a> {
    pub(super) fn new(set: &'a ObjectSet, hosts: &'a Hosts, services: &'a [ServicePlan]) -> Self {
        Self {
            set,
            hosts,
            services: services.iter().map(|s| (&s.key, s)).collect(),
        }
    }

    pub(super) fn service(&self, key: &NamespacedName) -> Option<&'a ServicePlan> {
        self.services.get(key).copied()
    }

    /// The port of a Service by its name.
    pub(super) fn port_named(&self, key: &NamespacedName, name: &str) -> Option<u32> {
        let service = self.set.services.get(&key.namespace, &key.name)?;
        let ports = service.spec.as_ref()?.ports.as_ref()?;
        let port = ports.iter().find(|port| port.name.as_deref() == Some(name));
        u32::try_from(port?.port).ok()
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
        if !group.is_empty() || wanted != "Service" {
            let message = format!("{wanted} {:?} of group {group:?} is no Service", from.name);
            return wrong("InvalidKind", message);
        }
        let place = from.namespace.as_deref().unwrap_or(by.namespace);
        let key = key_of(place, &from.name);
        // Whoever may say where calls for a Service go may also let them go there.
        let own = place == by.namespace || by.parents.contains(&key);
        if !own && !self.grants(by, &key) {
            let message = format!(
                "no ReferenceGrant in {place} lets {} use Service {key}",
                by.namespace
            );
            return wrong("RefNotPermitted", message);
        }
        let Some(service) = self.service(&key) else {
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

    fn grants(&self, by: &Referrer<'_>, to: &NamespacedName) -> bool {
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
                target.group.is_empty()
                    && target.kind == "Service"
                    && named.is_none_or(|name| name == &*to.name)
            })
        })
    }
}

//! What `targetRefs` mean.

use std::collections::BTreeSet;

use isobar_objects::gateway_api::Gateway;
use isobar_objects::istio::TargetReference;
use isobar_proto::isobar::v1::ServiceRef;
use isobar_types::NamespacedName;

use super::super::gateways::Gateways;
use super::super::service_entries::EntryPlan;
use super::super::services::ServicePlan;
use super::super::settings::Settings;
use super::served::{Owner, Served};

/// Reason for what waypoints are asked for that somebody else runs: nobody here knows what they do.
pub(super) const FOREIGN: &str = "ForeignWaypoint";

/// Everything that can be a target.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    pub(crate) services: &'a [ServicePlan],
    pub(crate) entries: &'a [EntryPlan<'a>],
    pub(crate) gateways: &'a Gateways<'a>,
    pub(crate) settings: &'a Settings,
}

impl<'a> Places<'a> {
    /// Services and hosts of ServiceEntries.
    pub(crate) fn served(self) -> impl Iterator<Item = Served<'a>> {
        let services = self.services.iter().map(ServicePlan::served);
        services.chain(self.entries.iter().map(EntryPlan::served))
    }

    /// True for a waypoint that somebody else runs.
    pub(super) fn is_foreign(self, waypoint: &NamespacedName) -> bool {
        let found = self.gateways.get(waypoint);
        found.is_some_and(|one| one.foreign.is_some())
    }
}

/// What an object is about.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    /// Waypoints as a whole.
    pub(crate) gateways: BTreeSet<NamespacedName>,
    /// Services.
    pub(crate) services: BTreeSet<NamespacedName>,
    /// ServiceEntries.
    pub(crate) entries: BTreeSet<NamespacedName>,
}

impl Chosen {
    /// What of it concerns one waypoint: whether all of its traffic, and which services of those it
    /// serves; `None` if nothing does.
    pub(super) fn at(
        &self,
        waypoint: &NamespacedName,
        served: &[Served<'_>],
    ) -> Option<(bool, Vec<ServiceRef>)> {
        let whole_waypoint = self.gateways.contains(waypoint);
        let services: Vec<_> = served
            .iter()
            .filter(|one| self.names(one.owner))
            .map(Served::reference)
            .collect();
        (whole_waypoint || !services.is_empty()).then_some((whole_waypoint, services))
    }

    /// True if it is about all of this object.
    pub(crate) fn names(&self, owner: Owner<'_>) -> bool {
        match owner {
            Owner::Service(key) => self.services.contains(key),
            Owner::Entry(key) => self.entries.contains(key),
        }
    }

    /// Half a sentence about what of it somebody else's waypoint takes calls for; `None` if it is all
    /// behind waypoints of ours.
    pub(super) fn foreign(&self, places: Places<'_>) -> Option<String> {
        if let Some(whole) = self.gateways.iter().find(|key| places.is_foreign(key)) {
            return Some(format!("Gateway {whole} is run by somebody else"));
        }
        let mut served = places.served().filter(|one| self.names(one.owner));
        let (owner, waypoint) = served.find_map(|one| {
            let mut taking = one.waypoints.iter().filter(|key| one.takes_calls(key));
            Some((one.owner, taking.find(|key| places.is_foreign(key))?))
        })?;
        Some(format!(
            "{owner} is behind waypoint {waypoint}, which somebody else runs"
        ))
    }

    /// True if it is about something.
    pub(crate) fn is_some(&self) -> bool {
        !self.gateways.is_empty() || !self.services.is_empty() || !self.entries.is_empty()
    }

    /// Adds what a reference of an object in `namespace` means.
    ///
    /// # Errors
    /// A sentence, where it means nothing.
    pub(super) fn add(
        &mut self,
        reference: &TargetReference,
        namespace: &str,
        places: Places<'_>,
    ) -> Result<(), String> {
        if !reference.namespace.is_empty() && reference.namespace != namespace {
            return Err(format!(
                "target {} is in namespace {}, only the policy's own is allowed",
                reference.name, reference.namespace
            ));
        }
        let key = NamespacedName {
            namespace: namespace.into(),
            name: reference.name.as_str().into(),
        };
        match (reference.group.as_str(), reference.kind.as_str()) {
            ("gateway.networking.k8s.io", "Gateway") if places.gateways.contains_key(&key) => {
                self.gateways.insert(key);
            }
            ("gateway.networking.k8s.io", "GatewayClass")
                if namespace == &*places.settings.root_namespace =>
            {
                let class = &reference.name;
                let all = places.gateways.values();
                let is = |own: &Gateway| own.spec.gateway_class_name == *class;
                let of_class = all.filter(|g| g.gateway.is_some_and(is));
                self.gateways.extend(of_class.map(|g| g.key.clone()));
            }
            ("gateway.networking.k8s.io", "GatewayClass") => {
                return Err(format!(
                    "target GatewayClass {} counts only in namespace {}",
                    reference.name, places.settings.root_namespace
                ));
            }
            ("" | "core", "Service") if places.services.iter().any(|s| s.key == key) => {
                self.services.insert(key);
            }
            ("networking.istio.io", "ServiceEntry")
                if places.entries.iter().any(|entry| entry.key == key) =>
            {
                self.entries.insert(key);
            }
            (_, kind) => return Err(format!("target {kind} {key} is not found")),
        }
        Ok(())
    }
}

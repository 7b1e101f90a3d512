//! A workload behind a waypoint refuses what did not come through it.
//!
//! Our own node proxies see that from the workload's waypoint alone. Others (Istio's) get it as a
//! DENY for everybody but the waypoint. It is made for workloads that are bound themselves or by
//! their account, and where the label `isobar.dev/require-waypoint` asks for it; a workload bound
//! by its Namespace is reached directly by callers that do not know the waypoint.

use std::collections::BTreeSet;

use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::istio::security as wire;
use isobar_proto::istio::security::string_match::MatchType;
use isobar_types::{NamespacedName, converted, labels};

use super::authorization::everything;
use super::gateways::Gateways;
use super::pods::PodFacts;
use super::selection::{Selected, Source};
use super::services::ServicePlan;
use super::settings::Settings;

/// What the Services of a pod say about waypoints.
#[derive(Debug, Default)]
pub(crate) struct ServiceWaypoints {
    accepted: BTreeSet<NamespacedName>,
    required: bool,
}

impl ServiceWaypoints {
    /// The waypoints themselves.
    pub(crate) const fn accepted(&self) -> &BTreeSet<NamespacedName> {
        &self.accepted
    }

    /// Adds waypoints that the pod takes traffic from for another reason.
    pub(super) fn accept(&mut self, more: impl IntoIterator<Item = NamespacedName>) {
        self.accepted.extend(more);
    }

    /// Adds one Service that the pod is an endpoint of.
    pub(crate) fn add(&mut self, service: &ServicePlan, object: &impl ObjectHead) {
        self.accepted.extend(service.waypoints.iter().cloned());
        let bound = service.wire.waypoint.is_some() || !service.wire.weighted_waypoints.is_empty();
        self.required |= bound && asks(object);
    }
}

/// The waypoints through which alone a pod may be reached, if there is such a rule for proxies that
/// do not know it by themselves. Empty: none of them exists, so nobody may.
pub(crate) fn accepted(
    set: &ObjectSet,
    pod: &PodFacts<'_>,
    selected: &Selected,
    source: Option<Source>,
    services: &ServiceWaypoints,
) -> Option<BTreeSet<NamespacedName>> {
    let bound = selected.address.is_some();
    let asked = || {
        let namespace = set.namespaces.get("", &pod.key.namespace);
        asks(pod.pod) || namespace.is_some_and(|n| asks(&n.object))
    };
    let own = bound && (matches!(source, Some(Source::Object | Source::Account)) || asked());
    if !own && !services.required {
        return None;
    }
    let mut all = services.accepted.clone();
    all.extend(selected.serves.clone());
    Some(all)
}

/// A namespace, and waypoints that workloads of it may be reached through.
pub(crate) type Wanted = (String, BTreeSet<NamespacedName>);

/// Key of the policy for these waypoints.
pub(crate) fn key(namespace: &str, accepted: &BTreeSet<NamespacedName>) -> String {
    format!("{namespace}/{}", name(accepted))
}

/// The policies for everything that workloads ask for.
pub(crate) fn policies(
    wanted: &BTreeSet<Wanted>,
    gateways: &Gateways<'_>,
    settings: &Settings,
) -> Vec<wire::Authorization> {
    wanted
        .iter()
        .map(|(namespace, accepted)| wire::Authorization {
            name: name(accepted),
            namespace: namespace.clone(),
            scope: wire::Scope::WorkloadSelector.into(),
            action: wire::Action::Deny.into(),
            rules: vec![others(accepted, gateways, settings)],
            ..wire::Authorization::default()
        })
        .collect()
}

fn asks(object: &impl ObjectHead) -> bool {
    object.label(labels::REQUIRE_WAYPOINT) == Some("true")
}

fn name(accepted: &BTreeSet<NamespacedName>) -> String {
    let names: Vec<String> = accepted
        .iter()
        .map(|key| format!("{}.{}", key.namespace, key.name))
        .collect();
    format!("{}{}", converted::WAYPOINT, names.join("+"))
}

/// Everybody who is none of these waypoints, callers without an identity among them.
fn others(
    accepted: &BTreeSet<NamespacedName>,
    gateways: &Gateways<'_>,
    settings: &Settings,
) -> wire::Rule {
    let principals: BTreeSet<String> = accepted
        .iter()
        .filter_map(|key| gateways.get(key))
        .flat_map(|gateway| settings.principals(&gateway.identity))
        .collect();
    if principals.is_empty() {
        return everything();
    }
    let strangers = wire::Match {
        not_principals: principals
            .into_iter()
            .map(|principal| wire::StringMatch {
                match_type: Some(MatchType::Exact(principal)),
            })
            .collect(),
        ..wire::Match::default()
    };
    wire::Rule {
        clauses: vec![wire::Clause {
            matches: vec![strangers],
        }],
    }
}

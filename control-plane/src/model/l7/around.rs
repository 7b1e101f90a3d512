//! Policies that some callers do not meet: a gateway sends them to the pods, around the waypoint that
//! keeps the policy; or a share of the calls passes another waypoint, or one that somebody else runs.

use std::collections::BTreeMap;

use super::super::plan::WaypointPlan;
use super::super::verdict::{Severity, Verdict};
use super::scope::{Scoping, reached};
use super::target_refs::FOREIGN;

/// Condition type for policies that a gateway goes around; there while one does.
const CONDITION: &str = "isobar.dev/AtGateways";

/// Condition type for policies that the second of two waypoints does not keep, or that nobody here knows
/// it to keep; there while a share of the calls passes it.
const AT_CANARIES: &str = "isobar.dev/AtCanaries";

/// What is told about policies that calls to their targets go around.
pub(crate) fn around(waypoints: &[WaypointPlan], scoping: &Scoping<'_>) -> Vec<Verdict> {
    let mut told = at_gateways(waypoints, scoping);
    told.extend(at_canaries(scoping));
    told
}

/// Policies for something, or for its first waypoint, of whose calls a second one takes a share that is
/// not named, or not ours.
fn at_canaries<'s>(scoping: &'s Scoping<'_>) -> impl Iterator<Item = Verdict> + 's {
    let targets = scoping.targets.iter().filter(|one| one.restricts);
    targets.filter_map(|one| {
        let kept_by = |waypoint| one.chosen.gateways.contains(waypoint);
        let mut served = scoping.places.served();
        let (at, second) = served.find_map(|at| {
            let second = at.second.filter(|_| at.share_of_second() > 0)?;
            let tells = match one.chosen.names(at.owner) {
                true => scoping.places.is_foreign(second),
                false => !kept_by(second) && at.waypoints.iter().any(kept_by),
            };
            tells.then_some((at, second))
        })?;
        let passes = format!(
            "a share of the calls to {} passes canary waypoint {second}, which",
            at.owner
        );
        let (reason, text) = match one.chosen.names(at.owner) {
            true => (
                FOREIGN,
                format!("{passes} somebody else runs: whether they meet it is not known here"),
            ),
            false => (
                "CanaryGoesAround",
                format!("{passes} this policy does not name: they do not meet it"),
            ),
        };
        let object = one.verdict.object.clone();
        let verdict = Verdict::fails(object, AT_CANARIES, reason, text);
        Some(verdict.severity(Severity::Warning))
    })
}

/// What is told about policies whose targets a gateway reaches without their waypoint.
fn at_gateways(waypoints: &[WaypointPlan], scoping: &Scoping<'_>) -> Vec<Verdict> {
    let mut straight: BTreeMap<(String, String), &WaypointPlan> = BTreeMap::new();
    let edges = waypoints.iter();
    for edge in edges.filter(|one| !one.waypoint.listeners.is_empty()) {
        let through = &edge.waypoint.through_waypoint;
        let all = reached(&[], &edge.routes).into_iter();
        let bare = all.filter(|(namespace, hostname)| {
            let mut through = through.iter();
            !through.any(|one| one.namespace == *namespace && one.hostname == *hostname)
        });
        for host in bare {
            straight.entry(host).or_insert(edge);
        }
    }
    if straight.is_empty() {
        return Vec::new();
    }
    let targets = scoping.targets.iter().filter(|one| one.restricts);
    let told = targets.filter_map(|one| {
        let served = scoping.places.served();
        let mut served = served.filter(|at| one.chosen.names(at.owner));
        let (at, edge) = served.find_map(|at| {
            let host = (at.namespace().to_owned(), at.hostname().to_owned());
            Some((at, straight.get(&host)?))
        })?;
        let text = format!(
            "{} sends callers from outside straight to {}: they do not meet this policy unless the pods \
             refuse them; label it or its Namespace istio.io/ingress-use-waypoint: \"true\"",
            name(edge),
            at.owner
        );
        let object = one.verdict.object.clone();
        let verdict = Verdict::fails(object, CONDITION, "GatewayGoesAround", text);
        Some(verdict.severity(Severity::Warning))
    });
    told.collect()
}

/// A Gateway of the Gateway API, or the pods that Istio's select.
fn name(edge: &WaypointPlan) -> String {
    match edge.key.name.split_once(':') {
        None => format!("Gateway {}", edge.key),
        Some((account, _)) => {
            let place = &edge.key.namespace;
            format!("the gateway that runs as {account} in {place}")
        }
    }
}

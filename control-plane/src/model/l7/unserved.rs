//! Routes and rules that no waypoint applies.

use std::collections::BTreeSet;

use isobar_objects::Kind;

use super::super::plan::WaypointPlan;
use super::super::verdict::Verdict;
use super::scope::{CONDITION, Scoping};

/// Reason of a condition.
const REASON: &str = "NoWaypoint";

/// Says of what is accepted and not told to any of `waypoints` that nobody applies it.
pub(crate) fn unserved(
    waypoints: &[WaypointPlan],
    scoping: &Scoping<'_>,
    verdicts: &mut [Verdict],
) {
    let mut served: BTreeSet<(Kind, &str, &str)> = BTreeSet::new();
    for waypoint in waypoints {
        let routes = waypoint.routes.iter();
        let routes = routes.map(|one| (Kind::VirtualService, &*one.namespace, &*one.name));
        let rules = waypoint.rules.iter();
        let rules = rules.map(|one| (Kind::DestinationRule, &*one.namespace, &*one.name));
        served.extend(routes.chain(rules));
    }
    for verdict in verdicts.iter_mut() {
        let (namespace, name) = (&*verdict.object.namespace, &*verdict.object.name);
        let text = match verdict.object.known() {
            Some(Kind::VirtualService) => {
                // Delegates are part of others, and what is bound to gateways is told of elsewhere.
                let found = scoping.set.virtual_services.get(namespace, name);
                let is_for_mesh = found.is_some_and(|one| {
                    let mut gateways = one.spec.gateways.iter();
                    !one.spec.hosts.is_empty() && gateways.all(|word| word == "mesh")
                });
                is_for_mesh.then_some(
                    "no waypoint applies it: none serves its hosts, its namespace is neither the host's \
                     nor the waypoint's, or other rules count before it",
                )
            }
            Some(Kind::DestinationRule) => Some(
                "no waypoint applies it: none reaches its host, its namespace is neither the waypoint's \
                     nor the host's nor the mesh's own, or other rules count before it",
            ),
            _ => None,
        };
        let is_plain = verdict.condition == CONDITION && verdict.reason == "Accepted";
        let Some(text) = text.filter(|_| is_plain && verdict.holds) else {
            continue;
        };
        let kind = verdict.object.known();
        if kind.is_some_and(|kind| !served.contains(&(kind, namespace, name))) {
            verdict.message = text.to_owned();
            verdict.reason = REASON;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::golden_tests::{gateway, namespace, planned, waypoint_pod};
    use super::*;

    #[test]
    fn what_no_waypoint_applies_does_not_say_that_one_does() {
        let service = |name: &str, labels: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\n\
                 metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
                 spec: {{clusterIP: 10.96.0.7, selector: {{app: a}}, ports: [{{port: 80}}]}}\n"
            )
        };
        let around = format!(
            "{}{}{}{}{}",
            namespace(""),
            gateway("wp", ""),
            waypoint_pod("wp", true),
            service("cart", "istio.io/use-waypoint: wp"),
            service("plain", ""),
        );
        let reply = "http: [{directResponse: {status: 204}}]";
        for (kind, place, spec, reason) in [
            (
                "VirtualService",
                "shop",
                format!("hosts: [cart], {reply}"),
                "Accepted",
            ),
            (
                "VirtualService",
                "shop",
                format!("hosts: [plain], {reply}"),
                REASON,
            ),
            (
                "VirtualService",
                "web",
                format!("hosts: [cart.shop.svc.cluster.local], {reply}"),
                REASON,
            ),
            ("VirtualService", "shop", reply.to_owned(), "Accepted"),
            (
                "DestinationRule",
                "shop",
                "host: cart".to_owned(),
                "Accepted",
            ),
            ("DestinationRule", "shop", "host: plain".to_owned(), REASON),
            (
                "DestinationRule",
                "web",
                "host: cart.shop.svc.cluster.local".to_owned(),
                REASON,
            ),
        ] {
            let object = format!(
                "---\napiVersion: networking.istio.io/v1\nkind: {kind}\n\
                 metadata: {{name: o, namespace: {place}}}\nspec: {{{spec}}}\n"
            );
            let plan = planned(&format!("{around}{object}"));
            let mut told = plan.verdicts.iter();
            let told = told.find(|one| one.condition == CONDITION).unwrap();
            assert_eq!(
                told.reason, reason,
                "{kind} {place} {spec}: {}",
                told.message
            );
            assert!(told.holds);
            let says = told.message == "served to its waypoints";
            assert_eq!(says, reason == "Accepted", "{}", told.message);
        }
    }
}

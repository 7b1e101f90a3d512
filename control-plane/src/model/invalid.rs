//! What is told about objects whose present version is not in force.

use isobar_objects::{Instead, Invalid, Invalids, Kept, Kind, ObjectRef};
use isobar_types::labels;

use super::l7::RouteStatus;
use super::settings::Settings;
use super::verdict::Verdict;

/// Condition of whatever is not valid as it is written.
const CONDITION: &str = "Accepted";
/// Its reason.
const REASON: &str = "Invalid";
/// What an invalid MeshConfig means of which no valid version is known.
const CLOSED: &str = "outbound traffic counts as REGISTRY_ONLY, where the control plane's own flag does not \
                      say otherwise, and nothing of it is in force";

/// Says of every object that is not valid what is wrong, and takes back what else would say that its
/// present version is accepted.
pub(crate) fn tell(
    invalid: &Invalids,
    settings: &Settings,
    verdicts: &mut Vec<Verdict>,
    routes: &mut [RouteStatus],
) {
    if invalid.is_empty() {
        return;
    }
    contradict(invalid, verdicts);
    for route in routes {
        let Some(found) = invalid.get(&route.object) else {
            continue;
        };
        let conditions = route.parents.iter_mut().flat_map(|one| &mut one.conditions);
        for condition in conditions.filter(|one| one.holds && one.condition == CONDITION) {
            condition.holds = false;
            condition.reason = REASON;
            condition.message = text(&route.object, found);
        }
    }
    let ours = invalid
        .iter()
        .filter(|(object, invalid)| is_ours(object, invalid, settings));
    verdicts.extend(ours.map(|(object, invalid)| told(object, invalid)));
    verdicts.sort_unstable();
    verdicts.dedup();
}

/// Takes back of `verdicts` what says that the present version of an invalid object is accepted.
pub(crate) fn contradict(invalid: &Invalids, verdicts: &mut [Verdict]) {
    for verdict in verdicts {
        if verdict.holds
            && verdict.condition.ends_with(CONDITION)
            && let Some(found) = invalid.get(&verdict.object)
        {
            let object = verdict.object.clone();
            let text = text(&object, found);
            *verdict = Verdict::fails(object, verdict.condition, REASON, text);
        }
    }
}

fn told(object: &ObjectRef, invalid: &Invalid) -> Verdict {
    Verdict::fails(object.clone(), CONDITION, REASON, text(object, invalid))
}

fn text(object: &ObjectRef, invalid: &Invalid) -> String {
    let meanwhile = match (invalid.instead, &invalid.kept) {
        (Instead::LastGood, Kept::Yes) => "the last valid version stays in force".to_owned(),
        (Instead::LastGood, Kept::No(why)) => {
            let then = match object.known() {
                Some(Kind::AuthorizationPolicy) => {
                    "everything may be refused to whom it is about then"
                }
                Some(Kind::ConfigMap) => CLOSED,
                Some(Kind::HttpRoute | Kind::GrpcRoute) => {
                    "nothing of it is in force then, and with a filter ExternalAuth or \
                     ExtensionRef its parents answer 500"
                }
                _ => "nothing of it is in force then",
            };
            format!(
                "the last valid version stays in force until the control plane restarts, {then}: \
                 that version is not kept ({why})"
            )
        }
        (Instead::Refusal, _) if object.known() == Some(Kind::ConfigMap) => {
            format!("no valid version of it is known here: until there is one, {CLOSED}")
        }
        (Instead::Refusal, _) if is_route(object) => {
            "no valid version of it is known here: until there is one, its parents answer 500 to \
             what no other route takes, as it has a filter ExternalAuth or ExtensionRef"
                .to_owned()
        }
        (Instead::Refusal, _) => {
            "no valid version of it is known here: until there is one, everything is refused to \
             whom it is about"
                .to_owned()
        }
        (Instead::Nothing, _) => {
            "no valid version of it is known here: nothing of it is in force".to_owned()
        }
    };
    format!("{}; {meanwhile}", invalid.message)
}

fn is_route(object: &ObjectRef) -> bool {
    matches!(object.known(), Some(Kind::HttpRoute | Kind::GrpcRoute))
}

/// Objects of the Gateway API have many controllers, and Istio's Gateways are mostly those of its own
/// ingress: what we do not understand there may be somebody else's.
fn is_ours(object: &ObjectRef, invalid: &Invalid, settings: &Settings) -> bool {
    match object.known() {
        Some(Kind::Gateway) => invalid.class.as_ref().is_some_and(|class| {
            settings.waypoint_classes.contains(class) || class == labels::GATEWAY_CLASS
        }),
        Some(
            Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::VirtualService
            | Kind::DestinationRule
            | Kind::ServiceEntry
            | Kind::WorkloadEntry
            | Kind::RateLimitPolicy,
        ) => true,
        Some(Kind::ConfigMap) => *object == settings.mesh_config,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::golden_tests::settings;

    #[test]
    fn an_invalid_version_is_not_accepted_by_anybody() {
        let policy = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "p");
        let other = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "q");
        let foreign = ObjectRef::new(Kind::Gateway, "shop", "nginx");
        let known = |instead| Invalid {
            message: "spec.rules: no list".to_owned(),
            class: Some("nginx".to_owned()),
            instead,
            ..Invalid::default()
        };
        let invalid = Invalids::from([
            (policy.clone(), known(Instead::Refusal)),
            (foreign, known(Instead::Nothing)),
        ]);
        let accepted = |object: &ObjectRef| {
            Verdict::holds(object.clone(), "ZtunnelAccepted", "Accepted", "enforced")
        };
        let mut verdicts = vec![accepted(&policy), accepted(&other)];
        tell(&invalid, &settings(), &mut verdicts, &mut []);
        let found: Vec<_> = verdicts
            .iter()
            .map(|one| (&*one.object.name, one.condition, one.holds, one.reason))
            .collect();
        let expected = [
            ("p", "Accepted", false, "Invalid"),
            ("p", "ZtunnelAccepted", false, "Invalid"),
            ("q", "ZtunnelAccepted", true, "Accepted"),
        ];
        assert_eq!(found, expected);
        assert!(verdicts[0].message.contains("refused to whom it is about"));
    }

    #[test]
    fn a_mesh_config_that_never_was_valid_is_told_to_close_the_way_out() {
        let of = |instead| Invalid {
            message: "data.mesh: no map".to_owned(),
            instead,
            ..Invalid::default()
        };
        let (own, mut verdicts) = (settings(), Vec::new());
        let other = ObjectRef::new(Kind::ConfigMap, "istio-system", "istio-other");
        let invalid = Invalids::from([
            (own.mesh_config.clone(), of(Instead::Refusal)),
            (other, of(Instead::Refusal)),
        ]);
        tell(&invalid, &own, &mut verdicts, &mut []);
        assert_eq!(verdicts.len(), 1, "{verdicts:?}");
        assert!(!verdicts[0].holds && verdicts[0].message.contains("REGISTRY_ONLY"));
    }

    #[test]
    fn a_route_that_never_was_valid_is_told_to_refuse() {
        let invalid = Invalid {
            instead: Instead::Refusal,
            ..Invalid::default()
        };
        let told = text(&ObjectRef::new(Kind::HttpRoute, "shop", "r"), &invalid);
        assert!(told.contains("answer 500"), "{told}");
    }

    #[test]
    fn what_counts_in_this_process_only_is_told() {
        let told = |kind, kept| {
            let invalid = Invalid {
                message: "spec.rules: no list".to_owned(),
                instead: Instead::LastGood,
                kept,
                ..Invalid::default()
            };
            text(&ObjectRef::new(kind, "shop", "p"), &invalid)
        };
        let policy = Kind::AuthorizationPolicy;
        let kept = "spec.rules: no list; the last valid version stays in force";
        assert_eq!(told(policy, Kept::Yes), kept);
        let full = || Kept::No("full".to_owned());
        let of_policy = told(policy, full());
        assert!(of_policy.contains("restarts, everything may be refused"));
        assert!(of_policy.ends_with("not kept (full)"), "{of_policy}");
        let of_rule = told(Kind::DestinationRule, full());
        assert!(of_rule.contains("restarts, nothing of it"), "{of_rule}");
        let of_route = told(Kind::HttpRoute, full());
        assert!(of_route.contains("its parents answer 500"), "{of_route}");
    }
}

//! Policies of node proxies that let waypoints in to what is behind them, where that is asked for
//! (`PILOT_AUTO_ALLOW_WAYPOINT_POLICY` of Istio's control plane). Who calls such a workload directly needs an
//! ALLOW policy of their own then: that is what they are for.

use std::collections::BTreeSet;

use isobar_proto::istio::security as wire;
use isobar_proto::istio::security::string_match::MatchType;
use isobar_types::NamespacedName;

use super::gateways::Gateways;
use super::settings::Settings;

/// Keys of the policies for a workload behind these waypoints.
pub(super) fn keys<'a>(
    waypoints: &'a BTreeSet<NamespacedName>,
    settings: &Settings,
) -> impl Iterator<Item = String> + use<'a> {
    let waypoints = settings.allow_waypoints.then(|| waypoints.iter());
    let key = |one: &NamespacedName| format!("{}/{}", one.namespace, name(one));
    waypoints.into_iter().flatten().map(key)
}

/// The policies. Unlike Istio's one stays while its waypoint has no pod: without it everybody would be let
/// in for that time.
pub(super) fn policies(gateways: &Gateways<'_>, settings: &Settings) -> Vec<wire::Authorization> {
    if !settings.allow_waypoints {
        return Vec::new();
    }
    let waypoints = gateways.values().filter(|gateway| gateway.edge.is_none());
    let policy = waypoints.map(|waypoint| wire::Authorization {
        name: name(&waypoint.key),
        namespace: waypoint.key.namespace.to_string(),
        scope: wire::Scope::WorkloadSelector.into(),
        action: wire::Action::Allow.into(),
        rules: vec![wire::Rule {
            clauses: vec![wire::Clause {
                matches: vec![wire::Match {
                    principals: principals(settings.principals(&waypoint.identity)),
                    ..wire::Match::default()
                }],
            }],
        }],
        ..wire::Authorization::default()
    });
    policy.collect()
}

fn principals(all: Vec<String>) -> Vec<wire::StringMatch> {
    let exact = |one| wire::StringMatch {
        match_type: Some(MatchType::Exact(one)),
    };
    all.into_iter().map(exact).collect()
}

/// As Istio's.
fn name(waypoint: &NamespacedName) -> String {
    format!(
        "istio_allow_waypoint_{}_{}",
        waypoint.namespace, waypoint.name
    )
}

#[cfg(test)]
mod tests {
    use super::super::golden_tests::{gateway, namespace, objects, pod, settings, waypoint_pod};
    use super::super::{KeptKeys, Plan, plan};
    use super::*;

    fn planned(allow_waypoints: bool, waypoint_is_ready: bool) -> Plan {
        let yaml = [
            namespace("istio.io/use-waypoint: wp"),
            gateway("wp", ""),
            waypoint_pod("wp", waypoint_is_ready),
            pod("cart-1", "cart", "app: cart", true),
            "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
             spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{port: 80}]}\n"
                .to_owned(),
        ];
        let settings = Settings {
            allow_waypoints,
            trust_domain_aliases: vec!["old.example".into()],
            ..settings()
        };
        plan(&objects(&yaml.concat()), &settings, &KeptKeys::default())
    }

    #[test]
    fn a_waypoint_is_let_in_to_what_is_behind_it_where_that_is_asked_for() {
        const KEY: &str = "istio_allow_waypoint_shop_wp";
        for (asked, ready) in [(false, true), (true, true), (true, false)] {
            let plan = planned(asked, ready);
            let policy = plan.authorizations.iter().find(|one| one.name == KEY);
            assert_eq!(policy.is_some(), asked);
            let keys = |name: &str| {
                let mut all = plan.workloads.iter();
                let one = all.find(|one| one.wire.name == name).unwrap();
                one.wire.authorization_policies.clone()
            };
            let expect = asked.then(|| format!("shop/{KEY}"));
            assert_eq!(
                keys("cart-1"),
                expect.into_iter().collect::<Vec<_>>(),
                "{ready}"
            );
            assert!(keys("wp-pod").is_empty(), "itself is behind nothing");
            if let Some(policy) = policy {
                let principals = &policy.rules[0].clauses[0].matches[0].principals;
                let texts = principals.iter().map(|one| one.match_type.clone().unwrap());
                let exact = |domain: &str| MatchType::Exact(format!("{domain}/ns/shop/sa/wp"));
                let expect = [exact("cluster.local"), exact("old.example")];
                assert_eq!(texts.collect::<Vec<_>>(), expect);
                assert_eq!(policy.action(), wire::Action::Allow);
            }
        }
    }
}

//! Egress rules, which only network plugins enforce. To them a call of the mesh is one to port 15008:
//! what opens that opens every port behind it, and behind a waypoint's all that the waypoint serves.

use std::collections::BTreeMap;

use isobar_objects::{NetworkPolicy, ObjectHead as _, ObjectRef};
use isobar_types::labels;
use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::doors::rule::{Rule as _, rules};
use super::doors::{is_about_egress, selects};
use super::members;
use super::ports::is_tcp;
use crate::model::pods::PodFacts;
use crate::model::selection::Selection;
use crate::model::verdict::{Severity, Verdict};

/// Condition type of the verdicts.
const CONDITION: &str = "isobar.dev/EgressRules";

/// What there is to say about policies whose egress rules say more than what holds inside tunnels.
pub(super) fn verdicts<'a>(
    selection: &'a Selection<'_>,
    namespace: &'a str,
    pods: &'a [PodFacts<'a>],
) -> Vec<Verdict> {
    let policies = selection.set.network_policies.in_namespace(namespace);
    let policies = policies.map(|policy| &policy.object);
    let outbound: Vec<&NetworkPolicy> = policies.filter(|one| is_about_egress(one)).collect();
    if !outbound.iter().any(|policy| open_in(policy).is_some()) {
        return Vec::new();
    }
    let mut told: BTreeMap<ObjectRef, usize> = BTreeMap::new();
    for pod in members(selection, namespace, pods) {
        let selecting = outbound.iter().filter(|policy| selects(policy, pod));
        let selecting: Vec<_> = selecting.collect();
        // Who may go everywhere by one of them has nothing that could be opened.
        let mut all = selecting.iter().flat_map(|policy| rules(policy));
        if all.any(leads_everywhere) {
            continue;
        }
        for policy in selecting {
            if let Some(rule) = open_in(policy) {
                told.insert(policy.reference(), rule);
            }
        }
    }
    told.into_iter()
        .map(|(object, rule)| verdict(object, rule))
        .collect()
}

fn verdict(object: ObjectRef, rule: usize) -> Verdict {
    let text = format!(
        "spec.egress[{rule}] opens 15008, the tunnel, and inside it egress rules are not enforced: \
         callers in the mesh reach every port of these peers, and through their waypoints whatever \
         those serve; what they must not reach has to refuse them, by ingress NetworkPolicies or \
         AuthorizationPolicies"
    );
    Verdict::fails(object, CONDITION, "EgressOpen", text).severity(Severity::Warning)
}

/// The first rule that lets more through in a tunnel than it says.
fn open_in(policy: &NetworkPolicy) -> Option<usize> {
    rules(policy).iter().position(is_exceeded)
}

fn leads_everywhere(rule: &NetworkPolicyEgressRule) -> bool {
    rule.peers().is_none_or(<[_]>::is_empty) && has_every_port(rule.ports())
}

/// True for a rule that opens the tunnel and names ports, or that names waypoints.
fn is_exceeded(rule: &NetworkPolicyEgressRule) -> bool {
    let selectors = rule.peers().into_iter().flatten();
    let mut selectors = selectors.filter_map(|peer| peer.pod_selector.as_ref());
    let names_waypoints = selectors.any(|selector| {
        let labels = selector.match_labels.iter().flatten().map(|(key, _)| key);
        let rules = selector.match_expressions.iter().flatten();
        let mut keys = labels.chain(rules.map(|rule| &rule.key));
        keys.any(|key| key == labels::GATEWAY_NAME)
    });
    rule.opens_tunnel() && (names_waypoints || !has_every_port(rule.ports()))
}

fn has_every_port(list: Option<&[NetworkPolicyPort]>) -> bool {
    let every = |port: &NetworkPolicyPort| {
        is_tcp(port)
            && match &port.port {
                None => true,
                Some(IntOrString::Int(start)) => {
                    *start <= 1 && port.end_port == Some(i32::from(u16::MAX))
                }
                Some(IntOrString::String(_)) => false,
            }
    };
    list.is_none_or(|list| list.is_empty() || list.iter().any(every))
}

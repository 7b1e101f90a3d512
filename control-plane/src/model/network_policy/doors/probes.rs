//! Probes of pods that policies isolate. The node gives its own calls to probed ports of a pod in the
//! mesh an address of the link; a network plugin that goes by addresses takes them for a stranger's.

use std::net::IpAddr;

use isobar_objects::pods::probed_ports;
use isobar_objects::{NetworkPolicy, selectors};
use isobar_types::ports::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyIngressRule, NetworkPolicyPeer};

use super::rule::{Rule as _, rules};
use super::{Inspection, Missing, ShutDoor, is_about_ingress, selects};
use crate::model::network_policy::ports::opens;
use crate::model::network_policy::sources::network_of;
use crate::model::pods::PodFacts;

const CONSEQUENCE: &str = "the kubelet's probes and hooks come from there; a network plugin that does not let them \
     pass as the node's own drops them, and the pods are not ready or start again";

impl Inspection<'_> {
    /// What probes a pod is let through by the policies as they are written: one that is found to
    /// shut them for one pod shuts them for others too, and names all of them.
    pub(super) fn probes(&mut self, pod: &PodFacts<'_>) {
        let ports = probed_ports(pod.pod);
        let policies = self.policies.iter().copied();
        let selecting: Vec<&NetworkPolicy> = policies
            .filter(|policy| is_about_ingress(policy) && selects(policy, pod))
            .collect();
        let Some(first) = selecting.first() else {
            return;
        };
        // What is for every pod of the namespace lets all of their probes in.
        let wide = selecting.iter().find(|policy| selects_all(policy));
        let policy = wide.unwrap_or(first);
        for source in sources_for(pod) {
            let is_open = |port: &u16| {
                let mut rules = selecting.iter().flat_map(|policy| rules(policy));
                rules.any(|rule: &NetworkPolicyIngressRule| {
                    lets_in(rule, source) && opens(rule.ports(), *port, Some(pod))
                })
            };
            if !ports.iter().all(is_open) {
                self.admit_probes(policy, pod, source);
            }
        }
    }

    fn admit_probes(&mut self, policy: &NetworkPolicy, pod: &PodFacts<'_>, source: IpAddr) {
        let missing = Missing::Source(source);
        let remedy = self.remedies.get(&super::key(policy));
        let mut doors = remedy.into_iter().flat_map(|remedy| &remedy.doors);
        let known = doors.find(|door| door.missing == missing);
        let field = match known {
            Some(door) => door.field.clone(),
            None => {
                let latest = self.latest(policy);
                let all = rules::<NetworkPolicyIngressRule>(&latest);
                // One that is not told any more is there all the same.
                let is_there = |rule: &NetworkPolicyIngressRule| {
                    rule.ports().is_none() && lets_in(rule, source)
                };
                let at = all.iter().position(is_there).unwrap_or(all.len());
                format!("spec.ingress[{at}]")
            }
        };
        let door = ShutDoor {
            field,
            missing,
            consequence: CONSEQUENCE.to_owned(),
            pods: [pod.key.to_string()].into(),
            wider: None,
        };
        self.note(policy, door, |spec| {
            let block = IPBlock {
                cidr: missing.to_string(),
                except: None,
            };
            let peer = NetworkPolicyPeer {
                ip_block: Some(block),
                ..NetworkPolicyPeer::default()
            };
            // The pod's own rules tell probed ports from others.
            let rule = NetworkPolicyIngressRule {
                from: Some(vec![peer]),
                ports: None,
            };
            NetworkPolicyIngressRule::of_mut(spec).push(rule);
        });
    }
}

/// Where the probes of a pod come from.
fn sources_for(pod: &PodFacts<'_>) -> Vec<IpAddr> {
    let mut sources = Vec::new();
    // A pod without an address yet will have one of the usual kind.
    if pod.ips.is_empty() || pod.ips.iter().any(IpAddr::is_ipv4) {
        sources.push(PROBE_SOURCE_V4.into());
    }
    if pod.ips.iter().any(IpAddr::is_ipv6) {
        sources.push(PROBE_SOURCE_V6.into());
    }
    sources
}

/// True if a rule lets in an address that no pod has.
fn lets_in(rule: &NetworkPolicyIngressRule, address: IpAddr) -> bool {
    let Some(peers) = rule.peers().filter(|peers| !peers.is_empty()) else {
        return true;
    };
    let mut networks = peers
        .iter()
        .filter_map(|peer| network_of(peer.ip_block.as_ref()?));
    networks.any(|(network, except)| {
        network.contains(&address) && !except.iter().any(|one| one.contains(&address))
    })
}

fn selects_all(policy: &NetworkPolicy) -> bool {
    let spec = policy.spec.as_ref();
    let selector = spec.and_then(|spec| spec.pod_selector.as_ref());
    selector.is_none_or(selectors::is_empty)
}

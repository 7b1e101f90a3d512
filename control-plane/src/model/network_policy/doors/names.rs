//! Who may call somebody has to be able to look up names.

use isobar_objects::{NetworkPolicy, ObjectHead as _, Service};
use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyPeer};

use super::rule::{Rule, rules};
use super::{DNS, Inspection, Missing, ShutDoor, entry, is_open};

impl Inspection<'_> {
    /// Name servers, to where they are.
    pub(super) fn names(&mut self, policies: &[NetworkPolicy]) {
        let fresh: Vec<NetworkPolicy> = policies.iter().map(|p| self.latest(p)).collect();
        let open = |policy: &NetworkPolicy| {
            let mut rules = rules::<NetworkPolicyEgressRule>(policy).iter();
            rules.any(|rule| {
                let is_open = match rule.ports() {
                    None | Some([]) => true,
                    Some(ports) => ports.iter().any(|port| is_open(port, DNS, "UDP")),
                };
                is_open && self.leads_to_names(policy.namespace(), rule.peers())
            })
        };
        let first = fresh
            .iter()
            .find(|p| !rules::<NetworkPolicyEgressRule>(p).is_empty());
        let Some(first) = first.filter(|_| !fresh.iter().any(open)) else {
            return;
        };
        let at = rules::<NetworkPolicyEgressRule>(first).len();
        let door = ShutDoor {
            field: format!("spec.egress[{at}]"),
            missing: Missing::Port(DNS),
            consequence: "it cannot look up names".to_owned(),
            pods: self.alike.clone(),
        };
        let ports = vec![entry(DNS, "UDP"), entry(DNS, "TCP")];
        let rule = NetworkPolicyEgressRule::new(None, ports);
        self.note(first, door, |spec| {
            NetworkPolicyEgressRule::of_mut(spec).push(rule);
        });
    }

    /// True if peers take in a name server: pods of a Service with that port, or an address, behind
    /// which a name server may be. Without such a Service nobody knows which pods those are; they are
    /// in another namespace then.
    fn leads_to_names(&self, namespace: &str, peers: Option<&[NetworkPolicyPeer]>) -> bool {
        let Some(peers) = peers.filter(|peers| !peers.is_empty()) else {
            return true;
        };
        let services = self.selection.set.services.iter();
        let servers: Vec<&Service> = services
            .map(|held| &held.object)
            .filter(|service| serves_names(service))
            .collect();
        peers.iter().any(|peer| {
            if peer.ip_block.is_some() {
                return true;
            }
            if servers.is_empty() {
                return peer.namespace_selector.is_some();
            }
            servers.iter().any(|service| {
                let spec = service.spec.as_ref();
                let pods = spec.and_then(|spec| spec.selector.as_ref());
                let neighbours = &self.neighbours;
                pods.is_none_or(|pods| neighbours.takes(namespace, peer, service.namespace(), pods))
            })
        })
    }
}

fn serves_names(service: &Service) -> bool {
    let ports = service.spec.iter().flat_map(|spec| &spec.ports).flatten();
    let mut ports = ports.filter(|port| port.port == i32::from(DNS));
    ports.any(|port| port.protocol.as_deref() == Some("UDP"))
}

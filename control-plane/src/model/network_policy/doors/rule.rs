//! Rules of policies, whichever direction they are about.

use std::collections::HashMap;

use isobar_objects::NetworkPolicy;
use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::DNS;
use crate::model::network_policy::ports::{is_tcp, opens_tunnel};
use crate::model::network_policy::sources::are_probes;

/// One direction of a policy's rules, whichever it is.
pub(in crate::model::network_policy) trait Rule: Clone {
    const FIELD: &'static str;
    fn peers(&self) -> Option<&[NetworkPolicyPeer]>;
    fn ports(&self) -> Option<&[NetworkPolicyPort]>;
    fn add(&mut self, port: NetworkPolicyPort);
    fn new(peers: Option<Vec<NetworkPolicyPeer>>, ports: Vec<NetworkPolicyPort>) -> Self;
    fn of(spec: &NetworkPolicySpec) -> &[Self];
    fn of_mut(spec: &mut NetworkPolicySpec) -> &mut Vec<Self>;

    fn opens_tunnel(&self) -> bool {
        match self.ports() {
            None | Some([]) => true,
            Some(ports) => ports.iter().any(opens_tunnel),
        }
    }

    /// Opens something that a mesh would carry in a tunnel: TCP, but not to name servers, which node
    /// proxies answer for.
    fn opens_tcp(&self) -> bool {
        let names = Some(IntOrString::Int(i32::from(DNS)));
        let carried = |port: &NetworkPolicyPort| is_tcp(port) && port.port != names;
        self.ports()
            .is_none_or(|ports| ports.is_empty() || ports.iter().any(carried))
            && !are_probes(self.peers())
    }
}

macro_rules! rule {
    ($rule:ty, $field:literal, $list:ident, $peers:ident) => {
        impl Rule for $rule {
            const FIELD: &'static str = $field;

            fn peers(&self) -> Option<&[NetworkPolicyPeer]> {
                self.$peers.as_deref()
            }

            fn ports(&self) -> Option<&[NetworkPolicyPort]> {
                self.ports.as_deref()
            }

            fn add(&mut self, port: NetworkPolicyPort) {
                self.ports.get_or_insert_default().push(port);
            }

            fn new(peers: Option<Vec<NetworkPolicyPeer>>, ports: Vec<NetworkPolicyPort>) -> Self {
                Self {
                    $peers: peers,
                    ports: Some(ports),
                }
            }

            fn of(spec: &NetworkPolicySpec) -> &[Self] {
                spec.$list.as_deref().unwrap_or_default()
            }

            fn of_mut(spec: &mut NetworkPolicySpec) -> &mut Vec<Self> {
                spec.$list.get_or_insert_default()
            }
        }
    };
}

rule!(NetworkPolicyIngressRule, "ingress", ingress, from);
rule!(NetworkPolicyEgressRule, "egress", egress, to);

/// Rules that open the tunnel, by the peers that they name.
#[derive(Default)]
pub(in crate::model::network_policy) struct Tunnels {
    /// There is one for everybody.
    is_open: bool,
    /// Numbers of rules by a peer's words, in order.
    by_peer: HashMap<String, Vec<usize>>,
}

impl Tunnels {
    /// Those among the rules of policies.
    pub(in crate::model::network_policy) fn of<R: Rule>(policies: &[NetworkPolicy]) -> Self {
        let mut all = Self::default();
        let opening = policies.iter().flat_map(rules::<R>);
        for (number, rule) in opening.filter(|rule| rule.opens_tunnel()).enumerate() {
            let peers = rule.peers().unwrap_or_default();
            all.is_open |= peers.is_empty();
            for peer in peers {
                let numbers = all.by_peer.entry(words(peer)).or_default();
                if numbers.last() != Some(&number) {
                    numbers.push(number);
                }
            }
        }
        all
    }

    /// True if one of them lets in, or out to, at least those that `rule` does.
    pub(in crate::model::network_policy) fn cover<R: Rule>(&self, rule: &R) -> bool {
        let peers = rule.peers().unwrap_or_default();
        if self.is_open || peers.is_empty() {
            return self.is_open;
        }
        let named = peers.iter().map(|peer| self.by_peer.get(&words(peer)));
        let Some(mut named) = named.collect::<Option<Vec<_>>>() else {
            return false;
        };
        named.sort_by_key(|numbers| numbers.len());
        let mut fewest = named.first().into_iter().copied().flatten();
        fewest.any(|number| named.iter().all(|all| all.binary_search(number).is_ok()))
    }
}

/// A peer as text, the same for equal ones.
fn words(peer: &NetworkPolicyPeer) -> String {
    format!("{peer:?}")
}

/// The rules of one direction.
pub(in crate::model::network_policy) fn rules<R: Rule>(policy: &NetworkPolicy) -> &[R] {
    policy.spec.as_ref().map(R::of).unwrap_or_default()
}

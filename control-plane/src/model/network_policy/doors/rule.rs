//! Rules of policies, whichever direction they are about.

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

    /// Lets in, or out to, at least those that `other` does.
    fn covers(&self, other: &Self) -> bool {
        let all = |peers: Option<&[NetworkPolicyPeer]>| peers.is_none_or(<[_]>::is_empty);
        let (own, others) = (self.peers(), other.peers());
        all(own)
            || !all(others)
                && others
                    .into_iter()
                    .flatten()
                    .all(|peer| own.into_iter().flatten().any(|have| have == peer))
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

/// The rules of one direction.
pub(in crate::model::network_policy) fn rules<R: Rule>(policy: &NetworkPolicy) -> &[R] {
    policy.spec.as_ref().map(R::of).unwrap_or_default()
}

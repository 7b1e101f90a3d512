//! What a network plugin makes of a connection: the policies as Kubernetes means them, whatever the
//! mesh carries in it.

use std::fmt;
use std::net::IpAddr;
use std::slice::from_ref;

use isobar_objects::{NetworkPolicy, ObjectHead as _, ObjectRef, ObjectSet};
use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
};

use super::doors::rule::{Rule, rules};
use super::doors::{is_about_egress, selects};
use super::is_about_ingress;
use super::ports::opens;
use super::sources::{Neighbours, Sources};
use crate::model::pods::PodFacts;

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Namespace and name of the pod; what is none has an address only.
    pub pod: Option<(&'a str, &'a str)>,
    /// Its address.
    pub ip: IpAddr,
}

/// Policies that drop a connection between them: each selects the pod, and none lets it through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The caller may not leave; otherwise the called one lets nobody like it in.
    pub leaving: bool,
    /// TCP port of the connection.
    pub port: u16,
    /// The policies.
    pub policies: Vec<ObjectRef>,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, policy) in self.policies.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{policy}")?;
        }
        let what = if self.leaving {
            "the caller out"
        } else {
            "the caller in"
        };
        write!(f, ": no rule lets {what} on port {}", self.port)
    }
}

/// The policies because of which a network plugin drops a TCP connection to `port`; `None` if it lets
/// it pass.
#[must_use]
pub fn dropped(set: &ObjectSet, from: &End<'_>, to: &End<'_>, port: u16) -> Option<Dropped> {
    // A pod that calls itself does not leave its network.
    if set.network_policies.is_empty() || from.ip == to.ip {
        return None;
    }
    let pods: Vec<PodFacts<'_>> = [from, to]
        .into_iter()
        .filter_map(|end| {
            let (namespace, name) = end.pod?;
            let pod = PodFacts::read(&set.pods.get(namespace, name)?.object)?;
            // What shares a node's network is no pod to policies.
            (pod.ips.contains(&end.ip) && !pod.host_network()).then_some(pod)
        })
        .collect();
    let neighbours = Neighbours::read(set, &pods);
    let [caller, called] = [from, to].map(|end| pods.iter().find(|pod| pod.ips.contains(&end.ip)));
    let plugin = Plugin {
        set,
        neighbours: &neighbours,
        port,
        called,
    };
    let leaving = caller.and_then(|pod| {
        plugin.isolated::<NetworkPolicyEgressRule>(pod, is_about_egress, (to.ip, called))
    });
    let entering = || {
        let peer = (from.ip, caller);
        plugin.isolated::<NetworkPolicyIngressRule>(called?, is_about_ingress, peer)
    };
    let dropped = |leaving, policies| Dropped {
        leaving,
        port,
        policies,
    };
    match leaving {
        Some(policies) => Some(dropped(true, policies)),
        None => entering().map(|policies| dropped(false, policies)),
    }
}

struct Plugin<'a> {
    set: &'a ObjectSet,
    neighbours: &'a Neighbours<'a>,
    port: u16,
    /// Ports are its in both directions.
    called: Option<&'a PodFacts<'a>>,
}

/// Who is at the other end.
type Other<'a> = (IpAddr, Option<&'a PodFacts<'a>>);

impl Plugin<'_> {
    /// The policies about one direction that select a pod, unless one of them lets the other through.
    fn isolated<R: Rule>(
        &self,
        pod: &PodFacts<'_>,
        about: fn(&NetworkPolicy) -> bool,
        other: Other<'_>,
    ) -> Option<Vec<ObjectRef>> {
        let namespace = &*pod.key.namespace;
        let policies = self.set.network_policies.in_namespace(namespace);
        let policies = policies.map(|policy| &policy.object);
        let selecting: Vec<&NetworkPolicy> = policies
            .filter(|policy| about(policy) && selects(policy, pod))
            .collect();
        let lets = |rule: &R| {
            self.takes(namespace, rule.peers(), other)
                && opens(rule.ports(), self.port, self.called)
        };
        let is_free = selecting
            .iter()
            .flat_map(|policy| rules::<R>(policy))
            .any(lets);
        (!selecting.is_empty() && !is_free)
            .then(|| selecting.iter().map(|policy| policy.reference()).collect())
    }

    fn takes(
        &self,
        namespace: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        (ip, pod): Other<'_>,
    ) -> bool {
        let Some(peers) = peers.filter(|peers| !peers.is_empty()) else {
            return true;
        };
        let one = |peer| match self.neighbours.admitted(namespace, Some(from_ref(peer))) {
            // Every pod, that is.
            Sources::Everyone => pod.is_some(),
            Sources::Listed(listed) => {
                let at_home = |pod: &PodFacts<'_>| {
                    let home = &pod.key.namespace;
                    self.neighbours.has_namespace(&listed, home)
                };
                pod.is_some_and(at_home) || self.neighbours.has(&listed, ip)
            }
        };
        peers.iter().any(one)
    }
}

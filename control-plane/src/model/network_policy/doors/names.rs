//! Who may call somebody has to be able to look up names.

use std::collections::{BTreeMap, BTreeSet};

use isobar_objects::{NetworkPolicy, ObjectHead as _, ObjectSet};
use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::networking::v1::{
    NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::rule::{Rule, rules};
use super::{DNS, Inspection, Missing, NAMESPACE_NAME, ShutDoor, entry, is_open, labelled};
use crate::model::pods::PodFacts;

/// Where the cluster's own name servers are. Anybody may have a Service with port 53, and what it leads to is
/// opened for nobody else.
const OF_THE_CLUSTER: [&str; 2] = ["kube-system", "openshift-dns"];

/// A Service with UDP port 53.
pub(super) struct NameServer<'a> {
    namespace: &'a str,
    /// Labels of its pods; `None` where it selects none.
    pods: Option<&'a BTreeMap<String, String>>,
    /// Where its pods listen, and the port of the Service.
    numbers: BTreeSet<u16>,
    /// What pods and Service call that port.
    names: BTreeSet<&'a str>,
}

/// All that look up names.
pub(super) fn servers<'a>(set: &'a ObjectSet, pods: &'a [PodFacts<'a>]) -> Vec<NameServer<'a>> {
    let services = set.services.iter().map(|held| &held.object);
    let servers = services.filter_map(|service| {
        let spec = service.spec.as_ref()?;
        let ports = spec.ports.iter().flatten();
        let found: Vec<&ServicePort> = ports.filter(|port| serves_names(port)).collect();
        (!found.is_empty()).then(|| {
            let mut server = NameServer {
                namespace: service.namespace(),
                pods: spec.selector.as_ref(),
                numbers: [DNS].into(),
                names: BTreeSet::new(),
            };
            found.iter().for_each(|port| server.listens(port, pods));
            server
        })
    });
    servers.collect()
}

fn serves_names(port: &ServicePort) -> bool {
    port.port == i32::from(DNS) && port.protocol.as_deref() == Some("UDP")
}

impl<'a> NameServer<'a> {
    /// Network plugins see the port of the pod, by whatever name the rule has for it there.
    fn listens(&mut self, port: &'a ServicePort, pods: &'a [PodFacts<'a>]) {
        match &port.target_port {
            Some(IntOrString::Int(number)) => self.numbers.extend(u16::try_from(*number)),
            Some(IntOrString::String(name)) => {
                self.names.insert(name);
            }
            None => {}
        }
        let Some(labels) = self.pods else { return };
        let own = pods.iter().filter(|pod| {
            let same = |(key, value): (&String, &String)| pod.labels.get(key) == Some(value);
            *pod.key.namespace == *self.namespace && labels.iter().all(same)
        });
        let containers = own
            .flat_map(|pod| &pod.pod.spec)
            .flat_map(|spec| &spec.containers);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        for port in ports.filter(|port| port.protocol.as_deref() == Some("UDP")) {
            let name = port.name.as_deref().unwrap_or_default();
            let Ok(number) = u16::try_from(port.container_port) else {
                continue;
            };
            if self.names.contains(name) {
                self.numbers.insert(number);
            } else if self.numbers.contains(&number) && !name.is_empty() {
                self.names.insert(name);
            }
        }
    }

    /// True if one of these ports, or no list at all, lets look-ups through to its pods.
    fn is_open_by(&self, ports: Option<&[NetworkPolicyPort]>) -> bool {
        let udp = |port: &NetworkPolicyPort| match &port.port {
            Some(IntOrString::String(name)) => {
                port.protocol.as_deref() == Some("UDP") && self.names.contains(name.as_str())
            }
            _ => self
                .numbers
                .iter()
                .any(|number| is_open(port, *number, "UDP")),
        };
        ports.is_none_or(|ports| ports.is_empty() || ports.iter().any(udp))
    }

    fn as_peer(&self) -> Option<NetworkPolicyPeer> {
        let pods = self.pods.filter(|labels| !labels.is_empty())?;
        OF_THE_CLUSTER
            .contains(&self.namespace)
            .then(|| NetworkPolicyPeer {
                namespace_selector: Some(labelled(NAMESPACE_NAME, self.namespace)),
                pod_selector: Some(LabelSelector {
                    match_labels: Some(pods.clone()),
                    match_expressions: None,
                }),
                ip_block: None,
            })
    }
}

impl Inspection<'_> {
    /// Name servers, to where they are.
    pub(super) fn names(&mut self, policies: &[NetworkPolicy]) {
        let fresh: Vec<NetworkPolicy> = policies.iter().map(|p| self.latest(p)).collect();
        let open = |policy: &NetworkPolicy| {
            let mut rules = rules::<NetworkPolicyEgressRule>(policy).iter();
            rules.any(|rule| self.leads_to_names(policy.namespace(), rule))
        };
        let first = fresh
            .iter()
            .find(|p| !rules::<NetworkPolicyEgressRule>(p).is_empty());
        let Some(first) = first.filter(|_| !fresh.iter().any(open)) else {
            return;
        };
        let at = rules::<NetworkPolicyEgressRule>(first).len();
        let known = || {
            self.servers
                .iter()
                .filter_map(|one| Some((one, one.as_peer()?)))
        };
        let peers: Vec<NetworkPolicyPeer> = known().map(|(_, peer)| peer).collect();
        let mut numbers: BTreeSet<u16> = known().flat_map(|(one, _)| one.numbers.clone()).collect();
        numbers.insert(DNS);
        let is_wide = peers.is_empty();
        let ports = numbers
            .iter()
            .flat_map(|number| ["UDP", "TCP"].map(|word| entry(*number, word)));
        let rule = NetworkPolicyEgressRule::new((!is_wide).then_some(peers), ports.collect());
        let wider = || {
            "spec.egress gets port 53 of every address: which pods are the cluster's name servers is not known \
             here; write them as `to`"
        };
        let door = ShutDoor {
            field: format!("spec.egress[{at}]"),
            missing: Missing::Port(DNS),
            consequence: "it cannot look up names".to_owned(),
            pods: self.some_alike(),
            wider: is_wide.then(|| wider().to_owned()),
        };
        self.note(first, door, |spec| {
            NetworkPolicyEgressRule::of_mut(spec).push(rule);
        });
    }

    /// True if a rule lets look-ups through to a name server: pods of a Service with that port, or an address,
    /// behind which a name server may be. Without such a Service nobody knows which pods those are; they
    /// are in another namespace then.
    fn leads_to_names(&self, namespace: &str, rule: &NetworkPolicyEgressRule) -> bool {
        let usual = || {
            let ports = rule.ports();
            ports.is_none_or(|ports| {
                ports.is_empty() || ports.iter().any(|port| is_open(port, DNS, "UDP"))
            })
        };
        let Some(peers) = rule.peers().filter(|peers| !peers.is_empty()) else {
            return usual()
                || self
                    .servers
                    .iter()
                    .any(|server| server.is_open_by(rule.ports()));
        };
        peers.iter().any(|peer| {
            if peer.ip_block.is_some() {
                return usual();
            }
            if self.servers.is_empty() {
                return usual() && peer.namespace_selector.is_some();
            }
            self.servers.iter().any(|server| {
                let home = server.namespace;
                let takes = |pods| self.neighbours.takes(namespace, peer, home, pods);
                server.is_open_by(rule.ports()) && server.pods.is_none_or(takes)
            })
        })
    }
}

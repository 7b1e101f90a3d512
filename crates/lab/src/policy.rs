//! NetworkPolicy as rules on the node's side of each pod's link, like a network plugin has them.
//!
//! Every packet of the opening side is looked at, answers pass: a connection of a pair that is
//! forbidden later is cut off at its next packet. What the node itself sends (probes) does not
//! pass here, as Kubernetes wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;

use isobar_objects::{NetworkPolicy, ObjectHead, pods, selectors};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cluster::{Cluster, PodView};
use crate::plan::{DNS_ADDRESS, NETWORK_ADDRESS};

/// One direction of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const fn word(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }

    const fn chain(self) -> &'static str {
        match self {
            Self::Ingress => "in",
            Self::Egress => "out",
        }
    }

    /// The device that the pod's packets of this direction pass.
    const fn device(self) -> &'static str {
        match self {
            Self::Ingress => "oifname",
            Self::Egress => "iifname",
        }
    }

    /// The address of the other side.
    const fn peer(self) -> &'static str {
        match self {
            Self::Ingress => "ip saddr",
            Self::Egress => "ip daddr",
        }
    }
}

/// The rules of one node's pods; the whole table is replaced in one transaction.
pub(crate) fn rules(
    cluster: &Cluster,
    policies: &[Arc<NetworkPolicy>],
    node: &str,
) -> (String, Vec<String>) {
    let mut text = String::from(
        "add table ip lab_policy\n\
         delete table ip lab_policy\n\
         add table ip lab_policy\n\
         add chain ip lab_policy forward { type filter hook forward priority filter - 10; }\n\
         add rule ip lab_policy forward ct direction reply accept\n",
    );
    let mut findings = BTreeSet::new();
    let mine = || cluster.pods.iter().filter(|pod| pod.node == node);
    // A packet may leave one isolated pod and enter another: both have to agree, so a chain
    // returns what it allows and drops the rest.
    for direction in [Direction::Egress, Direction::Ingress] {
        for pod in mine() {
            let isolating: Vec<_> = policies
                .iter()
                .filter(|policy| isolates(policy, pod, direction))
                .collect();
            if isolating.is_empty() {
                continue;
            }
            let chain = format!("{}-{}", direction.chain(), pod.device);
            line(&mut text, &format!("add chain ip lab_policy {chain}"));
            for policy in isolating {
                for allowed in allowances(cluster, policy, pod, direction, &mut findings) {
                    line(
                        &mut text,
                        &format!("add rule ip lab_policy {chain} {allowed} return"),
                    );
                }
            }
            line(&mut text, &format!("add rule ip lab_policy {chain} drop"));
            line(
                &mut text,
                &format!(
                    "add rule ip lab_policy forward {} {} jump {chain}",
                    direction.device(),
                    pod.device
                ),
            );
        }
    }
    (text, findings.into_iter().collect())
}

fn line(text: &mut String, line: &str) {
    // A rule without conditions leaves a double blank.
    let line = line.replace("  ", " ");
    writeln!(text, "{line}").expect("strings take all writes");
}

fn isolates(policy: &NetworkPolicy, pod: &PodView, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else {
        return false;
    };
    if policy.namespace() != pod.namespace || !has_direction(spec, direction) {
        return false;
    }
    spec.pod_selector
        .as_ref()
        .is_none_or(|selector| selectors::selects(selector, &pod.labels))
}

/// Without `policyTypes` a policy is about ingress, and about egress if it has egress rules.
fn has_direction(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.iter().any(|t| t == direction.word()),
        _ => {
            direction == Direction::Ingress
                || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())
        }
    }
}

/// Conditions under which a policy lets traffic of `pod` pass, each a rule's text.
fn allowances(
    cluster: &Cluster,
    policy: &NetworkPolicy,
    pod: &PodView,
    direction: Direction,
    findings: &mut BTreeSet<String>,
) -> Vec<String> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    let ingress = spec.ingress.iter().flatten();
    let egress = spec.egress.iter().flatten();
    let rules: Vec<_> = match direction {
        Direction::Ingress => ingress.map(|r| (&r.from, &r.ports)).collect(),
        Direction::Egress => egress.map(|r| (&r.to, &r.ports)).collect(),
    };
    let mut found = Vec::new();
    for (peers, ports) in rules {
        let peers = peers.as_ref().filter(|list| !list.is_empty());
        let ports = ports.as_ref().filter(|list| !list.is_empty());
        for from in peer_matches(cluster, policy, peers, direction, findings) {
            match ports {
                None => found.push(from.text(direction)),
                Some(ports) => {
                    for port in ports {
                        found.extend(port_match(
                            cluster, policy, pod, &from, port, direction, findings,
                        ));
                    }
                }
            }
        }
    }
    found
}

/// One kind of peer that a rule takes.
#[derive(Debug, Clone)]
enum Peer {
    Anyone,
    Addresses(BTreeSet<Ipv4Addr>),
    Block { cidr: String, except: Vec<String> },
}

impl Peer {
    fn text(&self, direction: Direction) -> String {
        let side = direction.peer();
        match self {
            Self::Anyone => String::new(),
            Self::Addresses(list) => {
                let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                format!("{side} {{ {} }}", list.join(", "))
            }
            Self::Block { cidr, except } if except.is_empty() => format!("{side} {cidr}"),
            Self::Block { cidr, except } => {
                format!("{side} {cidr} {side} != {{ {} }}", except.join(", "))
            }
        }
    }
}

fn peer_matches(
    cluster: &Cluster,
    policy: &NetworkPolicy,
    peers: Option<&Vec<NetworkPolicyPeer>>,
    direction: Direction,
    findings: &mut BTreeSet<String>,
) -> Vec<Peer> {
    let Some(peers) = peers else {
        return vec![Peer::Anyone];
    };
    let mut addresses = BTreeSet::new();
    let mut found = Vec::new();
    for peer in peers {
        match &peer.ip_block {
            Some(block) => found.extend(block_match(policy, block, findings)),
            None => addresses.extend(selected(cluster, policy, peer, direction)),
        }
    }
    if !addresses.is_empty() {
        found.push(Peer::Addresses(addresses));
    }
    found
}

fn block_match(
    policy: &NetworkPolicy,
    block: &IPBlock,
    findings: &mut BTreeSet<String>,
) -> Option<Peer> {
    let good = |text: &String| text.parse::<ipnet::Ipv4Net>().is_ok();
    if !good(&block.cidr) {
        if block.cidr.parse::<ipnet::Ipv6Net>().is_err() {
            findings.insert(format!(
                "NetworkPolicy {}/{}: ipBlock {:?} is not a network",
                policy.namespace(),
                policy.name(),
                block.cidr
            ));
        }
        return None;
    }
    let except = block.except.iter().flatten().filter(|e| good(e)).cloned();
    Some(Peer::Block {
        cidr: block.cidr.clone(),
        except: except.collect(),
    })
}

/// Addresses of the pods that a peer selects: in the policy's namespace, or in those its namespace
/// selector takes.
fn selected(
    cluster: &Cluster,
    policy: &NetworkPolicy,
    peer: &NetworkPolicyPeer,
    direction: Direction,
) -> Vec<Ipv4Addr> {
    let empty = BTreeMap::new();
    let takes = |namespace: &str, labels: &BTreeMap<String, String>| {
        let there = match &peer.namespace_selector {
            None => namespace == policy.namespace(),
            Some(selector) => {
                let labels = cluster.namespaces.get(namespace).unwrap_or(&empty);
                selectors::selects(selector, labels)
            }
        };
        there
            && peer
                .pod_selector
                .as_ref()
                .is_none_or(|selector| selectors::selects(selector, labels))
    };
    let mut found: Vec<Ipv4Addr> = cluster
        .pods
        .iter()
        .filter(|pod| takes(&pod.namespace, &pod.labels))
        .map(|pod| pod.ip)
        .collect();
    if direction == Direction::Egress {
        found.extend(
            system_peers()
                .into_iter()
                .filter(|(namespace, labels, _)| takes(namespace, labels))
                .map(|(_, _, ip)| ip),
        );
    }
    found
}

/// The cluster's name server and the control plane run outside pods in a lab; policies know them
/// by the labels their pods have in a cluster.
fn system_peers() -> Vec<(&'static str, BTreeMap<String, String>, Ipv4Addr)> {
    let labels = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    };
    vec![
        (
            "kube-system",
            labels(&[("k8s-app", "kube-dns")]),
            DNS_ADDRESS,
        ),
        (
            isobar_types::DEFAULT_ROOT_NAMESPACE,
            labels(&[("app", "istiod"), ("istio", "pilot")]),
            NETWORK_ADDRESS,
        ),
        (
            isobar_types::DEFAULT_ROOT_NAMESPACE,
            labels(&[("app", "isobard")]),
            NETWORK_ADDRESS,
        ),
    ]
}

/// Rule texts for one port entry: a named port may be another number in every pod.
fn port_match(
    cluster: &Cluster,
    policy: &NetworkPolicy,
    pod: &PodView,
    peer: &Peer,
    port: &NetworkPolicyPort,
    direction: Direction,
    findings: &mut BTreeSet<String>,
) -> Vec<String> {
    let transport = match port.protocol.as_deref().unwrap_or("TCP") {
        "TCP" => "tcp",
        "UDP" => "udp",
        "SCTP" => "sctp",
        other => {
            findings.insert(format!(
                "NetworkPolicy {}/{}: protocol {other:?} is unknown",
                policy.namespace(),
                policy.name()
            ));
            return Vec::new();
        }
    };
    let with = |peer: &Peer, ports: String| {
        vec![format!(
            "{} {transport} dport {ports}",
            peer.text(direction)
        )]
    };
    match (&port.port, port.end_port) {
        (None, _) => vec![format!("{} meta l4proto {transport}", peer.text(direction))],
        (Some(IntOrString::Int(first)), Some(last)) => with(peer, format!("{first}-{last}")),
        (Some(IntOrString::Int(number)), None) => with(peer, number.to_string()),
        (Some(IntOrString::String(name)), _) => match direction {
            Direction::Ingress => pods::named_port(&pod.pod, name)
                .map(|number| with(peer, number.to_string()))
                .unwrap_or_default(),
            Direction::Egress => named_egress(cluster, peer, name)
                .into_iter()
                .flat_map(|(ip, number)| {
                    with(&Peer::Addresses(BTreeSet::from([ip])), number.to_string())
                })
                .collect(),
        },
    }
}

/// A named port outbound is looked up in the pods the rule leads to.
fn named_egress(cluster: &Cluster, peer: &Peer, name: &str) -> Vec<(Ipv4Addr, u16)> {
    let leads_to = |ip: Ipv4Addr| match peer {
        Peer::Anyone => true,
        Peer::Addresses(list) => list.contains(&ip),
        Peer::Block { cidr, except } => {
            let within = |text: &String| {
                text.parse::<ipnet::Ipv4Net>()
                    .is_ok_and(|n| n.contains(&ip))
            };
            within(cidr) && !except.iter().any(within)
        }
    };
    cluster
        .pods
        .iter()
        .filter(|pod| leads_to(pod.ip))
        .filter_map(|pod| Some((pod.ip, pods::named_port(&pod.pod, name)?)))
        .collect()
}

#[cfg(test)]
mod tests;

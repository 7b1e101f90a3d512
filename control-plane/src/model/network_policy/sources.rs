//! Who an ingress rule lets in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;
use isobar_objects::{ObjectHead, ObjectSet, selectors};
use isobar_types::NamespacedName;
use isobar_types::ports::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::index::{Bits, Index, pairs};
use crate::model::pods::PodFacts;

/// Label that Kubernetes puts on every namespace.
pub(super) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Bytes that an address takes in a policy: its own, its length, and what protobuf writes before each.
const V4_BYTES: usize = 10;
const V6_BYTES: usize = 23;
/// The same of a name, without its characters.
const NAME_BYTES: usize = 6;

/// Who a rule lets in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Sources {
    /// Everybody.
    Everyone,
    /// Whoever is on one of these lists; nobody if all are empty.
    Listed(Listed),
}

/// Callers by namespace and by address. Namespaces and pods have the numbers of [`Neighbours`], so that a
/// list costs little however long it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Listed {
    /// Namespaces all of whose pods are let in.
    namespaces: Bits,
    /// Single pods, by their addresses.
    pods: Bits,
    /// Networks, each with what is taken out of it.
    pub(super) blocks: Vec<(IpNet, Vec<IpNet>)>,
}

/// Everything that selectors look at.
#[derive(Debug)]
pub(super) struct Neighbours<'a> {
    set: &'a ObjectSet,
    /// Namespaces in order.
    names: Vec<&'a str>,
    /// Of each namespace the pods.
    homes: Vec<Range<usize>>,
    by_label: Index<'a>,
    pods: Vec<&'a PodFacts<'a>>,
    pods_by_label: Index<'a>,
    by_ip: HashMap<IpAddr, Vec<usize>>,
    /// Pods that have an address.
    addressed: Bits,
}

impl<'a> Neighbours<'a> {
    /// Reads namespaces and pods. Pods of the node's network have no address of their own: no
    /// selector takes them.
    pub(super) fn read(set: &'a ObjectSet, pods: &'a [PodFacts<'a>]) -> Self {
        let mut pods: Vec<&PodFacts<'_>> = pods.iter().filter(|pod| !pod.host_network()).collect();
        pods.sort_by(|a, b| a.key.namespace.cmp(&b.key.namespace));
        let named = set.namespaces.iter().map(|namespace| namespace.name());
        let homes = pods.iter().map(|pod| &*pod.key.namespace);
        let names: BTreeSet<&str> = named.chain(homes).collect();
        let mut all = Self {
            set,
            names: names.into_iter().collect(),
            homes: Vec::new(),
            by_label: Index::default(),
            addressed: Bits::none(pods.len()),
            pods,
            pods_by_label: Index::default(),
            by_ip: HashMap::new(),
        };
        let mut start = 0;
        for name in &all.names {
            let namespace = set.namespaces.get("", name);
            let own = namespace.map(|held| pairs(held.object.labels()));
            let own = own.into_iter().flatten();
            let own = own.filter(|(key, _)| *key != NAMESPACE_NAME);
            all.by_label.push(own.chain([(NAMESPACE_NAME, *name)]));
            let there = all.pods[start..].iter();
            let count = there.take_while(|pod| *pod.key.namespace == **name).count();
            all.homes.push(start..start + count);
            start += count;
        }
        for (at, pod) in all.pods.iter().enumerate() {
            all.pods_by_label.push(pairs(pod.labels));
            for ip in &pod.ips {
                all.by_ip.entry(*ip).or_default().push(at);
                all.addressed.insert(at);
            }
        }
        all
    }

    /// Who a list of peers in a policy of `namespace` lets in; without a list everybody.
    pub(super) fn admitted(&self, namespace: &str, from: Option<&[NetworkPolicyPeer]>) -> Sources {
        let peers = match from {
            None | Some([]) => return Sources::Everyone,
            Some(peers) => peers,
        };
        let mut listed = self.nobody();
        for peer in peers {
            if means_every_pod(peer) {
                return Sources::Everyone;
            }
            match &peer.ip_block {
                Some(block) => listed.blocks.extend(network_of(block)),
                None => self.select(namespace, peer, &mut listed),
            }
        }
        Sources::Listed(listed)
    }

    /// A list of nobody.
    pub(super) fn nobody(&self) -> Listed {
        Listed {
            namespaces: Bits::none(self.names.len()),
            pods: Bits::none(self.pods.len()),
            blocks: Vec::new(),
        }
    }

    /// True if a peer in a policy of `namespace`, that is no address, means pods of `home` with these labels.
    pub(super) fn takes(
        &self,
        namespace: &str,
        peer: &NetworkPolicyPeer,
        home: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        let pods = peer.pod_selector.as_ref();
        let is_home = match &peer.namespace_selector {
            None => namespace == home,
            Some(selector) => {
                let own = self.set.namespaces.get("", home);
                let own = own.map(|held| held.object.labels().clone());
                let mut own = own.unwrap_or_default();
                own.insert(NAMESPACE_NAME.to_owned(), home.to_owned());
                selectors::selects(selector, &own)
            }
        };
        is_home && pods.is_none_or(|pods| selectors::selects(pods, labels))
    }

    /// Namespaces are taken as such where a peer means all of their pods, single pods by address.
    fn select(&self, namespace: &str, peer: &NetworkPolicyPeer, listed: &mut Listed) {
        let taken = match &peer.namespace_selector {
            Some(selector) => self.by_label.select(selector),
            None => {
                let mut own = Bits::none(self.names.len());
                own.extend(self.names.binary_search(&namespace));
                own
            }
        };
        let some_pods = peer.pod_selector.as_ref();
        match some_pods.filter(|selector| !selectors::is_empty(selector)) {
            None => listed.namespaces.add(&taken),
            Some(selector) => {
                let mut pods = self.of_namespaces(&taken);
                pods.keep(&self.pods_by_label.select(selector));
                pods.keep(&self.addressed);
                listed.pods.add(&pods);
            }
        }
    }

    fn of_namespaces(&self, namespaces: &Bits) -> Bits {
        let mut pods = Bits::none(self.pods.len());
        for home in namespaces.iter().filter_map(|at| self.homes.get(at)) {
            pods.insert_range(home.clone());
        }
        pods
    }

    /// Pods for which something holds.
    pub(super) fn pods_that(&self, holds: impl Fn(&PodFacts<'_>) -> bool) -> Bits {
        let mut bits = Bits::none(self.pods.len());
        let pods = self.pods.iter().enumerate();
        bits.extend(pods.filter(|(_, pod)| holds(pod)).map(|(at, _)| at));
        bits
    }

    /// Pods that selectors take, by their namespaces or by themselves.
    pub(super) fn taken(&self, listed: &Listed) -> Bits {
        let mut pods = self.of_namespaces(&listed.namespaces);
        pods.add(&listed.pods);
        pods
    }

    /// The pod of that name.
    pub(super) fn pod(&self, key: &NamespacedName) -> Option<&'a PodFacts<'a>> {
        let home = self.names.binary_search(&&*key.namespace).ok()?;
        let pods = self.pods.get(self.homes.get(home)?.clone())?;
        pods.iter().copied().find(|pod| pod.key == *key)
    }

    /// The pods of a set.
    pub(super) fn pods(&self, of: &Bits) -> impl Iterator<Item = &'a PodFacts<'a>> {
        of.iter().filter_map(|at| self.pods.get(at).copied())
    }

    /// Namespaces all of whose pods are on the list.
    pub(super) fn namespaces(&self, listed: &Listed) -> impl Iterator<Item = &'a str> {
        let all = listed.namespaces.iter();
        all.filter_map(|at| self.names.get(at).copied())
    }

    /// True if all pods of a namespace are on the list.
    pub(super) fn has_namespace(&self, listed: &Listed, name: &str) -> bool {
        let at = self.names.binary_search(&name);
        at.is_ok_and(|at| listed.namespaces.contains(at))
    }

    /// Addresses of the single pods on the list, each once and in order.
    pub(super) fn addresses(&self, listed: &Listed) -> BTreeSet<IpAddr> {
        self.pods(&listed.pods)
            .flat_map(|pod| pod.ips.iter().copied())
            .collect()
    }

    /// Bytes on the wire, about, that the lists take.
    pub(super) fn bytes(&self, sources: &Sources) -> usize {
        let Sources::Listed(listed) = sources else {
            return 0;
        };
        let address = |is_v4: bool| if is_v4 { V4_BYTES } else { V6_BYTES };
        let network = |network: &IpNet| address(matches!(network, IpNet::V4(_)));
        let names = self.namespaces(listed).map(|name| name.len() + NAME_BYTES);
        let pods = self.pods(&listed.pods).flat_map(|pod| &pod.ips);
        let blocks = listed.blocks.iter();
        let blocks = blocks.flat_map(|(outer, except)| std::iter::once(outer).chain(except));
        names.sum::<usize>()
            + pods.map(|ip| address(ip.is_ipv4())).sum::<usize>()
            + blocks.map(network).sum::<usize>()
    }

    /// True if the address is that of a pod on the list, or within a network on it.
    pub(super) fn has(&self, listed: &Listed, ip: IpAddr) -> bool {
        let within = |(network, except): &(IpNet, Vec<IpNet>)| {
            network.contains(&ip) && !except.iter().any(|one| one.contains(&ip))
        };
        let mut there = self.by_ip.get(&ip).into_iter().flatten();
        there.any(|at| listed.pods.contains(*at)) || listed.blocks.iter().any(within)
    }
}

/// True for a list of peers that names nothing but where the node's probes come from.
pub(super) fn are_probes(from: Option<&[NetworkPolicyPeer]>) -> bool {
    let probes = [IpAddr::from(PROBE_SOURCE_V4), PROBE_SOURCE_V6.into()].map(IpNet::from);
    let is_probe = |peer: &NetworkPolicyPeer| {
        let network = peer.ip_block.as_ref().and_then(network_of);
        network.is_some_and(|(network, _)| probes.contains(&network))
    };
    from.is_some_and(|peers| !peers.is_empty() && peers.iter().all(is_probe))
}

/// Every pod of every namespace: that is everybody who can show an identity.
fn means_every_pod(peer: &NetworkPolicyPeer) -> bool {
    let empty =
        |selector: &Option<LabelSelector>| selector.as_ref().is_some_and(selectors::is_empty);
    peer.ip_block.is_none()
        && empty(&peer.namespace_selector)
        && (peer.pod_selector.is_none() || empty(&peer.pod_selector))
}

/// A network, and the parts of it that are not meant. What is no network lets nobody in; an
/// exception that is none takes out everything.
pub(super) fn network_of(block: &IPBlock) -> Option<(IpNet, Vec<IpNet>)> {
    let network: IpNet = block.cidr.parse().ok()?;
    let except = block.except.iter().flatten();
    let except = except.map(|text| text.parse::<IpNet>().ok());
    Some((network.trunc(), except.collect::<Option<Vec<_>>>()?))
}

//! Who an ingress rule lets in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isobar_objects::{ObjectHead, ObjectSet, selectors};
use isobar_types::Str;
use isobar_types::ports::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::model::pods::PodFacts;

/// Label that Kubernetes puts on every namespace.
pub(super) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Who a rule lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sources {
    /// Everybody.
    Everyone,
    /// Whoever is on one of these lists; nobody if all are empty.
    Listed(Listed),
}

/// Callers by namespace and by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// Namespaces all of whose pods are let in.
    pub(super) namespaces: BTreeSet<Str>,
    /// Addresses of single pods.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Networks, each with what is taken out of it.
    pub(super) blocks: Vec<(IpNet, Vec<IpNet>)>,
}

impl Listed {
    /// True if a selector takes the pod, by its namespace or by itself.
    pub(super) fn takes(&self, pod: &PodFacts<'_>) -> bool {
        self.namespaces.contains(&pod.key.namespace)
            || pod.ips.iter().any(|ip| self.addresses.contains(ip))
    }

    /// True if the address is that of a pod on the list, or within a network on it.
    pub(super) fn has(&self, ip: IpAddr) -> bool {
        let within = |(network, except): &(IpNet, Vec<IpNet>)| {
            network.contains(&ip) && !except.iter().any(|one| one.contains(&ip))
        };
        self.addresses.contains(&ip) || self.blocks.iter().any(within)
    }
}

/// Everything that selectors look at.
#[derive(Debug)]
pub(super) struct Neighbours<'a> {
    namespaces: BTreeMap<&'a str, BTreeMap<String, String>>,
    pods: BTreeMap<&'a str, Vec<&'a PodFacts<'a>>>,
}

impl<'a> Neighbours<'a> {
    /// Reads namespaces and pods. Pods of the node's network have no address of their own: no
    /// selector takes them.
    pub(super) fn read(set: &'a ObjectSet, pods: &'a [PodFacts<'a>]) -> Self {
        let mut all = Self {
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
        };
        for pod in pods.iter().filter(|pod| !pod.host_network()) {
            let namespace = &*pod.key.namespace;
            all.pods.entry(namespace).or_default().push(pod);
            all.namespaces.entry(namespace).or_default();
        }
        for namespace in set.namespaces.iter() {
            let labels = namespace.labels().clone();
            all.namespaces.insert(namespace.name(), labels);
        }
        for (name, labels) in &mut all.namespaces {
            labels.insert(NAMESPACE_NAME.to_owned(), (*name).to_owned());
        }
        all
    }

    /// Who a list of peers in a policy of `namespace` lets in; without a list everybody.
    pub(super) fn admitted(&self, namespace: &str, from: Option<&[NetworkPolicyPeer]>) -> Sources {
        let peers = match from {
            None | Some([]) => return Sources::Everyone,
            Some(peers) => peers,
        };
        let mut listed = Listed::default();
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

    /// True if a peer in a policy of `namespace`, that is no address, means pods of `home` with these labels.
    pub(super) fn takes(
        &self,
        namespace: &str,
        peer: &NetworkPolicyPeer,
        home: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        let pods = peer.pod_selector.as_ref();
        let is_home = match (&peer.namespace_selector, self.namespaces.get(home)) {
            (None, _) => namespace == home,
            (Some(selector), Some(own)) => selectors::selects(selector, own),
            (Some(selector), None) => {
                let own = [(NAMESPACE_NAME.to_owned(), home.to_owned())];
                selectors::selects(selector, &own.into())
            }
        };
        is_home && pods.is_none_or(|pods| selectors::selects(pods, labels))
    }

    /// Namespaces are taken as such where a peer means all of their pods, single pods by address.
    fn select(&self, namespace: &str, peer: &NetworkPolicyPeer, listed: &mut Listed) {
        let taken = self
            .namespaces
            .iter()
            .filter(|(name, labels)| match &peer.namespace_selector {
                None => **name == namespace,
                Some(selector) => selectors::selects(selector, labels),
            })
            .map(|(name, _)| *name);
        let some_pods = peer
            .pod_selector
            .as_ref()
            .filter(|selector| !selectors::is_empty(selector));
        match some_pods {
            None => listed.namespaces.extend(taken.map(Str::from)),
            Some(selector) => {
                let pods = taken.flat_map(|name| self.pods.get(name)).flatten();
                listed.addresses.extend(addresses(pods, selector));
            }
        }
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

fn addresses<'p>(
    pods: impl Iterator<Item = &'p &'p PodFacts<'p>>,
    selector: &LabelSelector,
) -> impl Iterator<Item = IpAddr> {
    pods.filter(|pod| selectors::selects(selector, pod.labels))
        .flat_map(|pod| pod.ips.iter().copied())
}

/// A network, and the parts of it that are not meant. What is no network lets nobody in; an
/// exception that is none takes out everything.
pub(super) fn network_of(block: &IPBlock) -> Option<(IpNet, Vec<IpNet>)> {
    let network: IpNet = block.cidr.parse().ok()?;
    let except = block.except.iter().flatten();
    let except = except.map(|text| text.parse::<IpNet>().ok());
    Some((network.trunc(), except.collect::<Option<Vec<_>>>()?))
}

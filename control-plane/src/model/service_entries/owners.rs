//! Addresses that entries must not describe: whoever may write one in a namespace of his own would take
//! over calls to services, pods and nodes of others, past their waypoints and policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use isobar_objects::istio::WorkloadEntrySpec;
use isobar_objects::{ObjectHead, ObjectSet};

use super::addresses::net;
use crate::model::pods::PodFacts;
use crate::model::services::ServicePlan;

/// Whose address it is: the namespace, and how to call it.
struct Owner {
    namespace: String,
    name: String,
    is_node: bool,
}

/// Addresses of Services, pods and nodes; nothing is read where no object describes an address.
///
/// A node's address is that of what runs on its network, whoever's that is: it is for who runs the mesh.
pub(super) struct Owners {
    of: BTreeMap<IpAddr, Owner>,
}

/// The addresses of an entry.
pub(super) struct Described<'t> {
    /// The entry's namespace.
    pub(super) namespace: &'t str,
    /// Connections go where they were going to, and past nothing.
    pub(super) as_they_are: bool,
    /// As they are written.
    pub(super) addresses: &'t [String],
}

impl Owners {
    pub(super) fn of(set: &ObjectSet, services: &[ServicePlan], root: &str) -> Self {
        let mut of = BTreeMap::new();
        if describes_addresses(set) {
            of.extend(nodes(set, root));
            of.extend(pods(set, root));
            of.extend(services.iter().flat_map(service));
        }
        Self { of }
    }

    /// The addresses that an entry may describe, and why not the others.
    pub(super) fn sort<'t>(&self, described: &Described<'t>) -> (Vec<&'t String>, Vec<String>) {
        let mut free = Vec::new();
        let mut taken = Vec::new();
        for text in described.addresses {
            match self.other(described, text) {
                None => free.push(text),
                Some((address, owner)) => taken.push(format!(
                    "address {text} is left out: {address} belongs to {}; an entry may only describe \
                     addresses of its own namespace's Services and pods, and such as are nobody's",
                    owner.name
                )),
            }
        }
        (free, taken)
    }

    /// Why calls to the address of an endpoint that an object of `namespace` lists are none for it.
    pub(super) fn taken(&self, namespace: &str, address: IpAddr) -> Option<String> {
        let owner = self.of.get(&address.to_canonical())?;
        (owner.namespace != namespace).then(|| {
            format!(
                "address {address} belongs to {}: the endpoint takes calls to the hosts it is of, and \
                 calls to that address itself go where they went without it",
                owner.name
            )
        })
    }

    fn other(&self, described: &Described<'_>, text: &str) -> Option<(&IpAddr, &Owner)> {
        let net = canonical(net(text)?);
        let mut within = self.of.range(net.network()..=net.broadcast());
        within.find(|(_, owner)| {
            let counts = !owner.is_node || !described.as_they_are;
            counts && owner.namespace != described.namespace
        })
    }
}

/// True if an object says where calls to some address go.
fn describes_addresses(set: &ObjectSet) -> bool {
    let mut entries = set.service_entries.iter();
    !set.workload_entries.is_empty()
        || entries.any(|entry| {
            let spec = &entry.object.spec;
            !spec.addresses.is_empty() || !spec.endpoints.is_empty()
        })
}

/// True if it matters to some entry whose addresses these are.
pub(super) fn concern_entries(set: &ObjectSet, ips: &[IpAddr]) -> bool {
    let is_one = |endpoint: &WorkloadEntrySpec| {
        let ip = endpoint.address.parse::<IpAddr>();
        ip.is_ok_and(|ip| {
            ips.iter()
                .any(|one| one.to_canonical() == ip.to_canonical())
        })
    };
    let mut own = set.workload_entries.iter();
    let mut entries = set.service_entries.iter();
    own.any(|object| is_one(&object.spec))
        || entries.any(|entry| {
            let spec = &entry.object.spec;
            !spec.addresses.is_empty() || spec.endpoints.iter().any(is_one)
        })
}

/// As node proxies compare addresses: without forms of IPv4 in IPv6.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(six) = net else {
        return net;
    };
    let four = six.network().to_ipv4_mapped();
    let length = six.prefix_len().checked_sub(96);
    four.zip(length)
        .and_then(|(ip, length)| Ipv4Net::new(ip, length).ok())
        .map_or(net, IpNet::V4)
}

fn nodes(set: &ObjectSet, root: &str) -> impl Iterator<Item = (IpAddr, Owner)> {
    set.nodes.iter().flat_map(move |node| {
        let status = node.object.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_ref());
        let ips = addresses
            .into_iter()
            .flatten()
            .filter_map(|address| address.address.parse::<IpAddr>().ok());
        let owner = |ip: IpAddr| {
            let owner = Owner {
                namespace: root.to_owned(),
                name: format!("Node {}", node.object.name()),
                is_node: true,
            };
            (ip.to_canonical(), owner)
        };
        ips.map(owner).collect::<Vec<_>>()
    })
}

fn service(service: &ServicePlan) -> impl Iterator<Item = (IpAddr, Owner)> {
    let name = format!("Service {}", service.key);
    service.wire.addresses.iter().filter_map(move |address| {
        let ip = match address.address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(&*address.address).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(&*address.address).ok()?),
        };
        let owner = Owner {
            namespace: service.wire.namespace.clone(),
            name: name.clone(),
            is_node: false,
        };
        Some((ip.to_canonical(), owner))
    })
}

/// Pods; the address of one in its node's network is the node's.
fn pods(set: &ObjectSet, root: &str) -> impl Iterator<Item = (IpAddr, Owner)> {
    set.pods.iter().flat_map(move |pod| {
        let pod = &pod.object;
        let facts = PodFacts::read(pod);
        let is_node = facts.as_ref().is_some_and(PodFacts::host_network);
        let ips = facts.map_or_else(Vec::new, |facts| facts.ips);
        ips.into_iter().map(move |ip| {
            let (namespace, name) = (pod.namespace(), pod.name());
            let owner = match is_node {
                true => Owner {
                    namespace: root.to_owned(),
                    name: format!("the node of Pod {namespace}/{name}"),
                    is_node,
                },
                false => Owner {
                    namespace: namespace.to_owned(),
                    name: format!("Pod {namespace}/{name}"),
                    is_node,
                },
            };
            (ip.to_canonical(), owner)
        })
    })
}

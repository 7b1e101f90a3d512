//! Who has which address in a lab.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xxhash_rust::xxh64::xxh64;

/// The bridge between the nodes; the control plane listens here.
pub(crate) const NETWORK_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// Prefix length of the network between the nodes.
pub(crate) const NETWORK_PREFIX: u8 = 16;
/// First two bytes of service addresses, a `/16`.
const SERVICES: [u8; 2] = [10, 96];
/// All service addresses.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The cluster's name server, as pods know it.
pub(crate) const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The next hop of every pod, an address of its node that no other host sees.
pub(crate) const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The IPv6 address of whoever has this IPv4 address: its bytes, a group each, so that a network of
/// the one is one of the other.
pub(crate) fn six(ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = ip.octets().map(u16::from);
    Ipv6Addr::new(0xfd00, 0, 0, 0, a, b, c, d)
}

/// A node's place in the address plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodePlan {
    /// From 1.
    pub(crate) number: u8,
    pub(crate) name: String,
    /// It and its pods have IPv6 addresses too.
    pub(crate) dual_stack: bool,
}

impl NodePlan {
    pub(crate) fn new(number: u8) -> Self {
        Self {
            number,
            name: format!("node-{number}"),
            dual_stack: false,
        }
    }

    /// The same, with IPv6 addresses or without.
    pub(crate) fn dual_stack(self, dual_stack: bool) -> Self {
        Self { dual_stack, ..self }
    }

    /// All addresses of its pod with this one, which comes first.
    pub(crate) fn pod_addresses(&self, ip: Ipv4Addr) -> Vec<IpAddr> {
        let six = self.dual_stack.then(|| six(ip).into());
        [ip.into()].into_iter().chain(six).collect()
    }

    /// Its address on the network between nodes.
    pub(crate) const fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, 10 + self.number)
    }

    /// The addresses of its pods.
    pub(crate) fn pod_cidr(&self) -> String {
        format!("10.244.{}.0/24", self.number)
    }
}

/// Hands out pod addresses of one node. An address is not given again until all others were.
#[derive(Debug)]
pub(crate) struct PodAddresses {
    number: u8,
    next: u8,
    used: BTreeSet<u8>,
}

impl PodAddresses {
    const FIRST: u8 = 2;
    const LAST: u8 = 254;

    pub(crate) const fn new(node: &NodePlan) -> Self {
        Self {
            number: node.number,
            next: Self::FIRST,
            used: BTreeSet::new(),
        }
    }

    /// A free address; `None` when the node is full.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        for _ in Self::FIRST..=Self::LAST {
            let host = self.next;
            self.next = if host == Self::LAST {
                Self::FIRST
            } else {
                host + 1
            };
            if self.used.insert(host) {
                return Some(Ipv4Addr::new(10, 244, self.number, host));
            }
        }
        None
    }

    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.used.remove(&address.octets()[3]);
    }
}

/// Hands out service addresses: the one asked for, else one that follows from the name, so that a
/// lab started again gives the same ones.
#[derive(Debug, Default)]
pub(crate) struct ServiceAddresses {
    by_name: BTreeMap<(String, String), Ipv4Addr>,
}

impl ServiceAddresses {
    /// The address of a service; an error names who has the address that it asks for.
    pub(crate) fn assign(
        &mut self,
        namespace: &str,
        name: &str,
        asked: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr, String> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(address) = asked {
            let other = self
                .by_name
                .iter()
                .find(|(holder, held)| **held == address && **holder != key);
            if let Some(((namespace, name), _)) = other {
                return Err(format!("{address} belongs to service {namespace}/{name}"));
            }
            self.by_name.insert(key, address);
            return Ok(address);
        }
        if let Some(address) = self.by_name.get(&key) {
            return Ok(*address);
        }
        let taken: BTreeSet<Ipv4Addr> = self.by_name.values().copied().collect();
        let start = xxh64(format!("{namespace}/{name}").as_bytes(), 0);
        let address = (0..u64::from(u16::MAX))
            .map(|step| service_address(start.wrapping_add(step)))
            .find(|address| !taken.contains(address))
            .ok_or("all service addresses are taken")?;
        self.by_name.insert(key, address);
        Ok(address)
    }

    /// Forgets services that are gone.
    pub(crate) fn retain(&mut self, exists: impl Fn(&str, &str) -> bool) {
        self.by_name.retain(|(ns, name), _| exists(ns, name));
    }
}

/// Never an address below `.1.0`: those are for services that ask for one, the name server's among
/// them.
fn service_address(hash: u64) -> Ipv4Addr {
    let third = u8::try_from(hash / 254 % 254).expect("below 254") + 1;
    let fourth = u8::try_from(hash % 254).expect("below 254") + 1;
    Ipv4Addr::new(SERVICES[0], SERVICES[1], third, fourth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_addresses_of_both_families_where_asked_for() {
        let (node, ip) = (NodePlan::new(3), Ipv4Addr::new(10, 244, 3, 2));
        assert_eq!(node.pod_addresses(ip), [IpAddr::V4(ip)]);
        let both: [IpAddr; 2] = [ip.into(), "fd00::a:f4:3:2".parse().unwrap()];
        assert_eq!(node.dual_stack(true).pod_addresses(ip), both);
    }

    #[test]
    fn pod_addresses_rest_before_they_are_given_again() {
        let mut addresses = PodAddresses::new(&NodePlan::new(3));
        let first = addresses.take().unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 244, 3, 2));
        addresses.give_back(first);
        assert_eq!(addresses.take(), Some(Ipv4Addr::new(10, 244, 3, 3)));
        let rest = std::iter::from_fn(|| addresses.take()).count();
        assert_eq!(rest, 252);
        assert_eq!(addresses.take(), None);
    }

    #[test]
    fn service_addresses_are_stable_and_unique() {
        let mut one = ServiceAddresses::default();
        let mut two = ServiceAddresses::default();
        let address = one.assign("shop", "cart", None).unwrap();
        assert_eq!(two.assign("shop", "cart", None), Ok(address));
        assert_eq!(one.assign("shop", "cart", None), Ok(address));
        assert!(one.assign("shop", "other", Some(address)).is_err());
        one.retain(|_, _| false);
        assert_eq!(one.assign("shop", "other", Some(address)), Ok(address));
        assert_ne!(one.assign("shop", "cart", None), Ok(address));
    }
}

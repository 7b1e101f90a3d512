//! Virtual addresses of hosts: written, or given out from two ranges kept for that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use isobar_objects::istio::ServiceEntry;
use isobar_proto::istio::workload as wire;
use isobar_types::NamespacedName;
use serde_json::Value;

use super::super::services::octets;
use super::key;

/// Places in each range: 240.240.0.1 to 240.240.255.254, and as many from 2001:2::f0f0:1. The ranges
/// are Istio's.
const PLACES: u32 = 0xfffe;
/// Hosts of one namespace that are given addresses: a sixteenth, so that some are left for others.
pub(super) const OF_NAMESPACE: usize = 4096;

/// An address that a host was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allocated {
    /// The address.
    pub(crate) value: IpAddr,
    /// The host.
    pub(crate) host: String,
}

/// Entry and host.
type Owner = (NamespacedName, String);

/// Gives each host one address of each family. What an entry's status tells of it is kept; of two
/// that tell the same, the first keeps it. Otherwise the place follows from the name, so that it is
/// the same again where nothing was remembered.
pub(super) fn allocate<'a>(
    hosts: impl Iterator<Item = (&'a ServiceEntry, &'a str)>,
) -> BTreeMap<Owner, Vec<IpAddr>> {
    let hosts: Vec<_> = hosts.collect();
    let mut taken = BTreeSet::new();
    let mut all: BTreeMap<Owner, Vec<IpAddr>> = BTreeMap::new();
    for (entry, host) in &hosts {
        let kept: Vec<IpAddr> = remembered(entry, host)
            .into_iter()
            .filter(|ip| taken.insert(*ip))
            .collect();
        all.insert((key(entry), (*host).to_owned()), kept);
    }
    let mut free = [false, true].map(|v6| Free::new(v6, &taken));
    for (owner, addresses) in &mut all {
        for range in &mut free {
            if addresses.iter().all(|ip| ip.is_ipv6() != range.v6) {
                addresses.extend(range.take(place(owner)));
            }
        }
        addresses.sort_unstable();
    }
    all
}

/// What is left of a range.
struct Free<'t> {
    v6: bool,
    taken: &'t BTreeSet<IpAddr>,
    /// Looked up with the first that is asked for: mostly every host has been given its own before.
    places: Option<BTreeSet<u32>>,
}

impl<'t> Free<'t> {
    const fn new(v6: bool, taken: &'t BTreeSet<IpAddr>) -> Self {
        Self {
            v6,
            taken,
            places: None,
        }
    }

    /// The first free one at or behind `first`, which is nobody else's from then on.
    fn take(&mut self, first: u32) -> Option<IpAddr> {
        let (v6, taken) = (self.v6, self.taken);
        let places = self.places.get_or_insert_with(|| {
            let free = (0..PLACES).filter(|place| !taken.contains(&at(*place, v6)));
            free.collect()
        });
        let behind = places.range(first..).next();
        let found = behind.or_else(|| places.first()).copied()?;
        places.remove(&found);
        Some(at(found, v6))
    }
}

/// Addresses of the ranges that the status of `entry` tells for `host`, one of each family.
fn remembered(entry: &ServiceEntry, host: &str) -> Vec<IpAddr> {
    let listed = entry.status.as_ref().and_then(|s| s.get("addresses"));
    let mut found: Vec<IpAddr> = Vec::new();
    for item in listed.and_then(Value::as_array).into_iter().flatten() {
        let text = |key: &str| item.get(key).and_then(Value::as_str);
        let value = text("value").and_then(|value| value.parse::<IpAddr>().ok());
        if let (Some(ip), Some(of)) = (value, text("host"))
            && of == host
            && in_range(ip)
            && found.iter().all(|known| known.is_ipv6() != ip.is_ipv6())
        {
            found.push(ip);
        }
    }
    found
}

fn in_range(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [240, 240],
        IpAddr::V6(ip) => ip.segments()[..3] == [0x2001, 2, 0],
    }
}

const fn at(place: u32, v6: bool) -> IpAddr {
    let [_, _, high, low] = (place + 1).to_be_bytes();
    if v6 {
        let last = u16::from_be_bytes([high, low]);
        IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0xf0f0, last))
    } else {
        IpAddr::V4(Ipv4Addr::new(240, 240, high, low))
    }
}

/// Where the search for a free place begins (FNV-1a).
fn place((entry, host): &Owner) -> u32 {
    let name = format!("{entry}/{host}");
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash % PLACES
}

/// Given addresses as they are published.
pub(super) fn of_hosts(all: &[IpAddr], network: &str) -> Vec<wire::NetworkAddress> {
    all.iter()
        .map(|ip| wire::NetworkAddress {
            network: network.to_owned(),
            address: octets(*ip),
            length: None,
        })
        .collect()
}

/// An address, as a range of one, or a range.
pub(super) fn net(text: &str) -> Option<IpNet> {
    let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(alone)
}

/// Written addresses and networks as they are published; what is neither was refused before.
pub(super) fn written<S: AsRef<str>>(all: &[S], network: &str) -> Vec<wire::NetworkAddress> {
    all.iter()
        .filter_map(|text| {
            let net = net(text.as_ref())?;
            let alone = net.prefix_len() == net.max_prefix_len();
            Some(wire::NetworkAddress {
                network: network.to_owned(),
                address: octets(net.network()),
                length: (!alone).then(|| net.prefix_len().into()),
            })
        })
        .collect()
}

//! Addresses by the names that clients may ask for: their own, and `network/address` for all that is
//! there. Whoever asks for a service is told its workloads too, and node proxies those of their node.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as Wire};
use isobar_proto::istio::workload::{Address, address};
use isobar_types::Str;
use prost::Message;

use super::catalog::Resource;
use super::resources::Resources;

/// What leads to which resource. Made when the first client asks by name.
#[derive(Debug, Default)]
pub(crate) struct AddressNames {
    at: HashMap<Str, Vec<Str>>,
    members: HashMap<Str, Vec<Str>>,
    on_node: HashMap<Str, Vec<Str>>,
    ranges: Vec<(Range, Str)>,
}

/// Addresses of a network that a service stands for.
type Range = (String, IpNet);

impl AddressNames {
    /// Reads all resources.
    pub(crate) fn of(all: &Resources) -> Self {
        let mut names = Self::default();
        for resource in all.values() {
            let name = &resource.name;
            let Some((_, address)) = content(resource) else {
                continue;
            };
            for alias in aliases(&address) {
                let at = names.at.entry(alias.as_str().into()).or_default();
                at.push(name.clone());
            }
            let covered = ranges(&address).map(|range| (range, name.clone()));
            names.ranges.extend(covered);
            let Some(address::Type::Workload(workload)) = address.r#type else {
                continue;
            };
            for service in workload.services.keys() {
                let members = names.members.entry(service.as_str().into()).or_default();
                members.push(name.clone());
            }
            if !workload.node.is_empty() {
                let here = names.on_node.entry(workload.node.as_str().into());
                here.or_default().push(name.clone());
            }
        }
        names
    }

    /// The resources called `name`: the one of that name, else those at that address.
    pub(crate) fn called<'a>(
        &'a self,
        all: &'a Resources,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        let own = all.get(name);
        let there = match own {
            Some(_) => None,
            None => self.at.get(name),
        };
        let asked = own.is_none().then(|| network_address(name)).flatten();
        let around = self.ranges.iter().filter_map(move |(range, owner)| {
            let (network, ip) = asked?;
            covers(range, network, ip).then_some(owner)
        });
        let there = there.into_iter().flatten().chain(around);
        own.into_iter()
            .chain(there.filter_map(|name| all.get(name)))
    }

    /// The workloads of a service.
    pub(crate) fn members<'a>(
        &'a self,
        all: &'a Resources,
        service: &str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        let members = self.members.get(service).into_iter().flatten();
        members.filter_map(|name| all.get(name))
    }

    /// The workloads of a node.
    pub(crate) fn on_node<'a>(
        &'a self,
        all: &'a Resources,
        node: &str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        let here = self.on_node.get(node).into_iter().flatten();
        here.filter_map(|name| all.get(name))
    }
}

/// The resource as a client gets it that asked for `names`: it says which of them it answers.
pub(crate) fn with_aliases(resource: &Arc<Resource>, names: &BTreeSet<Str>) -> Arc<Resource> {
    let Some((mut wire, address)) = content(resource) else {
        return resource.clone();
    };
    wire.aliases = aliases(&address);
    wire.aliases.retain(|alias| names.contains(alias.as_str()));
    for range in ranges(&address) {
        let inside = names.iter().filter(|name| {
            network_address(name).is_some_and(|(network, ip)| covers(&range, network, ip))
        });
        wire.aliases.extend(inside.map(ToString::to_string));
    }
    if wire.aliases.is_empty() {
        return resource.clone();
    }
    Arc::new(resource.rewritten(&wire))
}

fn content(resource: &Resource) -> Option<(Wire, Address)> {
    // One field of a response is a response with that field.
    let alone = DeltaDiscoveryResponse::decode(&resource.field[..]).ok()?;
    let wire = alone.resources.into_iter().next()?;
    let address = Address::decode(&wire.resource.as_ref()?.value[..]).ok()?;
    Some((wire, address))
}

/// Ranges that a service stands for.
fn ranges(address: &Address) -> impl Iterator<Item = Range> {
    let addresses = match &address.r#type {
        Some(address::Type::Service(service)) => &service.addresses[..],
        _ => &[],
    };
    addresses.iter().filter_map(|at| {
        let length = u8::try_from(at.length?).ok()?;
        let net = IpNet::new(ip(&at.address)?, length).ok()?;
        Some((at.network.clone(), net))
    })
}

fn covers((own, net): &Range, network: &str, ip: IpAddr) -> bool {
    own == network && net.contains(&ip)
}

/// Takes `network/address` apart.
fn network_address(name: &str) -> Option<(&str, IpAddr)> {
    let (network, ip) = name.rsplit_once('/')?;
    Some((network, ip.parse().ok()?))
}

/// `network/address` of everything a workload or service is at; the network may be empty.
fn aliases(address: &Address) -> Vec<String> {
    let alias = |network: &str, bytes: &[u8]| Some(format!("{network}/{}", ip(bytes)?));
    match &address.r#type {
        Some(address::Type::Workload(workload)) => workload
            .addresses
            .iter()
            .filter_map(|bytes| alias(&workload.network, bytes))
            .collect(),
        Some(address::Type::Service(service)) => service
            .addresses
            .iter()
            .filter(|at| at.length.is_none())
            .filter_map(|at| alias(&at.network, &at.address))
            .collect(),
        None => Vec::new(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

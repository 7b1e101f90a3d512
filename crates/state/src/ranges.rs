use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use isobar_types::{NetworkAddress, Str};

use crate::service::Service;
use crate::sharded::Sharded;
use crate::snapshot::Group;

/// Services by address range. A look-up asks once for each prefix length in use, so it costs the
/// same with ten ranges as with ten thousand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranges {
    pub(crate) services: Sharded<(Str, IpNet), Group<Service>>,
    /// How many ranges each network has of each length, IPv4 and IPv6 apart.
    lengths: Arc<BTreeMap<(Str, bool), BTreeMap<u8, usize>>>,
}

impl Ranges {
    /// Services of the ranges that hold `address`, with the prefix length in bits.
    pub(crate) fn covering(
        &self,
        address: &NetworkAddress,
    ) -> impl Iterator<Item = (u8, &Group<Service>)> {
        let kind = (address.network.clone(), address.ip.is_ipv4());
        let lengths = self.lengths.get(&kind).into_iter().flat_map(|l| l.keys());
        lengths.filter_map(|length| {
            let range = IpNet::new(address.ip, *length).ok()?.trunc();
            let group = self.services.get(&(address.network.clone(), range))?;
            Some((*length, group))
        })
    }

    pub(crate) fn count(&mut self, network: &Str, range: IpNet) {
        let kind = (network.clone(), range.addr().is_ipv4());
        let lengths = Arc::make_mut(&mut self.lengths).entry(kind).or_default();
        *lengths.entry(range.prefix_len()).or_default() += 1;
    }

    pub(crate) fn discount(&mut self, network: &Str, range: IpNet) {
        let kind = (network.clone(), range.addr().is_ipv4());
        let all = Arc::make_mut(&mut self.lengths);
        let Some(lengths) = all.get_mut(&kind) else {
            return;
        };
        if let Some(count) = lengths.get_mut(&range.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&range.prefix_len());
            }
        }
        if lengths.is_empty() {
            all.remove(&kind);
        }
    }
}

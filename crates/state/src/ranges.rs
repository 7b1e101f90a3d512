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
    pub(crate) services: Sharded<((Str, IpNet), Group<Service>)>,
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
            let group = self.services.value(&(address.network.clone(), range))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_asked_for_as_long_as_a_range_has_it() {
        let range = |text: &str| text.parse::<IpNet>().expect("a range");
        let network = Str::from("n");
        let mut all = Ranges::default();
        let lengths = |all: &Ranges| {
            let kinds = all.lengths.iter().map(|((_, v4), lengths)| {
                let lengths = lengths.iter().map(|(length, count)| (*length, *count));
                (*v4, lengths.collect::<Vec<_>>())
            });
            kinds.collect::<Vec<_>>()
        };
        for text in ["10.1.0.0/16", "10.2.0.0/16", "10.0.0.0/8", "fd00::/16"] {
            all.count(&network, range(text));
        }
        let v6 = (false, vec![(16, 1)]);
        assert_eq!(
            lengths(&all),
            [v6.clone(), (true, vec![(8, 1), (16, 2)])],
            "counted by family"
        );
        all.discount(&network, range("10.1.0.0/16"));
        assert_eq!(lengths(&all), [v6.clone(), (true, vec![(8, 1), (16, 1)])]);
        all.discount(&network, range("10.2.0.0/16"));
        assert_eq!(lengths(&all), [v6.clone(), (true, vec![(8, 1)])]);
        all.discount(&network, range("10.0.0.0/8"));
        assert_eq!(lengths(&all), [v6]);
        // One that was never counted changes nothing.
        all.discount(&Str::from("other"), range("10.0.0.0/8"));
        assert_eq!(lengths(&all).len(), 1);
    }
}

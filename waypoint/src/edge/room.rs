//! How many connections from outside may be open, in all and from one place: descriptors are for calls to
//! endpoints and for discovery as well.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Callers from outside may have one in so many descriptors,
const PART: u64 = 4;
/// and one source one in so many of those.
const SHARE: usize = 4;
/// One source may have so many, however few there are.
const LEAST: usize = 64;
/// Where the limit cannot be read: what systems give at least.
const DESCRIPTORS: u64 = 1024;

/// Connections from outside, on all ports and workers. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Room {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Read when the first caller comes: the limit is raised at the start.
    most: OnceLock<usize>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// One open connection; its place is free again once this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    source: IpAddr,
}

impl Room {
    /// A place for a connection from there, if there is one.
    pub(super) fn enter(&self, source: IpAddr) -> Option<Place> {
        let most = *self.shared.most.get_or_init(most);
        let each = (most / SHARE).max(LEAST);
        let source = network(source.to_canonical());
        let mut open = lock(&self.shared.open);
        let here = open.by_source.get(&source).copied().unwrap_or_default();
        if open.all >= most || here >= each {
            return None;
        }
        open.all += 1;
        open.by_source.insert(source, here + 1);
        drop(open);
        Some(Place {
            shared: self.shared.clone(),
            source,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.shared.open);
        open.all = open.all.saturating_sub(1);
        let left = open.by_source.get(&self.source).copied();
        match left.unwrap_or_default() {
            0 | 1 => open.by_source.remove(&self.source),
            left => open.by_source.insert(self.source, left - 1),
        };
    }
}

/// Numbers are whole whatever happened to whom held the lock.
fn lock(open: &Mutex<Open>) -> std::sync::MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn most() -> usize {
    let descriptors = isobar_net::open_files_limit().unwrap_or(DESCRIPTORS);
    usize::try_from(descriptors / PART).unwrap_or(usize::MAX)
}

/// Who has one address of IPv6 has a whole /64 of them.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(ip) => Ipv6Addr::from_bits((ip.to_bits() >> 64) << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(most: usize) -> Room {
        let room = Room::default();
        room.shared.most.set(most).unwrap();
        room
    }

    #[test]
    fn one_source_leaves_room_for_others() {
        let room = room(256);
        let from = |text: &str| room.enter(text.parse().unwrap());
        let mut places: Vec<_> = (0..64).map(|_| from("10.0.0.1").unwrap()).collect();
        assert!(from("10.0.0.1").is_none());
        assert!(from("::ffff:10.0.0.1").is_none(), "the same address");
        let other = from("10.0.0.2");
        assert!(other.is_some());
        places.pop();
        assert!(from("10.0.0.1").is_some());
        drop((places, other));
        let open = lock(&room.shared.open);
        assert_eq!((open.all, open.by_source.len()), (0, 0));
    }

    #[test]
    fn all_sources_have_no_more_than_all() {
        let room = room(3);
        let from = |n: u8| room.enter(IpAddr::from([10, 0, 0, n]));
        let places: Vec<_> = (0..3).map(|n| from(n).unwrap()).collect();
        assert!(from(9).is_none());
        drop(places);
        assert!(from(9).is_some());
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_are_one_source() {
        let one = network("2001:db8::1".parse().unwrap());
        assert_eq!(one, network("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(one, network("2001:db8:0:1::1".parse().unwrap()));
    }
}

//! Who may begin a TLS handshake: nobody may keep the others out by opening connections and saying
//! nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Handshakes at a time; further connections wait in the kernel.
const AT_ONCE: usize = 256;
/// Of one address. A node's proxies and agents share one.
const OF_ONE: usize = 32;
/// Limit of one handshake, and while more than half of the places are taken.
const PATIENT: Duration = Duration::from_secs(10);
const CROWDED: Duration = Duration::from_secs(2);

/// The places of handshakes.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    taken: Mutex<HashMap<IpAddr, usize>>,
    left: Notify,
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
    crowded: bool,
}

impl Admission {
    /// Waits until there is a free place.
    pub(crate) async fn room(&self) {
        loop {
            let left = self.left.notified();
            if self.total() < AT_ONCE {
                return;
            }
            left.await;
        }
    }

    /// Takes a place for a connection from `address`, unless that has its share already.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = taken.values().sum();
        let own = taken.entry(address).or_default();
        if *own >= OF_ONE {
            return None;
        }
        *own += 1;
        Some(Place {
            admission: Arc::clone(self),
            address,
            crowded: total >= AT_ONCE / 2,
        })
    }

    fn total(&self) -> usize {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.values().sum()
    }
}

impl Place {
    /// How long its handshake may take.
    pub(crate) fn limit(&self) -> Duration {
        if self.crowded { CROWDED } else { PATIENT }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let admission = &self.admission;
        let mut taken = admission
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
        drop(taken);
        // One waits: the loop that accepts. The permit is kept where it does not wait yet.
        admission.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_and_places_come_back() {
        let admission = Arc::new(Admission::default());
        let one = IpAddr::from([192, 0, 2, 1]);
        let mut places: Vec<Place> = (0..OF_ONE).map_while(|_| admission.enter(one)).collect();
        assert_eq!(places.len(), OF_ONE);
        assert!(admission.enter(one).is_none());
        assert!(admission.enter(IpAddr::from([192, 0, 2, 2])).is_some());
        assert!(places.iter().all(|place| place.limit() == PATIENT));
        places.pop();
        assert!(admission.enter(one).is_some());
    }

    #[tokio::test]
    async fn many_addresses_wait_for_a_place_and_have_less_time() {
        let admission = Arc::new(Admission::default());
        let address = |n: usize| IpAddr::from([192, 0, 2, u8::try_from(n % 256).unwrap()]);
        let mut places: Vec<Place> = (0..AT_ONCE)
            .map_while(|n| admission.enter(address(n)))
            .collect();
        assert_eq!(places.len(), AT_ONCE);
        assert_eq!(places[AT_ONCE - 1].limit(), CROWDED);
        let waiting = admission.room();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        places.pop();
        waiting.await;
    }
}

//! Host names of endpoints outside the cluster, and where they are. Names come from configuration, or
//! from requests within a domain that configuration names: only so many are remembered.
//!
//! An answer counts as long as its TTL says, within bounds. After that it goes on being used while a
//! new one is asked for; one that is much older is waited for. Where there is no answer the last good
//! one stays.

mod lookup;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isobar_types::Str;
use tokio::time::Instant;

/// Bounds of an answer's TTL.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// Before a name that could not be resolved is asked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// An answer that is so old is not used without a try to get a newer one.
const OLD: Duration = Duration::from_secs(60);
/// Names that nobody asked about for so long are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Most names that are remembered; beyond that the one that was asked about least lately goes.
const MOST: usize = 4096;

/// Names and their addresses, for all workers of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Names(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    servers: Vec<SocketAddr>,
    v6: bool,
    this_machine: bool,
    known: Mutex<HashMap<Str, Arc<Name>>>,
}

#[derive(Debug, Default)]
struct Name {
    answer: Mutex<Option<Answer>>,
    /// Held while it is asked for, so that many who want it ask once.
    asking: tokio::sync::Mutex<()>,
    /// Somebody has undertaken to ask for it.
    undertaken: AtomicBool,
}

#[derive(Debug, Clone)]
struct Answer {
    addresses: Arc<[IpAddr]>,
    until: Instant,
    used: Instant,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Its addresses.
    Fresh(Arc<[IpAddr]>),
    /// Its addresses, and it is time to ask again.
    Due(Arc<[IpAddr]>),
    /// Nothing, or nothing of late: it has to be asked for first.
    Not,
}

impl Names {
    /// Asks these name servers, for IPv6 addresses first if `v6`.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>, v6: bool) -> Self {
        Self(Arc::new(Shared {
            servers,
            v6,
            this_machine: false,
            known: Mutex::default(),
        }))
    }

    /// The same, with nothing known yet, where hosts that callers name may be on this machine too: in
    /// tests, where everything is.
    #[must_use]
    pub fn with_this_machine(&self) -> Self {
        Self(Arc::new(Shared {
            servers: self.0.servers.clone(),
            v6: self.0.v6,
            this_machine: true,
            known: Mutex::default(),
        }))
    }

    /// False for addresses that a host which a caller names must not have: those that mean something
    /// else on each machine, or nobody.
    #[must_use]
    pub(crate) fn takes(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let special = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.octets()[0] == 0,
            IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unspecified(),
        };
        !special && !ip.is_multicast() && (self.0.this_machine || !ip.is_loopback())
    }

    /// Asks the name servers of this process's `resolv.conf`; none if it cannot be read.
    #[must_use]
    pub fn of_process(v6: bool) -> Self {
        let text = std::fs::read_to_string(Path::new("/etc/resolv.conf"));
        Self::new(lookup::servers(&text.unwrap_or_default()), v6)
    }

    /// What is known of a name now.
    #[must_use]
    pub fn now(&self, name: &str) -> Known {
        let Some(entry) = self.entry(name) else {
            return Known::Not;
        };
        let mut answer = entry.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answer) = &mut *answer else {
            return Known::Not;
        };
        let now = Instant::now();
        answer.used = now;
        if now < answer.until {
            Known::Fresh(answer.addresses.clone())
        } else if now < answer.until + OLD {
            Known::Due(answer.addresses.clone())
        } else {
            Known::Not
        }
    }

    /// Asks for a name, unless somebody just did; its addresses afterwards, of the last good answer if
    /// there is no newer one.
    pub async fn ask(&self, name: &str) -> Arc<[IpAddr]> {
        let entry = self.make(name);
        let _turn = entry.asking.lock().await;
        if let Known::Fresh(addresses) = self.now(name) {
            entry.undertaken.store(false, Ordering::Relaxed);
            return addresses;
        }
        let asked = lookup::lookup(&self.0.servers, name, self.0.v6).await;
        let now = Instant::now();
        let mut answer = entry.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let (addresses, until) = match asked {
            Ok((addresses, ttl)) => (addresses.into(), now + ttl.clamp(SHORTEST, LONGEST)),
            Err(error) => {
                tracing::warn!(name, "a host name is not resolved: {error}");
                let last = answer.as_ref().map(|answer| answer.addresses.clone());
                (last.unwrap_or_default(), now + AGAIN)
            }
        };
        *answer = Some(Answer {
            addresses: Arc::clone(&addresses),
            until,
            used: now,
        });
        entry.undertaken.store(false, Ordering::Relaxed);
        addresses
    }

    /// The last good answer, whatever its age, for whoever only wants to see it.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        let entry = self.entry(name)?;
        let answer = entry.answer.lock().unwrap_or_else(PoisonError::into_inner);
        answer.as_ref().map(|answer| Arc::clone(&answer.addresses))
    }

    /// True for the first who wants to ask for a name in the background, until it has been asked for.
    #[must_use]
    pub fn undertake(&self, name: &str) -> bool {
        !self.make(name).undertaken.swap(true, Ordering::Relaxed)
    }

    fn entry(&self, name: &str) -> Option<Arc<Name>> {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned()
    }

    fn make(&self, name: &str) -> Arc<Name> {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.get(name) {
            return Arc::clone(entry);
        }
        let now = Instant::now();
        let used = |entry: &Arc<Name>| {
            let answer = entry.answer.lock().unwrap_or_else(PoisonError::into_inner);
            answer.as_ref().map(|answer| answer.used)
        };
        known.retain(|_, entry| {
            Arc::strong_count(entry) > 1 || used(entry).is_some_and(|at| now < at + FORGOTTEN)
        });
        if known.len() >= MOST {
            // What is being asked for goes last.
            let age = |entry| {
                let used = used(entry);
                (used.is_none(), used)
            };
            let all = known.iter().map(|(name, entry)| (age(entry), name));
            if let Some(oldest) = all.min().map(|(_, name)| name.clone()) {
                known.remove(&oldest);
            }
        }
        Arc::clone(known.entry(name.into()).or_default())
    }
}

#[cfg(test)]
mod tests;

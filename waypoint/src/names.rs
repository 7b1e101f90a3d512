//! Host names of endpoints outside the cluster, and where they are. Names come from configuration, or
//! from requests within a domain that configuration names. Those that callers name are kept apart: only so
//! many are remembered and asked for at once, fewer for one caller, and none takes the place of one from
//! configuration.
//!
//! An answer counts as long as its TTL says, within bounds. After that it goes on being used while a
//! new one is asked for; one that is much older is waited for. Where there is no answer the last good
//! one stays.

mod lookup;
mod turns;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isobar_types::Str;
use tokio::time::Instant;
use turns::{Turn, Turns};

/// Bounds of an answer's TTL.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// Before a name that could not be resolved is asked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// An answer that is so old is not used without a try to get a newer one.
const OLD: Duration = Duration::from_secs(60);
/// Names that nobody asked about for so long are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Most names that are remembered; beyond that one without addresses goes, else the one that was asked
/// about least lately.
const MOST: usize = 4096;

/// Where machines of Alibaba's and Microsoft's clouds find their metadata; others' is link-local.
const METADATA: [Ipv4Addr; 2] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
];

/// The IPv4 address that an IPv6 address stands for, where it does: mapped, or behind NAT64.
pub(crate) fn behind(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        other => other,
    }
}

/// Names and their addresses, for all workers of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Names(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    servers: Vec<SocketAddr>,
    v6: bool,
    this_machine: bool,
    known: Mutex<HashMap<Str, Arc<Name>>>,
    /// Where callers choose the names.
    at_once: Option<Turns>,
    /// Names that callers choose, unless these are they.
    callers: Option<Names>,
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

impl Name {
    fn now(&self) -> Known {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn last(&self) -> Option<Arc<[IpAddr]>> {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        answer.as_ref().map(|answer| Arc::clone(&answer.addresses))
    }

    fn has_addresses(&self) -> bool {
        self.last().is_some_and(|addresses| !addresses.is_empty())
    }
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
        Self::of(servers, v6, false)
    }

    fn of(servers: Vec<SocketAddr>, v6: bool, this_machine: bool) -> Self {
        let one = |servers, at_once, callers| {
            Self(Arc::new(Shared {
                servers,
                v6,
                this_machine,
                known: Mutex::default(),
                at_once,
                callers,
            }))
        };
        let callers = one(servers.clone(), Some(Turns::default()), None);
        one(servers, None, Some(callers))
    }

    /// Those that callers choose.
    pub(crate) fn of_callers(&self) -> &Self {
        self.0.callers.as_ref().unwrap_or(self)
    }

    /// The same, with nothing known yet, where hosts that callers name may be on this machine too: in
    /// tests, where everything is.
    #[must_use]
    pub fn with_this_machine(&self) -> Self {
        Self::of(self.0.servers.clone(), self.0.v6, true)
    }

    /// False for addresses that a host which a caller names must not have: those that mean something
    /// else on each machine, or nobody.
    #[must_use]
    pub(crate) fn takes(&self, ip: IpAddr) -> bool {
        let ip = behind(ip);
        let special = match ip {
            IpAddr::V4(ip) => {
                let metadata = METADATA.contains(&ip);
                metadata || ip.is_link_local() || ip.is_broadcast() || ip.octets()[0] == 0
            }
            IpAddr::V6(ip) => {
                // What Amazon's machines find their metadata, name servers and credentials at.
                let metadata = ip.segments()[..2] == [0xfd00, 0xec2];
                metadata || ip.is_unicast_link_local() || ip.is_unspecified()
            }
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
        self.entry(name).map_or(Known::Not, |entry| entry.now())
    }

    /// Asks for a name, unless somebody just did; its addresses afterwards, of the last good answer if
    /// there is no newer one, or too many are asked for.
    pub async fn ask(&self, name: &str) -> Arc<[IpAddr]> {
        self.ask_for(name, "").await
    }

    /// The same for a caller, where callers choose the names.
    pub(crate) async fn ask_for(&self, name: &str, caller: &str) -> Arc<[IpAddr]> {
        let Some(entry) = self.admit(name, caller) else {
            tracing::debug!(name, "a host name is not asked for: too many are");
            return Arc::default();
        };
        let _turn = entry.asking.lock().await;
        // Of the entry itself: others may have taken its place among those that are remembered.
        if let Known::Fresh(addresses) = entry.now() {
            entry.undertaken.store(false, Ordering::Relaxed);
            return addresses;
        }
        let Some(_permit) = self.permit(caller) else {
            tracing::debug!(name, "a host name is not asked for: too many are");
            entry.undertaken.store(false, Ordering::Relaxed);
            return entry.last().unwrap_or_default();
        };
        let asked = lookup::lookup(&self.0.servers, name, self.0.v6).await;
        let now = Instant::now();
        let mut answer = entry.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let (addresses, until) = match asked {
            Ok((addresses, ttl)) => (addresses.into(), now + ttl.clamp(SHORTEST, LONGEST)),
            Err(error) => {
                match self.0.at_once {
                    None => tracing::warn!(name, "a host name is not resolved: {error}"),
                    // Callers may name as many as they like.
                    Some(_) => tracing::debug!(name, "a host name is not resolved: {error}"),
                }
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
        self.entry(name)?.last()
    }

    /// True for the first who wants to ask for a name in the background, until it has been asked for;
    /// false while too many are.
    #[must_use]
    pub(crate) fn undertake(&self, name: &str, caller: &str) -> bool {
        let entry = self.admit(name, caller);
        entry.is_some_and(|entry| !entry.undertaken.swap(true, Ordering::Relaxed))
    }

    /// `None` while there are enough who ask.
    fn permit(&self, caller: &str) -> Option<Option<Turn<'_>>> {
        match &self.0.at_once {
            None => Some(None),
            Some(turns) => turns.take(caller).map(Some),
        }
    }

    /// What is kept of a name; of one that is new nothing while there are enough who ask.
    fn admit(&self, name: &str, caller: &str) -> Option<Arc<Name>> {
        let full = |turns: &Turns| turns.is_full(caller);
        if self.0.at_once.as_ref().is_some_and(full) {
            return self.entry(name);
        }
        Some(self.make(name))
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
            // What nothing is known of goes first, also while it is asked for: who asks has it still.
            let age = |entry: &Arc<Name>| (entry.has_addresses(), used(entry));
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

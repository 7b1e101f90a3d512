use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isobar_types::{Identity, Reason};

use super::score::{Misuse, Score};
use super::sources::{HandshakePermit, Handshakes};
use crate::unsent::UnsentTotal;

/// Points of one identity, over all its connections, at which it is shut out.
const PEER_LIMIT: f64 = 1000.0;
/// How long it stays shut out.
const SHUT_OUT: Duration = Duration::from_secs(30);
/// Accounts without connections are looked for when there are this many, then when twice as many.
const SWEEP: usize = 256;

/// How much callers may have open at a time, over all threads that share an [`Admission`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TLS handshakes under way, in all.
    pub handshakes: usize,
    /// TLS handshakes under way from one address.
    pub handshakes_per_source: usize,
    /// Connections of one identity.
    pub connections_per_peer: usize,
    /// Streams of one identity.
    pub streams_per_peer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 1024,
            handshakes_per_source: 256,
            connections_per_peer: 1000,
            streams_per_peer: 20_000,
        }
    }
}

/// Why a caller is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Turned {
    /// Too many handshakes under way.
    #[error("too many handshakes are under way")]
    Handshakes,
    /// Too many connections of this identity.
    #[error("the identity has {0} connections open, its limit")]
    Connections(usize),
    /// The identity has misused its connections.
    #[error("the identity has misused its connections and is shut out for a while")]
    Abuse,
}

impl Turned {
    /// The ending this means for the caller's connection.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Handshakes => Reason::Overload,
            Self::Connections(_) => Reason::PeerLimit,
            Self::Abuse => Reason::PeerAbuse,
        }
    }
}

/// Counts callers by address and identity; clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    limits: Limits,
    handshakes: Handshakes,
    peers: Arc<Mutex<Peers>>,
}

#[derive(Debug, Default)]
struct Peers {
    accounts: HashMap<Identity, Arc<Account>>,
    sweep_at: usize,
}

/// What one identity has open, and how it behaves.
#[derive(Debug)]
struct Account {
    connections: AtomicUsize,
    streams: AtomicUsize,
    unsent: UnsentTotal,
    conduct: Mutex<Conduct>,
}

#[derive(Debug)]
struct Conduct {
    score: Score,
    shut_out_until: Option<Instant>,
}

impl Admission {
    /// With limits other than the default.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// One that shares the counts of handshakes, which cost the process, and has its own counts of
    /// identities: for each destination that callers should not find full because of another.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self {
            peers: Arc::default(),
            ..self.clone()
        }
    }

    /// Connections open now, of all identities.
    #[must_use]
    pub fn connections(&self) -> usize {
        let peers = lock(&self.peers);
        let counts = peers.accounts.values();
        counts.map(|a| a.connections.load(Ordering::Relaxed)).sum()
    }

    /// A place for a handshake with a caller at `source`.
    pub(crate) fn handshake(&self, source: Option<IpAddr>) -> Result<HandshakePermit, Turned> {
        self.handshakes
            .begin(&self.limits, source, Instant::now())
            .ok_or(Turned::Handshakes)
    }

    /// A place for a connection of `peer`.
    pub(crate) fn connect(&self, peer: &Identity) -> Result<Member, Turned> {
        let now = Instant::now();
        let mut peers = lock(&self.peers);
        let account = peers.account(peer, now);
        if lock(&account.conduct).is_shut_out(now) {
            return Err(Turned::Abuse);
        }
        let most = self.limits.connections_per_peer;
        // Only changed upwards under the lock of `peers`.
        if account.connections.load(Ordering::Relaxed) >= most {
            return Err(Turned::Connections(most));
        }
        account.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Member {
            account,
            streams: self.limits.streams_per_peer,
        })
    }
}

impl Peers {
    fn account(&mut self, peer: &Identity, now: Instant) -> Arc<Account> {
        if let Some(account) = self.accounts.get(peer) {
            return Arc::clone(account);
        }
        if self.accounts.len() >= self.sweep_at.max(SWEEP) {
            self.accounts
                .retain(|_, account| !account.is_forgettable(now));
            self.sweep_at = 2 * self.accounts.len();
        }
        let account = Arc::new(Account {
            connections: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            unsent: UnsentTotal::default(),
            conduct: Mutex::new(Conduct {
                score: Score::new(now),
                shut_out_until: None,
            }),
        });
        self.accounts.insert(peer.clone(), Arc::clone(&account));
        account
    }
}

impl Account {
    fn is_forgettable(&self, now: Instant) -> bool {
        let mut conduct = lock(&self.conduct);
        self.connections.load(Ordering::Relaxed) == 0
            && !conduct.is_shut_out(now)
            && conduct.score.total(now) < 1.0
    }
}

impl Conduct {
    fn is_shut_out(&self, now: Instant) -> bool {
        self.shut_out_until.is_some_and(|until| now < until)
    }
}

/// A connection of a known identity.
#[derive(Debug)]
pub(crate) struct Member {
    account: Arc<Account>,
    /// Most streams of the identity.
    streams: usize,
}

impl Member {
    /// A place for a stream; none when the identity has its share open.
    pub(crate) fn stream(&self) -> Option<StreamPermit> {
        let before = self.account.streams.fetch_add(1, Ordering::Relaxed);
        // Made first: gives the place back when it is one too many.
        let permit = StreamPermit(Arc::clone(&self.account));
        (before < self.streams).then_some(permit)
    }

    /// Notes a misuse of this connection with the identity.
    pub(super) fn misuse(&self, misuse: Misuse, now: Instant) {
        let mut conduct = lock(&self.account.conduct);
        conduct.score.add(misuse, now);
        if !conduct.is_shut_out(now) && conduct.score.total(now) >= PEER_LIMIT {
            conduct.shut_out_until = Some(now + SHUT_OUT);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.account.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream of a known identity.
#[derive(Debug)]
pub(crate) struct StreamPermit(Arc<Account>);

impl StreamPermit {
    /// Bytes unsent to the identity.
    pub(crate) fn unsent(&self) -> &UnsentTotal {
        &self.0.unsent
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The counts hold whatever a thread that panicked was doing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: usize) -> Identity {
        Identity::new("cluster.local", "shop", format!("a{n}").as_str())
    }

    #[test]
    fn an_identity_that_misbehaves_is_shut_out_alone() {
        let admission = Admission::default();
        let member = admission.connect(&peer(1)).unwrap();
        let now = Instant::now();
        for _ in 0..10 {
            member.misuse(Misuse::HeaderBlock, now);
        }
        assert_eq!(admission.connect(&peer(1)).unwrap_err(), Turned::Abuse);
        assert!(admission.connect(&peer(2)).is_ok());
        let conduct = lock(&member.account.conduct);
        assert!(!conduct.is_shut_out(now + SHUT_OUT));
    }

    #[test]
    fn accounts_of_the_gone_are_forgotten() {
        let admission = Admission::default();
        for n in 0..10 * SWEEP {
            drop(admission.connect(&peer(n)).unwrap());
        }
        let kept = lock(&admission.peers).accounts.len();
        assert!(kept <= SWEEP, "{kept}");
        assert_eq!(admission.connections(), 0);
    }
}

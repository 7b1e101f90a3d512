//! How often the API server is asked about tokens: whoever reaches the control plane may show one, and
//! costs a question before anything is known about the caller.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::TokenRefused;

/// Questions at a time about tokens that have not been accepted yet, and about those that have: the
/// mesh's own proxies, which come again with the same one, do not wait for strangers.
const AT_ONCE: usize = 16;
const AT_ONCE_KNOWN: usize = 64;
/// How long a question waits for its turn.
const TURN: Duration = Duration::from_secs(5);
/// Refusals of one address at once, and afterwards one each: proxies are refused when their pod goes,
/// hardly ever otherwise.
const BURST: u32 = 64;
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a refusal is remembered. Short, as the API server may not have read of a pod yet.
const REFUSED: Duration = Duration::from_secs(5);
/// How long it is remembered that a token was accepted; kubelets renew them each hour or so.
const ACCEPTED: Duration = Duration::from_secs(3600);
/// Tokens of each sort, and addresses, that are remembered.
const REMEMBERED: usize = 16 * 1024;

/// Asks about one token after the other. Whoever shares an address with somebody who shows bad tokens,
/// as behind a NAT, is only as slow as that one makes it with a token that is new.
#[derive(Debug)]
pub(super) struct Gate {
    /// Tokens are remembered by a hash with a key of this process.
    hashing: RandomState,
    new: Semaphore,
    known: Semaphore,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Until when they count as known.
    accepted: HashMap<u64, Instant>,
    /// Until when they are refused without a question, and with which words.
    refused: HashMap<u64, (Instant, String)>,
    /// When each address has all its refusals free again.
    free_at: HashMap<Option<IpAddr>, Instant>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            hashing: RandomState::new(),
            new: Semaphore::new(AT_ONCE),
            known: Semaphore::new(AT_ONCE_KNOWN),
            memory: Mutex::default(),
        }
    }
}

impl Gate {
    /// What `review` says about `token`, shown by `from`; it is not asked where that is known already,
    /// and neither where the address has had too many refusals.
    pub(super) async fn pass<T>(
        &self,
        token: &str,
        from: Option<IpAddr>,
        review: impl Future<Output = Result<T, TokenRefused>>,
    ) -> Result<T, TokenRefused> {
        let hash = self.hashing.hash_one(token);
        let from = from.map(|address| address.to_canonical());
        let is_known = self.enter(hash, from)?;
        let places = if is_known { &self.known } else { &self.new };
        let Ok(Ok(place)) = timeout(TURN, places.acquire()).await else {
            let text = "too many tokens are reviewed at once";
            let late = TokenRefused::Unavailable(text.to_owned());
            self.leave(hash, from, is_known, Some(&late));
            return Err(late);
        };
        let reviewed = review.await;
        drop(place);
        self.leave(hash, from, is_known, reviewed.as_ref().err());
        reviewed
    }

    /// Whether the token is known. One that is not counts as refused until it is reviewed, so that
    /// going away meanwhile gains nothing.
    fn enter(&self, hash: u64, from: Option<IpAddr>) -> Result<bool, TokenRefused> {
        let now = Instant::now();
        let mut memory = self.memory();
        if let Some((until, text)) = memory.refused.get(&hash)
            && *until > now
        {
            return Err(TokenRefused::Invalid(text.clone()));
        }
        if memory.accepted.get(&hash).is_some_and(|until| *until > now) {
            return Ok(true);
        }
        make_room(&mut memory.free_at, |at| *at > now);
        let at = memory.free_at.entry(from).or_insert(now);
        let next = (*at).max(now) + INTERVAL;
        let used = next - now;
        if used > INTERVAL * BURST {
            let wait = (used - INTERVAL * BURST).as_millis();
            let text =
                format!("too many tokens of this address are refused: try again in {wait} ms");
            return Err(TokenRefused::Unavailable(text));
        }
        *at = next;
        Ok(false)
    }

    fn leave(&self, hash: u64, from: Option<IpAddr>, is_known: bool, error: Option<&TokenRefused>) {
        let now = Instant::now();
        let mut memory = self.memory();
        match error {
            Some(TokenRefused::Invalid(text)) => {
                memory.accepted.remove(&hash);
                let until = now + REFUSED;
                make_room(&mut memory.refused, |(until, _)| *until > now);
                remember(&mut memory.refused, hash, (until, text.clone()));
                return;
            }
            Some(TokenRefused::Unavailable(_)) => {}
            None => {
                make_room(&mut memory.accepted, |until| *until > now);
                remember(&mut memory.accepted, hash, now + ACCEPTED);
            }
        }
        if !is_known && let Some(at) = memory.free_at.get_mut(&from) {
            *at = at.checked_sub(INTERVAL).unwrap_or(now);
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Every critical section leaves the tables consistent, so a poisoned lock is usable.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets what is over, where there is much.
fn make_room<K: Eq + Hash, V>(all: &mut HashMap<K, V>, counts: impl Fn(&V) -> bool) {
    if all.len() >= REMEMBERED {
        all.retain(|_, one| counts(one));
    }
}

/// Where there is no room, what is not remembered is asked again.
fn remember<V>(all: &mut HashMap<u64, V>, hash: u64, value: V) {
    if all.len() < REMEMBERED || all.contains_key(&hash) {
        all.insert(hash, value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Server {
        gate: Gate,
        asked: AtomicUsize,
    }

    impl Server {
        /// Tokens that begin with `good` are accepted.
        async fn show(&self, token: &str, last: u8) -> Result<(), TokenRefused> {
            let review = async {
                self.asked.fetch_add(1, Ordering::Relaxed);
                match token {
                    good if good.starts_with("good") => Ok(()),
                    "away" => Err(TokenRefused::Unavailable("away".to_owned())),
                    _ => Err(TokenRefused::Invalid("nobody's".to_owned())),
                }
            };
            let from = IpAddr::from([192, 0, 2, last]);
            self.gate.pass(token, Some(from), review).await
        }

        fn asked(&self) -> usize {
            self.asked.swap(0, Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_ask_little_of_the_api_server_and_harm_nobody_else() {
        let server = Server::default();
        server.show("good 1", 1).await.unwrap();
        assert_eq!(server.asked(), 1);
        for n in 0..400 {
            assert!(server.show(&format!("bad {n}"), 1).await.is_err());
        }
        assert_eq!(server.asked(), 64);
        let refused = server.show("good 2", 1).await.unwrap_err();
        assert!(matches!(refused, TokenRefused::Unavailable(_)), "{refused}");
        // Who was somebody stays it, and another address has its own.
        server.show("good 1", 1).await.unwrap();
        server.show("good 3", 2).await.unwrap();
        assert_eq!(server.asked(), 2);
        // Bad ones wait, good ones cost nothing.
        tokio::time::advance(INTERVAL * 2).await;
        for n in 0..100 {
            server.show(&format!("good, too {n}"), 1).await.unwrap();
        }
        assert_eq!(server.asked(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_remembered_for_a_moment_and_an_outage_not() {
        let server = Server::default();
        for _ in 0..10 {
            let refused = server.show("bad", 1).await.unwrap_err();
            assert_eq!(refused, TokenRefused::Invalid("nobody's".to_owned()));
        }
        assert_eq!(server.asked(), 1);
        tokio::time::advance(REFUSED).await;
        assert!(server.show("bad", 1).await.is_err());
        assert_eq!(server.asked(), 1);
        for _ in 0..200 {
            assert!(server.show("away", 1).await.is_err());
        }
        assert_eq!(server.asked(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_known_does_not_wait_for_a_server_that_strangers_keep_busy() {
        let server = Server::default();
        server.show("good 1", 1).await.unwrap();
        let never = || {
            server
                .gate
                .pass("stranger", None, std::future::pending::<Result<(), _>>())
        };
        let mut strangers: Vec<_> = (0..AT_ONCE).map(|_| Box::pin(never())).collect();
        for one in &mut strangers {
            assert!(futures_util::poll!(one.as_mut()).is_pending());
        }
        server.show("good 1", 1).await.unwrap();
        let refused = server.show("good 2", 1).await.unwrap_err();
        assert!(matches!(refused, TokenRefused::Unavailable(_)), "{refused}");
        drop(strangers);
        server.show("good 2", 1).await.unwrap();
    }
}

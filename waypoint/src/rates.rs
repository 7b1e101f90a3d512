//! Counts of rate limits, of all workers of this process together.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isobar_route::{Caller, HttpCall, RateLimit, RateLimits, Room, Taken};

const SHARDS: usize = 16;
/// A full shard is swept at most so often (nanoseconds).
const SWEEP: u64 = 100_000_000;
/// Keys remembered in one shard. Those of the policies of one namespace have as many places at most as are
/// free besides: half of all if only they are used, and others always find some. Where there is none,
/// further keys of a limit share one count: whoever invents keys must neither cost memory nor get through.
const MOST_KEYS: usize = 16 * 1024;
/// The bits of a key that tell whose it is.
const OWNER: u64 = 0xffff << 48;

/// Counts of every limit and key. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rates {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    /// Keys are kept as hashes that nobody outside can foresee.
    random: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    /// By key, when its bucket is full again.
    buckets: HashMap<u64, u64>,
    /// How many of them each owner has.
    held: HashMap<u64, usize>,
    swept: u64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                started: Instant::now(),
                random: RandomState::new(),
                shards: std::array::from_fn(|_| Mutex::default()),
            }),
        }
    }
}

/// What the limits say of one request: the one with the least room counts.
#[derive(Debug, Clone, Copy)]
pub struct Verdict<'a> {
    /// The object.
    pub policy: &'a RateLimits,
    /// Its limit.
    pub limit: &'a RateLimit,
    /// So many more would pass now.
    pub remaining: u32,
    /// Until everything is free again.
    pub full_in: Duration,
    /// The request does not pass; there is room for one after that.
    pub wait: Option<Duration>,
}

/// Room that a request took.
struct Took {
    key: u64,
    interval: u64,
}

impl Rates {
    /// Counts a request, unless a limit has no room for it: then it counts nowhere. `None` if no limit
    /// is about it.
    pub fn ask<'a>(
        &self,
        policies: impl Iterator<Item = &'a Arc<RateLimits>>,
        call: &HttpCall<'_>,
        caller: &Caller,
        route: Option<&Taken>,
        now: Instant,
    ) -> Option<Verdict<'a>> {
        let now = nanos(now.saturating_duration_since(self.shared.started));
        let mut least: Option<Verdict<'a>> = None;
        let mut taken: Vec<Took> = Vec::new();
        let all = policies.flat_map(|policy| policy.limits.iter().map(move |l| (policy, l)));
        for (policy, limit) in all.filter(|(_, limit)| limit.counts(call, caller, route)) {
            let common = self.key(policy, limit, |_| {});
            let own = self.key(policy, limit, |into| limit.key(call, caller, into));
            let (key, room) = self.take(own, common, limit, now);
            let verdict = |remaining, full_in, wait: Option<u64>| Verdict {
                policy: policy.as_ref(),
                limit,
                remaining,
                full_in: Duration::from_nanos(full_in),
                wait: wait.map(Duration::from_nanos),
            };
            match room {
                Room::None { wait, full_in, .. } => {
                    taken.iter().for_each(|took| self.give_back(took));
                    return Some(verdict(0, full_in, Some(wait)));
                }
                Room::Taken {
                    remaining, full_in, ..
                } => {
                    let interval = limit.interval;
                    taken.push(Took { key, interval });
                    if least.is_none_or(|least| remaining < least.remaining) {
                        least = Some(verdict(remaining, full_in, None));
                    }
                }
            }
        }
        least
    }

    fn key(
        &self,
        policy: &RateLimits,
        limit: &RateLimit,
        rest: impl FnOnce(&mut std::hash::DefaultHasher),
    ) -> u64 {
        let mut hasher = self.shared.random.build_hasher();
        policy.name.hash(&mut hasher);
        limit.name.hash(&mut hasher);
        rest(&mut hasher);
        self.owner(policy) | (hasher.finish() & !OWNER)
    }

    /// Whoever writes a namespace's policies answers for all of them together.
    fn owner(&self, policy: &RateLimits) -> u64 {
        self.shared.random.hash_one(&policy.name.namespace) & OWNER
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        let at = usize::try_from(key >> 32).unwrap_or(0) % SHARDS;
        let shard = &self.shared.shards[at];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room under `own`, or under `common` where no further key has a place.
    fn take(&self, own: u64, common: u64, limit: &RateLimit, now: u64) -> (u64, Room) {
        let mut shard = self.shard(own);
        if !shard.has_place(own, now) {
            drop(shard);
            return (common, self.shard(common).take(common, limit, now));
        }
        let room = shard.take(own, limit, now);
        (own, room)
    }

    fn give_back(&self, took: &Took) {
        if let Some(bucket) = self.shard(took.key).buckets.get_mut(&took.key) {
            *bucket = bucket.saturating_sub(took.interval);
        }
    }
}

impl Shard {
    fn has_place(&mut self, key: u64, now: u64) -> bool {
        if self.is_free_for(key) || self.buckets.contains_key(&key) {
            return true;
        }
        if now.saturating_sub(self.swept) >= SWEEP {
            self.swept = now;
            self.sweep(now);
        }
        self.is_free_for(key)
    }

    fn is_free_for(&self, key: u64) -> bool {
        let own = self.held.get(&(key & OWNER));
        let free = MOST_KEYS.saturating_sub(self.buckets.len());
        own.copied().unwrap_or(0) < free
    }

    /// A bucket that is full again is as good as a new one.
    fn sweep(&mut self, now: u64) {
        let held = &mut self.held;
        self.buckets.retain(|key, full_at| {
            let stays = *full_at > now;
            if let (false, Some(own)) = (stays, held.get_mut(&(key & OWNER))) {
                *own = own.saturating_sub(1);
            }
            stays
        });
        held.retain(|_, own| *own > 0);
    }

    fn take(&mut self, key: u64, limit: &RateLimit, now: u64) -> Room {
        let bucket = self.buckets.get(&key).copied().unwrap_or(0);
        let room = limit.take(bucket, now);
        let (Room::Taken { bucket, .. } | Room::None { bucket, .. }) = room;
        self.put(key, bucket);
        room
    }

    fn put(&mut self, key: u64, bucket: u64) {
        if self.buckets.insert(key, bucket).is_none() {
            *self.held.entry(key & OWNER).or_default() += 1;
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use isobar_proto::isobar::v1 as proto;
    use isobar_route::{Labels, Tables};
    use isobar_types::Identity;

    use super::*;

    fn by_identity(requests: u32) -> proto::RateLimit {
        let identity = proto::rate_limit::Caller::Identity.into();
        proto::RateLimit {
            requests,
            keys: vec![proto::rate_limit::Key {
                kind: Some(proto::rate_limit::key::Kind::Caller(identity)),
            }],
            ..Default::default()
        }
    }

    fn tables(limits: Vec<proto::RateLimit>) -> Tables {
        tables_of("default", limits)
    }

    fn tables_of(namespace: &str, limits: Vec<proto::RateLimit>) -> Tables {
        let mut draft = Tables::default().draft();
        let policy = proto::RateLimitPolicy {
            namespace: namespace.into(),
            name: "p".into(),
            whole_waypoint: true,
            limits,
            ..Default::default()
        };
        draft.upsert_rate_limits(&policy).unwrap();
        draft.finish()
    }

    fn passes(rates: &Rates, tables: &Tables, account: &str, now: Instant) -> bool {
        let headers = ::http::HeaderMap::new();
        let call = HttpCall {
            method: &::http::Method::GET,
            path: "/",
            query: None,
            authority: "svc",
            written_authority: "svc",
            scheme: "http",
            headers: &headers,
            destination: ([10, 0, 0, 1], 80).into(),
        };
        let caller = Caller {
            identity: Some(Identity::new("cluster.local", "default", account)),
            ip: [10, 0, 0, 2].into(),
            labels: None::<Arc<Labels>>,
        };
        let asked = rates.ask(tables.rate_limits_of(None), &call, &caller, None, now);
        asked.is_some_and(|verdict| verdict.wait.is_none())
    }

    #[test]
    fn each_caller_has_its_own_count() {
        let (rates, tables) = (Rates::default(), tables(vec![by_identity(2)]));
        let now = Instant::now();
        let count = |account| {
            (0..5)
                .filter(|_| passes(&rates, &tables, account, now))
                .count()
        };
        assert_eq!((count("a"), count("b")), (2, 2));
        let later = now + Duration::from_millis(500);
        assert!(passes(&rates, &tables, "a", later));
        assert!(!passes(&rates, &tables, "a", later));
    }

    #[test]
    fn what_one_limit_refuses_counts_in_none() {
        let rates = Rates::default();
        let both = tables(vec![by_identity(9), by_identity(1)]);
        let now = Instant::now();
        let passed = (0..5).filter(|_| passes(&rates, &both, "a", now)).count();
        assert_eq!(passed, 1);
        // The wide limit, under its own name, has room for all but that one.
        let wide = tables(vec![by_identity(9)]);
        let passed = (0..20).filter(|_| passes(&rates, &wide, "a", now)).count();
        assert_eq!(passed, 8);
    }

    #[test]
    fn a_limit_that_is_loosened_lets_requests_in_at_once() {
        let daily = proto::RateLimit {
            per: Some(prost_types::Duration {
                seconds: 86_400,
                nanos: 0,
            }),
            ..by_identity(2)
        };
        let (rates, now) = (Rates::default(), Instant::now());
        let strict = tables(vec![daily]);
        let passed = (0..5).filter(|_| passes(&rates, &strict, "a", now)).count();
        assert_eq!(passed, 2);
        let loose = tables(vec![by_identity(2)]);
        assert!(!passes(&rates, &loose, "a", now));
        let later = now + Duration::from_millis(500);
        assert!(passes(&rates, &loose, "a", later));
    }

    #[test]
    fn invented_keys_share_one_count_once_memory_is_full() {
        let (rates, tables) = (Rates::default(), tables(vec![by_identity(1)]));
        let now = Instant::now();
        let of_others = |n: u64| ((n % 64) << 48) | n;
        for shard in &rates.shared.shards {
            let keys = (0..MOST_KEYS as u64).map(|n| (of_others(n), u64::MAX));
            let mut shard = shard.lock().unwrap();
            keys.for_each(|(key, full_at)| shard.put(key, full_at));
        }
        let invented = |n| passes(&rates, &tables, &format!("invented-{n}"), now);
        assert_eq!((0..50).filter(|n| invented(*n)).count(), 1);
        // Once the buckets are full again their places are free.
        for shard in &rates.shared.shards {
            let mut shard = shard.lock().unwrap();
            shard.buckets.values_mut().for_each(|at| *at = 1);
        }
        assert!(passes(&rates, &tables, "one", now + Duration::from_secs(1)));
        assert!(passes(&rates, &tables, "two", now + Duration::from_secs(1)));
    }

    #[test]
    fn whoever_invents_keys_of_one_namespace_leaves_places_to_others() {
        let rates = Rates::default();
        let of = |namespace| tables_of(namespace, vec![by_identity(1)]);
        let (busy, calm) = (of("busy"), of("calm"));
        let owner = rates.owner(busy.rate_limits_of(None).next().unwrap());
        for shard in &rates.shared.shards {
            let mut shard = shard.lock().unwrap();
            let mut keys = (0..MOST_KEYS as u64).map(|key| owner | key);
            while let Some(key) = keys.next().filter(|key| shard.has_place(*key, 0)) {
                shard.put(key, u64::MAX);
            }
            assert_eq!(shard.buckets.len(), MOST_KEYS / 2);
        }
        let now = Instant::now();
        let passed = |tables: &Tables| {
            let one = |n: &u8| passes(&rates, tables, &format!("caller-{n}"), now);
            (0..50).filter(one).count()
        };
        assert_eq!((passed(&busy), passed(&calm)), (1, 50));
        assert_eq!(passed(&calm), 0, "each has its own count");
    }

    #[test]
    fn the_limit_with_the_least_room_is_told_and_of_several_the_first() {
        let rates = Rates::default();
        let named = |name: &str, requests| proto::RateLimit {
            name: name.into(),
            ..by_identity(requests)
        };
        let all = [named("wide", 9), named("narrow", 3), named("as narrow", 3)];
        let tables = tables(all.into());
        let headers = ::http::HeaderMap::new();
        let call = HttpCall {
            method: &::http::Method::GET,
            path: "/",
            query: None,
            authority: "svc",
            written_authority: "svc",
            scheme: "http",
            headers: &headers,
            destination: ([10, 0, 0, 1], 80).into(),
        };
        let caller = Caller {
            identity: None,
            ip: [10, 0, 0, 2].into(),
            labels: None::<Arc<Labels>>,
        };
        let now = Instant::now();
        let ask = || {
            let limits = tables.rate_limits_of(None);
            let verdict = rates.ask(limits, &call, &caller, None, now).unwrap();
            let refused = verdict.wait.is_some();
            (verdict.limit.name.clone(), verdict.remaining, refused)
        };
        for left in [2, 1, 0] {
            assert_eq!(ask(), ("narrow".to_owned(), left, false));
        }
        assert_eq!(ask(), ("narrow".to_owned(), 0, true));
    }

    #[test]
    fn a_full_shard_has_places_for_those_it_knows_and_is_swept_now_and_then() {
        let mut shard = Shard::default();
        let full_at = SWEEP + 7;
        let half = MOST_KEYS as u64 / 2;
        (1..half).for_each(|key| shard.put(key, full_at));
        assert!(shard.has_place(0, 0), "one is left");
        shard.put(0, full_at + 1);
        assert!(shard.has_place(0, 0) && shard.has_place(1, 0));
        assert!(!shard.has_place(half, 0));
        assert!(!shard.has_place(half, SWEEP), "none is full again");
        assert!(!shard.has_place(half, 2 * SWEEP - 1), "too early");
        assert_eq!(shard.buckets.len(), MOST_KEYS / 2);
        assert!(shard.has_place(half, 2 * SWEEP));
        assert!(shard.buckets.is_empty() && shard.held.is_empty());
        // What is full just now is as good as new, what is full later is not.
        (0..half).for_each(|key| shard.put(key, 4 * SWEEP + key % 2));
        assert!(shard.has_place(half, 4 * SWEEP));
        assert_eq!(shard.buckets.len(), MOST_KEYS / 4);
        assert_eq!(shard.held[&0], MOST_KEYS / 4);
    }

    #[test]
    fn each_owner_has_as_many_places_as_are_free() {
        let mut shard = Shard::default();
        let mut fill = |owner: u64| {
            let keys = (0..MOST_KEYS as u64).map(|key| (owner << 48) | key);
            for key in keys {
                // A key that is known keeps its place and takes no other.
                if shard.has_place(key, 0) {
                    shard.put(key, u64::MAX);
                }
            }
            shard.held[&(owner << 48)]
        };
        assert_eq!(fill(1), MOST_KEYS / 2);
        assert_eq!(fill(1), MOST_KEYS / 2);
        assert_eq!(fill(2), MOST_KEYS / 4);
        assert_eq!(fill(3), MOST_KEYS / 8);
        assert_eq!(fill(1), MOST_KEYS / 2);
    }

    #[test]
    fn keys_are_spread_over_the_shards() {
        let (rates, tables) = (Rates::default(), tables(vec![by_identity(1)]));
        let now = Instant::now();
        for n in 0..200 {
            assert!(passes(&rates, &tables, &format!("caller-{n}"), now));
        }
        let used = |shard: &&Mutex<Shard>| !shard.lock().unwrap().buckets.is_empty();
        let used = rates.shared.shards.iter().filter(used).count();
        assert!(used > SHARDS / 2, "{used}");
    }
}

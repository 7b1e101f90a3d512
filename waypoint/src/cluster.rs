//! What all workers together know of a destination: how much is under way, who is out, who is new.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isobar_route::{PoolRules, RetryBudget, TrafficRules};
use isobar_types::{NamespacedHostname, Str};
use tokio::sync::Notify;

use crate::outlier::Outliers;

/// A service, optionally a subset of it, and a port.
pub type ClusterKey = (NamespacedHostname, Option<Str>, u16);

/// Destinations whose rules need memory. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clusters {
    all: Arc<Mutex<HashMap<ClusterKey, Arc<Cluster>>>>,
}

/// Entries held before those nobody uses are dropped.
const MOST_ENTRIES: usize = 16 * 1024;

impl Clusters {
    /// The memory of a destination.
    #[must_use]
    pub fn get(&self, key: &ClusterKey) -> Arc<Cluster> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > MOST_ENTRIES {
            all.retain(|_, cluster| Arc::strong_count(cluster) > 1);
        }
        all.entry(key.clone()).or_default().clone()
    }

    /// The memory of a destination, if it has one.
    #[must_use]
    pub fn find(&self, key: &ClusterKey) -> Option<Arc<Cluster>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).cloned()
    }
}

/// True if rules need memory.
#[must_use]
pub fn remembers(rules: &TrafficRules) -> bool {
    let limits = rules.limits();
    rules.outliers.is_some()
        || rules.retry_budget.is_some()
        || limits.max_connections.is_some()
        || limits.max_pending.is_some()
        || limits.max_requests.is_some()
        || limits.max_retries.is_some()
        || rules.balancing.as_ref().is_some_and(|b| b.warmup.is_some())
}

/// The memory of one destination.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Who is out.
    pub outliers: Outliers,
    /// Endpoints at the last look.
    pub endpoints: AtomicUsize,
    counts: [AtomicU32; 4],
    freed: Notify,
    seen: Mutex<Seen>,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Connections in use.
    Connection,
    /// Requests that wait for one.
    Pending,
    /// Requests under way.
    Request,
    /// Retries under way.
    Retry,
}

/// One of something that is counted, until it is dropped.
#[derive(Debug)]
pub struct Held {
    cluster: Arc<Cluster>,
    load: Load,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cluster.counts[self.load as usize].fetch_sub(1, Ordering::Relaxed);
        if self.load == Load::Connection {
            self.cluster.freed.notify_one();
        }
    }
}

/// A limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow(pub Load);

impl Cluster {
    /// How many there are.
    #[must_use]
    pub fn count(&self, load: Load) -> u32 {
        self.counts[load as usize].load(Ordering::Relaxed)
    }

    /// One more, if the limit allows it.
    ///
    /// # Errors
    /// [`Overflow`] at the limit.
    pub fn hold(self: &Arc<Self>, load: Load, most: Option<u32>) -> Result<Held, Overflow> {
        let most = most.unwrap_or(u32::MAX);
        let count = &self.counts[load as usize];
        let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
            (n < most).then_some(n + 1)
        });
        taken.map_err(|_| Overflow(load))?;
        Ok(Held {
            cluster: self.clone(),
            load,
        })
    }

    /// A connection, at once or once another request is done with one.
    ///
    /// # Errors
    /// [`Overflow`] if too many are waiting already.
    pub async fn connection(self: &Arc<Self>, limits: &PoolRules) -> Result<Held, Overflow> {
        if let Ok(held) = self.hold(Load::Connection, limits.max_connections) {
            return Ok(held);
        }
        let _waiting = self.hold(Load::Pending, limits.max_pending)?;
        let look = || self.hold(Load::Connection, limits.max_connections).ok();
        Ok(self.once_freed(look).await)
    }

    /// What `look` finds, now or once something is freed.
    async fn once_freed<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // In line before the look: of what is freed in between only one would be remembered for
            // all who are not.
            freed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            freed.await;
        }
    }

    /// A retry, if a limit and the budget allow it. The budget comes before the limit.
    ///
    /// # Errors
    /// [`Overflow`] if there are too many.
    pub fn retry(
        self: &Arc<Self>,
        limits: &PoolRules,
        budget: Option<&RetryBudget>,
    ) -> Result<Held, Overflow> {
        let most = budget.map_or(limits.max_retries, |budget| {
            let active = self.count(Load::Request) + self.count(Load::Pending);
            let share = f64::from(active) * budget.percent / 100.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a u32"
            )]
            Some((share as u32).max(budget.least))
        });
        self.hold(Load::Retry, most)
    }

    /// Since when each endpoint is there, as far as that is within the window; `None` if none is new.
    /// Endpoints that were there at the first look are not new. `state` changes whenever who is there
    /// may have.
    #[must_use]
    pub fn new_ones<'a>(
        &self,
        state: (u64, u64),
        there: impl Iterator<Item = &'a Str>,
        window: Duration,
        now: Instant,
    ) -> Option<BTreeMap<Str, Duration>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *seen;
        let age_of = |since: Instant| now.saturating_duration_since(since);
        let old = seen.newest.is_none_or(|newest| age_of(newest) >= window);
        if seen.state == Some(state) && old {
            return None;
        }
        let first = seen.state.replace(state).is_none();
        seen.round += 1;
        let mut new = BTreeMap::new();
        for uid in there {
            let entry = seen.since.entry(uid.clone());
            let (since, round) = entry.or_insert(((!first).then_some(now), 0));
            *round = seen.round;
            seen.newest = seen.newest.max(*since);
            let age = since.map(age_of);
            if let Some(age) = age.filter(|age| *age < window) {
                new.insert(uid.clone(), age);
            }
        }
        let round = seen.round;
        seen.since.retain(|_, (_, last)| *last == round);
        (!new.is_empty()).then_some(new)
    }
}

#[derive(Debug, Default)]
struct Seen {
    since: HashMap<Str, (Option<Instant>, u64)>,
    round: u64,
    /// Of the last look.
    state: Option<(u64, u64)>,
    newest: Option<Instant>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let cluster = Arc::new(Cluster::default());
        let one = cluster.hold(Load::Request, Some(2)).unwrap();
        let _two = cluster.hold(Load::Request, Some(2)).unwrap();
        let full = cluster.hold(Load::Request, Some(2)).unwrap_err();
        assert_eq!(full, Overflow(Load::Request));
        drop(one);
        assert!(cluster.hold(Load::Request, Some(2)).is_ok());
        assert_eq!(cluster.count(Load::Request), 1);
    }

    #[test]
    fn a_budget_is_a_share_of_what_is_active_and_never_less_than_its_floor() {
        let cluster = Arc::new(Cluster::default());
        let active: Vec<_> = (0..50)
            .map(|_| cluster.hold(Load::Request, None).unwrap())
            .collect();
        let budget = RetryBudget {
            percent: 10.0,
            least: 2,
        };
        let limits = PoolRules::default();
        let mut retries = Vec::new();
        while let Ok(held) = cluster.retry(&limits, Some(&budget)) {
            retries.push(held);
        }
        assert_eq!(retries.len(), 5);
        drop((active, retries));
        let floor: Vec<_> = (0..9)
            .map_while(|_| cluster.retry(&limits, Some(&budget)).ok())
            .collect();
        assert_eq!(floor.len(), 2);
    }

    #[tokio::test]
    async fn connections_are_waited_for_by_so_many() {
        let limits = PoolRules {
            max_connections: Some(1),
            max_pending: Some(1),
            ..PoolRules::default()
        };
        let cluster = Arc::new(Cluster::default());
        let first = cluster.connection(&limits).await.unwrap();
        let waiting = cluster.connection(&limits);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let full = cluster.connection(&limits).await.unwrap_err();
        assert_eq!(full, Overflow(Load::Pending));
        drop(first);
        assert!(waiting.await.is_ok());
        assert_eq!(cluster.count(Load::Connection), 0);
    }

    #[test]
    fn nobody_misses_what_is_freed_between_look_and_wait() {
        use futures_util::FutureExt;
        let cluster = Arc::new(Cluster::default());
        let one = || cluster.hold(Load::Connection, Some(2)).ok();
        let mut both = vec![one().unwrap(), one().unwrap()];
        let mut got = Vec::new();
        let first = cluster.once_freed(|| {
            let found = one();
            if found.is_none() {
                let second = cluster.once_freed(|| {
                    let found = one();
                    both.clear();
                    found
                });
                got.push(second.now_or_never());
            }
            found
        });
        let first = first.now_or_never();
        assert!(first.is_some());
        assert!(matches!(&got[..], [Some(_)]), "{got:?}");
        assert_eq!(cluster.count(Load::Connection), 2);
    }

    #[test]
    fn endpoints_are_new_if_they_came_later() {
        let cluster = Cluster::default();
        let uids: Vec<Str> = vec!["a".into(), "b".into()];
        let window = Duration::from_secs(10);
        let start = Instant::now();
        let look = |n: usize, after: u64| {
            let now = start + Duration::from_secs(after);
            let state = (n as u64, 0);
            cluster.new_ones(state, uids[..n].iter(), window, now)
        };
        assert_eq!(look(1, 0), None);
        assert_eq!(look(2, 5).unwrap()["b"], Duration::ZERO);
        assert_eq!(look(2, 7).unwrap()["b"], Duration::from_secs(2));
        assert_eq!(look(2, 15), None);
        // Gone and back is new again.
        assert_eq!(look(1, 16), None);
        assert!(look(2, 17).is_some());
    }

    fn key(n: usize) -> ClusterKey {
        let host = NamespacedHostname {
            namespace: "default".into(),
            hostname: format!("{n}.example").into(),
        };
        (host, None, 80)
    }

    #[test]
    fn a_destination_has_one_memory_until_nobody_uses_it_and_there_are_many() {
        let all = Clusters::default();
        assert!(all.find(&key(0)).is_none());
        let used = all.get(&key(0));
        assert!(Arc::ptr_eq(&used, &all.get(&key(0))));
        assert!(Arc::ptr_eq(&used, &all.find(&key(0)).unwrap()));
        let known = || all.all.lock().unwrap().len();
        for n in 1..=MOST_ENTRIES {
            drop(all.get(&key(n)));
        }
        assert_eq!(known(), MOST_ENTRIES + 1, "so many are kept");
        assert!(!Arc::ptr_eq(&used, &all.get(&key(1))));
        assert_eq!(
            known(),
            2,
            "the one that is used, and the one that is asked for"
        );
        assert!(Arc::ptr_eq(&used, &all.find(&key(0)).unwrap()));
    }

    #[test]
    fn each_rule_that_needs_memory_has_it() {
        use isobar_route::{Balancing, OutlierRules, Warmup};
        let window = Duration::from_secs(1);
        let pool = |pool| TrafficRules {
            pool: Some(pool),
            ..TrafficRules::default()
        };
        let balancing = |warmup| TrafficRules {
            balancing: Some(Balancing {
                warmup,
                ..Balancing::default()
            }),
            ..TrafficRules::default()
        };
        let (some, none) = (Some(1), PoolRules::default());
        #[rustfmt::skip]
        let needing = [
            pool(PoolRules { max_connections: some, ..none }),
            pool(PoolRules { max_pending: some, ..none }),
            pool(PoolRules { max_requests: some, ..none }),
            pool(PoolRules { max_retries: some, ..none }),
            balancing(Some(Warmup { window, least: 0.1, aggression: 1.0 })),
            TrafficRules {
                retry_budget: Some(RetryBudget { percent: 20.0, least: 3 }),
                ..TrafficRules::default()
            },
            TrafficRules {
                outliers: Some(OutlierRules {
                    server_errors: 1,
                    gateway_errors: 0,
                    local_failures: None,
                    interval: window,
                    base: window,
                    most_out: 10,
                    least_healthy: 0,
                }),
                ..TrafficRules::default()
            },
        ];
        for rules in &needing {
            assert!(remembers(rules), "{rules:?}");
        }
        let others = PoolRules {
            max_streams: some,
            max_requests_per_connection: some,
            connect_timeout: Some(window),
            ..none
        };
        for rules in [TrafficRules::default(), pool(others), balancing(None)] {
            assert!(!remembers(&rules), "{rules:?}");
        }
    }

    #[test]
    fn each_kind_of_load_is_counted_by_itself() {
        let cluster = Arc::new(Cluster::default());
        let kinds = [Load::Connection, Load::Pending, Load::Request, Load::Retry];
        let counts = || kinds.map(|kind| cluster.count(kind));
        let held: Vec<_> = kinds
            .into_iter()
            .zip(1..)
            .flat_map(|(kind, n)| vec![kind; n])
            .map(|kind| cluster.hold(kind, None).unwrap())
            .collect();
        assert_eq!(counts(), [1, 2, 3, 4]);
        let full = cluster.hold(Load::Retry, Some(0)).unwrap_err();
        assert_eq!(full, Overflow(Load::Retry));
        drop(held);
        assert_eq!(counts(), [0; 4]);
    }

    #[test]
    fn what_waits_and_what_is_under_way_is_active() {
        let cluster = Arc::new(Cluster::default());
        let budget = RetryBudget {
            percent: 50.0,
            least: 0,
        };
        let none = PoolRules {
            max_retries: Some(0),
            ..PoolRules::default()
        };
        let most = |budget| {
            let retries = (0..100).map_while(|_| cluster.retry(&none, budget).ok());
            retries.collect::<Vec<_>>().len()
        };
        assert_eq!(most(Some(&budget)), 0);
        let active: Vec<_> = [Load::Request, Load::Request, Load::Pending, Load::Pending]
            .into_iter()
            .map(|load| cluster.hold(load, None).unwrap())
            .collect();
        assert_eq!(
            most(Some(&budget)),
            2,
            "half of four; the budget comes first"
        );
        assert_eq!(most(None), 0);
        drop(active);
        let two = PoolRules {
            max_retries: Some(2),
            ..PoolRules::default()
        };
        let held: Vec<_> = (0..9)
            .map_while(|_| cluster.retry(&two, None).ok())
            .collect();
        assert_eq!(held.len(), 2);
    }

    #[tokio::test]
    async fn only_a_connection_that_ends_lets_who_waits_for_one_go_on() {
        let limits = PoolRules {
            max_connections: Some(1),
            ..PoolRules::default()
        };
        let cluster = Arc::new(Cluster::default());
        let told = || {
            let told = cluster.freed.notified();
            std::pin::pin!(told).enable()
        };
        drop(cluster.hold(Load::Request, None).unwrap());
        assert!(!told(), "a request is no connection");
        drop(cluster.hold(Load::Connection, None).unwrap());
        assert!(told());
        let first = cluster.connection(&limits).await.unwrap();
        let waiting = cluster.connection(&limits);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(cluster.count(Load::Pending), 1);
        drop(first);
        assert!(futures_util::poll!(&mut waiting).is_ready());
        assert_eq!(cluster.count(Load::Pending), 0);
    }

    #[test]
    fn an_endpoint_is_new_for_the_whole_window_and_no_longer() {
        let cluster = Cluster::default();
        let all: Vec<Str> = ["a", "b", "c"].map(Str::from).into();
        let (start, window) = (Instant::now(), Duration::from_secs(10));
        let look = |n: usize, state: u64, millis: u64| {
            let now = start + Duration::from_millis(millis);
            let new = cluster.new_ones((state, 7), all[..n].iter(), window, now);
            let ages = new.unwrap_or_default().into_iter();
            ages.map(|(uid, age)| format!("{uid} {}", age.as_millis()))
                .collect::<Vec<_>>()
        };
        assert!(look(1, 1, 0).is_empty());
        assert_eq!(look(2, 2, 1_000), ["b 0"]);
        // Seen although nothing else has changed.
        assert_eq!(look(2, 2, 10_999), ["b 9999"]);
        assert!(look(2, 3, 11_000).is_empty());
        assert_eq!(look(3, 4, 20_000), ["c 0"]);
        assert_eq!(look(3, 4, 25_000), ["c 5000"]);
        // Who came back is new again, who stayed is not.
        assert!(look(2, 5, 26_000).is_empty());
        assert_eq!(look(3, 6, 27_000), ["c 0"]);
    }

    #[test]
    fn nobody_is_looked_at_while_nothing_changes_and_nobody_is_new() {
        let cluster = Cluster::default();
        let (looked, start) = (std::cell::Cell::new(0), Instant::now());
        let all: Vec<Str> = ["a", "b"].map(Str::from).into();
        let look = |n: usize, state, secs| {
            let there = all[..n].iter();
            let there = there.inspect(|_| looked.set(looked.get() + 1));
            let (window, now) = (Duration::from_secs(10), start + Duration::from_secs(secs));
            drop(cluster.new_ones(state, there, window, now));
            looked.get()
        };
        assert_eq!(look(1, (1, 1), 0), 1);
        assert_eq!(look(1, (1, 1), 1), 1);
        assert_eq!(look(1, (2, 1), 1), 2, "either may change");
        assert_eq!(look(1, (2, 2), 1), 3);
        assert_eq!(look(2, (3, 2), 1), 5);
        assert_eq!(look(2, (3, 2), 10), 7, "one is new");
        assert_eq!(look(2, (3, 2), 11), 7, "none is new any more");
    }
}

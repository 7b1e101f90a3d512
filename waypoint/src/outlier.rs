//! Endpoints that fail again and again are left out for a while.
//!
//! Counts live beside the endpoints that are in trouble only: while all is well, a result costs one
//! look at a number, and a choice costs one too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isobar_route::OutlierRules;
use isobar_types::Str;

/// An endpoint is never out for longer, unless its base time is (Envoy's default).
const LONGEST: Duration = Duration::from_secs(300);

/// How a request, or a connection, to an endpoint went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered with this status; opaque connections that stand answer with 200.
    Answered(u16),
    /// No connection stands.
    Unreachable,
    /// It did not answer in time.
    TimedOut,
    /// The connection or stream ended without an answer.
    Broke,
}

/// The endpoints of one destination.
#[derive(Debug)]
pub struct Outliers {
    started: Instant,
    /// Entries of `hosts`.
    troubled: AtomicUsize,
    /// Of these, the ones that are out.
    out: AtomicUsize,
    hosts: Mutex<BTreeMap<Str, Host>>,
}

#[derive(Debug, Clone, Copy)]
struct Host {
    server: u32,
    gateway: u32,
    local: u32,
    /// How often it was out, less one for each interval it was well since.
    times: u32,
    until: Option<Instant>,
    back: Instant,
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            troubled: AtomicUsize::new(0),
            out: AtomicUsize::new(0),
            hosts: Mutex::default(),
        }
    }
}

impl Outliers {
    /// Notes a result of an endpoint, one of `all`; true if it is out from now on.
    pub fn note(
        &self,
        uid: &Str,
        outcome: Outcome,
        rules: &OutlierRules,
        all: usize,
        now: Instant,
    ) -> bool {
        let well = matches!(outcome, Outcome::Answered(code) if code < 500);
        if well && self.troubled.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if well && !hosts.contains_key(uid) {
            return false;
        }
        let host = hosts.entry(uid.clone()).or_insert(Host {
            server: 0,
            gateway: 0,
            local: 0,
            times: 0,
            until: None,
            back: now,
        });
        let over = host.count(outcome, rules) && host.until.is_none();
        let ejected = over && self.may_leave(rules, all);
        if ejected {
            host.leave(rules, now, self.started);
            self.out.fetch_add(1, Ordering::Relaxed);
        }
        let idle = host.until.is_none() && host.is_well();
        if idle && host.times_left(rules, now) == 0 {
            hosts.remove(uid);
        }
        self.troubled.store(hosts.len(), Ordering::Relaxed);
        ejected
    }

    fn may_leave(&self, rules: &OutlierRules, all: usize) -> bool {
        let out = self.out.load(Ordering::Relaxed) + 1;
        out * 100 <= all * usize::try_from(rules.most_out).unwrap_or(100)
    }

    /// The endpoints that are out; `None` if nobody is. Those whose time is over are back.
    #[must_use]
    pub fn out(&self, now: Instant) -> Option<Arc<BTreeSet<Str>>> {
        if self.out.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = BTreeSet::new();
        for (uid, host) in hosts.iter_mut() {
            match host.until {
                Some(until) if until > now => {
                    out.insert(uid.clone());
                }
                Some(_) => {
                    host.until = None;
                    host.back = now;
                }
                None => {}
            }
        }
        self.out.store(out.len(), Ordering::Relaxed);
        (!out.is_empty()).then(|| Arc::new(out))
    }

    /// Forgets endpoints that are not there any more.
    pub fn keep_only(&self, there: impl Fn(&Str) -> bool) {
        if self.troubled.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|uid, _| there(uid));
        let out = hosts.values().filter(|host| host.until.is_some()).count();
        self.troubled.store(hosts.len(), Ordering::Relaxed);
        self.out.store(out, Ordering::Relaxed);
    }
}

/// True if so few endpoints would be left that all are used, those that are out as well.
#[must_use]
pub fn panics(rules: &OutlierRules, all: usize, out: usize) -> bool {
    let healthy = all.saturating_sub(out) * 100;
    healthy < all * usize::try_from(rules.least_healthy).unwrap_or(0)
}

impl Host {
    /// Counts; true if a limit is reached.
    fn count(&mut self, outcome: Outcome, rules: &OutlierRules) -> bool {
        let apart = rules.local_failures;
        let code = match outcome {
            Outcome::Answered(code) => {
                self.local = 0;
                code
            }
            Outcome::Unreachable | Outcome::TimedOut if apart.is_some() => {
                self.local += 1;
                return reached(self.local, apart.unwrap_or(0));
            }
            Outcome::Unreachable => 503,
            Outcome::TimedOut => 504,
            Outcome::Broke => 500,
        };
        if code < 500 {
            (self.server, self.gateway) = (0, 0);
            return false;
        }
        self.server += 1;
        self.gateway = match code {
            502..=504 => self.gateway + 1,
            _ => 0,
        };
        reached(self.server, rules.server_errors) || reached(self.gateway, rules.gateway_errors)
    }

    const fn is_well(&self) -> bool {
        self.server == 0 && self.gateway == 0 && self.local == 0
    }

    fn times_left(&self, rules: &OutlierRules, now: Instant) -> u32 {
        let well = now.saturating_duration_since(self.back).as_nanos();
        let intervals = well / rules.interval.as_nanos().max(1);
        self.times
            .saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX))
    }

    /// Out until the first look after its time, looks being an interval apart.
    fn leave(&mut self, rules: &OutlierRules, now: Instant, started: Instant) {
        self.times = self.times_left(rules, now) + 1;
        let time = rules.base.saturating_mul(self.times);
        let time = time.min(LONGEST.max(rules.base));
        let interval = rules.interval.as_nanos().max(1);
        let at = (now + time).saturating_duration_since(started).as_nanos();
        let looks = u64::try_from(at.div_ceil(interval) * interval).unwrap_or(u64::MAX);
        self.until = Some(started + Duration::from_nanos(looks));
        (self.server, self.gateway, self.local) = (0, 0, 0);
    }
}

const fn reached(count: u32, limit: u32) -> bool {
    limit > 0 && count >= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: OutlierRules = OutlierRules {
        server_errors: 3,
        gateway_errors: 2,
        local_failures: None,
        interval: Duration::from_secs(1),
        base: Duration::from_secs(10),
        most_out: 50,
        least_healthy: 0,
    };

    struct Bed {
        outliers: Outliers,
        now: Instant,
    }

    impl Bed {
        fn new() -> Self {
            let outliers = Outliers::default();
            let now = outliers.started;
            Self { outliers, now }
        }

        fn note(&self, uid: &str, outcome: Outcome, rules: &OutlierRules) -> bool {
            self.outliers.note(&uid.into(), outcome, rules, 4, self.now)
        }

        fn answers(&self, uid: &str, codes: &[u16]) -> Vec<bool> {
            let note = |code: &u16| self.note(uid, Outcome::Answered(*code), &RULES);
            codes.iter().map(note).collect()
        }

        fn out(&self) -> Vec<String> {
            let out = self.outliers.out(self.now).unwrap_or_default();
            out.iter().map(ToString::to_string).collect()
        }

        fn later(&mut self, secs: u64) {
            self.now += Duration::from_secs(secs);
        }
    }

    #[test]
    fn failures_in_a_row_count_and_an_answer_starts_anew() {
        let bed = Bed::new();
        assert_eq!(bed.answers("a", &[500, 500, 200, 500, 500]), [false; 5]);
        assert_eq!(bed.answers("a", &[500]), [true]);
        // Gateway errors have a limit of their own; other errors start it anew.
        assert_eq!(bed.answers("b", &[503, 500]), [false; 2]);
        assert_eq!(bed.answers("c", &[503, 504]), [false, true]);
        assert_eq!(bed.out(), ["a", "c"]);
        // Half of four are out: nobody else leaves.
        assert_eq!(bed.answers("d", &[503, 503, 503]), [false; 3]);
        assert_eq!(bed.out(), ["a", "c"]);
    }

    #[test]
    fn each_time_is_longer_until_it_was_well_for_a_while() {
        let mut bed = Bed::new();
        bed.answers("a", &[503, 503]);
        bed.later(9);
        assert_eq!(bed.out(), ["a"]);
        bed.later(1);
        assert!(bed.out().is_empty());
        bed.answers("a", &[503, 503]);
        bed.later(19);
        assert_eq!(bed.out(), ["a"]);
        bed.later(1);
        assert!(bed.out().is_empty());
        // Well for two intervals: as if it had never been out.
        bed.later(2);
        bed.answers("a", &[503, 503]);
        bed.later(10);
        assert!(bed.out().is_empty());
    }

    #[test]
    fn failures_without_an_answer_count_as_errors_or_apart() {
        let bed = Bed::new();
        assert!(!bed.note("a", Outcome::Unreachable, &RULES));
        assert!(bed.note("a", Outcome::TimedOut, &RULES));
        assert!(!bed.note("b", Outcome::Broke, &RULES));
        assert!(!bed.note("b", Outcome::Broke, &RULES));
        assert!(bed.note("b", Outcome::Broke, &RULES));
        let apart = OutlierRules {
            local_failures: Some(4),
            most_out: 100,
            ..RULES
        };
        let notes: Vec<_> = (0..4)
            .map(|_| bed.note("c", Outcome::Unreachable, &apart))
            .collect();
        assert_eq!(notes, [false, false, false, true]);
    }

    #[test]
    fn nothing_is_kept_of_endpoints_that_are_well_or_gone() {
        let bed = Bed::new();
        bed.answers("a", &[500, 200]);
        assert_eq!(bed.outliers.troubled.load(Ordering::Relaxed), 0);
        bed.answers("b", &[503, 503]);
        bed.outliers.keep_only(|uid| &**uid != "b");
        assert!(bed.out().is_empty());
        assert_eq!(bed.outliers.troubled.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn with_too_few_left_all_are_used() {
        let rules = OutlierRules {
            least_healthy: 50,
            ..RULES
        };
        assert!(!panics(&rules, 4, 2));
        assert!(panics(&rules, 4, 3));
        assert!(!panics(&RULES, 4, 4));
    }

    #[test]
    fn each_interval_it_was_well_takes_back_one_time() {
        let mut bed = Bed::new();
        for time in [10, 20] {
            assert_eq!(bed.answers("a", &[503, 503]), [false, true]);
            bed.later(time);
            assert!(bed.out().is_empty());
        }
        // It was out twice; of that one time is left, so the next is the second again.
        bed.later(1);
        bed.answers("a", &[503, 503]);
        bed.later(19);
        assert_eq!(bed.out(), ["a"]);
        bed.later(1);
        assert!(bed.out().is_empty());
    }

    #[test]
    fn answers_that_come_late_do_not_take_it_back() {
        let mut bed = Bed::new();
        bed.answers("a", &[503, 503]);
        bed.later(5);
        assert_eq!(bed.answers("a", &[200, 500, 503, 503, 200]), [false; 5]);
        assert_eq!(bed.out(), ["a"]);
        bed.later(4);
        assert_eq!(bed.out(), ["a"]);
        bed.later(1);
        assert!(bed.out().is_empty());
    }
}

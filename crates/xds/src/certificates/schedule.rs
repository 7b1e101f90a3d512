use std::collections::HashMap;
use std::time::Duration;

use isobar_types::Identity;
use tokio::time::Instant;

/// First wait after a failure; doubles from here.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest wait after failures. Shorter than Istio's 150 s: a node is back in service soon after
/// its authority is.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How urgent a request is; the greater goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// Renewal.
    Background,
    /// A workload is here and will want one.
    Warmup,
    /// A connection waits.
    RealTime,
}

/// When which identity is asked for next. Pure: time is an argument.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    jobs: HashMap<Identity, Job>,
    in_flight: usize,
}

#[derive(Debug)]
struct Job {
    due: Instant,
    priority: Priority,
    in_flight: bool,
    retry: Duration,
    unreachable: bool,
}

impl Schedule {
    /// Wants `identity` at `priority`. What already waits keeps the higher priority; a RealTime
    /// wish makes a renewal due at once, but does not shorten the wait after a failure.
    pub(super) fn want(&mut self, identity: &Identity, priority: Priority, now: Instant) {
        let Some(job) = self.jobs.get_mut(identity) else {
            let job = Job {
                due: now,
                priority,
                in_flight: false,
                retry: FIRST_RETRY,
                unreachable: false,
            };
            self.jobs.insert(identity.clone(), job);
            return;
        };
        job.priority = job.priority.max(priority);
        if priority == Priority::RealTime && job.retry == FIRST_RETRY {
            job.due = job.due.min(now);
        }
    }

    pub(super) fn forget(&mut self, identity: &Identity) {
        if self.jobs.remove(identity).is_some_and(|job| job.in_flight) {
            self.in_flight -= 1;
        }
    }

    /// The most urgent of the identities due, marked as in flight; `None` if none is due.
    pub(super) fn start(&mut self, now: Instant) -> Option<Identity> {
        let (identity, job) = self
            .jobs
            .iter_mut()
            .filter(|(_, job)| !job.in_flight && job.due <= now)
            .min_by_key(|(_, job)| (std::cmp::Reverse(job.priority), job.due))?;
        job.in_flight = true;
        self.in_flight += 1;
        Some(identity.clone())
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When to look again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self.jobs.values().filter(|job| !job.in_flight);
        waiting.map(|job| job.due).min()
    }

    /// A certificate came; ask again at `renew`. Returns false if nobody wants it any more.
    pub(super) fn succeeded(&mut self, identity: &Identity, renew: Instant, now: Instant) -> bool {
        // The authority answers: whoever failed for lack of an answer need not wait longer.
        for job in self.jobs.values_mut().filter(|job| job.unreachable) {
            job.unreachable = false;
            job.due = job.due.min(now);
        }
        let Some(job) = self.landed(identity) else {
            return false;
        };
        job.due = renew;
        job.priority = Priority::Background;
        job.retry = FIRST_RETRY;
        job.unreachable = false;
        true
    }

    /// No certificate; try again after a while, at the latest at `latest`. Returns the wait, or
    /// `None` if nobody wants it any more. `dice` spreads the wait by a fifth either way.
    pub(super) fn failed(
        &mut self,
        identity: &Identity,
        unreachable: bool,
        latest: Option<Instant>,
        now: Instant,
        dice: u64,
    ) -> Option<Duration> {
        let job = self.landed(identity)?;
        let spread = 80 + u32::try_from(dice % 41).unwrap_or(20);
        let wait = job.retry * spread / 100;
        job.retry = (job.retry * 2).min(LONGEST_RETRY);
        job.due = latest.map_or(now + wait, |latest| latest.clamp(now, now + wait));
        // At least a moment, or a certificate about to expire would be asked for in a busy loop.
        job.due = job.due.max(now + FIRST_RETRY / 2);
        job.unreachable = unreachable;
        Some(job.due - now)
    }

    fn landed(&mut self, identity: &Identity) -> Option<&mut Job> {
        let job = self.jobs.get_mut(identity)?;
        if !job.in_flight {
            // Forgotten and wanted again while the old request was under way.
            return None;
        }
        job.in_flight = false;
        self.in_flight -= 1;
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Identity {
        Identity::new("td", "ns", name)
    }

    #[test]
    fn the_urgent_goes_first_then_the_earliest() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut schedule = Schedule::default();
        schedule.want(&id("renewal"), Priority::Background, now);
        schedule.want(&id("warm-late"), Priority::Warmup, later);
        schedule.want(&id("warm"), Priority::Warmup, now);
        schedule.want(&id("raised"), Priority::Warmup, later);
        schedule.want(&id("raised"), Priority::RealTime, later);
        let order: Vec<_> = std::iter::from_fn(|| schedule.start(later)).collect();
        assert_eq!(order, ["raised", "warm", "warm-late", "renewal"].map(id));
        assert_eq!(schedule.in_flight(), 4);
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn failures_back_off_to_a_cap_and_success_resets() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.want(&id("a"), Priority::RealTime, now);
        let mut at = now;
        let mut waits = Vec::new();
        for _ in 0..12 {
            schedule.start(at).unwrap();
            let wait = schedule.failed(&id("a"), false, None, at, 20).unwrap();
            waits.push(wait);
            // Wanting it again does not shorten the wait.
            schedule.want(&id("a"), Priority::RealTime, at);
            assert_eq!(schedule.start(at + wait - Duration::from_millis(1)), None);
            at += wait;
        }
        assert_eq!(waits[0], FIRST_RETRY);
        assert_eq!(waits[1], FIRST_RETRY * 2);
        assert_eq!(waits[11], LONGEST_RETRY);
        schedule.start(at).unwrap();
        assert!(schedule.succeeded(&id("a"), at + LONGEST_RETRY, at));
        schedule.want(&id("a"), Priority::RealTime, at);
        schedule.start(at).unwrap();
        assert_eq!(
            schedule.failed(&id("a"), false, None, at, 20),
            Some(FIRST_RETRY)
        );
    }

    #[test]
    fn an_answer_for_one_wakes_those_that_could_not_reach_the_authority() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for name in ["a", "b", "c"] {
            schedule.want(&id(name), Priority::Warmup, now);
            schedule.start(now).unwrap();
        }
        schedule.failed(&id("a"), true, None, now, 0);
        schedule.failed(&id("b"), false, None, now, 0);
        assert_eq!(schedule.start(now), None);
        assert!(schedule.succeeded(&id("c"), now + LONGEST_RETRY, now));
        assert_eq!(schedule.start(now), Some(id("a")));
        assert_eq!(schedule.start(now), None);
    }

    #[test]
    fn a_forgotten_request_lands_nowhere() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.want(&id("a"), Priority::Warmup, now);
        schedule.start(now).unwrap();
        schedule.forget(&id("a"));
        assert_eq!(schedule.in_flight(), 0);
        assert!(!schedule.succeeded(&id("a"), now, now));
        assert_eq!(schedule.failed(&id("a"), true, None, now, 0), None);
    }
}

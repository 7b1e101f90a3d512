use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::admission::{Limits, lock};

/// Handshake time while more than half of all places are taken.
const SHED_DEADLINE: Duration = Duration::from_secs(2);
/// A connection that is over so soon, and carried nothing, was not worth its handshake: callers keep theirs
/// for minutes.
const BRIEF: Duration = Duration::from_secs(1);
/// Brief connections of one address, beyond which its handshakes take turns.
const CREDIT: f64 = 16.0;
/// How many are forgiven in a second, and how many turns there are in one.
const PER_SECOND: f64 = 5.0;
/// Handshakes of one address that may wait for their turns, or be under way where there are turns: the
/// last of them waits some 3 s.
const WAITING: usize = 16;
/// No address owes more, so that it has paid in seconds.
const DEBT: f64 = 40.0;
/// Addresses that owe nothing are looked for when there are this many, then when twice as many.
const SWEEP: usize = 256;

/// Handshakes under way and what came of those before, by address; clones share it. Who opens and
/// closes connections without end, whatever his certificate, costs some two milliseconds of each second:
/// less than a hundredth, so that others do not see it in a 99th percentile.
#[derive(Debug, Clone, Default)]
pub(super) struct Handshakes(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    all: usize,
    sources: HashMap<IpAddr, Source>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Source {
    under_way: usize,
    /// Brief connections that are not forgiven yet, as of `at`.
    brief: f64,
    at: Instant,
    /// When the last turn given out begins.
    last_turn: Instant,
}

/// A handshake under way.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    handshakes: Handshakes,
    source: Option<IpAddr>,
    crowded: bool,
    turn: Option<Instant>,
}

/// A connection from its handshake on.
#[derive(Debug)]
pub(crate) struct Visit {
    handshakes: Handshakes,
    source: Option<IpAddr>,
    start: Instant,
    worth: Cell<bool>,
}

impl Visit {
    /// It carried a stream for its caller. Tunnels through a gateway of networks are for one stream each
    /// and may be brief, and all of another network have the gateway's address.
    pub(crate) fn was_worth_its_handshake(&self) {
        self.worth.set(true);
    }
}

impl Handshakes {
    /// A place for a handshake with a caller at `source`; none when there are too many.
    pub(super) fn begin(
        &self,
        limits: &Limits,
        source: Option<IpAddr>,
        now: Instant,
    ) -> Option<HandshakePermit> {
        let mut table = lock(&self.0);
        if table.all >= limits.handshakes {
            return None;
        }
        let mut turn = None;
        if let Some(address) = source {
            let source = table.source(address, now);
            let most = if source.owes(now) < CREDIT {
                limits.handshakes_per_source
            } else {
                limits.handshakes_per_source.min(WAITING)
            };
            if source.under_way >= most {
                return None;
            }
            source.under_way += 1;
            turn = source.turn(now);
        }
        table.all += 1;
        Some(HandshakePermit {
            handshakes: self.clone(),
            source,
            crowded: table.all > limits.handshakes / 2,
            turn,
        })
    }

    /// A connection from `source` is over that began at `start`.
    fn over(&self, source: IpAddr, start: Instant, now: Instant) {
        if now.saturating_duration_since(start) < BRIEF {
            let mut table = lock(&self.0);
            let source = table.source(source, now);
            source.brief = (source.owes(now) + 1.0).min(DEBT);
            source.at = now;
        }
    }
}

impl Table {
    fn source(&mut self, address: IpAddr, now: Instant) -> &mut Source {
        if self.sources.len() >= self.sweep_at.max(SWEEP) && !self.sources.contains_key(&address) {
            self.sources.retain(|_, source| !source.is_forgettable(now));
            self.sweep_at = 2 * self.sources.len();
        }
        self.sources.entry(address).or_insert_with(|| Source {
            under_way: 0,
            brief: 0.0,
            at: now,
            last_turn: now,
        })
    }
}

impl Source {
    fn owes(&self, now: Instant) -> f64 {
        let paid = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        (self.brief - paid).max(0.0)
    }

    /// When the next handshake may begin, unless at once.
    fn turn(&mut self, now: Instant) -> Option<Instant> {
        if self.owes(now) < CREDIT {
            return None;
        }
        self.last_turn = self.last_turn.max(now) + Duration::from_secs_f64(1.0 / PER_SECOND);
        Some(self.last_turn)
    }

    fn is_forgettable(&self, now: Instant) -> bool {
        self.under_way == 0 && self.owes(now) < 1.0
    }
}

impl HandshakePermit {
    /// The time allowed, at most `usual`.
    pub(crate) fn deadline(&self, usual: Duration) -> Duration {
        if self.crowded {
            usual.min(SHED_DEADLINE)
        } else {
            usual
        }
    }

    /// Waits for the turn of this handshake, if the caller's address has to wait for one.
    pub(crate) async fn turn(&self) {
        if let Some(turn) = self.turn {
            tokio::time::sleep_until(turn.into()).await;
        }
    }

    /// The connection whose handshake this is.
    pub(crate) fn visit(&self) -> Visit {
        Visit {
            handshakes: self.handshakes.clone(),
            source: self.source,
            start: Instant::now(),
            worth: Cell::new(false),
        }
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut table = lock(&self.handshakes.0);
        table.all -= 1;
        let Some(address) = self.source else {
            return;
        };
        let now = Instant::now();
        if let Some(source) = table.sources.get_mut(&address) {
            source.under_way -= 1;
            if source.is_forgettable(now) {
                table.sources.remove(&address);
            }
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(source) = self.source.filter(|_| !self.worth.get()) {
            self.handshakes.over(source, self.start, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn handshakes_are_bounded_by_source_and_in_all() {
        let handshakes = Handshakes::default();
        let limits = Limits {
            handshakes: 4,
            handshakes_per_source: 2,
            ..Limits::default()
        };
        let begin = |source| handshakes.begin(&limits, source, Instant::now());
        let one = begin(Some(at(1))).unwrap();
        assert_eq!(one.deadline(Duration::from_secs(10)).as_secs(), 10);
        let _two = begin(Some(at(1))).unwrap();
        assert!(begin(Some(at(1))).is_none());
        let three = begin(Some(at(2))).unwrap();
        assert_eq!(three.deadline(Duration::from_secs(10)), SHED_DEADLINE);
        let _four = begin(None).unwrap();
        assert!(begin(Some(at(3))).is_none());
        drop(one);
        assert!(begin(Some(at(1))).is_some());
        let held = lock(&handshakes.0).sources.len();
        assert_eq!(held, 2, "addresses without handshakes are forgotten");
    }

    #[test]
    fn an_address_of_brief_connections_takes_turns_alone_and_not_for_long() {
        let handshakes = Handshakes::default();
        let now = Instant::now();
        let turn = |source, now| {
            let begun = handshakes.begin(&Limits::default(), Some(source), now);
            begun.unwrap().turn
        };
        // As many as it likes, while they last.
        for _ in 0..10 * DEBT as u32 {
            handshakes.over(at(1), now, now + BRIEF);
        }
        assert_eq!(turn(at(1), now), None);
        for _ in 0..10 * DEBT as u32 {
            handshakes.over(at(1), now, now);
        }
        let step = Duration::from_millis(200);
        assert_eq!(turn(at(1), now), Some(now + step));
        assert_eq!(turn(at(1), now), Some(now + 2 * step));
        assert_eq!(turn(at(2), now), None);
        let paid = now + Duration::from_secs_f64(DEBT / PER_SECOND);
        assert!(turn(at(1), paid - Duration::from_secs(4)).is_some());
        let begin = |source| handshakes.begin(&Limits::default(), Some(source), now);
        let waiting: Vec<_> = (0..WAITING).map(|_| begin(at(1)).unwrap()).collect();
        assert!(begin(at(1)).is_none());
        assert!(begin(at(2)).is_some());
        drop(waiting);
        assert_eq!(turn(at(1), paid), None);
    }

    #[test]
    fn a_brief_connection_that_carried_something_owes_nothing() {
        let handshakes = Handshakes::default();
        let visit = || {
            let begun = handshakes.begin(&Limits::default(), Some(at(1)), Instant::now());
            begun.unwrap().visit()
        };
        let owes = || {
            let table = lock(&handshakes.0);
            table.sources.get(&at(1)).map_or(0.0, |one| one.brief)
        };
        visit().was_worth_its_handshake();
        assert!(owes() < 0.5);
        drop(visit());
        assert!(owes() > 0.5);
    }

    #[test]
    fn addresses_that_owe_nothing_are_forgotten() {
        let handshakes = Handshakes::default();
        let now = Instant::now();
        for n in 0..10 * SWEEP {
            let address = IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
            let later = now + Duration::from_secs(u64::try_from(n).unwrap());
            handshakes.over(address, later, later);
        }
        let kept = lock(&handshakes.0).sources.len();
        assert!(kept <= SWEEP, "{kept}");
    }
}

use std::time::{Duration, Instant};

/// Points at which a connection is closed.
const LIMIT: f64 = 100.0;
/// Time in which points halve.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// How much a client has misused its connection lately. Streams that are answered and end in
/// order score nothing, so no amount of honest traffic reaches the limit.
#[derive(Debug)]
pub(super) struct Score {
    points: f64,
    at: Instant,
}

impl Score {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            points: 0.0,
            at: now,
        }
    }

    /// A request taken back before it was answered.
    pub(super) fn reset_unanswered(&mut self, now: Instant) {
        self.misuse(1.0, now);
    }

    /// Anything else that costs us more than the client.
    pub(super) fn misuse(&mut self, points: f64, now: Instant) {
        self.decay(now);
        self.points += points;
    }

    pub(super) fn is_too_high(&mut self, now: Instant) -> bool {
        self.decay(now);
        self.points >= LIMIT
    }

    fn decay(&mut self, now: Instant) {
        let half_lives = (now - self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.points *= 0.5_f64.powf(half_lives);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_add_up_and_decay() {
        let now = Instant::now();
        let mut score = Score::new(now);
        for _ in 0..100 {
            assert!(!score.is_too_high(now));
            score.reset_unanswered(now);
        }
        assert!(score.is_too_high(now));
        assert!(!score.is_too_high(now + HALF_LIFE));
    }
}

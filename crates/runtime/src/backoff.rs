use std::time::Duration;

/// Exponential back-off with jitter, for reconnects: doubles from `first` to at most `max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// A back-off whose first wait is about `first` and whose later ones never exceed `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            next: first,
        }
    }

    /// Starts over after a success.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next wait; `dice` spreads it over 50 to 100 % of the step, so that many clients part.
    pub fn step(&mut self, dice: u64) -> Duration {
        let step = self.next.min(self.max);
        self.next = step.saturating_mul(2).min(self.max);
        let half = step / 2;
        let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(dice % spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_resets() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let steps: Vec<_> = (0..8).map(|_| backoff.step(u64::MAX / 3)).collect();
        assert!(steps.iter().all(|s| *s <= Duration::from_secs(2)));
        assert!(steps[7] >= Duration::from_secs(1));
        assert!(steps[0] < Duration::from_millis(100) + Duration::from_nanos(1));
        backoff.reset();
        assert!(backoff.step(0) <= Duration::from_millis(100));
    }
}

//! When a difference between what was written and what is observed is somebody else's doing.

use std::time::Duration;

use tokio::time::Instant;

/// What was written may be observed this much later.
const LAG: Duration = Duration::from_secs(2);
/// What is never observed is written more and more seldom, up to this many doublings.
const DOUBLINGS: u32 = 5;

/// Whether what is observed is what was written.
#[derive(Debug, Default)]
pub(super) struct Drift {
    wrote: Option<Instant>,
    /// Times in a row that it was written again without being observed.
    again: u32,
}

impl Drift {
    /// Something was written just now.
    pub(super) fn wrote(&mut self) {
        self.wrote = Some(Instant::now());
    }

    /// `None` if nothing differs; else how long to wait before the difference counts.
    pub(super) fn since(&mut self, differs: bool) -> Option<Duration> {
        if !differs {
            self.again = 0;
            return None;
        }
        let limit = LAG * (1 << self.again.min(DOUBLINGS));
        let waited = self.wrote.map(|at| at.elapsed());
        let left = waited.map_or(Duration::ZERO, |waited| limit.saturating_sub(waited));
        if left.is_zero() {
            self.again = self.again.saturating_add(1);
        }
        Some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn own_writes_have_time_to_be_seen_and_others_count_at_once() {
        let mut drift = Drift::default();
        assert_eq!(drift.since(false), None);
        assert_eq!(drift.since(true), Some(Duration::ZERO));
        drift.wrote();
        assert_eq!(drift.since(false), None);
        drift.wrote();
        assert_eq!(drift.since(true), Some(LAG));
        tokio::time::advance(LAG).await;
        assert_eq!(drift.since(true), Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_seen_is_written_more_and_more_seldom() {
        let mut drift = Drift::default();
        for doublings in [0, 1, 2, 3, 4, 5, 5] {
            drift.wrote();
            let left = drift.since(true).unwrap();
            assert_eq!(left, LAG * (1 << doublings));
            tokio::time::advance(left).await;
            assert_eq!(drift.since(true), Some(Duration::ZERO));
        }
        assert_eq!(drift.since(false), None);
        drift.wrote();
        assert_eq!(drift.since(true), Some(LAG));
    }
}

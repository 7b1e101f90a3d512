use std::time::Duration;

use isobar_runtime::Backoff;

/// Pauses of what is done again and again: short ones after a failure, a long one while all is well.
#[derive(Debug)]
pub(crate) struct Rounds {
    backoff: Backoff,
    again: Duration,
}

impl Rounds {
    /// Pauses from `first` to `longest` after failures, `again` after anything else.
    pub(crate) const fn new(first: Duration, longest: Duration, again: Duration) -> Self {
        Self {
            backoff: Backoff::new(first, longest),
            again,
        }
    }

    /// The pause after a round that went well or not.
    pub(crate) fn pause(&mut self, is_well: bool) -> Duration {
        if is_well {
            self.backoff.reset();
            return self.again;
        }
        self.backoff.step(rand::random())
    }
}

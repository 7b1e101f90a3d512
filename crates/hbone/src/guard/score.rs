use std::time::{Duration, Instant};

/// Points at which a connection is closed.
pub(super) const CONNECTION_LIMIT: f64 = 100.0;
/// Time in which points halve.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// Ways to cost us more than oneself. Streams that are answered and end in order are none of them,
/// so no amount of honest traffic reaches a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// A request taken back before it was answered.
    EarlyReset,
    /// A request that is no CONNECT.
    NoConnect,
    /// Frames that carry no data, more than a connection needs.
    ControlFlood,
    /// PRIORITY frames, which nobody needs any more.
    Priority,
    /// Frames of unknown type.
    UnknownFrame,
    /// A header block beyond what is looked at.
    HeaderBlock,
    /// The HTTP/2 library has closed the connection for a flood or for errors made on purpose.
    Protocol,
}

impl Misuse {
    const ALL: [Self; 7] = [
        Self::EarlyReset,
        Self::NoConnect,
        Self::ControlFlood,
        Self::Priority,
        Self::UnknownFrame,
        Self::HeaderBlock,
        Self::Protocol,
    ];

    /// Points for one occurrence.
    pub(crate) const fn points(self) -> f64 {
        match self {
            Self::EarlyReset => 1.0,
            Self::NoConnect => 2.0,
            Self::ControlFlood | Self::Priority | Self::UnknownFrame => 0.1,
            // At once: there is no honest way to do these.
            Self::HeaderBlock | Self::Protocol => CONNECTION_LIMIT,
        }
    }

    /// For logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::EarlyReset => "streams reset before they were answered",
            Self::NoConnect => "requests that are no CONNECT",
            Self::ControlFlood => "a flood of control frames",
            Self::Priority => "a flood of PRIORITY frames",
            Self::UnknownFrame => "a flood of unknown frames",
            Self::HeaderBlock => "an oversized header block",
            Self::Protocol => "a flood of frames or protocol errors",
        }
    }
}

/// How much a peer has misused us lately, by kind; all of it decays.
#[derive(Debug)]
pub(super) struct Score {
    points: [f64; Misuse::ALL.len()],
    at: Instant,
}

impl Score {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            points: [0.0; Misuse::ALL.len()],
            at: now,
        }
    }

    pub(super) fn add(&mut self, misuse: Misuse, now: Instant) {
        self.decay(now);
        self.points[misuse as usize] += misuse.points();
    }

    /// All points now.
    pub(super) fn total(&mut self, now: Instant) -> f64 {
        self.decay(now);
        self.points.iter().sum()
    }

    /// The kind with most points.
    pub(super) fn largest(&self) -> Misuse {
        let by_points = |kind: &Misuse| self.points[*kind as usize];
        Misuse::ALL
            .into_iter()
            .max_by(|a, b| by_points(a).total_cmp(&by_points(b)))
            .unwrap_or(Misuse::Protocol)
    }

    fn decay(&mut self, now: Instant) {
        let past = now.saturating_duration_since(self.at);
        if past.is_zero() {
            return;
        }
        let left = 0.5_f64.powf(past.as_secs_f64() / HALF_LIFE.as_secs_f64());
        for points in &mut self.points {
            *points *= left;
        }
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
            assert!(score.total(now) < CONNECTION_LIMIT);
            score.add(Misuse::EarlyReset, now);
        }
        score.add(Misuse::NoConnect, now);
        assert!(score.total(now) >= CONNECTION_LIMIT);
        assert_eq!(score.largest(), Misuse::EarlyReset);
        assert!(score.total(now + HALF_LIFE) < 0.6 * CONNECTION_LIMIT);
    }
}

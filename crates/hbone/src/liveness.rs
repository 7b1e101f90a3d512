use std::time::{Duration, SystemTime};

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

/// What a connection's PINGs have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// No answer in time.
    Silent,
    /// The connection has ended.
    Ended,
}

/// One PING and its answer.
pub(crate) async fn ping(pings: &mut PingPong, limit: Duration) -> Result<(), Liveness> {
    match timeout(limit, pings.ping(Ping::opaque())).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Liveness::Ended),
        Err(_) => Err(Liveness::Silent),
    }
}

/// PINGs every `interval`; returns when one is not answered within `limit`, or the connection has
/// ended. `tick` is called after each answer; false ends the watch as `Ended`.
pub(crate) async fn watch(
    pings: &mut PingPong,
    interval: Duration,
    limit: Duration,
    mut tick: impl FnMut() -> bool,
) -> Liveness {
    loop {
        sleep(interval).await;
        if let Err(liveness) = ping(pings, limit).await {
            return liveness;
        }
        if !tick() {
            return Liveness::Ended;
        }
    }
}

/// Longest sleep before the clock is read again: it may be set meanwhile.
const LOOK: Duration = Duration::from_secs(3600);

/// Resolves `grace` after `end`, by the clock of the machine, which may be set meanwhile.
pub async fn past(end: SystemTime, grace: Duration) {
    loop {
        let last = end + grace;
        match last.duration_since(SystemTime::now()) {
            Ok(left) if !left.is_zero() => sleep(left.min(LOOK)).await,
            _ => return,
        }
    }
}

//! Accepting, without end: what the system refuses for a while is tried again.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};

use super::Pod;
use super::together::Turn;

/// Between two looks whether descriptors have become free.
const PAUSE: Duration = Duration::from_millis(100);
/// At most one log line about missing descriptors in this time, all listeners together.
const TELL: Duration = Duration::from_secs(1);
/// Descriptors kept for what is open already, for admin, readiness and the control plane.
const RESERVE: u64 = 64;

/// Keeps the data path from taking the last descriptors of the process: one for all listeners.
#[derive(Debug)]
pub struct Descriptors {
    /// From this number on nothing is accepted.
    ceiling: u64,
    short: AtomicBool,
    start: Instant,
    /// Milliseconds after `start` of the next look, and of the next log line.
    look: AtomicU64,
    tell: AtomicU64,
}

impl Descriptors {
    /// By the limit on open files as it is now.
    #[must_use]
    pub fn of_process() -> Self {
        // Without knowing the limit, accepting goes on until it is hit.
        Self::new(isobar_net::open_files_limit().unwrap_or(u64::MAX))
    }

    fn new(limit: u64) -> Self {
        Self {
            ceiling: limit - RESERVE.min(limit / 4),
            short: AtomicBool::new(false),
            start: Instant::now(),
            look: AtomicU64::new(0),
            tell: AtomicU64::new(0),
        }
    }

    /// Waits while descriptors are short.
    async fn room(&self) {
        while self.short.load(Ordering::Relaxed) {
            // One of all that wait looks.
            if self.due(&self.look, PAUSE)
                && isobar_net::next_descriptor().is_ok_and(|next| next < self.ceiling)
            {
                self.short.store(false, Ordering::Relaxed);
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A connection was accepted with this descriptor: are those above needed for others?
    fn taken(&self, descriptor: i32) {
        if u64::try_from(descriptor).is_ok_and(|d| d >= self.ceiling) {
            self.run_short(&"the reserve is reached");
        }
    }

    fn run_short(&self, cause: &dyn std::fmt::Display) {
        self.short.store(true, Ordering::Relaxed);
        if self.due(&self.tell, TELL) {
            tracing::warn!(
                %cause,
                "no connection is accepted for now: descriptors are used up; open connections go on"
            );
        }
    }

    /// True once in `every`, for one caller.
    fn due(&self, at: &AtomicU64, every: Duration) -> bool {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let next = at.load(Ordering::Relaxed);
        now >= next
            && at
                .compare_exchange(next, now + every, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Hands every connection to `take` until the pod drains. What waited in the queue then is still
/// taken: the kernel would reset it. `turn` is this worker's part among those that share the port.
pub(super) async fn accept_all(
    pod: &Pod,
    descriptors: &Descriptors,
    listener: TcpListener,
    turn: &mut Turn<'_>,
    mut take: impl FnMut(TcpStream, SocketAddr),
) {
    loop {
        let accepted = tokio::select! {
            () = pod.draining() => break,
            () = turn.due() => {
                turn.look(&listener);
                continue;
            }
            accepted = async {
                descriptors.room().await;
                listener.accept().await
            } => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                descriptors.taken(tcp.as_raw_fd());
                turn.taken(&listener);
                take(tcp, canonical(peer));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => descriptors.run_short(&error),
        }
    }
    turn.end(&listener);
    // Asked directly: the runtime may not have heard of the last ones yet.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((tcp, peer)) = listener.accept() {
        let taken = tcp
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(tcp));
        if let Ok(tcp) = taken {
            take(tcp, canonical(peer));
        }
    }
}

/// Errors that belong to the connection that would have been accepted, not to the listener.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_kept_and_told_once_a_second() {
        let descriptors = Descriptors::new(256);
        assert_eq!(descriptors.ceiling, 192);
        descriptors.taken(191);
        assert!(!descriptors.short.load(Ordering::Relaxed));
        descriptors.taken(192);
        assert!(descriptors.short.load(Ordering::Relaxed));
        assert!(!descriptors.due(&descriptors.tell, TELL));
    }

    #[tokio::test]
    async fn accepting_goes_on_once_descriptors_are_free() {
        let descriptors = Descriptors::new(u64::MAX);
        descriptors.run_short(&"a test");
        tokio::time::timeout(Duration::from_secs(1), descriptors.room())
            .await
            .unwrap();
    }
}

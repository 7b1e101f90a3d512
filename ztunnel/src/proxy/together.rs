//! Short connections in quick succession are taken by one worker.
//!
//! Divided between all workers, each of them wakes for little, and what the tunnels carry for many
//! connections at once leaves in as many packets as there are workers. So while a pod opens many connections
//! that are soon over, one worker takes them all, as long as it has time left. Connections that stay are
//! divided: nobody knows what they will come to carry.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use isobar_net::Share;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::net::TcpListener;

use super::Pod;

/// Between two looks.
const WINDOW: Duration = Duration::from_millis(100);
/// Connections a second of a pod that are many.
const MANY: f64 = 200.0;
/// What all workers together may be busy, in processors, for one of them to take their work.
const FITS: f64 = 0.6;
/// What this one may be busy then.
const FULL: f64 = 0.8;
/// After it was too much for one worker, this long all take their part.
const DIVIDED: Duration = Duration::from_secs(5);

/// What the workers of a pod know of each other.
#[derive(Debug, Default)]
pub(super) struct Together {
    /// One worker takes all.
    on: AtomicBool,
    /// Connections taken so far.
    taken: AtomicU64,
    /// Until then all take their part. Held to read or write it.
    divided: Mutex<Option<Instant>>,
}

/// What one worker has seen since it last looked.
#[derive(Debug, Clone, Copy)]
struct Seen {
    length: Duration,
    /// Connections taken by this worker, and by all.
    own: u64,
    all: u64,
    /// Connections of the pod that are open.
    open: usize,
    /// What this worker's thread was busy, in processors, with whatever it was.
    busy: f64,
}

impl Seen {
    fn are_many(&self) -> bool {
        self.all as f64 >= MANY * self.length.as_secs_f64()
    }

    /// As many have come in a window as are open at a time: on average they lasted no longer.
    fn are_short(&self) -> bool {
        self.open as f64 * self.length.as_secs_f64() <= self.all as f64 * WINDOW.as_secs_f64()
    }

    /// Who takes from now on, and whether that is because one is not enough.
    fn judge(&self, on: bool, workers: usize) -> (Share, bool) {
        let crowded = if on {
            self.own > 0 && self.busy > FULL
        } else {
            self.busy * workers as f64 > FITS
        };
        if self.are_many() && self.are_short() && !crowded {
            (Share::One, false)
        } else {
            (Share::Each, on && crowded)
        }
    }
}

impl Together {
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Who takes from now on.
    fn next(&self, seen: &Seen, workers: usize, now: Instant) -> Share {
        let (share, crowded) = seen.judge(self.is_on(), workers);
        let mut divided = self.divided.lock().unwrap_or_else(PoisonError::into_inner);
        if crowded {
            *divided = Some(now + DIVIDED);
        }
        match share {
            Share::One if divided.is_none_or(|until| now >= until) => Share::One,
            _ => Share::Each,
        }
    }
}

/// One worker beside its listener.
pub(super) struct Turn<'a> {
    pod: &'a Pod,
    workers: usize,
    own: u64,
    /// When it last looked, and what was so then.
    looked: Instant,
    all: u64,
    busy: Duration,
}

impl<'a> Turn<'a> {
    /// For a listener that `workers` share; one that has it alone takes no part.
    pub(super) fn new(pod: &'a Pod, workers: usize) -> Self {
        Self {
            pod,
            workers,
            own: 0,
            looked: Instant::now(),
            all: 0,
            busy: Duration::ZERO,
        }
    }

    const fn takes_part(&self) -> bool {
        self.workers > 1
    }

    /// A connection was taken.
    pub(super) fn taken(&mut self, listener: &TcpListener) {
        if !self.takes_part() {
            return;
        }
        self.own += 1;
        let together = &self.pod.together;
        together.taken.fetch_add(1, Ordering::Relaxed);
        if !together.is_on() && self.looked.elapsed() >= WINDOW {
            self.look(listener);
        }
    }

    /// Resolves when it is time to look again whether one worker is enough.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub(super) async fn due(&self) {
        if self.takes_part() && self.pod.together.is_on() {
            tokio::time::sleep_until((self.looked + WINDOW).into()).await;
        } else {
            pending::<()>().await;
        }
    }

    /// Settles who takes the next connections.
    pub(super) fn look(&mut self, listener: &TcpListener) {
        let now = Instant::now();
        let seen = self.see(now);
        let share = self.pod.together.next(&seen, self.workers, now);
        // Also where nothing changes: whoever shared the port and is gone may have had it otherwise.
        self.settle(share, listener);
    }

    /// All take their part; who shares the port with this process is not held up by its wish.
    pub(super) fn end(&self, listener: &TcpListener) {
        if self.takes_part() && self.pod.together.is_on() {
            self.settle(Share::Each, listener);
        }
    }

    fn settle(&self, share: Share, listener: &TcpListener) {
        let on = &self.pod.together.on;
        match share.set(listener) {
            Ok(()) => on.store(share == Share::One, Ordering::Relaxed),
            Err(error) => {
                on.store(false, Ordering::Relaxed);
                tracing::debug!(%error, "the system does not let one worker take all connections");
            }
        }
    }

    fn see(&mut self, now: Instant) -> Seen {
        let length = now - self.looked;
        let all = self.pod.together.taken.load(Ordering::Relaxed);
        let busy = thread_busy();
        let seen = Seen {
            length,
            own: std::mem::take(&mut self.own),
            all: all.saturating_sub(self.all),
            open: self.pod.connections.outbound_open(),
            busy: busy.saturating_sub(self.busy).as_secs_f64() / length.as_secs_f64().max(1e-9),
        };
        (self.looked, self.all, self.busy) = (now, all, busy);
        seen
    }
}

/// What the calling thread has used of a processor so far.
fn thread_busy() -> Duration {
    // About the own thread the system always answers.
    let used = getrusage(UsageWho::RUSAGE_THREAD).map(|used| used.user_time() + used.system_time());
    let micros = used.map_or(0, |used| used.num_microseconds());
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;
    use isobar_net::{ListenOptions, listen};
    use tokio::net::TcpStream;

    use super::*;
    use crate::zds::PodInfo;

    /// A window of 300 connections, eight open at a time, by one of two workers.
    const CHURN: Seen = Seen {
        length: WINDOW,
        own: 150,
        all: 300,
        open: 8,
        busy: 0.2,
    };

    #[test]
    fn short_ones_in_quick_succession_go_to_one_while_it_has_time() {
        assert_eq!(CHURN.judge(false, 2), (Share::One, false));
        // As busy on each of eight workers it would be more than one processor.
        assert_eq!(CHURN.judge(false, 8), (Share::Each, false));
        let alone = Seen { own: 300, ..CHURN };
        assert_eq!(Seen { busy: 0.7, ..alone }.judge(true, 2).0, Share::One);
        assert_eq!(
            Seen { busy: 0.9, ..alone }.judge(true, 2),
            (Share::Each, true)
        );
        // Busy with something else, and it is another that takes them.
        let other = Seen {
            own: 0,
            busy: 0.9,
            ..CHURN
        };
        assert_eq!(other.judge(true, 2).0, Share::One);
    }

    #[test]
    fn few_or_lasting_ones_are_divided() {
        for on in [false, true] {
            let few = Seen {
                own: 2,
                all: 4,
                open: 1,
                ..CHURN
            };
            assert_eq!(few.judge(on, 2), (Share::Each, false));
            // Sixty-four at once that stay, after nothing for a while.
            let burst = Seen {
                length: 20 * WINDOW,
                own: 40,
                all: 64,
                open: 64,
                ..CHURN
            };
            assert_eq!(burst.judge(on, 2).0, Share::Each);
            let staying = Seen { open: 301, ..CHURN };
            assert_eq!(staying.judge(on, 2).0, Share::Each);
        }
    }

    #[test]
    fn what_was_too_much_for_one_stays_divided_for_a_while() {
        let together = Together::default();
        let start = Instant::now();
        assert_eq!(together.next(&CHURN, 2, start), Share::One);
        together.on.store(true, Ordering::Relaxed);
        let full = Seen { busy: 0.9, ..CHURN };
        assert_eq!(together.next(&full, 2, start), Share::Each);
        together.on.store(false, Ordering::Relaxed);
        assert_eq!(together.next(&CHURN, 2, start + DIVIDED / 2), Share::Each);
        assert_eq!(together.next(&CHURN, 2, start + DIVIDED), Share::One);
    }

    #[test]
    fn what_a_thread_uses_counts() {
        let before = thread_busy();
        let start = Instant::now();
        while thread_busy() == before {
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }

    fn info() -> PodInfo {
        PodInfo {
            name: "pod".to_owned(),
            namespace: "ns".to_owned(),
            service_account: "sa".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_listener_of_its_own_takes_no_part() {
        let (pod, _stage) = Pod::new(info(), None);
        pod.together.on.store(true, Ordering::Relaxed);
        assert!(Turn::new(&pod, 1).due().now_or_never().is_none());
        let shared = Turn::new(&pod, 2);
        tokio::time::timeout(Duration::from_secs(10), shared.due())
            .await
            .unwrap();
    }

    /// Two workers of a pod on one thread, which is busy for both.
    #[tokio::test]
    async fn one_listener_takes_all_while_many_short_ones_come() {
        let options = |address| ListenOptions {
            reuse_port: true,
            ..ListenOptions::new(address)
        };
        let first = listen(&options((Ipv4Addr::LOCALHOST, 0).into())).unwrap();
        let to = first.local_addr().unwrap();
        let second = listen(&options(to)).unwrap();
        let (pod, _stage) = Pod::new(info(), None);
        let (mut one, mut other) = (Turn::new(&pod, 2), Turn::new(&pod, 2));
        // Some hundred a second, of which few threads get tired.
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        let mut in_a_row = 0;
        let come = async {
            // By chance all of these would be taken by one of two: once in a billion billions.
            while in_a_row < 60 {
                pace.tick().await;
                let _client = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    taken = first.accept() => {
                        drop(taken.unwrap());
                        one.taken(&first);
                        in_a_row += 1;
                    }
                    taken = second.accept() => {
                        drop(taken.unwrap());
                        other.taken(&second);
                        in_a_row = 0;
                    }
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), come)
            .await
            .unwrap();
        assert!(pod.together.is_on());
        // No more come, and it ends by itself.
        let over = async {
            while pod.together.is_on() {
                one.due().await;
                one.look(&first);
            }
        };
        tokio::time::timeout(Duration::from_secs(10), over)
            .await
            .unwrap();
        other.end(&second);
    }
}

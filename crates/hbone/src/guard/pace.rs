use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use isobar_runtime::polls;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;

/// While there is other work, a step waits for so many times what the one before it took: handshakes
/// then get a quarter of the thread, however many there are, and so do floods of frames.
const REST: u32 = 3;

/// Of two tasks that yield, now this one is woken first and now that one: only two looks with nothing
/// in between are a whole turn.
const LOOKS: u8 = 2;

thread_local! {
    static HANDSHAKES: Rc<Pace> = Rc::new(Pace::new());
    static FLOODS: Rc<Pace> = Rc::new(Pace::new());
}

/// Whose turn it is among those of a thread that have work without end.
struct Pace {
    turn: Arc<Semaphore>,
    /// From when on the next step need not wait for a quiet moment.
    rested: Cell<Instant>,
}

/// One step under way. The rest begins when it is dropped.
pub(super) struct Step {
    pace: Rc<Pace>,
    start: Instant,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Drop for Step {
    fn drop(&mut self) {
        let end = Instant::now();
        self.pace.rested.set(end + REST * (end - self.start));
    }
}

/// Runs `handshake` so that of all those on this thread one at a time takes a step, and only once a
/// turn of the event loop has found nothing else to do, or the rest after the last step is over. What
/// is established then waits for one step, that under way when it wakes up, and not for one at
/// each of the turns that a question takes from the socket to its stream and back. (A step is a
/// signature or a key exchange, a good part of a millisecond, and cannot be interrupted.)
pub(crate) async fn paced<F: Future>(handshake: F) -> F::Output {
    let pace = HANDSHAKES.with(Rc::clone);
    let mut handshake = pin!(handshake);
    loop {
        let step = Rc::clone(&pace).step().await;
        let polled = poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
        drop(step);
        if let Poll::Ready(output) = polled {
            return output;
        }
        // No await between that poll and this one, so no wake-up is lost.
        let mut waited = false;
        poll_fn(|_| {
            if std::mem::replace(&mut waited, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// Resolves when a connection that has sent more than is read at once may be read on: as for handshakes,
/// one of a thread at a time.
pub(super) async fn flood() -> Step {
    let pace = FLOODS.with(Rc::clone);
    pace.step().await
}

impl Pace {
    fn new() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            rested: Cell::new(Instant::now()),
        }
    }

    /// Resolves when the next step may begin, which is to be taken in the same poll.
    async fn step(self: Rc<Self>) -> Step {
        // Fails only when closed, which nobody does.
        let turn = Arc::clone(&self.turn).acquire_owned().await.ok();
        self.quiet().await;
        Step {
            pace: self,
            start: Instant::now(),
            _turn: turn,
        }
    }

    /// Resolves after a turn in which no other task ran, at the latest after the turn in which the rest ends.
    async fn quiet(&self) {
        let mut looks = 0;
        while looks < LOOKS {
            let before = polls();
            // What has arrived meanwhile wakes its tasks before this one.
            yield_now().await;
            if Instant::now() >= self.rested.get() {
                return;
            }
            // One of them is the caller's own.
            looks = if polls() <= before + 1 { looks + 1 } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isobar_runtime::LocalScope;
    use tokio::task::LocalSet;

    use super::*;

    /// Turns in which another task has work.
    const BUSY: u32 = 100;

    /// Waits for a quiet moment beside a task that is busy; how far that was when the moment came.
    async fn waited(pace: Pace) -> u32 {
        let done = Rc::new(Cell::new(0));
        let scope = LocalScope::new("test");
        let other = Rc::clone(&done);
        scope.spawn("busy", async move {
            for _ in 0..BUSY {
                yield_now().await;
                other.set(other.get() + 1);
            }
        });
        let (tell, told) = tokio::sync::oneshot::channel();
        scope.spawn("handshake", async move {
            pace.quiet().await;
            let _ = tell.send(done.get());
        });
        told.await.unwrap()
    }

    #[tokio::test]
    async fn a_step_waits_for_a_quiet_moment_while_it_rests() {
        let pace = Pace::new();
        pace.rested.set(Instant::now() + Duration::from_secs(3600));
        let done = LocalSet::new().run_until(waited(pace)).await;
        assert_eq!(done, BUSY);
    }

    #[tokio::test]
    async fn a_busy_thread_leaves_handshakes_their_share() {
        let done = LocalSet::new().run_until(waited(Pace::new())).await;
        assert!(done < 3, "{done}");
    }

    #[tokio::test]
    async fn each_step_has_its_rest() {
        let start = Instant::now();
        paced(async {
            let step = Instant::now();
            while step.elapsed() < Duration::from_millis(2) {}
        })
        .await;
        let rest = HANDSHAKES.with(|pace| pace.rested.get()) - start;
        assert!(rest >= Duration::from_millis(8), "{rest:?}");
    }
}

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use super::Guard;
use super::heads::FrameHeads;
use super::meter::weight;
use super::pace::{Step, flood};

/// What is read of one connection before others come first, in small DATA frames; other frames count for
/// several. Some tens of microseconds, and far more than honest streams have waiting for a thread.
pub(super) const FRAMES_A_TURN: u32 = 256;

/// How much of a connection may still be read. It has another turn when all that has come was read; who
/// sends more than a turn takes waits for one.
#[derive(Debug)]
pub(super) struct Turn {
    left: Cell<u32>,
    over: Cell<bool>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            left: Cell::new(FRAMES_A_TURN),
            over: Cell::new(false),
        }
    }
}

impl Turn {
    /// Nothing more is read before the next one.
    pub(super) const fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Begins the next one.
    pub(super) fn renew(&self) {
        self.left.set(FRAMES_A_TURN);
        self.over.set(false);
    }

    /// How many of these bytes belong to this turn. Less than all of them end it.
    pub(super) fn part(&self, heads: &FrameHeads, bytes: &[u8]) -> usize {
        let mut left = self.left.get();
        let part = heads.clone().walk(bytes, |head| {
            let rest = left.checked_sub(weight(head));
            left = rest.unwrap_or(left);
            rest.is_some()
        });
        self.left.set(left);
        self.over.set(part < bytes.len());
        part
    }
}

/// Runs what reads the connection of `guard` until it ends. As long as it sends more than a turn takes, it
/// is read only when nobody else of the thread has anything to do, or a part of the time.
///
/// It must be the only one that polls it: who reads without it waits for ever after the first turn.
pub(crate) async fn in_turns<F: Future>(guard: &Guard, reader: F) -> F::Output {
    let mut reader = pin!(reader);
    // Boxed, as most connections never need it.
    let mut waits: Option<Pin<Box<dyn Future<Output = Step>>>> = None;
    poll_fn(|cx| {
        let waited = waits.as_mut().map(|waits| waits.as_mut().poll(cx));
        let step = waited.unwrap_or(Poll::Pending);
        if step.is_ready() {
            waits = None;
            guard.turn.renew();
        }
        let polled = reader.as_mut().poll(cx);
        // Its time is what the rest is measured by.
        drop(step);
        if polled.is_pending() && guard.turn.is_over() && waits.is_none() {
            let mut next = Box::pin(flood());
            if next.as_mut().poll(cx).is_ready() {
                guard.turn.renew();
                cx.waker().wake_by_ref();
            } else {
                waits = Some(next);
            }
        }
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use isobar_runtime::LocalScope;
    use tokio::task::{LocalSet, yield_now};

    use super::*;

    /// Turns of each connection.
    const TURNS: usize = 20;

    /// A connection that always sends more than a turn takes: how often it was read is counted in `reads`.
    async fn floods(reads: Rc<Cell<usize>>) {
        let guard = Guard::new(None);
        let reader = poll_fn(|_| {
            if !guard.turn.is_over() {
                reads.set(reads.get() + 1);
                guard.turn.over.set(true);
            }
            if reads.get() < TURNS {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        });
        in_turns(&guard, reader).await;
    }

    #[tokio::test]
    async fn who_floods_is_read_on_when_nobody_else_has_work() {
        let reads = Rc::default();
        LocalSet::new().run_until(floods(Rc::clone(&reads))).await;
        assert_eq!(reads.get(), TURNS);
    }

    #[tokio::test]
    async fn of_those_who_flood_one_at_a_time_is_read() {
        let all: [Rc<Cell<usize>>; 4] = std::array::from_fn(|_| Rc::default());
        let scope = LocalScope::new("test");
        let watched = all.clone();
        let most = async {
            for reads in &all {
                scope.spawn("flood", floods(Rc::clone(reads)));
            }
            let count = || watched.iter().map(|reads| reads.get()).sum::<usize>();
            // Each has its first turn at once.
            yield_now().await;
            let (mut before, mut most) = (count(), 0);
            while count() < all.len() * TURNS {
                yield_now().await;
                most = most.max(count() - before);
                before = count();
            }
            most
        };
        assert_eq!(LocalSet::new().run_until(most).await, 1);
    }
}

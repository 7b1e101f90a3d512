//! The end of a worker's turn: what its connections have to say leaves once nothing else is ready.
//!
//! Requests of one connection go to several endpoints, and their answers come back one after the other. If each
//! entered the kernel as soon as its connection is polled, a connection with four answers would do so up to four
//! times, and wake its peer as often.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use isobar_runtime::polls;

use super::FIRST;

/// Connections that wait at most; what each may hold back meanwhile is little.
const MOST: usize = 64;
/// Pieces of room that a worker keeps for the next ones.
const SPARE: usize = 32;
/// Looks for what else is ready before they go all the same,
const LOOKS: usize = 4;
/// and time that those may take: a turn is long where there is much to do.
const LONGEST: Duration = Duration::from_micros(500);

/// Something that has something to say.
pub(super) trait Release {
    /// Says it.
    fn release(&self);
}

#[derive(Default)]
struct Turn {
    waiting: Vec<Rc<dyn Release>>,
    carrier: Option<Waker>,
    /// Room that nobody uses now.
    spare: Vec<Vec<u8>>,
}

thread_local! {
    /// That of this worker, as long as somebody carries it to its end.
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// Has `one` released at the end of this turn; false if it should not wait for that.
pub(super) fn join<R: Release + 'static>(one: &Rc<R>) -> bool {
    TURN.with_borrow_mut(|turn| {
        let Some(turn) = turn.as_mut().filter(|turn| turn.waiting.len() < MOST) else {
            return false;
        };
        turn.waiting.push(one.clone());
        if let Some(carrier) = turn.carrier.take() {
            carrier.wake();
        }
        true
    })
}

/// Room for what a connection has to say: [`FIRST`] bytes, before it grows.
pub(super) fn room() -> Vec<u8> {
    let spare = TURN.with_borrow_mut(|turn| turn.as_mut().and_then(|turn| turn.spare.pop()));
    spare.unwrap_or_else(|| Vec::with_capacity(FIRST))
}

/// Takes it back.
pub(super) fn give_back(mut room: Vec<u8>) {
    if room.capacity() != FIRST {
        return;
    }
    room.clear();
    TURN.with_borrow_mut(|turn| {
        if let Some(turn) = turn.as_mut().filter(|turn| turn.spare.len() < SPARE) {
            turn.spare.push(room);
        }
    });
}

/// Carries the turns of this thread to their ends; one task of each worker does. Without it nothing waits.
pub(crate) async fn carry() {
    let begun = TURN.with_borrow_mut(|turn| turn.is_none().then(|| *turn = Some(Turn::default())));
    if begun.is_none() {
        return;
    }
    let _last = Last;
    loop {
        let first = poll_fn(|cx| {
            TURN.with_borrow_mut(|turn| match turn {
                Some(turn) if turn.waiting.is_empty() => {
                    turn.carrier = Some(cx.waker().clone());
                    Poll::Pending
                }
                Some(turn) => Poll::Ready(turn.waiting.len()),
                None => Poll::Ready(0),
            })
        });
        // Whoever is alone by now has nobody to wait for.
        if first.await > 1 {
            quiet().await;
        }
        release();
    }
}

/// Waits until nothing else is ready, within bounds.
async fn quiet() {
    let since = Instant::now();
    for _ in 0..LOOKS {
        let before = polls();
        // The runtime asks the kernel for what has come before this task goes on.
        tokio::task::yield_now().await;
        let own = 1;
        if polls().wrapping_sub(before) <= own || since.elapsed() >= LONGEST {
            return;
        }
    }
}

fn release() {
    let waiting =
        |turn: &mut Option<Turn>| turn.as_mut().map(|turn| std::mem::take(&mut turn.waiting));
    let mut all = TURN.with_borrow_mut(waiting).unwrap_or_default();
    for one in all.drain(..) {
        one.release();
    }
    TURN.with_borrow_mut(|turn| {
        if let Some(turn) = turn.as_mut().filter(|turn| turn.waiting.is_empty()) {
            turn.waiting = all;
        }
    });
}

/// From here on nobody carries turns: what waits goes, what comes does not wait.
struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        // A thread that ends may have lost the place before its tasks.
        let left = TURN.try_with(|turn| turn.borrow_mut().take()).ok();
        for one in left.flatten().into_iter().flat_map(|turn| turn.waiting) {
            one.release();
        }
    }
}

//! Bytes that are given to a connection and not written yet: what a peer that reads nothing makes us
//! hold for applications that send without end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::settings::DATA_MAX;

/// Bytes unsent together beyond which each stream has its share only.
const BUDGET: usize = 4 * 1024 * 1024;
/// What a stream may always have unsent: it goes on, a record at a time, whatever the others do.
const SHARE: usize = DATA_MAX;
/// With less than this unsent a stream that has its share only may send again.
const REFILL: usize = SHARE / 4;

/// Bytes unsent by all streams that share a budget: those of a caller's identity, or of one tunnel.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnsentTotal(Arc<AtomicUsize>);

impl UnsentTotal {
    /// One more stream.
    pub(crate) fn stream(&self) -> Unsent {
        Unsent(Arc::new(Stream {
            total: Arc::clone(&self.0),
            own: AtomicUsize::new(0),
            waits: AtomicBool::new(false),
            waker: Mutex::default(),
        }))
    }
}

/// Bytes unsent by one stream.
#[derive(Debug)]
pub(crate) struct Unsent(Arc<Stream>);

#[derive(Debug)]
struct Stream {
    total: Arc<AtomicUsize>,
    own: AtomicUsize,
    waits: AtomicBool,
    // Held to put in or take out.
    waker: Mutex<Option<Waker>>,
}

impl Unsent {
    /// Bytes that may be added now, at least one. Waits for bytes of this stream only, which are
    /// written or, when it breaks, dropped: streams cannot hold each other up.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        if let Some(room) = self.0.room() {
            return Poll::Ready(room);
        }
        *self.0.waker() = Some(cx.waker().clone());
        self.0.waits.store(true, Ordering::SeqCst);
        // Looked at again: the last byte may have gone in between.
        self.0.room().map_or(Poll::Pending, Poll::Ready)
    }

    /// The same bytes, counted until they are dropped.
    pub(crate) fn count(&self, bytes: Bytes) -> Bytes {
        let stream = Arc::clone(&self.0);
        stream.own.fetch_add(bytes.len(), Ordering::SeqCst);
        stream.total.fetch_add(bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted { bytes, stream })
    }
}

impl Stream {
    fn room(&self) -> Option<usize> {
        if self.total.load(Ordering::Relaxed) < BUDGET {
            return Some(usize::MAX);
        }
        (self.own.load(Ordering::SeqCst) < REFILL).then_some(SHARE)
    }

    fn waker(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        // One pointer is whole whatever happened.
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Counted {
    bytes: Bytes,
    stream: Arc<Stream>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stream = &self.stream;
        stream.total.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        let own = stream.own.fetch_sub(self.bytes.len(), Ordering::SeqCst) - self.bytes.len();
        // Sooner it could not go on, unless the others have made room, which it need not wait for.
        if own < REFILL && stream.waits.swap(false, Ordering::SeqCst) {
            let waiting = stream.waker().take();
            if let Some(waker) = waiting {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn bytes(count: usize) -> Bytes {
        Bytes::from(vec![7; count])
    }

    #[test]
    fn beyond_the_budget_each_stream_has_its_share() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        let total = UnsentTotal::default();
        let (greedy, late) = (total.stream(), total.stream());
        assert_eq!(greedy.poll_room(&cx), Poll::Ready(usize::MAX));
        let held = greedy.count(bytes(BUDGET));
        assert_eq!(held, bytes(BUDGET));

        assert_eq!(greedy.poll_room(&cx), Poll::Pending);
        assert_eq!(late.poll_room(&cx), Poll::Ready(SHARE));
        let (first, second) = (late.count(bytes(REFILL - 1)), late.count(bytes(1)));
        assert_eq!(late.poll_room(&cx), Poll::Pending);
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        // Its own bytes make room, once the last part of them is gone.
        let part = second.slice(..);
        drop(second);
        assert_eq!(late.poll_room(&cx), Poll::Pending);
        drop(part);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(late.poll_room(&cx), Poll::Ready(SHARE));
        drop(held);
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
        assert_eq!(late.poll_room(&cx), Poll::Ready(usize::MAX));
        drop(first);
        assert_eq!(total.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn nobody_pays_for_others() {
        let cx = Context::from_waker(Waker::noop());
        let (one, other) = (UnsentTotal::default(), UnsentTotal::default());
        let _held = one.stream().count(bytes(2 * BUDGET));
        assert_eq!(one.stream().poll_room(&cx), Poll::Ready(SHARE));
        assert_eq!(other.stream().poll_room(&cx), Poll::Ready(usize::MAX));
    }
}

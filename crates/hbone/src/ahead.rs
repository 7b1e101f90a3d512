//! Many TLS records in one read.
//!
//! TLS asks for one record at a time: a call into the kernel for each 16 KiB, after which the kernel
//! tells the peer of the room that it made, a packet that takes the whole way through the network. Read
//! ahead of TLS, what has arrived comes at once.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BufMut as _;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::settings::{AROUND, DATA_MAX, TOGETHER};

/// Bytes of one read: what leaves a peer as some packets of the kernel's. A core's cache holds it until
/// it is passed on.
const SIZE: usize = 4 * TOGETHER * (DATA_MAX + AROUND);
/// Full reads of a connection before what they brought is passed on: each stream of many then has
/// something worth a call.
const TURN: u8 = 4;

thread_local! {
    /// One for all connections of a thread, as a turn uses up what it reads, unless it is of one who floods and has to
    /// wait for the next. Idle ones have none.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What was read and not asked for yet.
#[derive(Default)]
pub(crate) struct Ahead {
    /// Empty, and without memory, when all of it was asked for.
    bytes: Vec<u8>,
    taken: usize,
}

impl Ahead {
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Hands on what was read before, or else reads. `reads` counts the full reads of this turn; with
    /// too many others of the thread come first.
    pub(crate) fn poll_read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        reads: &Cell<u8>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_empty() {
            if reads.get() >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if ready!(self.poll_fill(io, cx))? == SIZE {
                reads.set(reads.get() + 1);
            }
        }
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let (now, later) = rest.split_at(rest.len().min(buffer.remaining()));
        buffer.put_slice(now);
        if later.is_empty() {
            self.give_back();
        } else {
            self.taken += now.len();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fill<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.bytes = SPARE.take();
        self.bytes.reserve_exact(SIZE);
        let read = poll_read_buf(Pin::new(io), cx, &mut (&mut self.bytes).limit(SIZE));
        if self.is_empty() {
            self.give_back();
        }
        read
    }

    fn give_back(&mut self) {
        self.taken = 0;
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() > 0 {
            bytes.clear();
            // Fails where the thread is ending.
            let _ = SPARE.try_with(|spare| spare.replace(bytes));
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// A socket in which much has arrived; counts the calls.
    struct Arrived {
        bytes: usize,
        calls: usize,
    }

    impl AsyncRead for Arrived {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.calls += 1;
            let bytes = self.bytes.min(buffer.remaining());
            if bytes == 0 {
                return Poll::Pending;
            }
            for at in 0..bytes {
                buffer.put_slice(&[((self.bytes - at) % 251) as u8]);
            }
            self.bytes -= bytes;
            Poll::Ready(Ok(()))
        }
    }

    /// As TLS reads: some thousand bytes at a time, until there is no more. Says how many there were.
    async fn turn(ahead: &mut Ahead, from: &mut Arrived) -> Vec<u8> {
        let (mut all, reads) = (Vec::new(), Cell::new(0));
        poll_fn(|cx| {
            loop {
                let mut room = [0; 5000];
                let mut into = ReadBuf::new(&mut room);
                match ahead.poll_read(from, &reads, cx, &mut into) {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => return Poll::Ready(()),
                }
                all.extend_from_slice(into.filled());
            }
        })
        .await;
        all
    }

    #[tokio::test]
    async fn what_has_arrived_is_read_at_once_and_in_order() {
        let mut from = Arrived {
            bytes: 200_000,
            calls: 0,
        };
        let mut ahead = Ahead::default();
        let all = turn(&mut ahead, &mut from).await;
        assert_eq!(all.len(), 200_000);
        let right = |(at, byte): (usize, &u8)| *byte == ((200_000 - at) % 251) as u8;
        assert!(all.iter().enumerate().all(right));
        // One that brings it, one that finds no more.
        assert_eq!(from.calls, 2);
    }

    #[tokio::test]
    async fn a_turn_ends_though_there_is_more() {
        let mut from = Arrived {
            bytes: 100 * SIZE,
            calls: 0,
        };
        let mut ahead = Ahead::default();
        let all = turn(&mut ahead, &mut from).await;
        assert_eq!(all.len(), usize::from(TURN) * SIZE);
        assert_eq!(turn(&mut ahead, &mut from).await.len(), all.len());
    }

    #[tokio::test]
    async fn idle_connections_share_one_buffer() {
        let mut all: Vec<Ahead> = (0..3).map(|_| Ahead::default()).collect();
        for ahead in &mut all {
            let mut from = Arrived {
                bytes: SIZE / 2,
                calls: 0,
            };
            assert_eq!(turn(ahead, &mut from).await.len(), SIZE / 2);
            assert_eq!(ahead.bytes.capacity(), 0);
        }
        assert!(SPARE.with_borrow(Vec::capacity) >= SIZE);
    }
}

//! Many TLS records in one system call.
//!
//! HTTP/2 flushes after every DATA frame and TLS writes every record at once: a call into the
//! kernel, and a packet, for each 16 KiB. Held back between the two until there is enough, or until
//! the connection has nothing more to say, records go out together. That it has nothing more to say is
//! known only after a look at what else has arrived.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::ahead::Ahead;
use crate::settings::{FRAME_HEAD, FRAME_MAX, RECORD, TOGETHER};

/// Bytes that are worth a system call. More does not pay: the kernel cuts below 64 KiB.
const ENOUGH: usize = FRAME_MAX + FRAME_HEAD + TOGETHER * RECORD;
/// Records that are worth one, however small: TLS offers at most 64 at once.
const RECORDS: usize = 32;
/// Looks at what else has arrived before little is sent. A look costs far less than a packet and the
/// wake-up of the peer, which under load then bring the words of several streams.
const LOOKS: u8 = 2;

/// Below TLS: takes nothing while it is closed and too little is offered, as a full socket would.
/// TLS keeps what is not taken.
pub(crate) struct Held<IO> {
    io: IO,
    gate: Rc<Gate>,
    ahead: Ahead,
}

/// What both sides of TLS know.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Cell<bool>,
    /// Full reads since the connection last had nothing more to do.
    reads: Cell<u8>,
}

/// Above TLS: what HTTP/2 writes to. Cheap to clone; one clone flushes for all.
pub(crate) struct Corked<S> {
    shared: Rc<Shared<S>>,
}

struct Shared<S> {
    stream: RefCell<S>,
    gate: Rc<Gate>,
    /// Something was written since the last real flush.
    dirty: Cell<bool>,
    /// Looks since then.
    looks: Cell<u8>,
    /// A writer was told to wait, though the socket is not what it waits for.
    waiting: Cell<bool>,
}

/// `io` for TLS, and what holds it back later.
pub(crate) fn hold<IO>(io: IO) -> (Held<IO>, Rc<Gate>) {
    let gate = Rc::new(Gate::default());
    let held = Held {
        io,
        gate: Rc::clone(&gate),
        ahead: Ahead::default(),
    };
    (held, gate)
}

impl<S> Corked<S> {
    /// `stream` is TLS over what [`hold`] made together with `gate`.
    pub(crate) fn new(stream: S, gate: Rc<Gate>) -> Self {
        Self {
            shared: Rc::new(Shared {
                stream: RefCell::new(stream),
                gate,
                dirty: Cell::new(false),
                looks: Cell::new(0),
                waiting: Cell::new(false),
            }),
        }
    }

    /// Starts to hold back. From now on [`Self::poll_release`] must follow every use.
    pub(crate) fn close(&self) {
        self.shared.gate.closed.set(true);
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Sends what is held back, `now` or after some looks at what else has arrived: the caller is
    /// woken for those. Otherwise it is only woken when there is more room; an error shows at the next
    /// read or write, too.
    pub(crate) fn poll_release(&self, cx: &mut Context<'_>, now: bool) {
        let shared = &*self.shared;
        shared.gate.reads.set(0);
        if shared.dirty.get() && !now && shared.looks.get() < LOOKS {
            shared.looks.set(shared.looks.get() + 1);
            // The runtime asks the system for what has arrived before it wakes who yields.
            if pin!(tokio::task::yield_now()).poll(cx).is_pending() {
                return;
            }
        }
        shared.looks.set(0);
        if shared.dirty.get() && shared.gate.closed.replace(false) {
            let mut stream = shared.stream.borrow_mut();
            let flushed = Pin::new(&mut *stream).poll_flush(cx);
            shared.dirty.set(flushed.is_pending());
            shared.gate.closed.set(true);
            // With a full socket the socket wakes.
            if shared.waiting.take() && flushed.is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl<S> Clone for Corked<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.shared.stream.borrow_mut()).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    fn write(
        &self,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = write(Pin::new(&mut *self.shared.stream.borrow_mut()));
        self.shared.dirty.set(true);
        if written.is_pending() {
            self.shared.waiting.set(true);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(|stream| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.shared.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.gate.closed.get() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut *self.shared.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The last words: nothing is held back any more.
        self.shared.gate.closed.set(false);
        Pin::new(&mut *self.shared.stream.borrow_mut()).poll_shutdown(cx)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Held<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let held = &mut *self;
        if held.ahead.is_empty() && !held.gate.closed.get() {
            // A handshake, whose last words may be followed by anything.
            return Pin::new(&mut held.io).poll_read(cx, buffer);
        }
        let Held { io, gate, ahead } = held;
        ahead.poll_read(io, &gate.reads, cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Held<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gate.closed.get() && bytes.len() < ENOUGH {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = || slices.iter().map(|slice| slice.len()).sum::<usize>();
        if self.gate.closed.get() && slices.len() < RECORDS && offered() < ENOUGH {
            return Poll::Pending;
        }
        let io = Pin::new(&mut self.io);
        match slices {
            // A plain send costs the kernel less.
            [only] => io.poll_write(cx, only),
            several => io.poll_write_vectored(cx, several),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::settings::{AROUND, DATA_MAX};

    const FULL: usize = DATA_MAX + AROUND;
    const TOGETHER: usize = 4 * FULL;

    /// A socket that takes everything and remembers each call.
    #[derive(Default, Clone)]
    struct Socket(Rc<RefCell<Vec<usize>>>);

    /// As TLS does: offers what it has after every write, keeps what is not taken.
    struct Keeper<W> {
        kept: Vec<Vec<u8>>,
        below: W,
    }

    impl<W: AsyncWrite + Unpin> Keeper<W> {
        fn offer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.kept.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let slices: Vec<_> = self.kept.iter().map(|r| IoSlice::new(r)).collect();
            let below = Pin::new(&mut self.below);
            let taken = std::task::ready!(below.poll_write_vectored(cx, &slices))?;
            assert_eq!(taken, self.kept.iter().map(Vec::len).sum::<usize>());
            self.kept.clear();
            Poll::Ready(Ok(()))
        }
    }

    impl<W: AsyncWrite + Unpin> AsyncWrite for Keeper<W> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.kept.push(bytes.to_vec());
            let _ = self.offer(cx)?;
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.offer(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(cx)
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes = slices.iter().map(|s| s.len()).sum();
            self.0.borrow_mut().push(bytes);
            Poll::Ready(Ok(bytes))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn stack() -> (Socket, Corked<Keeper<Held<Socket>>>) {
        let socket = Socket::default();
        let (below, gate) = hold(socket.clone());
        let kept = Vec::new();
        (socket, Corked::new(Keeper { kept, below }, gate))
    }

    async fn write(cork: &mut Corked<Keeper<Held<Socket>>>, records: usize, size: usize) {
        for _ in 0..records {
            cork.write_all(&vec![0; size]).await.unwrap();
            cork.flush().await.unwrap();
        }
    }

    async fn release(cork: &Corked<Keeper<Held<Socket>>>) {
        for _ in 0..=LOOKS {
            look(cork).await;
        }
    }

    async fn look(cork: &Corked<Keeper<Held<Socket>>>) {
        poll_fn(|cx| {
            cork.poll_release(cx, false);
            Poll::Ready(())
        })
        .await;
    }

    #[test]
    fn what_leaves_together_is_one_packet_of_the_kernel() {
        // Segments of MTU 1450 and 1500, IPv4 and IPv6, with timestamps and without.
        for segment in [1398, 1400, 1428, 1440, 1448, 1460] {
            // 64 KiB less what the kernel keeps for headers (MAX_TCP_HEADER), in whole segments.
            let packet = (65_535 - 320) / segment * segment;
            assert!(ENOUGH <= packet, "{segment}: {ENOUGH} in {packet}");
            assert!(ENOUGH > packet - packet / 50, "{segment}: {packet}");
        }
    }

    #[tokio::test]
    async fn before_it_is_closed_everything_leaves_at_once() {
        let (socket, mut cork) = stack();
        write(&mut cork, 3, FULL).await;
        assert_eq!(*socket.0.borrow(), [FULL; 3]);
    }

    #[tokio::test]
    async fn records_leave_together() {
        let (socket, mut cork) = stack();
        cork.close();
        write(&mut cork, 10, FULL).await;
        assert_eq!(*socket.0.borrow(), [TOGETHER, TOGETHER]);
        release(&cork).await;
        assert_eq!(*socket.0.borrow(), [TOGETHER, TOGETHER, 2 * FULL]);
        release(&cork).await;
        assert_eq!(socket.0.borrow().len(), 3);
    }

    #[tokio::test]
    async fn what_is_said_a_moment_later_goes_along() {
        let (socket, mut cork) = stack();
        cork.close();
        write(&mut cork, 1, 10).await;
        look(&cork).await;
        write(&mut cork, 1, 20).await;
        look(&cork).await;
        assert!(socket.0.borrow().is_empty());
        look(&cork).await;
        assert_eq!(*socket.0.borrow(), [30]);
        write(&mut cork, 1, 10).await;
        look(&cork).await;
        poll_fn(|cx| {
            cork.poll_release(cx, true);
            Poll::Ready(())
        })
        .await;
        assert_eq!(*socket.0.borrow(), [30, 10]);
    }

    #[tokio::test]
    async fn who_looks_is_woken_again() {
        let (socket, mut cork) = stack();
        cork.close();
        write(&mut cork, 1, 10).await;
        poll_fn(|cx| {
            cork.poll_release(cx, false);
            if socket.0.borrow().is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        assert_eq!(*socket.0.borrow(), [10]);
    }

    #[tokio::test]
    async fn many_small_records_do_not_wait_for_ever() {
        let (socket, mut cork) = stack();
        cork.close();
        write(&mut cork, RECORDS + 1, 10).await;
        assert_eq!(*socket.0.borrow(), [RECORDS * 10]);
    }

    #[tokio::test]
    async fn the_end_holds_nothing_back() {
        let (socket, mut cork) = stack();
        cork.close();
        write(&mut cork, 1, 10).await;
        assert!(socket.0.borrow().is_empty());
        cork.shutdown().await.unwrap();
        assert_eq!(*socket.0.borrow(), [10]);
    }
}

//! What an HTTP/2 connection writes while it is polled once leaves in one system call.
//!
//! HTTP/2 flushes after every DATA frame of more than a few bytes. A connection that carries many small
//! responses would enter the kernel, and wake its peer, once for each of them. Nor does it read more small
//! frames in one turn than those who are to have them can follow.
//!
//! What is little waits a moment longer where a worker carries its turns to their ends ([`turn`]).

pub(crate) mod turn;

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use isobar_hbone::FrameHeads;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait for others at most. More does not pay, and each connection may have as many.
const MOST: usize = 32 * 1024;
/// Room for the first of them.
const FIRST: usize = 8 * 1024;
/// Slices of one write that go out together with what waits.
const SLICES: usize = 15;

/// Small DATA frames that are read before who has to take them out of their streams comes first, about: a
/// read may bring a thousand more.
const SMALL_A_TURN: usize = 4096;

/// Bytes to a caller that wait for the end of a turn at most, for answers to its other requests.
pub(crate) const ANSWERS: usize = FIRST;
/// The same to an endpoint: some sixteen requests without bodies. It begins with them while more are got ready.
pub(crate) const REQUESTS: usize = 1024;

/// A stream that keeps back what is written to it until [`Self::poll_release`], or until it is much. Cheap
/// to clone; all clones are the same stream.
pub(crate) struct Gathered<S>(Rc<RefCell<Inner<S>>>);

struct Inner<S> {
    stream: S,
    heads: FrameHeads,
    /// Small DATA frames that were read since [`Gathered::has_many_small`] said so last.
    small: usize,
    gate: Rc<Gate>,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that the stream has taken.
    taken: usize,
    /// The stream was written to and not flushed.
    dirty: bool,
    /// What the stream said to bytes that were taken from the writer long before.
    failed: Option<io::Error>,
    /// It is to be released at the end of the turn.
    joined: bool,
    /// Who is woken by what comes of that.
    writer: Option<Waker>,
}

impl<S> Gathered<S> {
    /// From now on [`Self::poll_release`] must follow every use. `preface` bytes come before the first frame.
    pub(crate) fn new(stream: S, preface: usize) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            stream,
            heads: FrameHeads::new(preface),
            small: 0,
            gate: Rc::default(),
            waiting: Vec::new(),
            taken: 0,
            dirty: false,
            failed: None,
            joined: false,
            writer: None,
        })))
    }

    /// True once so many small frames were read that nothing more is before it was asked here: what came is
    /// to be taken first.
    pub(crate) fn has_many_small(&self) -> bool {
        let small = &mut self.0.borrow_mut().small;
        let many = *small >= SMALL_A_TURN;
        if many {
            *small = 0;
        }
        many
    }

    /// Whether the peer takes what is written.
    pub(crate) fn gate(&self) -> Rc<Gate> {
        self.0.borrow().gate.clone()
    }
}

/// Shut while the peer takes nothing.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: Cell<bool>,
    /// How often it was shut so far.
    times: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.get()
    }

    /// Wakes the task of `cx` when it opens. `before`, from zero on, is for who waits to keep: nobody waits twice.
    pub(crate) fn wait(&self, before: &mut u64, cx: &Context<'_>) {
        if *before != self.times.get() {
            *before = self.times.get();
            self.waiting.borrow_mut().push(cx.waker().clone());
        }
    }

    fn set(&self, shut: bool) {
        if self.shut.replace(shut) == shut {
            return;
        }
        if shut {
            self.times.set(self.times.get() + 1);
            return;
        }
        for waiting in self.waiting.take() {
            waiting.wake();
        }
    }
}

impl<S> Clone for Gathered<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncWrite + Unpin + 'static> Gathered<S> {
    /// Sends what waits: up to `little` at the end of the turn, if that has one, more of it now. The task of `cx`
    /// is woken when there is room for more; an error shows at the next read or write.
    pub(crate) fn poll_release(&self, little: usize, cx: &mut Context<'_>) {
        let inner = &mut *self.0.borrow_mut();
        if !inner.dirty {
            return;
        }
        let waits = inner.waiting.len() - inner.taken <= little && !inner.gate.is_shut();
        if waits && (inner.joined || turn::join(&self.0)) {
            inner.joined = true;
            let writer = inner.writer.take().filter(|w| w.will_wake(cx.waker()));
            inner.writer = Some(writer.unwrap_or_else(|| cx.waker().clone()));
            return;
        }
        inner.release(cx);
    }
}

impl<S: AsyncWrite + Unpin> turn::Release for RefCell<Inner<S>> {
    fn release(&self) {
        let inner = &mut *self.borrow_mut();
        inner.joined = false;
        let writer = inner.writer.take();
        if let Some(writer) = &writer
            && inner.dirty
        {
            inner.release(&mut Context::from_waker(writer));
        }
        // Mostly that of the next time.
        inner.writer = writer;
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn release(&mut self, cx: &mut Context<'_>) {
        let flushed = self.poll_flush(cx);
        self.gate.set(flushed.is_pending());
        if let Poll::Ready(Err(error)) = flushed {
            self.forget();
            self.failed = Some(error);
            cx.waker().wake_by_ref();
        }
    }

    fn forget(&mut self) {
        (self.waiting, self.taken) = (Vec::new(), 0);
        self.dirty = false;
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.waiting.len() {
            let rest = &self.waiting[self.taken..];
            let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += taken;
        }
        // An idle connection keeps no room.
        turn::give_back(std::mem::take(&mut self.waiting));
        self.taken = 0;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.dirty = false;
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        self.dirty |= offered > 0;
        if self.waiting.len() + offered <= MOST {
            if self.waiting.capacity() == 0 && offered > 0 {
                self.waiting = turn::room();
            }
            for slice in slices {
                self.waiting.extend_from_slice(slice);
            }
            return Poll::Ready(Ok(offered));
        }
        self.poll_write_through(cx, slices)
    }

    /// Writes what waits and what is offered, as far as the stream takes it.
    fn poll_write_through(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let rest = self.waiting.len() - self.taken;
            if rest == 0 {
                self.waiting.clear();
                self.taken = 0;
            }
            let mut all = [IoSlice::new(&[]); SLICES + 1];
            all[0] = IoSlice::new(&self.waiting[self.taken..]);
            let count = slices.len().min(SLICES);
            for (place, slice) in all[1..].iter_mut().zip(slices) {
                *place = IoSlice::new(slice);
            }
            let first = usize::from(rest == 0);
            let stream = Pin::new(&mut self.stream);
            let taken = ready!(stream.poll_write_vectored(cx, &all[first..=count]))?;
            if taken == 0 {
                return Poll::Ready(Ok(0));
            }
            self.taken += taken.min(rest);
            if taken > rest {
                self.waiting.clear();
                self.taken = 0;
                return Poll::Ready(Ok(taken - rest));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }
        if inner.small >= SMALL_A_TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut inner.stream).poll_read(cx, buffer);
        let small = &mut inner.small;
        inner.heads.walk(&buffer.filled()[before..], |head| {
            *small += usize::from(head.is_small_data());
            true
        });
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        // Whatever the stream does: pieces are put together here.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        // The last words.
        ready!(inner.poll_flush(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;

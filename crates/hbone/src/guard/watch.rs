use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Guard;
use super::heads::Heads;
use super::meter::{Meter, Role};

/// Bytes before a client's first frame.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// A byte stream whose frame headers are judged on their way in. Once the guard has tripped it
/// reads nothing more, so that whoever floods waits while the goodbye is said.
pub(crate) struct Watch<IO> {
    io: IO,
    heads: Heads,
    meter: Meter,
    guard: Rc<Guard>,
}

impl<IO> Watch<IO> {
    pub(crate) fn new(io: IO, role: Role, guard: Rc<Guard>) -> Self {
        let preface = match role {
            Role::Server => PREFACE,
            Role::Client => 0,
        };
        Self {
            io,
            heads: Heads::new(preface),
            meter: Meter::new(role, Instant::now()),
            guard,
        }
    }

    fn sent(&self, bytes: usize) {
        self.guard.sent.set(self.guard.sent.get() + bytes as u64);
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watch<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.guard.is_tripped() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let (meter, guard) = (&mut this.meter, &*this.guard);
        let read = buf.filled().len() - before;
        let passed = this
            .heads
            .walk(&buf.filled()[before..], |head| meter.pass(head, guard));
        if passed < read {
            buf.set_filled(before + passed);
            if passed == 0 {
                // Nothing to hand on, and no end either.
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watch<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.sent(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        self.sent(bytes);
        Poll::Ready(Ok(bytes))
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

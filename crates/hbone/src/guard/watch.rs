use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Guard;
use super::heads::FrameHeads;
use super::meter::{Meter, Role};

/// Small DATA frames handed on before who has to take them out of their streams comes first: the HTTP/2
/// library counts what lies there against [`DATA_FRAME_BUDGET`](crate::settings::DATA_FRAME_BUDGET), and a
/// read may bring ten thousands of them.
const SMALL_A_TURN: usize = 4096;

/// Bytes before a client's first frame.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// A byte stream whose frame headers are judged on their way in. Once the guard has tripped it
/// reads nothing more, so that whoever floods waits while the goodbye is said.
pub(crate) struct Watch<IO> {
    io: IO,
    heads: FrameHeads,
    meter: Meter,
    /// Small DATA frames of this turn.
    small: usize,
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
            heads: FrameHeads::new(preface),
            meter: Meter::new(role, Instant::now()),
            small: 0,
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
        if this.small >= SMALL_A_TURN {
            this.small = 0;
            // Behind those who were woken by what has come.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let (meter, small, guard) = (&mut this.meter, &mut this.small, &*this.guard);
        let read = buf.filled().len() - before;
        let passed = this.heads.walk(&buf.filled()[before..], |head| {
            *small += usize::from(head.is_small_data());
            meter.pass(head, guard)
        });
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// A DATA frame of one byte on stream 1.
    const FRAME: [u8; 10] = [0, 0, 1, 0, 0, 0, 0, 0, 1, b'x'];

    /// Reads until the watch waits; says how many bytes came.
    async fn turn(watch: &mut Watch<&[u8]>) -> usize {
        let mut all = 0;
        poll_fn(|cx| {
            loop {
                let mut room = [0; 1000];
                let mut buf = ReadBuf::new(&mut room);
                match Pin::new(&mut *watch).poll_read(cx, &mut buf) {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => return Poll::Ready(()),
                }
                all += buf.filled().len();
                if buf.filled().is_empty() {
                    return Poll::Ready(());
                }
            }
        })
        .await;
        all
    }

    #[tokio::test]
    async fn many_small_frames_let_others_run() {
        let bytes = FRAME.repeat(2 * SMALL_A_TURN);
        let mut watch = Watch::new(&bytes[..], Role::Client, Guard::new(None));
        let first = turn(&mut watch).await;
        assert!((SMALL_A_TURN * FRAME.len()..bytes.len()).contains(&first));
        let mut rest = 0;
        for _ in 0..2 {
            rest += turn(&mut watch).await;
        }
        assert_eq!(first + rest, bytes.len());
    }
}

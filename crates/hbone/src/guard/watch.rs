use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Guard;
use super::heads::FrameHeads;
use super::meter::{Meter, Role};

/// Bytes before a client's first frame.
pub(super) const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// A byte stream whose frame headers are judged on their way in. Once the guard has tripped it
/// reads nothing more, so that whoever floods waits while the goodbye is said. Nor does it after a turn:
/// a read may bring ten thousands of frames.
pub(crate) struct Watch<IO> {
    io: IO,
    heads: FrameHeads,
    meter: Meter,
    /// Read, for the next turn.
    later: Bytes,
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
            later: Bytes::new(),
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
        let Self {
            io,
            heads,
            meter,
            later,
            guard,
        } = &mut *self;
        if guard.is_tripped() || guard.turn.is_over() {
            // Whoever runs the connection in turns wakes it.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let is_new = later.is_empty();
        if !is_new {
            buf.put_slice(&later[..later.len().min(buf.remaining())]);
        } else if Pin::new(io).poll_read(cx, buf)?.is_pending() {
            guard.turn.renew();
            return Poll::Pending;
        }
        let read = &buf.filled()[before..];
        let all = read.len();
        let part = guard.turn.part(heads, read);
        if !is_new {
            later.advance(part);
        } else if part < all {
            *later = Bytes::copy_from_slice(&read[part..]);
        }
        let passed = heads.walk(&read[..part], |head| meter.pass(head, guard));
        buf.set_filled(before + passed);
        if passed == 0 && all > 0 {
            // Nothing to hand on, and no end either.
            return Poll::Pending;
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

    use crate::guard::turns::FRAMES_A_TURN;

    /// Reads until the watch waits.
    async fn turn(watch: &mut Watch<&[u8]>) -> Vec<u8> {
        let mut all = Vec::new();
        poll_fn(|cx| {
            loop {
                let mut room = [0; 1000];
                let mut buf = ReadBuf::new(&mut room);
                match Pin::new(&mut *watch).poll_read(cx, &mut buf) {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => return Poll::Ready(()),
                }
                all.extend_from_slice(buf.filled());
                if buf.filled().is_empty() {
                    return Poll::Ready(());
                }
            }
        })
        .await;
        all
    }

    #[tokio::test]
    async fn a_turn_ends_at_a_frame_and_loses_none() {
        // Frames that do not fit the reads.
        let bytes: Vec<u8> = (0..1000_u16)
            .flat_map(|n| {
                let length = u8::try_from(n % 3).unwrap();
                let payload = vec![n.to_be_bytes()[1]; length.into()];
                [&[0, 0, length, 0, 0, 0, 0, 0, 1][..], &payload].concat()
            })
            .collect();
        let guard = Guard::new(None);
        let mut watch = Watch::new(&bytes[..], Role::Client, Rc::clone(&guard));
        let mut all = Vec::new();
        for turns in 1.. {
            all.extend(turn(&mut watch).await);
            if all.len() == bytes.len() {
                assert_eq!(turns, 1000_usize.div_ceil(FRAMES_A_TURN as usize));
                break;
            }
            assert!(guard.turn.is_over());
            assert_eq!(count(&all), turns * FRAMES_A_TURN as usize);
            assert_eq!(turn(&mut watch).await, [0; 0], "before the next turn");
            guard.turn.renew();
        }
        assert_eq!(all, bytes);
    }

    /// Whole frames.
    fn count(bytes: &[u8]) -> usize {
        let mut count = 0;
        let whole = FrameHeads::new(0).walk(bytes, |_| {
            count += 1;
            true
        });
        assert_eq!(whole, bytes.len());
        count
    }

    #[tokio::test]
    async fn requests_count_for_more_than_data() {
        let request = vec![0, 0, 1, 1, 4, 0, 0, 0, 1, 0x82];
        let bulk = [&[0, 4, 0, 0, 0, 0, 0, 0, 1][..], &[0; 1024]].concat();
        for (frame, a_turn) in [(request, 16), (bulk, 1000)] {
            let bytes = frame.repeat(1000);
            let mut watch = Watch::new(&bytes[..], Role::Client, Guard::new(None));
            let read = turn(&mut watch).await.len();
            assert_eq!(read, (a_turn * frame.len()).min(bytes.len()));
        }
    }
}

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BufMut as _;
use isobar_types::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::Batch;

/// Chunks written at once.
const GATHER: usize = 64;

/// One end of a relay: ends and breaks are told apart, unlike with `AsyncRead` and `AsyncWrite`.
pub trait Endpoint: Unpin {
    /// Adds what has arrived to `batch`; false when the peer has ended its direction.
    fn poll_receive(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<bool>>;

    /// Called while `batch` cannot be passed on: may add to it what costs more where it is.
    fn poll_relieve(&mut self, cx: &mut Context<'_>, batch: &mut Batch) {
        let _ = (cx, batch);
    }

    /// Takes at least one byte from `batch`, which is not empty; returns how many.
    fn poll_send(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<usize>>;

    /// Ends this direction; the other stays open.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// True if the peer sees the same orderly end when the endpoint is dropped after its own end was
    /// received: what is dropped next need not be finished first.
    fn finishes_when_dropped(&self) -> bool {
        false
    }

    /// `bytes` of what was received here have been sent on the other side.
    fn passed_on(&mut self, bytes: usize) {
        let _ = bytes;
    }

    /// Ready when the endpoint has broken without being read or written.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let _ = cx;
        Poll::Pending
    }

    /// The socket, if the bytes are what goes through it.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    /// Why an endpoint that broke did so, where that is more than a connection lost.
    fn cause(&self) -> Option<Reason> {
        None
    }

    /// Tells the peer that this is no orderly end. The endpoint is of no use afterwards.
    fn reset(&mut self);
}

/// What a read into `batch` means; without an error nothing has arrived yet.
fn received(read: Result<usize, Option<io::Error>>, batch: &mut Batch) -> Poll<io::Result<bool>> {
    match read {
        Ok(bytes) => Poll::Ready(Ok(bytes > 0)),
        Err(Some(error)) => Poll::Ready(Err(error)),
        Err(None) => {
            batch.rest();
            Poll::Pending
        }
    }
}

impl Endpoint for TcpStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<bool>> {
        // Readiness first: an idle connection holds no buffer.
        if self.poll_read_ready(cx)?.is_pending() {
            batch.rest();
            return Poll::Pending;
        }
        // Polled, not tried: a read that comes back short tells the runtime that there is no more,
        // which otherwise takes another call into the kernel.
        let read = batch.fill(|buffer, most| {
            match poll_read_buf(Pin::new(self), cx, &mut buffer.limit(most)) {
                Poll::Ready(read) => read.map_err(Some),
                Poll::Pending => Err(None),
            }
        });
        received(read, batch)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<usize>> {
        let bytes = if let Some(only) = batch.only() {
            // A plain send costs the kernel less.
            ready!(Pin::new(self).poll_write(cx, only))?
        } else {
            let mut slices = [IoSlice::new(&[]); GATHER];
            let filled = batch.slices(&mut slices);
            ready!(Pin::new(self).poll_write_vectored(cx, &slices[..filled]))?
        };
        batch.advance(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(self).poll_shutdown(cx)) {
            // The peer is gone already; its own reset, if any, is seen by reading.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }

    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn finishes_when_dropped(&self) -> bool {
        // Closing sends FIN; a reset it is only with bytes unread, and there are none after the end.
        true
    }

    fn reset(&mut self) {
        isobar_net::reset_on_close(self);
    }
}

/// Any byte stream as an endpoint. Its reset is to be dropped without a shutdown, which TLS peers
/// see as a truncation.
#[derive(Debug)]
pub struct Plain<T> {
    stream: Option<T>,
    /// Written, but perhaps still in a buffer of the stream's own.
    unflushed: bool,
}

impl<T> Plain<T> {
    /// Wraps a stream.
    pub const fn new(stream: T) -> Self {
        Self {
            stream: Some(stream),
            unflushed: false,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Plain<T> {
    fn stream(&mut self) -> io::Result<Pin<&mut T>> {
        self.stream
            .as_mut()
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Pushes out what the stream may hold back; if it cannot now, the next wake-up tries again,
    /// since both directions of a relay are polled on each.
    fn flush(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.unflushed {
            self.unflushed = self.stream()?.poll_flush(cx)?.is_pending();
        }
        Ok(())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Endpoint for Plain<T> {
    fn poll_receive(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<bool>> {
        self.flush(cx)?;
        let mut stream = self.stream()?;
        let read = batch.fill(|buffer, most| {
            buffer.resize(most, 0);
            let mut into = ReadBuf::new(buffer);
            let polled = stream.as_mut().poll_read(cx, &mut into);
            let bytes = into.filled().len();
            buffer.truncate(bytes);
            match polled {
                Poll::Ready(Ok(())) => Ok(bytes),
                Poll::Ready(Err(error)) => Err(Some(error)),
                Poll::Pending => Err(None),
            }
        });
        received(read, batch)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<usize>> {
        let mut stream = self.stream()?;
        let bytes = {
            let mut slices = [IoSlice::new(&[]); GATHER];
            let filled = batch.slices(&mut slices);
            ready!(stream.as_mut().poll_write_vectored(cx, &slices[..filled]))?
        };
        if bytes == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        batch.advance(bytes);
        self.unflushed = true;
        if batch.is_empty() {
            self.flush(cx)?;
        }
        Poll::Ready(Ok(bytes))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }

    fn reset(&mut self) {
        self.stream = None;
    }
}

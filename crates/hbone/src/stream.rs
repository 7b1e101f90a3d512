use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason as H2Reason, RecvStream, SendStream};
use http::HeaderMap;
use isobar_tls::VerifiedPeer;
use isobar_types::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::guard::StreamPermit;
use crate::headers::Baggage;
use crate::pool::Slot;
use crate::relay::{Batch, Endpoint};
use crate::settings::{FRAME_MAX, SEND_BUFFER};
use crate::unsent::Unsent;

/// Chunks gathered before they are passed on.
const CHUNKS_MAX: usize = 64;
/// Bytes gathered before they are passed on.
const GATHER_MAX: usize = 256 * 1024;
/// Bytes taken out of the HTTP/2 library while they cannot be passed on: there a frame of one byte
/// takes some 600 bytes of memory, here one. Their credit is held, so the sender's window still counts.
const RELIEF_MAX: usize = 64 * 1024;
/// Chunks taken out in one turn: many, as a peer that sends single bytes sends many in one record.
const RELIEF_CHUNKS: usize = 2048;
/// Chunks below this many bytes are copied together.
const SMALL: usize = 512;

/// What a stream gives back at its end.
#[derive(Debug)]
pub(crate) enum Place {
    /// Its place on a tunnel of the pool.
    Pooled(Slot),
    /// Its place among the streams of the caller's identity.
    Served(StreamPermit),
}

impl Place {
    /// What the stream shares a budget for unsent bytes with: all streams of the tunnel, or of the
    /// caller's identity.
    fn unsent(&self) -> Unsent {
        match self {
            Self::Pooled(slot) => slot.tunnel().unsent().stream(),
            Self::Served(permit) => permit.unsent().stream(),
        }
    }
}

/// The bytes of one CONNECT stream. Dropping it before both directions have ended resets the
/// stream (CANCEL); [`Endpoint::reset`] says that the TCP connection behind it broke.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received, not yet read; only the `AsyncRead` side leaves a rest.
    unread: Bytes,
    finished: bool,
    unsent: Unsent,
    peer: VerifiedPeer,
    /// The server's answer, until somebody has read it or has no use for it.
    told: Option<Box<HeaderMap>>,
    /// Last, so that the stream has ended by then.
    _place: Place,
}

impl TunnelStream {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        peer: VerifiedPeer,
        told: Option<HeaderMap>,
        place: Place,
    ) -> Self {
        Self {
            send,
            recv,
            unread: Bytes::new(),
            finished: false,
            unsent: place.unsent(),
            peer,
            told: told.map(Box::new),
            _place: place,
        }
    }

    /// The proxy at the other end of the tunnel.
    #[must_use]
    pub const fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// What the server said about the destination in its answer; none on the server's side.
    /// Unauthenticated, for telemetry.
    #[must_use]
    pub fn baggage(&self) -> Option<Baggage> {
        Baggage::from_headers(self.told.as_deref()?)
    }

    /// Lets go of what [`Self::baggage`] gives, so that it need not be kept.
    pub fn forget_baggage(&mut self) {
        self.told = None;
    }

    /// The next chunk; `None` at the peer's END_STREAM. Its credit is still held.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.unread))));
        }
        match ready!(self.recv.poll_data(cx)) {
            // "No error" after a complete answer is how servers stop an upload: an end, no break.
            Some(Err(error)) if error.reason() == Some(H2Reason::NO_ERROR) && error.is_reset() => {
                Poll::Ready(None)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(broken(error)))),
            Some(Ok(chunk)) => Poll::Ready(Some(Ok(chunk))),
            None => Poll::Ready(None),
        }
    }

    /// Bytes that may be sent now, at most `wanted`, at least one.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let wanted = wanted
            .min(SEND_BUFFER)
            .min(ready!(self.unsent.poll_room(cx)));
        self.send.reserve_capacity(wanted);
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            }
        }
    }

    /// The stream cannot send any more: find out why.
    fn why_closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => reset_by_peer(reason),
            Poll::Ready(Err(error)) => broken(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }

    fn release(&mut self, bytes: usize) {
        // Fails only when the stream is gone, and with it every window.
        let _ = self.recv.flow_control().release_capacity(bytes);
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.finished {
            return Ok(());
        }
        self.finished = true;
        self.send.send_data(Bytes::new(), true).map_err(broken)
    }
}

impl Endpoint for TunnelStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<bool>> {
        // Bounded: a peer may send empty frames without end.
        for _ in 0..CHUNKS_MAX {
            if batch.bytes() >= GATHER_MAX {
                break;
            }
            match self.poll_chunk(cx) {
                Poll::Ready(Some(Ok(chunk))) => batch.push(chunk),
                Poll::Ready(Some(Err(error))) if batch.is_empty() => {
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(None) if batch.is_empty() => return Poll::Ready(Ok(false)),
                // The end, or the error, comes again once the batch is passed on.
                Poll::Ready(None | Some(Err(_))) => break,
                Poll::Pending if batch.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(true))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<io::Result<usize>> {
        let mut room = ready!(self.poll_room(cx, batch.bytes()))?;
        let mut sent = 0;
        while room > 0
            && let Some(piece) = batch.take(room.min(FRAME_MAX))
        {
            let bytes = piece.len();
            if let Err(error) = self.send.send_data(self.unsent.count(piece), false) {
                // A stream that is gone refuses as a misuse; the cause is in its state.
                tracing::trace!(%error, "data refused");
                return Poll::Ready(Err(self.why_closed(cx)));
            }
            room -= bytes;
            sent += bytes;
        }
        Poll::Ready(Ok(sent))
    }

    fn poll_relieve(&mut self, cx: &mut Context<'_>, batch: &mut Batch) {
        for _ in 0..RELIEF_CHUNKS {
            if batch.bytes() >= RELIEF_MAX {
                return;
            }
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) if chunk.len() < SMALL => batch.push_joined(&chunk),
                Poll::Ready(Some(Ok(chunk))) => batch.push(chunk),
                // Seen again once the batch is passed on.
                Poll::Ready(Some(Err(_)) | None) | Poll::Pending => return,
            }
        }
        // More may be there.
        cx.waker().wake_by_ref();
    }

    fn cause(&self) -> Option<Reason> {
        self.peer.is_revoked().then_some(Reason::CertificateRevoked)
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }

    fn passed_on(&mut self, bytes: usize) {
        self.release(bytes);
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.finished {
            return Poll::Pending;
        }
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(reset_by_peer(reason)),
            Err(error) => Poll::Ready(broken(error)),
        }
    }

    fn reset(&mut self) {
        // RFC 9113 §8.5: what a TCP error behind a CONNECT stream is told as.
        self.send.send_reset(H2Reason::CONNECT_ERROR);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..CHUNKS_MAX {
            let Some(chunk) = ready!(self.poll_chunk(cx)) else {
                return Poll::Ready(Ok(()));
            };
            let mut chunk = chunk?;
            if chunk.is_empty() {
                continue;
            }
            let bytes = chunk.len().min(buf.remaining());
            buf.put_slice(&chunk[..bytes]);
            chunk.advance(bytes);
            self.unread = chunk;
            self.release(bytes);
            return Poll::Ready(Ok(()));
        }
        // Only empty frames so far: let others run.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, buf.len()))?;
        let mut batch = Batch::default();
        batch.push(Bytes::copy_from_slice(&buf[..room]));
        self.poll_send(cx, &mut batch)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is accepted is the connection's to send; there is nothing to wait for here.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

fn reset_by_peer(reason: H2Reason) -> io::Error {
    // "No error" says that the peer wants no more, not that what it sent is void.
    let kind = if reason == H2Reason::NO_ERROR {
        io::ErrorKind::BrokenPipe
    } else {
        io::ErrorKind::ConnectionReset
    };
    io::Error::new(kind, format!("the peer reset the stream: {reason}"))
}

/// A stream that is reset, or a connection that is gone under it.
fn broken(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() {
        io::ErrorKind::ConnectionReset
    } else {
        io::ErrorKind::ConnectionAborted
    };
    io::Error::new(kind, error)
}

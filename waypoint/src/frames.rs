//! Bodies that go out over HTTP/2. Pieces that are small leave together where they are there together, and where
//! the peer takes nothing: each that waits costs h2 as much as a large one.

mod inflow;

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ::http::HeaderMap;
use ::http::header::{CONNECTION, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http_body::{Body, Frame};

pub(crate) use self::inflow::{Inflow, Inflows, SMALL_FRAMES};
use crate::gather::Gate;
use crate::http::is_for_one_hop;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Pieces that are shorter are put together,
const SMALL: usize = 1024;
/// until they come to so much.
const TOGETHER: usize = 4 * 1024;

/// A body on its way into a stream. Ready when it is through, or has ended otherwise.
pub(crate) struct Outflow<B> {
    out: SendStream<Bytes>,
    body: B,
    /// What waits for room, and whether nothing follows it.
    chunk: Option<(Bytes, bool)>,
    /// Something was sent: what follows waits for room.
    begun: bool,
    gate: Rc<Gate>,
    /// Small pieces that others may follow.
    small: BytesMut,
    /// When it waited for the gate last.
    waited: u64,
}

impl<B> Outflow<B> {
    pub(crate) fn new(out: SendStream<Bytes>, body: B, gate: Rc<Gate>) -> Self {
        Self {
            out,
            body,
            chunk: None,
            begun: false,
            gate,
            small: BytesMut::new(),
            waited: 0,
        }
    }

    /// Ends it for good.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.out.send_reset(reason);
    }
}

impl<B> Future for Outflow<B>
where
    B: Body<Data = Bytes, Error: StdError + 'static> + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.poll_end(cx) {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "a body ended early");
                Poll::Ready(())
            }
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<B> Outflow<B>
where
    B: Body<Data = Bytes, Error: StdError + 'static> + Unpin,
{
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if self.chunk.is_some() {
                ready!(self.poll_room(cx))?;
            }
            if let Some((data, last)) = self.chunk.take() {
                self.out.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            // Room is asked for only once there is something to send: what one stream holds of the
            // connection's window others have not.
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                if !self.small.is_empty() {
                    if !self.gate.is_shut() {
                        self.send_small(false);
                        continue;
                    }
                    self.gate.wait(&mut self.waited, cx);
                }
                // Last, as whoever has asked for it is woken by what it does after that: a body that is there
                // already goes without. Elsewhere a reset shows by itself.
                return match self.out.poll_reset(cx)? {
                    Poll::Ready(reason) => Poll::Ready(Err(reason.into())),
                    Poll::Pending => Poll::Pending,
                };
            };
            match frame {
                Some(Ok(frame)) => {
                    if self.take(frame)? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Some(Err(error)) => {
                    let reason = reason_of(&error);
                    self.out.send_reset(reason);
                    return Poll::Ready(Err(reason.into()));
                }
                None if self.small.is_empty() => {
                    self.out.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
                None => self.send_small(true),
            }
        }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while self.out.capacity() == 0 {
            match ready!(self.out.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                // Reset, or over.
                None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Has small pieces wait for room.
    fn send_small(&mut self, last: bool) {
        // h2 asks for the whole of it as soon as it is sent.
        self.out.reserve_capacity(1);
        self.chunk = Some((self.small.split().freeze(), last));
    }

    /// Takes a frame of the body; true if it was the last and is sent.
    fn take(&mut self, frame: Frame<Bytes>) -> Result<bool, h2::Error> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else {
                    return Ok(false);
                };
                if !self.small.is_empty() {
                    self.out.send_data(self.small.split().freeze(), false)?;
                }
                self.out.send_trailers(trailers)?;
                return Ok(true);
            }
        };
        let last = self.body.is_end_stream();
        if !self.small.is_empty() || (self.begun && !last && data.len() < SMALL) {
            self.small.extend_from_slice(&data);
            if last || self.small.len() >= TOGETHER {
                self.send_small(last);
            }
            return Ok(false);
        }
        // Most bodies are a single frame, for which there is room. Where there is none it waits in the stream
        // as it would here.
        if !std::mem::replace(&mut self.begun, true) || data.is_empty() {
            self.out.send_data(data, last)?;
            return Ok(last);
        }
        // h2 asks for the whole of it as soon as it is sent.
        self.out.reserve_capacity(1);
        self.chunk = Some((data, last));
        Ok(false)
    }
}

/// The code that ended a body, where HTTP/2 gave one.
pub(crate) fn reason_of(error: &(dyn StdError + 'static)) -> Reason {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(reason) = cause
            .downcast_ref::<h2::Error>()
            .and_then(h2::Error::reason)
        {
            return reason;
        }
        next = cause.source();
    }
    Reason::INTERNAL_ERROR
}

/// Removes what is for one hop of HTTP/1.1, which rules may have set; true if there was something.
pub(crate) fn clean(headers: &mut HeaderMap) -> bool {
    let (mut te, mut others) = (false, false);
    for name in headers.keys() {
        match name.as_str() {
            "te" => te = true,
            other => others |= is_for_one_hop(other),
        }
    }
    // Each call of gRPC says `te`, and hardly any request anything else: names are not looked for in vain.
    if others {
        for name in [
            CONNECTION,
            TRANSFER_ENCODING,
            UPGRADE,
            KEEP_ALIVE,
            PROXY_CONNECTION,
        ] {
            headers.remove(name);
        }
    }
    if te && headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
    te || others
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    #[test]
    fn what_is_for_one_hop_stays_here() {
        let mut headers = HeaderMap::new();
        for name in ["connection", "keep-alive", "upgrade", "te", "x-kept"] {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        assert!(clean(&mut headers));
        assert_eq!(headers.len(), 1);
        assert!(!clean(&mut headers));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        clean(&mut headers);
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn the_code_that_ended_a_body_goes_on() {
        let reset = h2::Error::from(Reason::ENHANCE_YOUR_CALM);
        let broken: crate::upstream::AnswerError = reset.into();
        assert_eq!(reason_of(&broken), Reason::ENHANCE_YOUR_CALM);
        assert_eq!(reason_of(&std::fmt::Error), Reason::INTERNAL_ERROR);
    }
}

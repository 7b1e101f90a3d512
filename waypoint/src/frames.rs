//! Bodies over HTTP/2, as h2 has them: one that comes in, and one that goes out.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::HeaderMap;
use ::http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http_body::{Body, Frame, SizeHint};

use crate::http::is_for_one_hop;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A body that comes in.
#[derive(Debug)]
pub(crate) struct Inflow {
    stream: RecvStream,
    /// Octets that are still to come, where the head said how many.
    left: Option<u64>,
    data_done: bool,
}

impl Inflow {
    /// What follows a head with these fields.
    pub(crate) fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let length = headers.get(CONTENT_LENGTH);
        let left = length
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse().ok());
        Self {
            stream,
            left,
            data_done: false,
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It has been read: the peer may send as much again. That fails only when the stream
                    // is over.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_done = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(
            trailers
                .map(|trailers| trailers.map(Frame::trailers))
                .transpose(),
        )
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A body on its way into a stream. Ready when it is through, or has ended otherwise.
pub(crate) struct Outflow<B> {
    out: SendStream<Bytes>,
    body: B,
    /// What waits for room, and whether nothing follows it.
    chunk: Option<(Bytes, bool)>,
}

impl<B> Outflow<B> {
    pub(crate) const fn new(out: SendStream<Bytes>, body: B) -> Self {
        Self {
            out,
            body,
            chunk: None,
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
                None => {
                    self.out.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
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

    /// Takes a frame of the body; true if it was the last and is sent.
    fn take(&mut self, frame: Frame<Bytes>) -> Result<bool, h2::Error> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else {
                    return Ok(false);
                };
                self.out.reserve_capacity(0);
                self.out.send_trailers(trailers)?;
                return Ok(true);
            }
        };
        let last = self.body.is_end_stream();
        if data.is_empty() {
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
    if !headers.keys().any(|name| is_for_one_hop(name.as_str())) {
        return false;
    }
    for name in [
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        KEEP_ALIVE,
        PROXY_CONNECTION,
    ] {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
    true
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

//! Bodies of responses, whichever HTTP they came over.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::Response;
use ::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// A piece of a body that is shorter, and not its last, is copied: otherwise it keeps the whole buffer of 8 KiB
/// and more that it was read into, and a caller who reads slowly has many of them kept.
const COPIED: usize = 4 * 1024;

/// The body of an endpoint's response.
#[derive(Debug)]
pub struct Answer(Source);

#[derive(Debug)]
enum Source {
    One(Incoming),
    Two {
        stream: RecvStream,
        /// Octets that are still to come, where the head said how many.
        left: Option<u64>,
        data_done: bool,
    },
}

/// Why the body of a response broke off.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Over HTTP/1.1.
    #[error(transparent)]
    One(#[from] hyper::Error),
    /// Over HTTP/2; the peer's code goes on to the caller.
    #[error("http2 error")]
    Two(#[from] h2::Error),
}

impl From<Incoming> for Answer {
    fn from(body: Incoming) -> Self {
        Self(Source::One(body))
    }
}

impl Answer {
    /// A response over HTTP/2.
    pub(super) fn over_http2(response: Response<RecvStream>) -> Response<Self> {
        let length = response.headers().get(CONTENT_LENGTH);
        let left = length
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse().ok());
        response.map(|stream| {
            Self(Source::Two {
                stream,
                left,
                data_done: false,
            })
        })
    }
}

/// A reset without an error ends an answer that came before its request was whole (RFC 9113 §8.1).
fn ended(error: h2::Error) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
    let early = error.reason() == Some(Reason::NO_ERROR);
    Poll::Ready((!early).then(|| Err(error.into())))
}

fn owned(data: Bytes, last: bool) -> Bytes {
    if last || data.len() >= COPIED {
        return data;
    }
    Bytes::copy_from_slice(&data)
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let (stream, left, data_done) = match &mut self.0 {
            Source::One(body) => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                let last = body.is_end_stream();
                let frame = frame.map(|frame| match frame {
                    Ok(frame) => Ok(frame.map_data(|data| owned(data, last))),
                    Err(error) => Err(AnswerError::from(error)),
                });
                return Poll::Ready(frame);
            }
            Source::Two {
                stream,
                left,
                data_done,
            } => (stream, left, data_done),
        };
        if !*data_done {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It has been read: the peer may send as much again. That fails only when the stream
                    // is over.
                    let _ = stream.flow_control().release_capacity(data.len());
                    *left = left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return ended(error),
                None => *data_done = true,
            }
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => ended(error),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::One(body) => body.is_end_stream(),
            Source::Two { stream, .. } => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::One(body) => body.size_hint(),
            Source::Two { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_piece_keeps_no_large_buffer() {
        let buffer = Bytes::from(vec![7; 8192]);
        let small = owned(buffer.slice(..100), false);
        assert_eq!(small, buffer.slice(..100));
        assert!(small.is_unique());
        // What fills its buffer, or is alone, is not worth a copy.
        assert!(!owned(buffer.slice(..COPIED), false).is_unique());
        assert!(!owned(buffer.slice(..100), true).is_unique());
    }
}

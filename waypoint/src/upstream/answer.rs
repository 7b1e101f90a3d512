//! Bodies of responses, whichever HTTP they came over.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::Response;
use ::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};

use super::http1;
use crate::stream::AnyStream;

/// The body of an endpoint's response.
#[derive(Debug)]
pub struct Answer(Source);

#[derive(Debug)]
enum Source {
    One(http1::Reply),
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
    One(#[from] http1::Error),
    /// Over HTTP/2; the peer's code goes on to the caller.
    #[error("http2 error")]
    Two(#[from] h2::Error),
}

impl From<http1::Reply> for Answer {
    fn from(body: http1::Reply) -> Self {
        Self(Source::One(body))
    }
}

impl Answer {
    /// What the connection carries from here on, where the endpoint has agreed to speak something else.
    pub(crate) fn switched(&mut self) -> Option<AnyStream> {
        match &mut self.0 {
            Source::One(http1::Reply::Switched(stream)) => stream.take().map(|stream| stream.0),
            Source::One(_) | Source::Two { .. } => None,
        }
    }

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

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let (stream, left, data_done) = match &mut self.0 {
            Source::One(body) => {
                let frame = ready!(body.poll_frame(cx));
                return Poll::Ready(frame.map(|frame| frame.map_err(AnswerError::from)));
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

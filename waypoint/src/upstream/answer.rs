//! Bodies of responses, whichever HTTP they came over.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::Response;
use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};

use super::http1;
use crate::frames::{Inflow, Inflows};
use crate::stream::AnyStream;

/// The body of an endpoint's response.
#[derive(Debug)]
pub struct Answer(Source);

#[derive(Debug)]
enum Source {
    One(http1::Reply),
    Two(Inflow),
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
            Source::One(_) | Source::Two(_) => None,
        }
    }

    /// A response over HTTP/2.
    pub(super) fn over_http2(response: Response<RecvStream>, all: &Inflows) -> Response<Self> {
        let (head, stream) = response.into_parts();
        let body = Self(Source::Two(all.begin(stream, &head.headers)));
        Response::from_parts(head, body)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        Poll::Ready(match &mut self.0 {
            Source::One(body) => {
                let frame = ready!(body.poll_frame(cx));
                frame.map(|frame| frame.map_err(AnswerError::from))
            }
            Source::Two(body) => match ready!(body.poll_frame(cx)) {
                // A reset without an error ends an answer that came before its request was whole
                // (RFC 9113 §8.1).
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => None,
                frame => frame.map(|frame| frame.map_err(AnswerError::from)),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::One(body) => body.is_end_stream(),
            Source::Two(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::One(body) => body.size_hint(),
            Source::Two(body) => body.size_hint(),
        }
    }
}

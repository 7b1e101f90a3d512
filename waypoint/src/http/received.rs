//! Bodies of requests, whichever HTTP they came over.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::Request;
use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};

use super::serve1::{Body as Body1, Upgrade};
use crate::frames::{Inflow, Inflows};
use crate::message;

/// The body of a caller's request.
#[derive(Debug)]
pub(crate) enum Received {
    /// With what the connection may become.
    One(Body1, Option<Upgrade>),
    Two(Inflow),
}

/// Why the body of a request broke off.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Over HTTP/1.1.
    #[error(transparent)]
    One(#[from] message::Error),
    /// Over HTTP/2; the peer's code goes on to the endpoint.
    #[error("http2 error")]
    Two(#[from] h2::Error),
}

impl Received {
    /// A request over HTTP/2.
    pub(crate) fn over_http2(request: Request<RecvStream>, all: &Inflows) -> Request<Self> {
        let (head, stream) = request.into_parts();
        let body = Self::Two(all.begin(stream, &head.headers));
        Request::from_parts(head, body)
    }

    /// The connection itself, where it may become something else.
    pub(super) fn upgrade(&mut self) -> Option<Upgrade> {
        match self {
            Self::One(_, upgrade) => upgrade.take(),
            Self::Two(_) => None,
        }
    }
}

/// A caller that takes its request back without naming an error has not ended its body (the exception of RFC 9113
/// §8.1 is for responses): an endpoint must not act on half of it.
fn told(error: h2::Error) -> ReceiveError {
    ReceiveError::Two(match error.reason() {
        Some(Reason::NO_ERROR) => Reason::CANCEL.into(),
        _ => error,
    })
}

impl Body for Received {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        Poll::Ready(match &mut *self {
            Self::One(body, _) => {
                let frame = ready!(body.poll_frame(cx));
                frame.map(|frame| frame.map_err(ReceiveError::from))
            }
            Self::Two(body) => {
                let frame = ready!(body.poll_frame(cx));
                frame.map(|frame| frame.map_err(told))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::One(body, _) => body.is_end_stream(),
            Self::Two(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::One(body, _) => body.size_hint(),
            Self::Two(body) => body.size_hint(),
        }
    }
}

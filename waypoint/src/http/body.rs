use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::exchange::Exchange;
use super::limit::Limit;
use super::standing::Side;
use isobar_types::Reason;

use crate::upstream::{Answer, AnswerError};

/// Why a response body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The endpoint or its connection.
    #[error(transparent)]
    Upstream(#[from] AnswerError),
    /// The route's timeout.
    #[error("the response was not complete within the route's timeout")]
    Timeout,
    /// A policy that was written meanwhile, or the end of this waypoint.
    #[error("the response may not go on: a policy was written, or the waypoint ends")]
    Withdrawn,
}

enum Source {
    Local(Option<Bytes>),
    Upstream(Answer),
}

/// A response body on its way to the caller; tells its exchange how it went.
pub struct ReplyBody {
    source: Source,
    limit: Option<Limit>,
    exchange: Option<Box<Exchange>>,
}

impl ReplyBody {
    pub(crate) const fn local(body: Bytes, exchange: Box<Exchange>) -> Self {
        Self {
            source: Source::Local(Some(body)),
            limit: None,
            exchange: Some(exchange),
        }
    }

    /// No body, and no record to keep: somebody else keeps it.
    pub(crate) const fn bare() -> Self {
        Self {
            source: Source::Local(None),
            limit: None,
            exchange: None,
        }
    }

    pub(crate) const fn upstream(
        body: Answer,
        limit: Option<Limit>,
        exchange: Box<Exchange>,
    ) -> Self {
        Self {
            source: Source::Upstream(body),
            limit,
            exchange: Some(exchange),
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl ReplyBody {
    /// Ends it at its route's timeout.
    fn late(&mut self) -> Polled {
        self.limit = None;
        if let Some(exchange) = &mut self.exchange {
            exchange.failed(Reason::UpstreamTimeout);
        }
        Poll::Ready(Some(Err(BodyError::Timeout)))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        if this.limit.as_ref().is_some_and(Limit::is_reached) {
            return this.late();
        }
        let frame = match &mut this.source {
            Source::Local(body) => body
                .take()
                .filter(|b| !b.is_empty())
                .map(|b| Ok(Frame::data(b))),
            Source::Upstream(body) => {
                if let Some(exchange) = &mut this.exchange
                    && exchange.is_ending()
                {
                    let last = exchange.last_frame();
                    this.source = Source::Local(None);
                    return Poll::Ready(Some(last.ok_or(BodyError::Withdrawn)));
                }
                let frame = Pin::new(body).poll_frame(cx);
                let Poll::Ready(frame) = frame else {
                    if let Some(standing) = this.exchange.as_ref().and_then(|e| e.standing.as_ref())
                    {
                        standing.wake(Side::Reply, cx);
                    }
                    // A timer only for what is waited for: most bodies are there with their head.
                    let limit = this.limit.as_mut();
                    return match limit.map(|limit| limit.poll_reached(cx)) {
                        Some(Poll::Ready(())) => this.late(),
                        Some(Poll::Pending) | None => Poll::Pending,
                    };
                };
                frame
            }
        };
        if let Some(exchange) = &mut this.exchange {
            exchange.frame(frame.as_ref().map(Result::as_ref));
        }
        Poll::Ready(frame.map(|f| f.map_err(BodyError::from)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Local(body) => body.as_ref().is_none_or(Bytes::is_empty),
            Source::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Local(body) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |b| b.len() as u64))
            }
            Source::Upstream(body) => body.size_hint(),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // The server stops asking once nothing can follow.
        if self.is_end_stream()
            && let Some(exchange) = &mut self.exchange
        {
            exchange.complete();
        }
    }
}

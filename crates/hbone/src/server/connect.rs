use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Response, StatusCode};
use isobar_tls::VerifiedPeer;

use crate::guard::{Guard, Misuse, StreamPermit};
use crate::headers::BAGGAGE;
use crate::stream::Place;
use crate::{BaggageValue, ConnectHeaders, TunnelStream};

/// A CONNECT request that waits for its answer. Dropping it unanswered resets the stream.
pub struct Connect {
    /// Boxed, as most of it is gone before the stream carries a byte.
    headers: Box<ConnectHeaders>,
    peer: VerifiedPeer,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    guard: Rc<Guard>,
    permit: StreamPermit,
}

impl Connect {
    pub(super) const fn new(
        headers: Box<ConnectHeaders>,
        peer: VerifiedPeer,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        guard: Rc<Guard>,
        permit: StreamPermit,
    ) -> Self {
        Self {
            headers,
            peer,
            body,
            respond,
            guard,
            permit,
        }
    }

    /// What it says.
    #[must_use]
    pub fn headers(&self) -> &ConnectHeaders {
        &self.headers
    }

    /// Who sent it.
    #[must_use]
    pub const fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Answers with `status` and ends the stream: no headers, no body (as Istio's ztunnel does).
    pub fn refuse(mut self, status: StatusCode) {
        self.note_reset();
        answer(&mut self.respond, status);
    }

    /// Answers 200, with `baggage` about the destination if given; the stream is open then.
    ///
    /// # Errors
    /// When the client has gone away meanwhile.
    pub fn accept(mut self, baggage: Option<&BaggageValue>) -> io::Result<TunnelStream> {
        self.note_reset();
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            response.headers_mut().insert(BAGGAGE, baggage.value());
        }
        let send = self
            .respond
            .send_response(response, false)
            .map_err(|error| io::Error::new(io::ErrorKind::ConnectionReset, error))?;
        self.guard.carries();
        Ok(TunnelStream::new(
            send,
            self.body,
            self.peer,
            None,
            Place::Served(self.permit),
        ))
    }

    /// Resolves when the client takes the request back, so that work for it can stop.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn gone(&mut self) {
        // The reason does not matter: reset or connection lost.
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// A stream taken back before its answer counts towards the limit on rapid resets.
    fn note_reset(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(_)) = self.respond.poll_reset(&mut cx) {
            self.guard.misuse(Misuse::EarlyReset);
        }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("authority", &self.headers.authority.to_string())
            .field("peer", &self.peer.identity().to_string())
            .finish_non_exhaustive()
    }
}

pub(super) fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Err(error) = respond.send_response(response, true) {
        tracing::trace!(%error, "the client did not wait for its answer");
    }
}

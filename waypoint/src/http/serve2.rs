//! HTTP/2 of callers, by way of h2 itself: each request is a task, which ends with its response.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ::http::header::{CONTENT_LENGTH, DATE, HeaderValue, TE};
use ::http::{Request, Response};
use bytes::Bytes;
use futures_util::stream::StreamExt as _;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http_body::Body as _;
use tokio::time::{sleep, timeout};

use super::body::ReplyBody;
use super::received::Received;
use super::{
    Answered, Aside, Asides, CONNECTION_WINDOW, HEAD, PING, PONG, SEND_BUFFER, STREAM_WINDOW,
    STREAMS, STREAMS_OUTSIDE, answer, asides, date,
};
use crate::frames::{Inflows, Outflow, SMALL_FRAMES, clean};
use crate::gather::{ANSWERS, Gate, Gathered};
use crate::protocol::PREFACE;
use crate::session::Session;
use crate::stream::Stream;

/// Streams reset by us for the peer's errors, beyond which the connection ends.
const ERROR_RESETS: usize = 1024;

/// Serves HTTP/2 with prior knowledge until the caller or a drain ends it.
pub async fn serve2<S: Stream>(session: Rc<Session>, stream: S) {
    let life = session.worker.scope.lifetime();
    let out = Gathered::new(stream, PREFACE.len());
    // Tunnels ask for themselves whether the caller is there.
    let outside = session.peer.identity.is_none();
    let streams = if outside { STREAMS_OUTSIDE } else { STREAMS };
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .max_local_error_reset_streams(Some(ERROR_RESETS))
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX));
    let link = Link {
        session: session.clone(),
        bodies: Inflows::default(),
        gate: out.gate(),
    };
    let mut asides = asides(&session, &life);
    let handshake = builder.handshake(out.clone());
    let Some(mut connection) = shake(handshake, &out, &mut asides).await else {
        return;
    };
    let pings = outside.then(|| connection.ping_pong()).flatten();
    let mut silence = std::pin::pin!(silence(pings));
    loop {
        tokio::select! {
            // What has come is looked at first: a connection that ends must not lose a request.
            biased;
            result = poll_fn(|cx| {
                let result = poll_requests(&link, &mut connection, cx);
                if out.has_many_small() {
                    link.bodies.take();
                }
                // Once all that was asked is answered there is nothing to wait for.
                let little = if link.session.heads.is_serving() { ANSWERS } else { 0 };
                out.poll_release(little, cx);
                result
            }) => match result {
                Ok(()) => return,
                Err(error) => return ended(&error),
            },
            () = silence.as_mut() => {
                tracing::debug!("a caller does not answer");
                return;
            }
            Some(aside) = asides.next() => match aside {
                Aside::Leave => connection.graceful_shutdown(),
                Aside::Cut => return,
                Aside::Late => {
                    // Here it is only ever the first one that is awaited.
                    tracing::debug!("a first request took too long to come");
                    return;
                }
            },
        }
    }
}

/// What requests of a connection have of it.
struct Link {
    session: Rc<Session>,
    bodies: Inflows,
    gate: Rc<Gate>,
}

/// Begins a connection; `None` if it ends before that.
async fn shake<S: Stream>(
    handshake: Handshake<Gathered<S>, Bytes>,
    out: &Gathered<S>,
    asides: &mut Asides<'_>,
) -> Option<Connection<Gathered<S>, Bytes>> {
    let mut handshake = std::pin::pin!(handshake);
    let mut leaves = false;
    loop {
        tokio::select! {
            biased;
            shaken = poll_fn(|cx| {
                let shaken = handshake.as_mut().poll(cx);
                out.poll_release(0, cx);
                shaken
            }) => {
                let mut connection = shaken.inspect_err(ended).ok()?;
                if leaves {
                    connection.graceful_shutdown();
                }
                return Some(connection);
            }
            Some(aside) = asides.next() => match aside {
                Aside::Leave => leaves = true,
                Aside::Cut | Aside::Late => return None,
            },
        }
    }
}

/// Takes requests, each to a task of its own, until there will be no more.
fn poll_requests<S: Stream>(
    link: &Link,
    connection: &mut Connection<Gathered<S>, Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), h2::Error>> {
    while let Some(taken) = ready!(connection.poll_accept(cx)) {
        let (request, reply) = taken?;
        let answering = Answering::new(link, request, reply);
        // It looks for a reset of its stream whenever it waits, and all are reset once the connection is gone.
        link.session.worker.scope.spawn_below("h2", answering);
    }
    Poll::Ready(Ok(()))
}

/// Ends once a caller does not answer; never where nobody asks.
async fn silence(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(PING).await;
        match timeout(PONG, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection tells why it ends.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

fn ended(error: &h2::Error) {
    tracing::debug!(%error, "a connection ended");
}

/// One request, to the end of its response.
struct Answering {
    reply: SendResponse<Bytes>,
    gate: Rc<Gate>,
    state: State,
}

enum State {
    Deciding(Answered),
    Sending(Outflow<ReplyBody>),
}

impl Answering {
    fn new(link: &Link, request: Request<RecvStream>, reply: SendResponse<Bytes>) -> Self {
        let request = Received::over_http2(request, &link.bodies);
        let answer = answer(link.session.clone(), request);
        Self {
            reply,
            gate: link.gate.clone(),
            state: State::Deciding(answer),
        }
    }

    /// Sends the head of a response; its body follows, if there is one.
    fn begin(&mut self, response: Response<ReplyBody>) -> Option<Outflow<ReplyBody>> {
        let (mut head, body) = response.into_parts();
        let fields = &mut head.headers;
        if clean(fields) {
            fields.remove(TE);
        }
        fields.entry(DATE).or_insert_with(date::now);
        let whole = body.is_end_stream();
        if let Some(length) = body.size_hint().exact().filter(|_| !whole) {
            let length = || HeaderValue::from(length);
            fields.entry(CONTENT_LENGTH).or_insert_with(length);
        }
        match self
            .reply
            .send_response(Response::from_parts(head, ()), whole)
        {
            Ok(out) => (!whole).then(|| Outflow::new(out, body, self.gate.clone())),
            Err(error) => {
                tracing::debug!(%error, "a response cannot be sent");
                self.reply.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }
}

impl Future for Answering {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let response = match &mut self.state {
                State::Sending(outflow) => return Pin::new(outflow).poll(cx),
                State::Deciding(answer) => answer.as_mut().poll(cx),
            };
            let Poll::Ready(response) = response else {
                // A caller may take its request back meanwhile.
                return self.reply.poll_reset(cx).map(|_| ());
            };
            let response = response.unwrap_or_else(|never: Infallible| match never {});
            match self.begin(response) {
                Some(outflow) => self.state = State::Sending(outflow),
                None => return Poll::Ready(()),
            }
        }
    }
}

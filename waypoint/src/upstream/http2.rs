//! HTTP/2 towards endpoints, by way of h2 itself: a request is sent and its response awaited by the task that
//! serves it, and what all requests of a connection have to say leaves in one write.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HeaderValue};
use ::http::{HeaderMap, Method, Request, Response};
use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason};
use http_body::Body;
use isobar_runtime::LocalScope;
use tokio::sync::oneshot;

use super::answer::Answer;
use crate::frames::{Inflows, Outflow, SMALL_FRAMES, clean};
use crate::gather::{Gate, Gathered, REQUESTS};
use crate::http::RequestBody;
use crate::stream::AnyStream;

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const HEADER_LIST: u32 = 64 * 1024;
/// Streams that are opened before the peer has said how many it takes.
const FIRST_STREAMS: usize = 100;
/// Octets of one request's body that wait for the connection at most.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams reset by us for the peer's errors, beyond which the connection ends.
const ERROR_RESETS: usize = 1024;

/// One connection, for any number of requests.
#[derive(Clone)]
pub(super) struct Sender {
    /// Shared: a handle of h2's for each request costs as much as some of its fields.
    requests: Rc<RefCell<SendRequest<Bytes>>>,
    state: Rc<State>,
}

type Opened = (
    ResponseFuture,
    h2::SendStream<Bytes>,
    Option<SendRequest<Bytes>>,
);

type Started = (
    ResponseFuture,
    Option<Outflow<RequestBody>>,
    Option<SendRequest<Bytes>>,
);

#[derive(Debug, Default)]
struct State {
    over: Cell<bool>,
    /// The peer did not answer a PING in time.
    silent: Cell<bool>,
    bodies: Inflows,
    gate: Rc<Gate>,
}

/// Why a request has no response.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) error: h2::Error,
    /// The connection is over because the peer did not answer a PING in time.
    pub(super) silent: bool,
}

impl Sender {
    /// Shakes hands over `stream`. PINGs are sent as often as `ping` says first, and answered within the
    /// second. The connection lives in `scope` until nobody holds it any more.
    ///
    /// # Errors
    /// When the stream breaks.
    pub(super) async fn begin(
        stream: AnyStream,
        ping: Option<(Duration, Duration)>,
        scope: &LocalScope,
    ) -> Result<Self, h2::Error> {
        let out = Gathered::new(stream, 0);
        let (requests, mut connection) = Builder::new()
            .initial_max_send_streams(FIRST_STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(SMALL_FRAMES)
            .max_local_error_reset_streams(Some(ERROR_RESETS))
            .enable_push(false)
            .handshake(out.clone())
            .await?;
        let state = Rc::new(State {
            gate: out.gate(),
            ..State::default()
        });
        let pings = ping.and_then(|times| Some((connection.ping_pong()?, times)));
        let end = state.clone();
        scope.spawn("upstream h2", async move {
            tokio::select! {
                biased;
                ended = carry(connection, out, &end.bodies) => if let Err(error) = ended {
                    tracing::debug!(%error, "an upstream connection ended");
                },
                () = unanswered(pings) => {
                    tracing::debug!("an upstream connection does not answer");
                    end.silent.set(true);
                }
            }
            end.over.set(true);
        });
        Ok(Self {
            requests: Rc::new(RefCell::new(requests)),
            state,
        })
    }

    /// True if it takes requests: it stands, and the peer has not said goodbye.
    pub(super) fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        if self.state.over.get() {
            return false;
        }
        let ready = self.requests.borrow_mut().poll_ready(&mut cx);
        matches!(ready, Poll::Ready(Ok(())))
    }

    /// Sends a request and waits for the head of its response; the rest of its body goes on by itself.
    ///
    /// # Errors
    /// When there is no response.
    pub(super) async fn send(
        self,
        request: Box<Request<RequestBody>>,
        scope: &LocalScope,
    ) -> Result<Response<Answer>, Unanswered> {
        let sent = self.exchange(request, scope).await;
        sent.map_err(|error| Unanswered {
            error,
            silent: self.state.silent.get(),
        })
    }

    /// Opens a stream; with it comes a handle to wait on where the peer takes no more streams now.
    fn open(&self, head: Request<()>, whole: bool) -> Result<Opened, h2::Error> {
        let requests = &mut *self.requests.borrow_mut();
        let (response, out) = requests.send_request(head, whole)?;
        let mut cx = Context::from_waker(Waker::noop());
        let full = match requests.poll_ready(&mut cx) {
            Poll::Ready(ready) => {
                ready?;
                None
            }
            Poll::Pending => {
                // One that waits for its own stream refuses others; its copy does not wait.
                let other = requests.clone();
                Some(std::mem::replace(requests, other))
            }
        };
        Ok((response, out, full))
    }

    /// Opens a stream for a request, with its body, if there is one. Apart: a head that is awaited beside takes
    /// room for as long.
    fn start(&self, request: Box<Request<RequestBody>>) -> Result<Started, h2::Error> {
        let (mut head, body) = request.into_parts();
        clean(&mut head.headers);
        measure(&mut head.headers, &head.method, &body);
        let whole = body.is_end_stream();
        let head = Request::from_parts(head, ());
        let (response, out, full) = self.open(head, whole)?;
        let upload = (!whole).then(|| Outflow::new(out, body, self.state.gate.clone()));
        Ok((response, upload, full))
    }

    async fn exchange(
        &self,
        request: Box<Request<RequestBody>>,
        scope: &LocalScope,
    ) -> Result<Response<Answer>, h2::Error> {
        let (response, mut upload, full) = self.start(request)?;
        if let Some(full) = full {
            // Nothing of the body is read before the peer takes the stream.
            taken(full).await?;
        }
        let mut begin = |cx: &mut Context<'_>| upload.take().map(|upload| send(upload, scope, cx));
        let cancel = poll_fn(|cx| Poll::Ready(begin(cx))).await;
        let cancel = cancel.unwrap_or(Cancel(None));
        let response = response.await;
        cancel.disarm();
        response.map(|response| Answer::over_http2(response, &self.state.bodies))
    }
}

/// Says how long the body is, where that is known and means something.
fn measure(headers: &mut HeaderMap, method: &Method, body: &RequestBody) {
    let Some(length) = body.size_hint().exact() else {
        return;
    };
    let has_meaning = !matches!(
        *method,
        Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT
    );
    if (length != 0 || has_meaning) && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Drives a connection to its end. What is written in one turn leaves together.
async fn carry(
    connection: Connection<Gathered<AnyStream>, Bytes>,
    out: Gathered<AnyStream>,
    bodies: &Inflows,
) -> Result<(), h2::Error> {
    let mut connection = Box::pin(connection);
    poll_fn(|cx| {
        let ended = connection.as_mut().poll(cx);
        if out.has_many_small() {
            bodies.take();
        }
        out.poll_release(REQUESTS, cx);
        ended
    })
    .await
}

/// Ends once the peer does not answer; never where nobody asks.
async fn unanswered(pings: Option<(PingPong, (Duration, Duration))>) {
    let Some((mut pings, (every, answer))) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(every).await;
        match tokio::time::timeout(answer, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection tells why it ends.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Resets a request whose body is still on its way when nobody waits for its response any more.
struct Cancel(Option<oneshot::Sender<()>>);

impl Cancel {
    /// A body may go on after its response.
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take() {
            // A body that is through needs no end.
            let _ = cancel.send(());
        }
    }
}

/// Ends once the peer takes the stream that was opened last.
async fn taken(mut full: SendRequest<Bytes>) -> Result<(), h2::Error> {
    poll_fn(|cx| full.poll_ready(cx)).await
}

/// Sends a body: at once as far as it is there, the rest by a task of its own.
fn send(mut upload: Outflow<RequestBody>, scope: &LocalScope, cx: &mut Context<'_>) -> Cancel {
    if Pin::new(&mut upload).poll(cx).is_ready() {
        return Cancel(None);
    }
    let (cancel, cancelled) = oneshot::channel();
    let mut cancelled = Some(cancelled);
    scope.spawn(
        "upload",
        poll_fn(move |cx| {
            match cancelled.as_mut().map(|c| Pin::new(c).poll(cx)) {
                Some(Poll::Ready(Ok(()))) => {
                    upload.reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                Some(Poll::Ready(Err(_))) => cancelled = None,
                Some(Poll::Pending) | None => {}
            }
            Pin::new(&mut upload).poll(cx)
        }),
    );
    Cancel(Some(cancel))
}

#[cfg(test)]
mod tests;

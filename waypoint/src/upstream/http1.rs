//! HTTP/1.1 towards endpoints: the task that serves a request writes it and reads its response itself. Nothing
//! is handed to a task of the connection and back, which would cost more than the exchange.

mod head;
mod upload;
mod wire;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use ::http::{Method, Request, Response};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use isobar_runtime::LocalScope;
use tokio::io::AsyncWriteExt as _;

use self::head::Head;
use self::upload::Upload;
use self::wire::Wire;
use crate::http::RequestError;
use crate::message::{self, Broken, Framing};
use crate::stream::{AnyStream, Rewound};

/// Connections kept for one endpoint.
const KEPT: usize = 256;
/// For the last words on a connection.
const FAREWELL: Duration = Duration::from_secs(5);

/// Connections to one endpoint that no request has, those used last at the end.
pub(super) type Idle = Rc<RefCell<Vec<Rc<Line>>>>;

/// Why an exchange over HTTP/1.1 broke off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The response was not read to its end, or the connection broke.
    #[error(transparent)]
    Message(#[from] message::Error),
    /// The request's body has another length than its head says.
    #[error("the request's body is not as long as its head says")]
    Length,
    /// The request's body broke off.
    #[error("the request's body broke off")]
    Request(#[source] RequestError),
}

impl From<Broken<RequestError>> for Error {
    fn from(broken: Broken<RequestError>) -> Self {
        match broken {
            Broken::Io(error) => Self::Message(error.into()),
            Broken::Length => Self::Length,
            Broken::Body(error) => Self::Request(error),
        }
    }
}

impl Error {
    /// True if the endpoint does not speak HTTP/1.1 as it should.
    pub(super) const fn is_protocol(&self) -> bool {
        match self {
            Self::Message(error) => error.is_protocol(),
            Self::Length | Self::Request(_) => false,
        }
    }
}

/// How a connection is used for a request, and kept after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Bytes that are read at once at most.
    pub(super) piece: usize,
    /// It may rest so long.
    pub(super) idle: Duration,
    /// No request may follow.
    pub(super) last: bool,
}

/// One connection, for one request at a time.
pub(super) struct Line {
    wire: RefCell<Wire>,
    /// Where it rests.
    home: Weak<RefCell<Vec<Rc<Self>>>>,
    scope: Rc<LocalScope>,
    exit: Rc<Exit>,
    pub(super) born: Instant,
    /// Requests so far.
    pub(super) uses: Cell<u32>,
    /// When it came to rest.
    since: Cell<Instant>,
    terms: Cell<Terms>,
}

impl Line {
    /// A connection that was just made. While it rests a task of `scope` hears when its endpoint ends it.
    pub(super) fn begin(stream: AnyStream, home: &Idle, scope: &Rc<LocalScope>) -> Rc<Self> {
        let now = Instant::now();
        let line = Rc::new(Self {
            wire: RefCell::new(Wire::new(stream)),
            home: Rc::downgrade(home),
            scope: scope.clone(),
            exit: Rc::default(),
            born: now,
            uses: Cell::new(0),
            since: Cell::new(now),
            terms: Cell::new(Terms {
                piece: message::PIECE,
                idle: Duration::ZERO,
                last: false,
            }),
        });
        let listen = line.exit.clone().listen(Rc::downgrade(&line));
        scope.spawn("upstream h1", listen);
        line
    }

    /// True if it stands, and has not rested for longer than it may.
    pub(super) fn is_good(&self, now: Instant) -> bool {
        let rested = now.saturating_duration_since(self.since.get());
        rested < self.terms.get().idle && self.wire.borrow().intake.stream.is_some()
    }

    /// Takes it for a request; false if its endpoint has ended it, or says something unasked.
    pub(super) fn wake_up(&self) -> bool {
        let mut wire = self.wire.borrow_mut();
        wire.rests = false;
        let mut cx = Context::from_waker(Waker::noop());
        wire.intake.poll_silence(&mut cx).is_pending()
    }

    /// Sends a request and waits for the head of its response; the rest of its body goes on by itself.
    ///
    /// # Errors
    /// When there is no response.
    pub(super) async fn send(
        self: Rc<Self>,
        request: Request<impl Body<Data = Bytes, Error = RequestError> + 'static>,
        terms: Terms,
    ) -> Result<Response<Reply>, Error> {
        self.terms.set(terms);
        self.uses.set(self.uses.get() + 1);
        let without_body = *request.method() == Method::HEAD;
        let upload = Upload::begin(request);
        self.wire.borrow_mut().begin(upload, terms.last);
        let flight = Flight(self);
        let line = &flight.0;
        let mut first = true;
        let answer = poll_fn(|cx| {
            let first = std::mem::replace(&mut first, false);
            let mut wire = line.wire.borrow_mut();
            wire.poll_answer(first, without_body, cx)
        });
        let Head {
            response,
            framing,
            switches,
            rest,
            ..
        } = answer.await?;
        if switches {
            let stream = line.take_over(rest)?;
            return Ok(response.map(|()| Reply::Switched(Some(stream))));
        }
        let whole = line.wire.borrow_mut().take(framing, rest);
        if line.wire.borrow().upload.is_some() {
            line.spawn_upload();
        }
        Ok(response.map(|()| match whole {
            Some(data) => Reply::Whole(Some(data).filter(|data| !data.is_empty())),
            None => Reply::Flowing(flight),
        }))
    }

    /// The stream, with what was read of what follows HTTP on it.
    fn take_over(&self, rest: Bytes) -> Result<Switched, Error> {
        let mut wire = self.wire.borrow_mut();
        if wire.upload.is_some() {
            return Err(message::Error::Malformed("it switches before it has the request").into());
        }
        wire.intake.framing = Framing::Over;
        let stream = wire
            .intake
            .stream
            .take()
            .ok_or(message::Error::Incomplete)?;
        Ok(Switched(Box::new(Rewound::new(rest, stream))))
    }

    /// A body may go on after its response.
    fn spawn_upload(self: &Rc<Self>) {
        let line = self.clone();
        self.scope.spawn(
            "upload",
            poll_fn(move |cx| {
                let mut wire = line.wire.borrow_mut();
                let ended = match wire.poll_upload(cx) {
                    Poll::Pending => {
                        wire.uploader = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    Poll::Ready(ended) => ended,
                };
                wire.uploader = None;
                drop(wire);
                match ended {
                    Ok(()) => line.through(),
                    Err(error) => line.fail(error),
                }
                Poll::Ready(())
            }),
        );
    }

    fn fail(self: &Rc<Self>, error: Error) {
        tracing::debug!(%error, "an upstream connection ended");
        let reader = {
            let mut wire = self.wire.borrow_mut();
            wire.failed = Some(error);
            wire.reader.take()
        };
        self.leave();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Has it rest once nothing of a request and its response is left.
    fn through(self: &Rc<Self>) {
        let mut wire = self.wire.borrow_mut();
        let answered = wire.intake.framing.is_over();
        if answered && wire.upload.is_some() {
            // Who has answered already may leave the rest unread, and take it for the next request.
            wire.reusable = false;
        }
        let busy = wire.upload.is_some() || !answered;
        if busy || wire.rests || wire.intake.stream.is_none() {
            return;
        }
        let home = self.home.upgrade().filter(|_| wire.reusable);
        let home = home.filter(|home| home.borrow().len() < KEPT);
        let home = home.filter(|_| {
            let listener = self.exit.listener.borrow();
            let listener = listener.as_ref().unwrap_or(Waker::noop());
            let mut cx = Context::from_waker(listener);
            wire.intake.poll_silence(&mut cx).is_pending()
        });
        wire.rests = home.is_some();
        drop(wire);
        match home {
            Some(home) => {
                self.since.set(Instant::now());
                home.borrow_mut().push(self.clone());
            }
            None => self.leave(),
        }
    }

    /// Ends it.
    fn leave(&self) {
        let mut wire = self.wire.borrow_mut();
        let (upload, uploader) = (wire.upload.take(), wire.uploader.take());
        let stream = wire.intake.stream.take();
        drop(wire);
        drop(upload);
        if let Some(uploader) = uploader {
            uploader.wake();
        }
        self.exit.take(stream);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.exit.take(self.wire.get_mut().intake.stream.take());
    }
}

/// Where a connection goes in the end, and the task that sees to it.
#[derive(Default)]
struct Exit {
    stream: RefCell<Option<AnyStream>>,
    listener: RefCell<Option<Waker>>,
}

impl Exit {
    fn take(&self, stream: Option<AnyStream>) {
        if stream.is_some() {
            *self.stream.borrow_mut() = stream;
        }
        let listener = self.listener.take();
        if let Some(listener) = listener {
            listener.wake();
        }
    }

    /// Hears what the endpoint says while the connection rests, and ends it in order.
    async fn listen(self: Rc<Self>, line: Weak<Line>) {
        poll_fn(|cx| self.poll_over(&line, cx)).await;
        let stream = self.stream.take();
        if let Some(mut stream) = stream {
            // Whoever does not take it has missed nothing.
            let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
        }
    }

    fn poll_over(&self, line: &Weak<Line>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(line) = line.upgrade() else {
            return Poll::Ready(());
        };
        let mut wire = line.wire.borrow_mut();
        if wire.intake.stream.is_none() {
            return Poll::Ready(());
        }
        *self.listener.borrow_mut() = Some(cx.waker().clone());
        if !wire.rests {
            return Poll::Pending;
        }
        ready!(wire.intake.poll_silence(cx));
        drop(wire);
        line.leave();
        Poll::Ready(())
    }
}

/// An exchange under way: dropped before its end it takes the connection along.
pub(super) struct Flight(Rc<Line>);

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.wire.borrow().intake.framing)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.0.wire.borrow().intake.framing.is_over() {
            self.0.through();
        } else {
            self.0.leave();
        }
    }
}

/// What a connection carries after it was HTTP.
pub(super) struct Switched(pub(super) AnyStream);

impl fmt::Debug for Switched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a stream")
    }
}

/// The body of a response over HTTP/1.1.
#[derive(Debug)]
pub(super) enum Reply {
    /// All of it is here.
    Whole(Option<Bytes>),
    /// It is being read.
    Flowing(Flight),
    /// What follows is no HTTP.
    Switched(Option<Switched>),
}

impl Reply {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let line = match self {
            Self::Whole(data) => return Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Self::Switched(_) => return Poll::Ready(None),
            Self::Flowing(Flight(line)) => line,
        };
        let mut wire = line.wire.borrow_mut();
        let Poll::Ready(frame) = wire.poll_body(line.terms.get().piece, cx) else {
            if wire.upload.is_some() {
                wire.reader = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        let over = wire.intake.framing.is_over();
        drop(wire);
        if over {
            *self = Self::Whole(None);
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(data) => data.is_none(),
            Self::Flowing(Flight(line)) => line.wire.borrow().intake.framing.is_over(),
            Self::Switched(_) => true,
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(data) => {
                SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64))
            }
            Self::Flowing(Flight(line)) => match line.wire.borrow().intake.framing {
                Framing::Length(left) => SizeHint::with_exact(left),
                _ => SizeHint::default(),
            },
            Self::Switched(_) => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests;

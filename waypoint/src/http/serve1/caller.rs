//! A caller's connection as those see it who read from it: the task that serves it, and the body of the request
//! that it serves, wherever that goes.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::io::AsyncWrite as _;
use tokio::sync::oneshot;

use super::head::{self, Head};
use crate::message::{Error, Framing, Intake, LARGE};
use crate::stream::AnyStream;

/// Said to a caller that waits with its body, once somebody wants that.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The stream of a connection, once it is no HTTP any more.
pub(crate) struct Upgrade(pub(super) oneshot::Receiver<AnyStream>);

impl Upgrade {
    /// # Errors
    /// If the connection ended before that.
    pub(crate) async fn stream(self) -> Result<AnyStream, oneshot::error::RecvError> {
        self.0.await
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an upgrade")
    }
}

/// One connection.
pub(super) struct Caller(RefCell<Wire>);

struct Wire {
    intake: Intake,
    /// The caller waits with its body.
    expects: bool,
    /// What is left to say before the response.
    early: &'static [u8],
    /// The response has begun.
    answered: bool,
    /// Nobody reads the rest of the body.
    abandoned: bool,
    /// What comes is no request: the body broke off.
    broken: bool,
    /// The caller says nothing any more.
    ended: bool,
    /// Woken when the rest of the body will not come.
    reader: Option<Waker>,
    /// Woken when the body is over, or abandoned.
    owner: Option<Waker>,
}

/// What comes instead of a request.
#[derive(Debug)]
pub(super) enum Heard {
    Head(Box<Head>),
    Refused(::http::StatusCode),
    /// The caller has ended its side, or the connection broke.
    End,
}

/// How a request's body stands once the response to it is out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Somebody reads it.
    Flows,
    /// It is over, and another request may follow.
    Over,
    /// Nothing can follow. With more that the caller may be sending.
    Broken,
    /// The same, and the caller has said all.
    Ended,
}

impl Caller {
    pub(super) fn new(stream: AnyStream) -> Rc<Self> {
        Rc::new(Self(RefCell::new(Wire {
            intake: Intake::new(stream),
            expects: false,
            early: &[],
            answered: false,
            abandoned: false,
            broken: false,
            ended: false,
            reader: None,
            owner: None,
        })))
    }

    /// True if something of a next request is there.
    pub(super) fn has_more(&self) -> bool {
        !self.0.borrow().intake.unread.is_empty()
    }

    /// Takes a head that came along with what was before it.
    pub(super) fn next(&self) -> Option<Heard> {
        self.0.borrow_mut().take_head()
    }

    /// Waits for the next head.
    pub(super) fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Heard> {
        let wire = &mut *self.0.borrow_mut();
        loop {
            if wire.ended {
                return Poll::Ready(Heard::End);
            }
            let count = match ready!(wire.intake.poll_fill(cx)) {
                Ok(0) => {
                    wire.ended = true;
                    continue;
                }
                Ok(count) => count,
                Err(_) => return Poll::Ready(Heard::End),
            };
            // A head that comes bit by bit is not read from its begin for each.
            let unread = &wire.intake.unread;
            if unread.len() < head::MOST && !unread[unread.len() - count..].contains(&b'\n') {
                continue;
            }
            if let Some(heard) = wire.take_head() {
                return Poll::Ready(heard);
            }
        }
    }

    /// The body of the request that begins with this head.
    pub(super) fn body(self: &Rc<Self>, framing: Framing, expects: bool, mut rest: Bytes) -> Body {
        let mut wire = self.0.borrow_mut();
        let whole = match framing {
            Framing::Over => Some(0),
            Framing::Length(length) => usize::try_from(length).ok(),
            Framing::Chunked(_) | Framing::Close => None,
        };
        (wire.answered, wire.abandoned, wire.expects) = (false, false, false);
        if let Some(length) = whole.filter(|length| *length <= rest.len()) {
            let data = rest.split_to(length);
            wire.intake.unread = unread(rest);
            return Body(Source::Whole(data));
        }
        wire.intake.unread = unread(rest);
        wire.intake.framing = framing;
        wire.expects = expects;
        Body(Source::Flowing(Flow(self.clone())))
    }

    /// Ready once the caller is gone while it is served. What else it says meanwhile waits, a piece at most.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let wire = &mut *self.0.borrow_mut();
        if !wire.intake.framing.is_over() && !wire.abandoned {
            // Whoever reads the body will see it.
            wire.owner = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if wire.ended || wire.broken || wire.abandoned || !wire.intake.unread.is_empty() {
            return Poll::Pending;
        }
        match ready!(wire.intake.poll_fill(cx)) {
            Ok(count) => {
                // It may wait for its response all the same.
                wire.ended = count == 0;
                Poll::Pending
            }
            Err(_) => Poll::Ready(()),
        }
    }

    /// The response begins; true if nothing can follow it. What must go before it is put into `out`.
    pub(super) fn answered(&self, out: &mut Vec<u8>) -> bool {
        let wire = &mut *self.0.borrow_mut();
        wire.answered = true;
        if wire.early.len() < CONTINUE.len() {
            out.extend_from_slice(wire.early);
        }
        wire.early = &[];
        wire.skip();
        wire.broken || wire.abandoned && !wire.intake.framing.is_over()
    }

    pub(super) fn rest(&self) -> Rest {
        let wire = &mut *self.0.borrow_mut();
        wire.skip();
        if wire.ended {
            return Rest::Ended;
        }
        match wire.intake.framing.is_over() {
            _ if wire.broken => Rest::Broken,
            true => Rest::Over,
            false if wire.abandoned => Rest::Broken,
            false => Rest::Flows,
        }
    }

    /// Nothing that the caller says is a request from here on.
    pub(super) fn distrust(&self) {
        self.0.borrow_mut().broken = true;
    }

    /// The owner is here: it need not be woken.
    pub(super) fn is_awake(&self) {
        self.0.borrow_mut().owner = None;
    }

    /// Whatever uses the stream may end the body, which looks here: it takes it along meanwhile.
    pub(super) fn take_stream(&self) -> Option<AnyStream> {
        self.0.borrow_mut().intake.stream.take()
    }

    pub(super) fn put_back(&self, stream: AnyStream) {
        self.0.borrow_mut().intake.stream = Some(stream);
    }

    /// The stream, with what was read of what follows HTTP on it.
    pub(super) fn take_over(&self) -> Option<(AnyStream, Bytes)> {
        let wire = &mut *self.0.borrow_mut();
        let over = wire.intake.framing.is_over() && !wire.broken;
        let stream = wire.intake.stream.take().filter(|_| over)?;
        Some((stream, std::mem::take(&mut wire.intake.unread).freeze()))
    }

    /// Reads and forgets; how many bytes there were, 0 at the end.
    pub(super) fn poll_forget(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let wire = &mut *self.0.borrow_mut();
        let read = ready!(wire.intake.poll_fill(cx));
        wire.intake.unread = BytesMut::new();
        Poll::Ready(read.unwrap_or(0))
    }

    /// Ends it, for the reader of a body too.
    pub(super) fn end(&self) {
        let mut wire = self.0.borrow_mut();
        let (stream, reader) = (wire.intake.stream.take(), wire.reader.take());
        drop(wire);
        drop(stream);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// What is left behind a head. Most often nothing.
fn unread(rest: Bytes) -> BytesMut {
    if rest.is_empty() {
        BytesMut::new()
    } else {
        rest.into()
    }
}

impl Wire {
    fn take_head(&mut self) -> Option<Heard> {
        match head::read(&mut self.intake.unread) {
            Ok(None) => None,
            Ok(Some(head)) => Some(Heard::Head(Box::new(head))),
            Err(status) => Some(Heard::Refused(status)),
        }
    }

    /// Drops what is there of a body that nobody reads.
    fn skip(&mut self) {
        if self.abandoned && !self.broken && self.intake.skip().is_err() {
            self.broken = true;
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Error>> {
        if std::mem::take(&mut self.expects) && !self.answered && self.intake.unread.is_empty() {
            self.early = CONTINUE;
        }
        if !self.early.is_empty()
            && let Some(stream) = &mut self.intake.stream
            && let Poll::Ready(Err(error)) = poll_say(stream, &mut self.early, cx)
        {
            return Poll::Ready(Err(error.into()));
        }
        self.intake.poll_frame(LARGE, cx)
    }
}

fn poll_say(
    stream: &mut AnyStream,
    what: &mut &'static [u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !what.is_empty() {
        let count = ready!(Pin::new(&mut *stream).poll_write(cx, what))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        *what = &what[count..];
    }
    Pin::new(stream).poll_flush(cx)
}

/// The body of a request.
#[derive(Debug)]
pub(crate) struct Body(Source);

#[derive(Debug)]
enum Source {
    /// All that is left of it, which is here.
    Whole(Bytes),
    Flowing(Flow),
}

/// A body that is being read. Dropped before its end nobody reads the rest.
struct Flow(Rc<Caller>);

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.0.borrow().intake.framing)
    }
}

type Read = (Result<Option<Frame<Bytes>>, Error>, bool);

impl Flow {
    /// What comes next, and whether that is all.
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Read> {
        let wire = &mut *self.0.0.borrow_mut();
        let Poll::Ready(frame) = wire.poll_body(cx) else {
            // A connection that is cut says nothing itself.
            wire.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        wire.broken |= frame.is_err();
        let over = wire.intake.framing.is_over() || wire.broken;
        Poll::Ready((frame, over))
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let mut wire = self.0.0.borrow_mut();
        wire.reader = None;
        wire.abandoned = !wire.intake.framing.is_over();
        let owner = wire.owner.take();
        drop(wire);
        if let Some(owner) = owner {
            owner.wake();
        }
    }
}

impl Body {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let flow = match &mut self.0 {
            Source::Whole(data) if data.is_empty() => return Poll::Ready(None),
            Source::Whole(data) => {
                let data = std::mem::take(data);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Source::Flowing(flow) => flow,
        };
        let (frame, over) = ready!(flow.poll_frame(cx));
        if over {
            self.0 = Source::Whole(Bytes::new());
        }
        Poll::Ready(frame.transpose())
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Whole(data) => data.is_empty(),
            Source::Flowing(_) => false,
        }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Whole(data) => SizeHint::with_exact(data.len() as u64),
            Source::Flowing(flow) => match flow.0.0.borrow().intake.framing {
                Framing::Length(left) => SizeHint::with_exact(left),
                _ => SizeHint::default(),
            },
        }
    }
}

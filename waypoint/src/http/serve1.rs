//! HTTP/1.1 of callers: one task reads a connection's requests, has them answered, and writes the responses, one
//! after the other.

mod caller;
mod head;
mod reply;

use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::{Response, StatusCode};
use futures_util::stream::StreamExt as _;
use tokio::io::AsyncWrite as _;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

pub(crate) use self::caller::{Body, Upgrade};
use self::caller::{Caller, Heard, Rest};
use self::head::{Head, Told};
use super::body::{BodyError, ReplyBody};
use super::heads::Watched;
use super::received::Received;
use super::{Answered, Aside, answer, asides};
use crate::message::{Broken, Outgoing, room};
use crate::session::Session;
use crate::stream::{AnyStream, Rewound, Stream};

/// For the last words on a connection, and for what its caller is still sending: a connection that is closed
/// before that was read takes back what it said.
const FAREWELL: Duration = Duration::from_secs(5);
/// Bytes of that which are read.
const LINGER: usize = 256 * 1024;

/// Serves HTTP/1.1 until the caller or a drain ends it.
pub async fn serve1<S: Stream>(session: Rc<Session>, stream: S) {
    let life = session.worker.scope.lifetime();
    let stream = Watched::new(session.clone(), stream);
    let mut serving = Serving::new(session.clone(), Box::new(stream));
    let mut asides = asides(&session, &life);
    loop {
        tokio::select! {
            // What has come is looked at first: a connection that ends must not lose a request.
            biased;
            () = poll_fn(|cx| serving.poll(cx)) => return,
            Some(aside) = asides.next() => match aside {
                Aside::Leave => serving.last = true,
                Aside::Cut => return,
                Aside::Late => {
                    tracing::debug!("a request's head took too long");
                    return;
                }
            },
        }
    }
}

/// A connection, and how far it is.
struct Serving {
    session: Rc<Session>,
    caller: Rc<Caller>,
    state: State,
    /// What the response depends on.
    told: Told,
    /// To whom the stream goes, if the request's connection may become something else.
    switch: Option<oneshot::Sender<AnyStream>>,
    /// No further request is taken.
    last: bool,
}

enum State {
    /// Waits for a head.
    Idle,
    Deciding(Answered),
    Sending(Outgoing<ReplyBody>),
    /// The response is out; the rest of the request may not be in.
    Sent,
    Leaving(Farewell),
}

impl Serving {
    fn new(session: Rc<Session>, stream: AnyStream) -> Self {
        Self {
            session,
            caller: Caller::new(stream),
            state: State::Idle,
            told: Told::default(),
            switch: None,
            last: false,
        }
    }

    /// Ready once the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.caller.is_awake();
        loop {
            match &mut self.state {
                State::Idle if self.last && !self.caller.has_more() => self.leave(false),
                State::Idle => {
                    let heard = ready!(self.caller.poll_head(cx));
                    self.hear(heard);
                }
                State::Deciding(answer) => match answer.as_mut().poll(cx) {
                    // A caller that goes away takes its request back.
                    Poll::Pending => return self.caller.poll_gone(cx),
                    Poll::Ready(Ok(response)) => self.begin(response),
                    Poll::Ready(Err(never)) => {
                        let never: Infallible = never;
                        match never {}
                    }
                },
                State::Sending(out) => {
                    let Some(mut stream) = self.caller.take_stream() else {
                        return Poll::Ready(());
                    };
                    let sent = out.poll(&mut stream, cx);
                    self.caller.put_back(stream);
                    match sent {
                        Poll::Pending => return self.caller.poll_gone(cx),
                        Poll::Ready(Ok(())) => self.state = State::Sent,
                        Poll::Ready(Err(broken)) => {
                            ended(&broken);
                            return Poll::Ready(());
                        }
                    }
                }
                State::Sent => {
                    if let Some(switch) = self.switch.take() {
                        self.hand_over(switch);
                        return Poll::Ready(());
                    }
                    ready!(self.poll_rest(cx));
                }
                State::Leaving(farewell) => return farewell.poll(&self.caller, cx),
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Head(head) => self.take(*head),
            Heard::Refused(status) => {
                tracing::debug!(%status, "what a caller says is no request");
                self.caller.distrust();
                self.last = true;
                self.state = State::Sending(Outgoing::new(reply::refusal(status), None));
            }
            Heard::End => self.leave(false),
        }
    }

    fn take(&mut self, head: Head) {
        let Head {
            request,
            framing,
            told,
            closes,
            expects,
            switches,
            rest,
        } = head;
        self.told = told;
        self.last |= closes;
        let body = self.caller.body(framing, expects, rest);
        let (switch, upgrade) = switches.then(oneshot::channel).unzip();
        self.switch = switch;
        let request = request.map(|()| Received::One(body, upgrade.map(Upgrade)));
        self.state = State::Deciding(answer(self.session.clone(), request));
    }

    /// Begins to send a response.
    fn begin(&mut self, response: Response<ReplyBody>) {
        let (mut parts, body) = response.into_parts();
        let mut out = room();
        self.last |= self.caller.answered(&mut out);
        let coding;
        (coding, self.last) = reply::write(&mut parts, &body, self.told, self.last, &mut out);
        if parts.status != StatusCode::SWITCHING_PROTOCOLS {
            self.switch = None;
        }
        head::give_back(parts.headers);
        let body = coding.map(|coding| (body, coding));
        self.state = State::Sending(Outgoing::new(out, body));
    }

    /// Gives the stream to whoever speaks something else on it.
    fn hand_over(&mut self, switch: oneshot::Sender<AnyStream>) {
        if let Some((stream, rest)) = self.caller.take_over() {
            // Nobody may be there any more: then it ends.
            let _ = switch.send(Box::new(Rewound::new(rest, stream)));
        }
    }

    /// After a response: the next request, or the end.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.caller.rest() {
            Rest::Flows => return self.caller.poll_gone(cx),
            Rest::Over if self.last => self.leave(self.caller.has_more()),
            Rest::Over => {
                self.state = State::Idle;
                if !self.caller.has_more() {
                    return Poll::Ready(());
                }
                match self.caller.next() {
                    Some(heard) => self.hear(heard),
                    // It came while another one was served, and has its time from now on.
                    None => self.session.heads.expected(),
                }
            }
            Rest::Broken => self.leave(true),
            Rest::Ended => self.leave(false),
        }
        Poll::Ready(())
    }

    /// Ends the connection in order; `linger`: its caller may be sending still.
    fn leave(&mut self, linger: bool) {
        self.state = State::Leaving(Farewell {
            time: Box::pin(sleep(FAREWELL)),
            said: false,
            left: if linger { LINGER } else { 0 },
        });
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.caller.end();
    }
}

fn ended(broken: &Broken<BodyError>) {
    match broken {
        Broken::Io(error) => tracing::debug!(%error, "a connection ended"),
        Broken::Length => tracing::debug!("a response is not as long as its head says"),
        Broken::Body(error) => tracing::debug!(%error, "a response ended early"),
    }
}

/// The end of a connection.
struct Farewell {
    time: Pin<Box<Sleep>>,
    said: bool,
    /// Bytes that are read of what the caller is sending still.
    left: usize,
}

impl Farewell {
    fn poll(&mut self, caller: &Caller, cx: &mut Context<'_>) -> Poll<()> {
        if self.time.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !self.said {
            let Some(mut stream) = caller.take_stream() else {
                return Poll::Ready(());
            };
            let said = Pin::new(&mut stream).poll_shutdown(cx);
            caller.put_back(stream);
            if ready!(said).is_err() {
                return Poll::Ready(());
            }
            self.said = true;
        }
        while self.left > 0 {
            match ready!(caller.poll_forget(cx)) {
                0 => break,
                count => self.left = self.left.saturating_sub(count),
            }
        }
        Poll::Ready(())
    }
}

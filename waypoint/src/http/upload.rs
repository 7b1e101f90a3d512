//! A request's body on its way to an endpoint, kept as far as a later try may need it again.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::thread::LocalKey;

use ::http::HeaderMap;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::received::{ReceiveError, Received};
use super::standing::{Side, Standing};

/// Most of one request that is kept for another try; a longer one is not tried again.
const MOST: usize = 256 * 1024;
/// Most that all requests of one worker take of each [`Pool`].
const MOST_OF_WORKER: usize = 32 * 1024 * 1024;
/// What keeping a frame costs besides its bytes: a body of tiny frames must not cost many times its
/// length.
const PER_FRAME: usize = 64;

thread_local! {
    /// What requests of this worker keep: a connection and its requests stay on one thread.
    static KEPT: Cell<usize> = const { Cell::new(0) };
    /// What of it authorisers are shown.
    static SHOWN: Cell<usize> = const { Cell::new(0) };
}

/// What a body is charged to. Apart, so that bodies which wait for another try never keep authorisers from
/// being asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Pool {
    /// Kept for other tries, and for copies.
    #[default]
    Tries,
    /// Read as a whole to be shown to authorisers.
    Shown,
    /// Made of a head alone, which has limits of its own.
    Free,
}

impl Pool {
    fn counter(self) -> Option<&'static LocalKey<Cell<usize>>> {
        match self {
            Self::Tries => Some(&KEPT),
            Self::Shown => Some(&SHOWN),
            Self::Free => None,
        }
    }

    /// Charges it, if there is room.
    fn take(self, cost: usize) -> bool {
        let Some(counter) = self.counter() else {
            return true;
        };
        let now = counter.get() + cost;
        if now > MOST_OF_WORKER {
            return false;
        }
        counter.set(now);
        true
    }

    fn give_back(self, cost: usize) {
        if let Some(counter) = self.counter() {
            counter.set(counter.get() - cost);
        }
    }
}

const fn cost(frame: &Bytes) -> usize {
    frame.len() + PER_FRAME
}

/// What is known of a request body while it flows.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Bytes taken from the caller.
    pub(crate) bytes: Cell<u64>,
    /// Pieces of it that arrived: no fewer than the chunks it was written in.
    pub(crate) pieces: Cell<u64>,
    /// The caller went away in the middle.
    pub(crate) broken: Cell<bool>,
    upload: RefCell<Upload>,
    clock: Cell<Clock>,
    waker: RefCell<Option<Waker>>,
}

/// Who is waited for, where a time limit asks.
#[derive(Debug, Clone, Copy, Default)]
enum Clock {
    /// Nobody asks.
    #[default]
    Off,
    /// The endpoint, since then.
    Endpoint(Instant),
    /// The caller, for more of the body.
    Caller,
}

/// The caller's body, and what was read of it.
#[derive(Debug, Default)]
struct Upload {
    source: Option<Received>,
    /// What was read of a body that is read as a whole before any of it is sent.
    gathered: BytesMut,
    /// From the start of the body, as long as nothing is lost.
    kept: Vec<Bytes>,
    kept_cost: usize,
    /// What that is charged to.
    pool: Pool,
    trailers: Option<HeaderMap>,
    /// Frames of `kept` that the current try has had.
    at: usize,
    trailers_sent: bool,
    /// What is read is kept.
    keeping: bool,
    /// Something was read and is gone.
    lost: bool,
    /// The current try; bodies of earlier ones end at once.
    attempt: u32,
}

impl Upload {
    fn keep(&mut self, data: &Bytes) {
        let cost = cost(data);
        if self.keeping && self.kept_cost + cost <= MOST && self.pool.take(cost) {
            self.kept.push(data.clone());
            self.at = self.kept.len();
            self.kept_cost += cost;
            return;
        }
        self.lost = true;
        self.stop_keeping();
    }

    /// Adds to what is read as a whole.
    fn gather(&mut self, data: &Bytes, most: usize) -> Result<(), Unread> {
        let first = self.gathered.is_empty() && !data.is_empty();
        let cost = data.len() + if first { PER_FRAME } else { 0 };
        if self.gathered.len() + data.len() > most {
            self.lost = true;
            return Err(Unread::TooLong);
        }
        if self.kept_cost == 0 {
            self.pool = Pool::Shown;
        }
        if !self.pool.take(cost) {
            self.lost = true;
            return Err(Unread::NoRoom);
        }
        self.gathered.extend_from_slice(data);
        self.kept_cost += cost;
        Ok(())
    }

    /// Frees what the current try has had.
    fn stop_keeping(&mut self) {
        self.keeping = false;
        for at in 0..self.at {
            self.free(at);
        }
        self.drop_if_read();
    }

    /// Takes a frame out; its place stays.
    fn free(&mut self, at: usize) -> Bytes {
        let frame = std::mem::take(&mut self.kept[at]);
        // A place that is free already costs nothing; frames are never empty.
        if !frame.is_empty() {
            self.kept_cost -= cost(&frame);
            self.pool.give_back(cost(&frame));
        }
        frame
    }

    fn drop_if_read(&mut self) {
        if self.at == self.kept.len() {
            self.kept = Vec::new();
            self.at = 0;
        }
    }

    fn next_kept(&mut self) -> Option<Bytes> {
        let frame = self.kept.get(self.at)?.clone();
        if !self.keeping {
            self.free(self.at);
        }
        self.at += 1;
        if !self.keeping {
            self.drop_if_read();
        }
        Some(frame)
    }

    fn is_over(&self) -> bool {
        self.at >= self.kept.len()
            && (self.trailers.is_none() || self.trailers_sent)
            && self.source.as_ref().is_none_or(Body::is_end_stream)
    }
}

/// Why a body was not read as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is longer than it may be.
    TooLong,
    /// All bodies that are shown take what memory they may together.
    NoRoom,
    /// The caller went away.
    Broken,
    /// It did not arrive in time.
    TooSlow,
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.pool.give_back(self.kept_cost);
    }
}

impl Progress {
    /// Takes the caller's body; with `keep`, what is read may be sent again.
    pub(super) fn takes(&self, body: Received, keep: bool) {
        let mut upload = self.upload.borrow_mut();
        upload.source = Some(body);
        upload.keeping = keep;
    }

    /// A body that is there already: a question to an authoriser. One that `shows` a caller's body takes
    /// room as that does, if there is some; any other is no longer than the head it tells of.
    pub(super) fn of(body: Bytes, shows: bool) -> Option<Rc<Self>> {
        let mut upload = Upload::default();
        upload.pool = if shows { Pool::Shown } else { Pool::Free };
        if !body.is_empty() {
            let cost = cost(&body);
            if !upload.pool.take(cost) {
                return None;
            }
            (upload.kept, upload.kept_cost) = (vec![body], cost);
        }
        upload.keeping = true;
        Some(Rc::new(Self {
            upload: RefCell::new(upload),
            ..Self::default()
        }))
    }

    /// Reads the caller's body to its end before any of it is sent. It is kept, for tries and for
    /// whoever asks again.
    ///
    /// # Errors
    /// [`Unread`]; the request cannot be sent then.
    pub(super) fn poll_whole(
        &self,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Unread>> {
        let mut upload = self.upload.borrow_mut();
        let upload = &mut *upload;
        while let Some(source) = upload.source.as_mut() {
            match ready!(Pin::new(source).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.bytes.set(self.bytes.get() + data.len() as u64);
                        self.pieces.set(self.pieces.get() + 1);
                        upload.gather(data, most)?;
                    } else if let Ok(trailers) = frame.into_trailers() {
                        upload.trailers = Some(trailers);
                    }
                }
                Some(Err(_)) => {
                    self.broken.set(true);
                    return Poll::Ready(Err(Unread::Broken));
                }
                None => upload.source = None,
            }
        }
        if !upload.gathered.is_empty() {
            let whole = std::mem::take(&mut upload.gathered).freeze();
            upload.kept.push(whole);
        }
        let whole = upload.kept.first().cloned().unwrap_or_default();
        // Who asks later may be shown less.
        Poll::Ready(if whole.len() > most {
            Err(Unread::TooLong)
        } else {
            Ok(whole)
        })
    }

    /// True if the whole body could be sent (again).
    pub(super) fn can_send(&self) -> bool {
        !self.upload.borrow().lost && !self.broken.get()
    }

    /// Notes from here on who is waited for.
    pub(super) fn watch_caller(&self) {
        if matches!(self.clock.get(), Clock::Off) {
            self.clock.set(Clock::Endpoint(Instant::now()));
        }
    }

    /// Since when the endpoint is waited for; `None` while the caller is.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        match self.clock.get() {
            Clock::Endpoint(since) => Some(since),
            Clock::Off | Clock::Caller => None,
        }
    }

    /// Has the task of `cx` polled again once the caller has sent more.
    pub(super) fn wake_when_caller_sends(&self, cx: &Context<'_>) {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
    }

    fn waits_for_endpoint(&self) {
        let before = self.clock.get();
        if matches!(before, Clock::Off) {
            return;
        }
        self.clock.set(Clock::Endpoint(Instant::now()));
        let waker = self
            .waker
            .take()
            .filter(|_| matches!(before, Clock::Caller));
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn waits_for_caller(&self) {
        if matches!(self.clock.get(), Clock::Endpoint(_)) {
            self.clock.set(Clock::Caller);
        }
    }

    /// The current try has ended: its body takes nothing more from the caller.
    pub(super) fn end_try(&self) {
        self.upload.borrow_mut().attempt += 1;
    }

    /// No further try will come: nothing is kept from here on.
    pub(super) fn settle(&self) {
        let mut upload = self.upload.borrow_mut();
        if upload.keeping {
            // The next reader would miss them.
            upload.lost |= upload.at > 0;
            upload.stop_keeping();
        }
    }

    /// Progress of a copy of what is kept, if that is the whole body and there is room for it.
    pub(super) fn whole(&self) -> Option<Rc<Self>> {
        let upload = self.upload.borrow();
        let complete = upload.source.as_ref().is_none_or(Body::is_end_stream);
        if upload.lost || self.broken.get() || !complete {
            return None;
        }
        let mut copy = Upload::default();
        if !copy.pool.take(upload.kept_cost) {
            return None;
        }
        copy.kept.clone_from(&upload.kept);
        copy.kept_cost = upload.kept_cost;
        copy.trailers.clone_from(&upload.trailers);
        Some(Rc::new(Self {
            upload: RefCell::new(copy),
            ..Self::default()
        }))
    }

    /// The body for the next try, from its start; that of the try before ends.
    pub(super) fn next_try(self: &Rc<Self>, standing: Rc<Standing>) -> RequestBody {
        let mut upload = self.upload.borrow_mut();
        upload.attempt += 1;
        upload.at = 0;
        upload.trailers_sent = false;
        // Time that an endpoint took before counts on.
        if matches!(self.clock.get(), Clock::Caller) {
            self.waits_for_endpoint();
        }
        RequestBody {
            progress: self.clone(),
            standing,
            attempt: upload.attempt,
        }
    }
}

/// A request body on its way to an endpoint, for one try.
#[derive(Debug)]
pub struct RequestBody {
    progress: Rc<Progress>,
    standing: Rc<Standing>,
    attempt: u32,
}

/// Why a request body ended early.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The caller or its connection.
    #[error(transparent)]
    Caller(#[from] ReceiveError),
    /// A policy that was written meanwhile, or the end of this waypoint.
    #[error("the request may not go on: a policy was written, or the waypoint ends")]
    Withdrawn,
    /// Another try has taken over.
    #[error("the request is being sent elsewhere")]
    Superseded,
}

type Polled = Poll<Option<Result<Frame<Bytes>, RequestError>>>;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let progress = &self.progress;
        let mut upload = progress.upload.borrow_mut();
        let upload = &mut *upload;
        if upload.attempt != self.attempt {
            return Poll::Ready(Some(Err(RequestError::Superseded)));
        }
        if let Some(frame) = upload.next_kept() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        let Some(source) = upload.source.as_mut() else {
            let again = (!upload.trailers_sent).then(|| upload.trailers.clone());
            upload.trailers_sent = true;
            return Poll::Ready(again.flatten().map(|t| Ok(Frame::trailers(t))));
        };
        if self.standing.ending().is_some() {
            (upload.source, upload.lost) = (None, true);
            return Poll::Ready(Some(Err(RequestError::Withdrawn)));
        }
        let Poll::Ready(frame) = Pin::new(source).poll_frame(cx) else {
            self.standing.wake(Side::Request, cx);
            progress.waits_for_caller();
            return Poll::Pending;
        };
        progress.waits_for_endpoint();
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let bytes = &progress.bytes;
                    bytes.set(bytes.get() + data.len() as u64);
                    progress.pieces.set(progress.pieces.get() + 1);
                    if !data.is_empty() {
                        upload.keep(data);
                    }
                } else if let Some(trailers) = frame.trailers_ref()
                    && upload.keeping
                {
                    upload.trailers = Some(trailers.clone());
                    upload.trailers_sent = true;
                }
            }
            Some(Err(_)) => progress.broken.set(true),
            None => upload.source = None,
        }
        Poll::Ready(frame.map(|f| f.map_err(RequestError::from)))
    }

    fn is_end_stream(&self) -> bool {
        let upload = self.progress.upload.borrow();
        upload.attempt == self.attempt && upload.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        let upload = self.progress.upload.borrow();
        let waiting: usize = upload.kept[upload.at.min(upload.kept.len())..]
            .iter()
            .map(Bytes::len)
            .sum();
        let waiting = waiting as u64;
        let Some(source) = &upload.source else {
            return if upload.trailers.is_some() {
                SizeHint::default()
            } else {
                SizeHint::with_exact(waiting)
            };
        };
        let mut hint = source.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + waiting);
        }
        hint.set_lower(hint.lower() + waiting);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MUCH: &[u8] = &[0; 64 * 1024];

    #[test]
    fn what_waits_for_other_tries_leaves_authorisers_their_room() {
        let cost = cost(&Bytes::from_static(MUCH));
        let whole = MOST_OF_WORKER / cost * cost;
        assert!(Pool::Tries.take(MOST_OF_WORKER));
        assert!(!Pool::Tries.take(1));
        let mut shown: Vec<Upload> = Vec::new();
        let refused = loop {
            let mut upload = Upload::default();
            match upload.gather(&Bytes::from_static(MUCH), MUCH.len()) {
                Ok(()) => shown.push(upload),
                Err(unread) => break unread,
            }
        };
        assert_eq!(refused, Unread::NoRoom);
        assert_eq!(shown.len() * cost, whole);
        let question = Bytes::from_static(MUCH);
        assert!(Progress::of(question.clone(), true).is_none());
        let plain = Progress::of(question.clone(), false);
        assert!(plain.is_some(), "nothing of a body is in it");
        drop((plain, shown));
        assert_eq!((SHOWN.get(), KEPT.get()), (0, MOST_OF_WORKER));
        let shows = Progress::of(question, true);
        assert_eq!(SHOWN.get(), cost);
        drop(shows);
        Pool::Tries.give_back(MOST_OF_WORKER);
        assert_eq!((SHOWN.get(), KEPT.get()), (0, 0));
    }
}

//! Bodies that come in over HTTP/2. What nobody reads yet is taken out of h2 in time and put together there: to
//! h2 each DATA frame costs the same however small it is, and too many that wait end the whole connection.
//! The peer may send more only once somebody has read what came.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use ::http::HeaderMap;
use ::http::header::CONTENT_LENGTH;
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http_body::{Frame, SizeHint};

/// Overhead of small DATA frames that wait in h2, in octets (each counts as what it lacks to 256), beyond
/// which the connection ends. More than comes before [`crate::gather::Gathered`] has them taken out.
pub(crate) const SMALL_FRAMES: usize = 6 * 1024 * 1024;
/// Pieces that are shorter are put together,
const SMALL: usize = 256;
/// as long as they come to no more than this.
const TOGETHER: usize = 16 * 1024;
/// Bodies of a connection before those that are over are looked for.
const FEW: usize = 32;

/// A body that comes in.
#[derive(Debug)]
pub(crate) struct Inflow(Body);

#[derive(Debug)]
enum Body {
    /// Nothing follows the head, which may have named a length all the same.
    Over(Option<u64>),
    Open {
        inner: Rc<RefCell<Inner>>,
        /// Nothing more follows, as was seen once: h2 is not asked again.
        ended: Cell<bool>,
    },
}

#[derive(Debug)]
struct Inner {
    stream: RecvStream,
    /// Octets that are still to be read, where the head said how many.
    left: Option<u64>,
    data_done: bool,
    /// Taken out of h2 and not read yet.
    ahead: VecDeque<Bytes>,
    /// Small pieces that follow `ahead`.
    small: BytesMut,
    /// What follows `small`.
    broken: Option<h2::Error>,
    /// Whoever waits for more.
    reader: Option<Waker>,
}

/// The bodies that come in over one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inflows(Rc<RefCell<Vec<Weak<RefCell<Inner>>>>>);

impl Inflows {
    /// What follows a head with these fields.
    pub(crate) fn begin(&self, stream: RecvStream, headers: &HeaderMap) -> Inflow {
        let length = headers.get(CONTENT_LENGTH);
        let left = length
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse().ok());
        if stream.is_end_stream() {
            return Inflow(Body::Over(left));
        }
        let inner = Rc::new(RefCell::new(Inner {
            stream,
            left,
            data_done: false,
            ahead: VecDeque::new(),
            small: BytesMut::new(),
            broken: None,
            reader: None,
        }));
        let mut all = self.0.borrow_mut();
        if all.len() >= FEW && all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Rc::downgrade(&inner));
        let ended = Cell::new(false);
        Inflow(Body::Open { inner, ended })
    }

    /// Takes out of h2 what has come.
    pub(crate) fn take(&self) {
        self.0.borrow_mut().retain(|one| {
            let inner = one.upgrade();
            if let Some(inner) = &inner {
                inner.borrow_mut().take();
            }
            inner.is_some()
        });
    }
}

impl Inflow {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Body::Open { inner, .. } = &self.0 else {
            return Poll::Ready(None);
        };
        let inner = &mut *inner.borrow_mut();
        let data = match inner.taken() {
            Some(data) => Some(Ok(data)),
            None => ready!(inner.poll_data(cx)),
        };
        match data {
            Some(Ok(data)) => {
                // It has been read: the peer may send as much again. That fails only when the stream is over.
                let _ = inner.stream.flow_control().release_capacity(data.len());
                inner.left = inner
                    .left
                    .map(|left| left.saturating_sub(data.len() as u64));
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => {}
        }
        let trailers = ready!(inner.stream.poll_trailers(cx));
        Poll::Ready(
            trailers
                .map(|trailers| trailers.map(Frame::trailers))
                .transpose(),
        )
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let Body::Open { inner, ended } = &self.0 else {
            return true;
        };
        if !ended.get() {
            let inner = inner.borrow();
            let read = inner.ahead.is_empty() && inner.small.is_empty() && inner.broken.is_none();
            ended.set(read && inner.stream.is_end_stream());
        }
        ended.get()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let left = match &self.0 {
            Body::Over(length) => *length,
            Body::Open { inner, .. } => inner.borrow().left,
        };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Inner {
    fn taken(&mut self) -> Option<Bytes> {
        let first = self.ahead.pop_front();
        first.or_else(|| (!self.small.is_empty()).then(|| self.small.split().freeze()))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if self.data_done {
            return Poll::Ready(None);
        }
        let polled = self.stream.poll_data(cx);
        match &polled {
            Poll::Pending => {
                let same = |reader: &Waker| reader.will_wake(cx.waker());
                if !self.reader.as_ref().is_some_and(same) {
                    self.reader = Some(cx.waker().clone());
                }
            }
            Poll::Ready(None) => self.data_done = true,
            Poll::Ready(Some(_)) => {}
        }
        polled
    }

    fn take(&mut self) {
        // Whoever waits is woken by what comes, as before.
        let reader = self.reader.clone();
        let mut cx = Context::from_waker(reader.as_ref().unwrap_or(Waker::noop()));
        while !self.data_done && self.broken.is_none() {
            match self.stream.poll_data(&mut cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.data_done = true,
                Poll::Ready(Some(Ok(data))) => self.keep(data),
                Poll::Ready(Some(Err(error))) => self.broken = Some(error),
            }
        }
    }

    fn keep(&mut self, data: Bytes) {
        let small = data.len() < SMALL;
        if !self.small.is_empty() && (!small || self.small.len() + data.len() > TOGETHER) {
            self.ahead.push_back(self.small.split().freeze());
        }
        if small {
            self.small.extend_from_slice(&data);
        } else {
            self.ahead.push_back(data);
        }
    }
}

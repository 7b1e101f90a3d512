mod batch;
mod endpoint;
mod splice;

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use isobar_types::Reason;

pub use batch::Batch;
pub use endpoint::{Endpoint, Plain};
use splice::Splice;

/// Steps of one direction before other tasks of the thread get their turn.
const STEPS: usize = 16;

/// Bytes carried so far. Kept by the caller, so that the counts outlive a relay that is cut.
#[derive(Debug, Default)]
pub struct Progress {
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl Progress {
    /// Bytes from the first to the second endpoint.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Bytes from the second to the first endpoint.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received.get()
    }
}

/// How a relay ended.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes from the first to the second endpoint.
    pub sent: u64,
    /// Bytes from the second to the first endpoint.
    pub received: u64,
    /// Fine if both directions came to their end.
    pub end: Result<(), RelayError>,
}

/// Which endpoint of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelaySide {
    /// The first: the one that opened the connection.
    Downstream,
    /// The second: the one it was opened to.
    Upstream,
}

impl fmt::Display for RelaySide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
        })
    }
}

/// An endpoint broke; the other has been reset.
#[derive(Debug, thiserror::Error)]
#[error("{side}: {source}")]
pub struct RelayError {
    /// Who broke.
    pub side: RelaySide,
    /// How.
    #[source]
    pub source: io::Error,
}

impl RelayError {
    /// The ending this means for the connection.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self.side {
            RelaySide::Downstream => Reason::DownstreamReset,
            RelaySide::Upstream => Reason::UpstreamReset,
        }
    }
}

/// Carries bytes both ways between `downstream` and `upstream` until both directions have ended.
/// An end of one direction is passed on and leaves the other open; a break of one endpoint resets
/// the other. Drop both endpoints afterwards.
pub async fn relay<A: Endpoint, B: Endpoint>(downstream: &mut A, upstream: &mut B) -> Relayed {
    let progress = Progress::default();
    let end = relay_counted(downstream, upstream, &progress).await;
    Relayed {
        sent: progress.sent(),
        received: progress.received(),
        end,
    }
}

/// As [`relay`], counting into `progress` as it goes.
///
/// # Errors
/// When an endpoint breaks.
///
/// # Cancel safety
/// Dropping the future stops the relay between two writes; the endpoints are untouched, and
/// [`Endpoint::reset`] tells them that it was no orderly end.
pub async fn relay_counted<A: Endpoint, B: Endpoint>(
    downstream: &mut A,
    upstream: &mut B,
    progress: &Progress,
) -> Result<(), RelayError> {
    let (mut up, mut down) = (Way::default(), Way::default());
    let end = poll_fn(|cx| {
        let sent = up.poll(cx, downstream, upstream, &progress.sent, down.is_done());
        if let Poll::Ready(Err((at, source))) = sent {
            return Poll::Ready(Err(RelayError {
                side: at.side(RelaySide::Downstream),
                source,
            }));
        }
        let received = down.poll(cx, upstream, downstream, &progress.received, up.is_done());
        if let Poll::Ready(Err((at, source))) = received {
            return Poll::Ready(Err(RelayError {
                side: at.side(RelaySide::Upstream),
                source,
            }));
        }
        match (sent, received) {
            (Poll::Ready(_), Poll::Ready(_)) => Poll::Ready(Ok(())),
            // An endpoint that has ended its direction is not read any more; its reset would go
            // unseen until the next write.
            (_, Poll::Ready(_)) => broken(upstream.poll_broken(cx), RelaySide::Upstream),
            (Poll::Ready(_), _) => broken(downstream.poll_broken(cx), RelaySide::Downstream),
            _ => Poll::Pending,
        }
    })
    .await;
    if end.is_err() {
        downstream.reset();
        upstream.reset();
    }
    end
}

fn broken(found: Poll<io::Error>, side: RelaySide) -> Poll<Result<(), RelayError>> {
    found.map(|source| Err(RelayError { side, source }))
}

/// Where on its way a direction broke.
#[derive(Clone, Copy)]
enum At {
    Source,
    Target,
}

impl At {
    const fn side(self, source: RelaySide) -> RelaySide {
        match (self, source) {
            (Self::Source, side) => side,
            (Self::Target, RelaySide::Downstream) => RelaySide::Upstream,
            (Self::Target, RelaySide::Upstream) => RelaySide::Downstream,
        }
    }
}

/// One direction.
#[derive(Default)]
struct Way {
    batch: Batch,
    /// While much comes from one socket for another.
    splice: Option<Box<Splice>>,
    state: State,
}

#[derive(Default, Clone, Copy)]
enum State {
    #[default]
    Open,
    /// The source has ended; the target is to be told.
    Ending,
    Done,
}

impl Way {
    const fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Leaves the rest to the kernel, if it can and enough comes.
    fn splice_bulk<S: Endpoint, T: Endpoint>(&mut self, source: &S, target: &T) {
        let bulk = self.batch.is_bulk() && self.batch.is_empty();
        if bulk && source.socket().is_some() && target.socket().is_some() {
            self.splice = Splice::new();
            if self.splice.is_some() {
                self.batch.shrink();
            }
        }
    }

    /// One step by the kernel; false at the source's end.
    fn poll_splice<S: Endpoint, T: Endpoint>(
        &mut self,
        cx: &mut Context<'_>,
        source: &S,
        target: &T,
        count: &Cell<u64>,
    ) -> Poll<Result<bool, (At, io::Error)>> {
        let (Some(splice), Some(from), Some(to)) =
            (&mut self.splice, source.socket(), target.socket())
        else {
            self.splice = None;
            return Poll::Ready(Ok(true));
        };
        let taken = splice.poll_take(cx, from);
        if taken.is_pending() && splice.is_idle() {
            self.splice = None;
            return Poll::Pending;
        }
        if !ready!(taken).map_err(|error| (At::Source, error))? {
            self.splice = None;
            return Poll::Ready(Ok(false));
        }
        let bytes = ready!(splice.poll_pass(cx, to)).map_err(|error| (At::Target, error))?;
        count.set(count.get() + bytes as u64);
        Poll::Ready(Ok(true))
    }

    /// `last`: the other direction has ended.
    fn poll<S: Endpoint, T: Endpoint>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        target: &mut T,
        count: &Cell<u64>,
        last: bool,
    ) -> Poll<Result<(), (At, io::Error)>> {
        for _ in 0..STEPS {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ending if last && target.finishes_when_dropped() => self.state = State::Done,
                State::Ending => match target.poll_finish(cx) {
                    Poll::Ready(Ok(())) => self.state = State::Done,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err((At::Target, error))),
                    Poll::Pending => return Poll::Pending,
                },
                State::Open if self.splice.is_some() => {
                    match self.poll_splice(cx, source, target, count) {
                        Poll::Ready(Ok(true)) => {}
                        Poll::Ready(Ok(false)) => self.state = State::Ending,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                State::Open if self.batch.is_empty() => {
                    match source.poll_receive(cx, &mut self.batch) {
                        Poll::Ready(Ok(true)) => {}
                        Poll::Ready(Ok(false)) => self.state = State::Ending,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err((At::Source, error))),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                State::Open => match target.poll_send(cx, &mut self.batch) {
                    Poll::Ready(Ok(bytes)) => {
                        source.passed_on(bytes);
                        count.set(count.get() + bytes as u64);
                        self.splice_bulk(source, target);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err((At::Target, error))),
                    Poll::Pending => {
                        source.poll_relieve(cx, &mut self.batch);
                        // A target that never takes any more must not hide that nobody is left to
                        // hear. One that only stopped listening may still have what is on its way.
                        return match source.poll_broken(cx) {
                            Poll::Ready(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                                Poll::Ready(Err((At::Source, error)))
                            }
                            _ => Poll::Pending,
                        };
                    }
                },
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

//! Time limits of requests and tries.
//!
//! A limit is about the endpoint: it stands still while the caller is waited for, and starts again
//! with every part of the body that the caller sends. So it spans from the end of the request to the
//! end of the response, as in Envoy, and an endpoint is not blamed for a slow caller.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::upload::Progress;

/// One limit on what follows a moment.
#[derive(Debug)]
pub(crate) struct Limit {
    progress: Rc<Progress>,
    begun: Instant,
    time: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Limit {
    /// A limit that begins now.
    pub(super) fn new(progress: &Rc<Progress>, time: Duration) -> Self {
        progress.watch_caller();
        Self {
            progress: progress.clone(),
            begun: Instant::now(),
            time,
            sleep: None,
        }
    }

    /// When it is reached if nothing else happens; `None` while the caller is waited for.
    pub(super) fn at(&self) -> Option<Instant> {
        let since = self.progress.waits_since()?;
        Some(since.max(self.begun) + self.time)
    }

    /// True if this one is reached first, as things are now.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        let other = other.at();
        self.at()
            .is_some_and(|at| other.is_none_or(|other| at < other))
    }

    /// True if it is reached; asks the clock, and leaves no timer.
    pub(super) fn is_reached(&self) -> bool {
        self.at().is_some_and(|at| at <= Instant::now())
    }

    /// Ready once the limit is reached.
    pub(super) fn poll_reached(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(at) = self.at() else {
                self.progress.wake_when_caller_sends(cx);
                return Poll::Pending;
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() < at {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(cx));
            if self.is_reached() {
                return Poll::Ready(());
            }
        }
    }
}

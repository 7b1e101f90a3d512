//! How long a request's head may take over HTTP/1.1, and the first one of a caller from outside.
//!
//! A head that has begun holds memory, and gets less time than a connection that is idle.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

use crate::session::Session;

/// A head takes no longer. Looked at once in its length: a late one ends its connection between one
/// and two of them.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a request besides fields and body, its first line above all, and of the mark of a chunk.
/// What came beyond them is the start of the next head.
const FRAMING: u64 = 4096;
const CHUNK_MARK: u64 = 16;

/// What is known of the heads on one connection.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    /// Since when one is on its way.
    since: Cell<Option<Instant>>,
    /// Requests that are being served; several over HTTP/2 only.
    open: Cell<usize>,
    /// Requests that there were.
    begun: Cell<u64>,
    /// Bytes of it and of what follows it.
    read: Cell<u64>,
}

impl Heads {
    fn read(&self, bytes: usize) {
        self.read.set(self.read.get() + bytes as u64);
        if self.open.get() == 0 && self.since.get().is_none() {
            self.since.set(Some(Instant::now()));
        }
    }

    /// The first head is awaited from now on, whether or not something of it comes.
    pub(crate) fn expected(&self) {
        self.since.set(Some(Instant::now()));
    }

    /// A head is complete.
    pub(crate) fn arrived(&self) {
        self.since.set(None);
        self.open.set(self.open.get() + 1);
        self.begun.set(self.begun.get() + 1);
    }

    /// The request is over; its fields and body had so many bytes, and its body came in so many pieces.
    pub(crate) fn over(&self, bytes: u64, pieces: u64) {
        self.open.set(self.open.get().saturating_sub(1));
        let ahead = self.read.replace(0) > bytes + FRAMING + pieces * CHUNK_MARK;
        self.since.set(ahead.then(Instant::now));
    }

    /// True while requests are being served.
    pub(crate) fn is_serving(&self) -> bool {
        self.open.get() > 0
    }

    /// True while something of one is there and the rest is not.
    pub(crate) fn is_arriving(&self) -> bool {
        self.since.get().is_some()
    }

    /// Ends once there was no request for `limit`: looked at once in its length, so up to twice as late.
    pub(super) async fn idle(&self, limit: Duration) {
        let mut before = self.quiet();
        loop {
            sleep(limit).await;
            let now = self.quiet();
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }

    /// Requests that there were, while none is being served.
    fn quiet(&self) -> Option<u64> {
        (self.open.get() == 0).then(|| self.begun.get())
    }

    /// Ends once a head has taken too long.
    pub(crate) async fn late(&self) {
        loop {
            // A timer for each connection that seldom runs, not one for each request.
            let since = self.since.get();
            let left = since.map_or(LIMIT, |since| LIMIT.saturating_sub(since.elapsed()));
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }
}

/// The stream of a caller, whose heads are watched.
pub(super) struct Watched<S> {
    session: Rc<Session>,
    stream: S,
}

impl<S> Watched<S> {
    pub(super) const fn new(session: Rc<Session>, stream: S) -> Self {
        Self { session, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        if bytes > 0 {
            self.session.heads.read(bytes);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    /// True if the connection ends within two limits from here.
    async fn ends(heads: &Heads) -> bool {
        let late = std::pin::pin!(heads.late());
        tokio::time::timeout(2 * LIMIT + Duration::from_secs(1), late)
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_head_that_has_begun_can_be_late() {
        let heads = Heads::default();
        assert!(!ends(&heads).await);
        heads.read(1);
        heads.arrived();
        heads.read(100_000);
        assert!(!ends(&heads).await);
        heads.over(100_000, 0);
        assert!(!ends(&heads).await);
        heads.read(1);
        assert!(ends(&heads).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_that_is_expected_can_be_late_before_it_begins() {
        let heads = Heads::default();
        heads.expected();
        assert!(ends(&heads).await);
        heads.expected();
        heads.arrived();
        heads.over(100, 0);
        assert!(!ends(&heads).await, "only the first one is awaited");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_late_after_its_time_and_not_before() {
        let heads = Heads::default();
        heads.read(1);
        let mut late = std::pin::pin!(heads.late());
        assert!(poll!(&mut late).is_pending());
        tokio::time::advance(LIMIT - Duration::from_millis(10)).await;
        // More of it wins no time.
        heads.read(1);
        assert!(poll!(&mut late).is_pending());
        tokio::time::advance(Duration::from_millis(20)).await;
        assert!(poll!(&mut late).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_without_a_request_for_the_whole_time() {
        let heads = Heads::default();
        let limit = Duration::from_secs(10);
        let mut idle = std::pin::pin!(heads.idle(limit));
        assert!(poll!(&mut idle).is_pending());
        heads.arrived();
        heads.arrived();
        heads.over(100, 0);
        // One of two is still being served, for however long.
        let ended = tokio::time::timeout(5 * limit, idle.as_mut()).await;
        assert!(ended.is_err());
        heads.over(100, 0);
        let ended = tokio::time::timeout(limit + limit / 2, idle.as_mut()).await;
        assert!(ended.is_err());
        // Another came and went between two looks.
        heads.arrived();
        heads.over(100, 0);
        let since = Instant::now();
        idle.await;
        assert!(since.elapsed() >= limit && since.elapsed() <= 2 * limit);
    }

    #[tokio::test(start_paused = true)]
    async fn the_marks_of_chunks_are_no_head() {
        let heads = Heads::default();
        heads.read(200 + 10_000 * 6);
        heads.arrived();
        heads.over(200 + 10_000, 10_000);
        assert!(!ends(&heads).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_came_along_with_a_request_counts_from_its_end() {
        let heads = Heads::default();
        heads.read(60_000);
        heads.arrived();
        assert!(!ends(&heads).await);
        heads.over(200, 1);
        assert!(ends(&heads).await);
    }
}

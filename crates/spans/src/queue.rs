//! Spans that wait to be sent. Nobody waits for them: what finds no room is dropped, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use opentelemetry_proto::tonic::trace::v1::Span;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{mpsc, watch};

/// Spans of a process that may wait, besides those that are being sent.
pub(crate) const WAITING: usize = 2048;

type Outcomes = Family<Vec<(&'static str, &'static str)>, Counter>;

/// What became of a span.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    /// The collector took it.
    Exported,
    /// There was no room for it, the collector did not take it in time, or it refused it.
    Dropped,
}

/// Spans of all workers. Cheap to clone; nothing is kept before [`Spans::open`].
#[derive(Debug, Clone, Default)]
pub struct Spans(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: ArcSwapOption<mpsc::Sender<Span>>,
    /// There was a queue, or there will be none.
    opened: AtomicBool,
    outcomes: Outcomes,
    /// True while an exporter is there.
    exporting: watch::Sender<bool>,
}

/// Spans as an exporter gets them.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) queue: mpsc::Receiver<Span>,
    spans: Spans,
}

impl Spans {
    /// Adds the span that `made` makes, if there is room for it.
    pub fn record(&self, made: impl FnOnce() -> Span) {
        let queue = self.0.queue.load();
        let place = queue.as_ref().map(|queue| queue.try_reserve());
        match place {
            Some(Ok(place)) => place.send(made()),
            Some(Err(_)) | None => self.count(Outcome::Dropped, 1),
        }
    }

    /// True while what is recorded is kept.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.queue.load().is_some()
    }

    /// How many were exported and dropped, for a page of metrics.
    #[must_use]
    pub fn outcomes(&self) -> Outcomes {
        self.0.outcomes.clone()
    }

    pub(crate) fn count(&self, what: Outcome, spans: u64) {
        if spans == 0 {
            return;
        }
        let outcome = match what {
            Outcome::Exported => "exported",
            Outcome::Dropped => "dropped",
        };
        let counter = self.0.outcomes.get_or_create(&vec![("outcome", outcome)]);
        counter.inc_by(spans);
    }

    /// Begins to keep spans; `None` if that was done before.
    pub(crate) fn open(&self) -> Option<Waiting> {
        if self.0.opened.swap(true, Ordering::Relaxed) {
            return None;
        }
        let (sender, queue) = mpsc::channel(WAITING);
        self.0.exporting.send_replace(true);
        self.0.queue.store(Some(Arc::new(sender)));
        Some(Waiting {
            queue,
            spans: self.clone(),
        })
    }

    /// Takes no more spans, and waits until those that there are were sent, at most for `limit`.
    pub async fn finish(&self, limit: Duration) {
        self.0.opened.store(true, Ordering::Relaxed);
        self.0.queue.store(None);
        let mut exporting = self.0.exporting.subscribe();
        let over = exporting.wait_for(|exporting| !exporting);
        // Who does not take them by then loses them.
        let _ = tokio::time::timeout(limit, over).await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Also where the exporter is dropped on its way: what is recorded from here on is counted.
        self.spans.0.queue.store(None);
        self.spans.0.exporting.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(spans: &Spans) -> u64 {
        let outcome = vec![("outcome", "dropped")];
        spans.0.outcomes.get_or_create(&outcome).get()
    }

    #[tokio::test]
    async fn what_finds_no_room_is_counted_and_not_even_made() {
        let spans = Spans::default();
        spans.record(|| panic!("nobody sends it"));
        assert_eq!(dropped(&spans), 1);
        let mut waiting = spans.open().unwrap();
        assert!(spans.open().is_none(), "one exporter");
        for _ in 0..WAITING {
            spans.record(Span::default);
        }
        spans.record(|| panic!("there is no room"));
        assert_eq!(dropped(&spans), 2);
        assert!(waiting.queue.try_recv().is_ok());
        spans.record(Span::default);
        assert_eq!(dropped(&spans), 2);
    }

    #[tokio::test]
    async fn the_end_waits_for_what_is_there_and_not_for_ever() {
        let spans = Spans::default();
        spans.finish(Duration::from_secs(60)).await;
        assert!(spans.open().is_none(), "not after the end");
        let spans = Spans::default();
        let mut waiting = spans.open().unwrap();
        spans.record(Span::default);
        spans.finish(Duration::ZERO).await;
        assert!(!spans.is_open());
        assert!(waiting.queue.recv().await.is_some());
        assert!(waiting.queue.recv().await.is_none());
        let over = spans.finish(Duration::from_secs(60));
        drop(waiting);
        over.await;
    }
}

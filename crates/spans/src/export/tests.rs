use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::TcpListener;

use super::*;

fn collector(host: &str, port: u16) -> Collector {
    Collector {
        host: host.to_owned(),
        port,
        resource: Vec::new(),
    }
}

fn outcome(spans: &Spans, what: &'static str) -> u64 {
    let outcomes = spans.outcomes();
    outcomes.get_or_create(&vec![("outcome", what)]).get()
}

/// Records one span and ends the recording; how long it took until that was dealt with.
async fn took(spans: &Spans, exporter: Exporter) -> Duration {
    let started = Instant::now();
    spans.record(Span::default);
    tokio::join!(exporter.run(), spans.finish(Duration::from_secs(600)));
    started.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_nobody_takes_is_dropped_after_its_time() {
    let silent = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let silent = silent.await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let spans = Spans::default();
    let (_tell, told) = watch::channel(Some(collector("127.0.0.1", port)));
    let resolve: Resolve = Arc::new(|_| Box::pin(async { Vec::new() }));
    let exporter = Exporter::new(&spans, told, resolve).unwrap();
    let took = took(&spans, exporter).await;
    assert!(took >= LIMIT / 2 && took < LIMIT * 2, "{took:?}");
    assert_eq!(outcome(&spans, "dropped"), 1);
    assert_eq!(outcome(&spans, "exported"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_not_found_is_looked_for_again_and_again() {
    let spans = Spans::default();
    let (_tell, told) = watch::channel(Some(collector("otel", 4317)));
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let resolve: Resolve = Arc::new(move |host| {
        assert_eq!(host, "otel");
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Vec::new() })
    });
    let exporter = Exporter::new(&spans, told, resolve).unwrap();
    let took = took(&spans, exporter).await;
    assert!(took <= LIMIT, "{took:?}");
    // Waits of half a second, one, two and four, each shortened by dice by up to a half.
    let asked = asked.load(Ordering::Relaxed);
    assert!((4..=7).contains(&asked), "{asked}");
    assert_eq!(outcome(&spans, "dropped"), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_collector_nothing_is_kept() {
    let spans = Spans::default();
    let (_tell, told) = watch::channel(None);
    let resolve: Resolve = Arc::new(|_| Box::pin(async { Vec::new() }));
    let exporter = Exporter::new(&spans, told, resolve).unwrap();
    assert!(took(&spans, exporter).await < LIMIT);
    assert_eq!(outcome(&spans, "dropped"), 1);
}

//! One line a request or connection: in Envoy's default text format, or as the mesh's settings say.

mod form;
mod usual;

use std::borrow::Cow;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use ::http::{HeaderMap, Version};
use arc_swap::ArcSwap;
use isobar_route::Lines;
use isobar_runtime::Lifetime;
use isobar_types::Identity;

pub(crate) use self::usual::{put_address, put_number};
use crate::feed::Feed;
use crate::http::{ClusterName, RequestFacts, RouteName};
use crate::world::Own;

/// Lines that may wait for a slow reader of our output; more are dropped and counted, because a log
/// must never hold up traffic.
const QUEUE: usize = 10_000;

/// Bytes after which lines are written at once, and the time they may wait for others otherwise: a
/// system call for each would cost more than the line, and so would waking the writer for each.
const BATCH: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(10);

/// Where access lines go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: Option<SyncSender<String>>,
    dropped: Arc<AtomicU64>,
    /// Lines that are not written yet.
    waiting: Arc<AtomicU64>,
    /// What the mesh's settings say.
    wanted: Arc<ArcSwap<Lines>>,
}

/// A request at its end.
#[derive(Debug)]
pub(crate) struct HttpLine<'a> {
    pub(crate) start: jiff::Timestamp,
    pub(crate) request: &'a RequestFacts,
    /// All headers, once it was found to be a request.
    pub(crate) headers: Option<&'a HeaderMap>,
    pub(crate) caller: Option<&'a Identity>,
    pub(crate) own: &'a Own,
    pub(crate) code: u16,
    pub(crate) flags: &'a str,
    pub(crate) detail: &'a str,
    pub(crate) failure: &'a str,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) duration: Duration,
    pub(crate) upstream_time: Option<Duration>,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) cluster: &'a ClusterName,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) route: &'a RouteName,
}

/// An opaque connection at its end.
#[derive(Debug)]
pub(crate) struct TcpLine<'a> {
    pub(crate) start: jiff::Timestamp,
    pub(crate) caller: Option<&'a Identity>,
    pub(crate) own: &'a Own,
    pub(crate) flags: &'a str,
    pub(crate) detail: &'a str,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) duration: Duration,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) cluster: &'a str,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl AccessLog {
    /// Writes to standard output from a thread of its own.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn stdout() -> std::io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        let log = Self {
            lines: Some(lines),
            dropped: Arc::default(),
            waiting: Arc::default(),
            wanted: Arc::default(),
        };
        let (dropped, waiting) = (log.dropped.clone(), log.waiting.clone());
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&queue, &dropped, &waiting))?;
        Ok(log)
    }

    /// Writes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self {
            lines: None,
            dropped: Arc::default(),
            waiting: Arc::default(),
            wanted: Arc::default(),
        }
    }

    /// Gives lines to whoever holds the other end.
    #[must_use]
    pub fn to_queue() -> (Self, Receiver<String>) {
        let (lines, queue) = sync_channel(QUEUE);
        let log = Self {
            lines: Some(lines),
            dropped: Arc::default(),
            waiting: Arc::default(),
            wanted: Arc::default(),
        };
        (log, queue)
    }

    /// Lines lost because nobody took them in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn put(&self, line: impl FnOnce() -> String) {
        let Some(lines) = &self.lines else { return };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if lines.try_send(line()).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines are written, at most for `limit`.
    pub async fn flush(&self, limit: Duration) {
        let written = async {
            while self.waiting.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(PAUSE).await;
            }
        };
        // Who does not take its lines by then loses them.
        let _ = tokio::time::timeout(limit, written).await;
    }

    /// True if lines go anywhere.
    pub(crate) const fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Follows what the mesh's settings say, until `life` ends.
    pub async fn follow(self, feed: Feed, life: Lifetime) {
        let mut versions = feed.versions();
        loop {
            versions.borrow_and_update();
            let wanted = feed.load().waypoint().map(|own| own.lines.clone());
            // A waypoint that has lost its description serves nobody.
            if let Some(wanted) = wanted.filter(|wanted| **self.wanted.load() != *wanted) {
                self.wanted.store(Arc::new(wanted));
            }
            tokio::select! {
                () = life.draining() => return,
                changed = versions.changed() => if changed.is_err() { return },
            }
        }
    }

    pub(crate) fn http(&self, line: &HttpLine<'_>) {
        match &**self.wanted.load() {
            Lines::Usual => self.put(|| usual::line(line)),
            Lines::Off => {}
            Lines::Form(form) => self.put(|| form::line(form, line)),
        }
    }

    pub(crate) fn tcp(&self, line: &TcpLine<'_>) {
        match &**self.wanted.load() {
            Lines::Usual => self.put(|| tcp_line(line)),
            Lines::Off => {}
            Lines::Form(form) => self.put(|| form::line(form, line)),
        }
    }
}

fn write(queue: &Receiver<String>, dropped: &AtomicU64, waiting: &AtomicU64) {
    let mut told = 0;
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(first) = queue.recv() {
        batch.extend_from_slice(first.as_bytes());
        batch.push(b'\n');
        let mut count = 1;
        while batch.len() < BATCH
            && let Ok(line) = queue.try_recv()
        {
            batch.extend_from_slice(line.as_bytes());
            batch.push(b'\n');
            count += 1;
        }
        let full = batch.len() >= BATCH;
        let mut out = std::io::stdout().lock();
        // Nobody to write to is nobody to complain to.
        let ok = out.write_all(&batch).and_then(|()| out.flush()).is_ok();
        drop(out);
        batch.clear();
        waiting.fetch_sub(count, Ordering::Relaxed);
        let lost = dropped.load(Ordering::Relaxed);
        if ok && lost > told {
            tracing::warn!(lines = lost - told, "access lines were dropped");
            told = lost;
        }
        if !full {
            std::thread::sleep(PAUSE);
        }
    }
}

fn tcp_line(line: &TcpLine<'_>) -> String {
    format!(
        "[{start:.3}] \"- - -\" 0 {flags} - - \"{failure}\" {received} {sent} {duration} - \"-\" \
         \"-\" \"-\" \"-\" \"{upstream}\" {cluster} - {local} {remote} - -",
        start = line.start,
        flags = line.flags,
        failure = or_dash(line.detail),
        received = line.bytes_received,
        sent = line.bytes_sent,
        duration = line.duration.as_millis(),
        upstream = address(line.upstream),
        cluster = word(line.cluster),
        local = line.local,
        remote = line.remote,
    )
}

const fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

fn address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |a| a.to_string())
}

fn or_dash(text: &str) -> Cow<'_, str> {
    if text.is_empty() {
        Cow::Borrowed("-")
    } else {
        clean(text)
    }
}

/// Outside quotes a blank would shift the columns.
fn word(text: &str) -> Cow<'_, str> {
    let text = or_dash(text);
    if text.contains(' ') {
        Cow::Owned(text.replace(' ', "_"))
    } else {
        text
    }
}

/// A caller must not be able to end a quoted part or a line.
fn clean(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().flat_map(|c| match c {
        '"' | '\\' => c.escape_default().collect::<Vec<_>>(),
        c if c.is_control() => c.escape_default().collect(),
        c => vec![c],
    });
    Cow::Owned(escaped.collect())
}

/// True if nothing of it has to be written differently.
fn is_plain(text: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii() && !byte.is_ascii_control() && byte != b'"' && byte != b'\\';
    // All are looked at, several at once.
    text.bytes().fold(true, |all, byte| all & plain(byte))
}

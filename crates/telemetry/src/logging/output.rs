use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that may wait for the writer (Istio's ztunnel: as many, but it then blocks).
const QUEUE: usize = 10_000;
/// Lines written with one system call.
const BATCH: usize = 64;
/// How long a flush waits for a reader that does not read.
const FLUSH: Duration = Duration::from_secs(1);

enum Entry {
    Line(String),
    Flush(SyncSender<()>),
}

/// The writer's queue.
#[derive(Debug, Clone)]
pub(super) struct Output {
    queue: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Output {
    pub(super) fn stdout() -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&lines, &lost))?;
        Ok(Self { queue, dropped })
    }

    pub(super) fn write(&self, line: String) {
        if self.queue.try_send(Entry::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Entry::Flush(done)).is_ok() {
            // Nothing more can be done if the reader is stuck.
            let _ = wait.recv_timeout(FLUSH);
        }
    }
}

fn write_lines(lines: &Receiver<Entry>, lost: &AtomicU64) {
    let mut text = String::new();
    let mut flushed = Vec::new();
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(entry) = next {
            match entry {
                Entry::Line(line) => {
                    text.push_str(&line);
                    text.push('\n');
                }
                Entry::Flush(done) => flushed.push(done),
            }
            taken += 1;
            next = (taken < BATCH).then(|| lines.try_recv().ok()).flatten();
        }
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            text.push_str(&format!(
                "{missing} log lines were dropped: the reader of this output is too slow\n"
            ));
        }
        let mut out = std::io::stdout().lock();
        // Without a reader there is nobody to tell.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        text.clear();
        for done in flushed.drain(..) {
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
impl Output {
    /// A queue whose lines the test reads.
    pub(super) fn captured() -> (Self, impl FnMut() -> Option<String>) {
        let (queue, lines) = sync_channel(QUEUE);
        let output = Self {
            queue,
            dropped: Arc::default(),
        };
        let next = move || match lines.try_recv() {
            Ok(Entry::Line(line)) => Some(line),
            _ => None,
        };
        (output, next)
    }
}

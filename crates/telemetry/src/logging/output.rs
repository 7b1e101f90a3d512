use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::LogFormat;
use super::line::plain_line;

/// Lines that may wait for the writer (Istio's ztunnel: as many, but it then blocks).
const QUEUE: usize = 10_000;
/// Lines written with one system call.
const BATCH: usize = 256;
/// Pause after lines were written. A busy process fills the queue meanwhile without waking the
/// writer for each line, which would cost more than the line.
const PAUSE: Duration = Duration::from_millis(10);
/// Lines taken within one second unless told otherwise: whoever can make us log must not fill the
/// node's disk or keep the writer busy.
const PACE: u64 = 1000;
/// How long a flush waits for a reader that does not read.
const FLUSH: Duration = Duration::from_secs(1);
/// Unwritten losses are told at least this often.
const TELL: Duration = Duration::from_secs(1);

enum Entry {
    Line(String),
    Flush(SyncSender<()>),
}

/// The writer's queue.
#[derive(Debug, Clone)]
pub(super) struct Output {
    queue: SyncSender<Entry>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pace: Pace,
    /// Lost because the reader is too slow, and because there were too many.
    full: AtomicU64,
    many: AtomicU64,
}

/// Lines taken in the current second.
#[derive(Debug)]
struct Pace {
    start: Instant,
    /// Lines a second; 0 for no limit.
    limit: AtomicU64,
    /// The second since `start` in the upper half, the lines taken in it in the lower.
    taken: AtomicU64,
}

impl Pace {
    fn new(limit: u64) -> Self {
        Self {
            start: Instant::now(),
            limit: AtomicU64::new(limit),
            taken: AtomicU64::new(0),
        }
    }

    /// True if one more line may be written in `second`.
    fn takes(&self, second: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return true;
        }
        let now = second << 32;
        let update = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                let (at, count) = (taken & !0xffff_ffff, taken & 0xffff_ffff);
                match count {
                    _ if at != now => Some(now | 1),
                    count if count < limit => Some(taken + 1),
                    _ => None,
                }
            });
        update.is_ok()
    }
}

impl Shared {
    fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            pace: Pace::new(limit),
            full: AtomicU64::new(0),
            many: AtomicU64::new(0),
        })
    }

    /// The lines that tell of lost ones, if any were lost.
    fn losses(&self, format: LogFormat) -> Vec<String> {
        let causes = [
            (&self.full, "the reader of this output is too slow"),
            (&self.many, "too many in a second"),
        ];
        let lost = causes
            .into_iter()
            .map(|(count, why)| (count.swap(0, Ordering::Relaxed), why));
        lost.filter(|(count, _)| *count > 0)
            .map(|(count, why)| {
                plain_line(format, &format!("{count} log lines were dropped: {why}"))
            })
            .collect()
    }
}

impl Output {
    pub(super) fn stdout(format: LogFormat) -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let shared = Shared::new(PACE);
        let writer = shared.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&lines, &writer, format, &mut std::io::stdout()))?;
        Ok(Self { queue, shared })
    }

    /// `line` is made only if it is taken.
    pub(super) fn write(&self, line: impl FnOnce() -> String) {
        let shared = &self.shared;
        if !shared.pace.takes(shared.pace.start.elapsed().as_secs()) {
            shared.many.fetch_add(1, Ordering::Relaxed);
        } else if self.queue.try_send(Entry::Line(line())).is_err() {
            shared.full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Changes how many lines a second are taken; 0 for no limit.
    pub(super) fn limit(&self, lines: u64) {
        self.shared
            .pace
            .limit
            .store(lines.min(u64::from(u32::MAX)), Ordering::Relaxed);
    }

    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Entry::Flush(done)).is_ok() {
            // Nothing more can be done if the reader is stuck.
            let _ = wait.recv_timeout(FLUSH);
        }
    }
}

fn write_lines(
    lines: &Receiver<Entry>,
    shared: &Shared,
    format: LogFormat,
    out: &mut dyn std::io::Write,
) {
    use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
    let mut text = String::new();
    let mut flushed = Vec::new();
    loop {
        let mut next = match lines.recv_timeout(TELL) {
            Ok(first) => Some(first),
            Err(Timeout) => None,
            Err(Disconnected) => return,
        };
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
        for loss in shared.losses(format) {
            text.push_str(&loss);
            text.push('\n');
        }
        // Without a reader there is nobody to tell.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        text.clear();
        let waited_for = !flushed.is_empty();
        for done in flushed.drain(..) {
            let _ = done.try_send(());
        }
        if taken < BATCH && !waited_for {
            std::thread::sleep(PAUSE);
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
            shared: Shared::new(0),
        };
        let next = move || match lines.try_recv() {
            Ok(Entry::Line(line)) => Some(line),
            _ => None,
        };
        (output, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_takes_its_share_and_the_next_one_again() {
        let pace = Pace::new(3);
        let taken = |second| (0..10).filter(|_| pace.takes(second)).count();
        assert_eq!((taken(0), taken(0), taken(7), taken(7)), (3, 0, 3, 0));
        pace.limit.store(0, Ordering::Relaxed);
        assert_eq!(taken(7), 10);
    }

    #[test]
    fn r_26_what_is_lost_is_counted_in_a_line_of_the_same_form() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let (queue, lines) = sync_channel(QUEUE);
            let shared = Shared::new(1000);
            let output = Output {
                queue,
                shared: shared.clone(),
            };
            // One second of the pace's clock may pass in between; no more.
            for number in 0..5000 {
                output.write(|| number.to_string());
            }
            drop(output);
            let mut out = Vec::new();
            write_lines(&lines, &shared, format, &mut out);
            let text = String::from_utf8(out).unwrap();
            let written = text.lines().filter(|l| l.parse::<u32>().is_ok()).count();
            let told: Vec<_> = text.lines().filter(|l| l.contains("dropped")).collect();
            assert!((1000..=2000).contains(&written), "{written}");
            let expected = format!(
                "{} log lines were dropped: too many in a second",
                5000 - written
            );
            assert_eq!(told.len(), 1);
            println!("R-26: {written} of 5000 lines written at once, the rest told in one");
            match format {
                LogFormat::Text => assert!(told[0].ends_with(&expected), "{}", told[0]),
                LogFormat::Json => {
                    let line: serde_json::Value = serde_json::from_str(told[0]).unwrap();
                    assert_eq!(
                        (&line["message"], &line["level"]),
                        (&expected.into(), &"warn".into())
                    );
                }
            }
        }
    }
}

//! CPU profiles of this process, in the form and at the place where Go's tools look for them.
//!
//! Only for who is on the same machine or forwards the port: a profile costs time and memory. One at a
//! time, none longer than [`LONGEST`]; nothing is sampled while nobody asks.

use std::collections::HashMap;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use isobar_telemetry::{Call, Reply, Routes};
use pprof::{ProfilerGuard, ProfilerGuardBuilder, Report, Symbol};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Seconds of a profile, and samples in a second of processor time, unless the query says otherwise.
const SECONDS: u32 = 10;
const RATE: u32 = 100;
/// What the query may say.
const LONGEST: RangeInclusive<u32> = 1..=60;
const RATES: RangeInclusive<u32> = 1..=1000;
/// Libraries that no stack can be taken in: they may hold what taking one needs.
const LEFT_OUT: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// A profile that is being taken, and the right to take it.
type Running = (ProfilerGuard<'static>, OwnedSemaphorePermit);

/// Adds `/debug/pprof/profile` (query `seconds`, `frequency`), and an answer about heap profiles.
pub(crate) fn routes(routes: Routes) -> Routes {
    let turn = Arc::new(Semaphore::new(1));
    routes
        .get("/debug/pprof/profile", move |call: Call| {
            let turn = Arc::clone(&turn);
            async move { profile(&call, turn).await.unwrap_or_else(|refused| refused) }
        })
        .get("/debug/pprof/heap", |_| async {
            let text =
                "there are no heap profiles: the allocator of this program is built without them\n";
            Reply::text(StatusCode::NOT_IMPLEMENTED, text)
        })
}

async fn profile(call: &Call, turn: Arc<Semaphore>) -> Result<Reply, Reply> {
    if call.is_from_a_page() || !call.peer.ip().to_canonical().is_loopback() {
        let text = "only from this machine: forward the port\n";
        return Err(Reply::text(StatusCode::FORBIDDEN, text));
    }
    let seconds = number(call, "seconds", SECONDS, &LONGEST)?;
    let rate = number(call, "frequency", RATE, &RATES)?;
    let Ok(turn) = turn.try_acquire_owned() else {
        let text = "a profile is being taken already\n";
        return Err(Reply::text(StatusCode::SERVICE_UNAVAILABLE, text));
    };
    // Both ends look symbols up, which takes a while.
    let begun = tokio::task::spawn_blocking(move || begin(rate, turn));
    let running = begun.await.map_err(failed)?.map_err(failed)?;
    // Who goes away meanwhile drops this, and the profile with it.
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let body = tokio::task::spawn_blocking(move || end(&running, rate));
    Ok(Reply {
        status: StatusCode::OK,
        content_type: "application/octet-stream",
        body: body.await.map_err(failed)?.map_err(failed)?.into(),
    })
}

fn number(
    call: &Call,
    key: &str,
    default: u32,
    allowed: &RangeInclusive<u32>,
) -> Result<u32, Reply> {
    let Some(text) = call.query_value(key) else {
        return Ok(default);
    };
    let number = text.parse().ok().filter(|number| allowed.contains(number));
    number.ok_or_else(|| {
        let (least, most) = (allowed.start(), allowed.end());
        let text = format!("{key} must be a number from {least} to {most}\n");
        Reply::text(StatusCode::BAD_REQUEST, text)
    })
}

fn failed(error: impl std::fmt::Display) -> Reply {
    let text = format!("no profile: {error}\n");
    Reply::text(StatusCode::INTERNAL_SERVER_ERROR, text)
}

fn begin(rate: u32, turn: OwnedSemaphorePermit) -> pprof::Result<Running> {
    let rate = i32::try_from(rate).unwrap_or(i32::MAX);
    let builder = ProfilerGuardBuilder::default().frequency(rate);
    Ok((builder.blocklist(&LEFT_OUT).build()?, turn))
}

fn end(running: &Running, rate: u32) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let report = running.0.report().build()?;
    let bytes = wire(&report, rate).encode_to_vec();
    let mut zipped = GzEncoder::new(Vec::new(), Compression::default());
    zipped.write_all(&bytes)?;
    Ok(zipped.finish()?)
}

/// What is sampled, in the terms of the format: everything is named by its place in a list.
fn wire(report: &Report, rate: u32) -> Profile {
    let mut names = Names::default();
    let period = i64::from(1_000_000_000 / rate.max(1));
    let (count, cpu) = (
        names.kind("samples", "count"),
        names.kind("cpu", "nanoseconds"),
    );
    let thread = names.text("thread");
    let mut samples = Vec::new();
    for (frames, count) in &report.data {
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        let places = frames.frames.iter().map(|frame| names.location(frame));
        samples.push(Sample {
            location: places.collect(),
            value: vec![count, count.saturating_mul(period)],
            label: vec![Label {
                key: thread,
                text: names.text(&frames.thread_name_or_id()),
            }],
        });
    }
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let begun = report.timing.start_time.duration_since(UNIX_EPOCH);
    Profile {
        sample_type: vec![count, cpu.clone()],
        sample: samples,
        location: names.locations,
        function: names.functions,
        text: names.texts,
        time_nanos: nanos(begun.unwrap_or_default()),
        duration_nanos: nanos(report.timing.duration),
        period_type: Some(cpu),
        period,
    }
}

/// Lists of the format, in which nothing stands twice.
struct Names {
    texts: Vec<String>,
    known_texts: HashMap<String, i64>,
    functions: Vec<Function>,
    known_functions: HashMap<(i64, i64), u64>,
    locations: Vec<Location>,
    known_locations: HashMap<Vec<(u64, i64)>, u64>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            // The first one is empty, so that 0 says nothing.
            texts: vec![String::new()],
            known_texts: HashMap::from([(String::new(), 0)]),
            functions: Vec::new(),
            known_functions: HashMap::new(),
            locations: Vec::new(),
            known_locations: HashMap::new(),
        }
    }
}

impl Names {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(known) = self.known_texts.get(text) {
            return *known;
        }
        let next = i64::try_from(self.texts.len()).unwrap_or(0);
        self.texts.push(text.to_owned());
        self.known_texts.insert(text.to_owned(), next);
        next
    }

    fn kind(&mut self, what: &str, unit: &str) -> ValueType {
        ValueType {
            kind: self.text(what),
            unit: self.text(unit),
        }
    }

    /// A frame: several functions where some are part of others, the innermost first.
    fn location(&mut self, frame: &[Symbol]) -> u64 {
        let lines = frame.iter().map(|symbol| {
            let name = self.text(&symbol.name());
            let file = self.text(&symbol.filename());
            let next = self.functions.len() as u64 + 1;
            let function = *self.known_functions.entry((name, file)).or_insert(next);
            if function == next {
                self.functions.push(Function {
                    id: next,
                    name,
                    file,
                });
            }
            (function, i64::from(symbol.lineno()))
        });
        let lines: Vec<(u64, i64)> = lines.collect();
        let next = self.locations.len() as u64 + 1;
        let place = *self.known_locations.entry(lines.clone()).or_insert(next);
        if place == next {
            let line = lines.into_iter();
            let line = line.map(|(function, line)| Line { function, line });
            self.locations.push(Location {
                id: next,
                line: line.collect(),
            });
        }
        place
    }
}

/// The part of the format's messages that is used here, by its numbers.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    text: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "4")]
    file: i64,
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use http::{HeaderMap, Method};

    use super::*;

    fn call(peer: &str, query: &str) -> Call {
        Call {
            method: Method::GET,
            path: "/debug/pprof/profile".to_owned(),
            query: query.to_owned(),
            headers: HeaderMap::new(),
            peer: peer.parse::<SocketAddr>().unwrap(),
        }
    }

    #[inline(never)]
    fn keep_busy(until: &AtomicBool) -> u64 {
        let mut sum = 1_u64;
        while !until.load(Ordering::Relaxed) {
            for n in 0..1000 {
                sum = std::hint::black_box(sum.rotate_left(5) ^ n);
            }
        }
        sum
    }

    const HERE: &str = "127.0.0.1:1000";

    #[tokio::test]
    async fn a_profile_of_a_busy_process_names_what_keeps_it_busy() {
        let stop = Arc::new(AtomicBool::new(false));
        let busy = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || keep_busy(&stop)
        });
        let turn = Arc::new(Semaphore::new(1));
        let asked = call(HERE, "seconds=1&frequency=200");
        let first = profile(&asked, Arc::clone(&turn));
        let second = async {
            while turn.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            profile(&asked, Arc::clone(&turn)).await
        };
        let (first, second) = futures_util::future::join(first, second).await;
        stop.store(true, Ordering::Relaxed);
        busy.join().unwrap();
        assert_eq!(second.unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(turn.available_permits(), 1);

        let body = first.unwrap().body;
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&*body)
            .read_to_end(&mut bytes)
            .unwrap();
        let profile = Profile::decode(&*bytes).unwrap();
        let counted: i64 = profile.sample.iter().map(|one| one.value[0]).sum();
        assert!(counted >= 10, "{counted} samples");
        assert_eq!(profile.period, 5_000_000);
        let named = |id: u64| {
            let function = &profile.function[usize::try_from(id).unwrap() - 1];
            &profile.text[usize::try_from(function.name).unwrap()]
        };
        let is_busy = |sample: &&Sample| {
            sample.location.iter().any(|place| {
                let place = &profile.location[usize::try_from(*place).unwrap() - 1];
                place
                    .line
                    .iter()
                    .any(|line| named(line.function).contains("keep_busy"))
            })
        };
        let busy: i64 = profile
            .sample
            .iter()
            .filter(is_busy)
            .map(|one| one.value[0])
            .sum();
        assert!(
            busy * 2 > counted,
            "{busy} of {counted}: {:?}",
            profile.text
        );
    }

    #[tokio::test]
    async fn strangers_and_pages_get_none_and_numbers_are_bounded() {
        let turn = Arc::new(Semaphore::new(1));
        let status = async |asked: Call| {
            let answer = profile(&asked, Arc::clone(&turn)).await;
            answer.unwrap_err().status
        };
        assert_eq!(
            status(call("192.0.2.1:1000", "")).await,
            StatusCode::FORBIDDEN
        );
        let mut page = call(HERE, "");
        page.headers.insert("origin", "http://x".parse().unwrap());
        assert_eq!(status(page).await, StatusCode::FORBIDDEN);
        for query in ["seconds=0", "seconds=61", "seconds=x", "frequency=1001"] {
            assert_eq!(
                status(call(HERE, query)).await,
                StatusCode::BAD_REQUEST,
                "{query}"
            );
        }
        assert_eq!(turn.available_permits(), 1);
    }
}

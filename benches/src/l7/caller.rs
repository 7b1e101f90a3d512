//! The load generator: closed loops as fast as they go, or requests at a fixed rate.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::{Method, Request};
use isobar_runtime::LocalScope;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::GRPC;
use super::frames::{self, Pace};
use super::hbone::{Door, Entrance, Stream};
use super::server::{CONNECTION_WINDOW, MESSAGE, STREAM_WINDOW};
use crate::client::{content_length, micros, percentile};
use crate::cost::usage_of_process;
use crate::server::head_end;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// One gRPC message each way.
    Grpc,
}

/// One load.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    /// What is spoken.
    #[arg(long)]
    pub(super) protocol: Protocol,
    /// Where to.
    #[command(flatten)]
    pub(super) door: Door,
    /// What is asked for; its last word is the size of the body wanted.
    #[arg(long)]
    pub(super) path: String,
    /// Connections at once.
    #[arg(long, default_value_t = 1)]
    pub(super) connections: usize,
    /// Requests at once on each connection of HTTP/2.
    #[arg(long, default_value_t = 1)]
    pub(super) streams: usize,
    /// For how long, in seconds.
    #[arg(long)]
    pub(super) seconds: f64,
    /// Requests a second of all connections together; 0 for as fast as they go.
    #[arg(long, default_value_t = 0)]
    pub(super) rate: u32,
}

/// What a load measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Requests that were answered well.
    pub(super) requests: u64,
    /// How long it took, in seconds.
    pub(super) seconds: f64,
    /// Median latency in microseconds.
    pub(super) p50_us: u64,
    /// 99th percentile of the latency in microseconds.
    pub(super) p99_us: u64,
    /// The longest latency in microseconds.
    pub(super) max_us: u64,
    /// Requests that failed, or were answered with another status than 200.
    pub(super) failed: u64,
    /// The first of these failures.
    pub(super) first_failure: Option<String>,
    /// CPU seconds of the load generator.
    pub(super) cpu_seconds: f64,
}

/// When the requests of one loop go out, and what became of them.
struct Loop {
    tally: Rc<RefCell<Tally>>,
    until: Instant,
    /// When the next is due, and the time between two, at a fixed rate.
    due: Option<(Instant, Duration)>,
}

#[derive(Default)]
struct Tally {
    latencies: Vec<u64>,
    failed: u64,
    first_failure: Option<String>,
}

impl Loop {
    /// Waits for the next request's time; from when on it counts. A request that is late because the
    /// one before it was slow counts from the time it was due.
    async fn next(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let start = match &mut self.due {
            None => now,
            Some((due, period)) => {
                let start = *due;
                *due += *period;
                if start > now {
                    tokio::time::sleep_until(start.into()).await;
                    Instant::now()
                } else {
                    start
                }
            }
        };
        (start < self.until).then_some(start)
    }

    fn note(&self, start: Instant, outcome: &Result<()>) {
        let mut tally = self.tally.borrow_mut();
        match outcome {
            Ok(()) => tally.latencies.push(micros(start)),
            Err(error) => {
                tally.failed += 1;
                tally.first_failure.get_or_insert(format!("{error:#}"));
            }
        }
    }
}

/// As fast as it goes.
impl Pace for Loop {
    fn another(&self) -> Option<Instant> {
        let now = Instant::now();
        (now < self.until).then_some(now)
    }

    fn note(&self, start: Instant, outcome: &Result<()>) {
        Self::note(self, start, outcome);
    }
}

impl Load {
    /// Runs it in a `LocalSet`.
    pub(crate) async fn run(self) -> Result<Measured> {
        let scope = Rc::new(LocalScope::new("load"));
        let tally = Rc::new(RefCell::new(Tally::default()));
        let start = Instant::now();
        let length = Duration::from_secs_f64(self.seconds);
        let streams = match self.protocol {
            Protocol::Http1 => 1,
            Protocol::Http2 | Protocol::Grpc => self.streams.max(1),
        };
        let all = u32::try_from(self.connections * streams)?;
        let share = (self.rate > 0).then(|| Duration::from_secs(1) / self.rate);
        let loops = (0..all).map(|index| Loop {
            tally: Rc::clone(&tally),
            until: start + length,
            due: share.map(|share| (start + share * index, share * all)),
        });
        let mut loops: Vec<Loop> = loops.collect();
        let entrance = self.door.entrance()?;
        while !loops.is_empty() {
            let rest = loops.split_off(streams.min(loops.len()));
            let (load, own) = (self.clone(), std::mem::replace(&mut loops, rest));
            let (within, entrance) = (Rc::clone(&scope), entrance.clone());
            scope.spawn("connection", async move {
                load.connection(own, &entrance, &within).await;
            });
        }
        // Connections of HTTP/2 end with their last stream.
        scope.shutdown(length + Duration::from_secs(10)).await;
        let mut tally = std::mem::take(&mut *tally.borrow_mut());
        tally.latencies.sort_unstable();
        let latencies = &tally.latencies;
        Ok(Measured {
            requests: latencies.len() as u64,
            seconds: start.elapsed().as_secs_f64(),
            p50_us: percentile(latencies, 50),
            p99_us: percentile(latencies, 99),
            max_us: latencies.last().copied().unwrap_or_default(),
            failed: tally.failed,
            first_failure: tally.first_failure,
            cpu_seconds: usage_of_process(std::process::id()).cpu_seconds,
        })
    }

    async fn connection(self, mut loops: Vec<Loop>, entrance: &Entrance, scope: &Rc<LocalScope>) {
        let outcome = match (self.protocol, loops.pop()) {
            (Protocol::Http1, Some(only)) => self.http1(only, entrance).await,
            (_, Some(last)) if self.rate == 0 => match entrance.open().await {
                Ok(io) => frames::run(io, &self, self.streams.max(1), &last).await,
                Err(error) => {
                    last.note(Instant::now(), &Err(error));
                    Ok(())
                }
            },
            (_, Some(last)) => {
                loops.push(last);
                self.http2(loops, entrance, scope).await
            }
            (_, None) => Ok(()),
        };
        if let Err(error) = outcome {
            eprintln!("{error:#}");
        }
    }

    async fn http1(&self, mut times: Loop, entrance: &Entrance) -> Result<()> {
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\nx-noise: 1\r\n\r\n",
            self.path
        );
        let mut buffer = vec![0; 128 * 1024];
        let mut kept: Option<Stream> = None;
        while let Some(start) = times.next().await {
            let outcome = async {
                let tcp = match &mut kept {
                    Some(tcp) => tcp,
                    None => kept.insert(entrance.open().await?),
                };
                tcp.write_all(request.as_bytes()).await?;
                read_reply(tcp, &mut buffer).await
            };
            let outcome = outcome.await;
            times.note(start, &outcome);
            if outcome.is_err() {
                kept = None;
            }
        }
        Ok(())
    }

    async fn http2(
        self,
        loops: Vec<Loop>,
        entrance: &Entrance,
        scope: &Rc<LocalScope>,
    ) -> Result<()> {
        let shaken = async {
            let io = entrance.open().await?;
            let mut builder = h2::client::Builder::new();
            builder
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW);
            Ok(builder.handshake::<_, Bytes>(io).await?)
        };
        let (sender, connection) = match shaken.await {
            Ok(shaken) => shaken,
            Err(error) => {
                loops[0].note(Instant::now(), &Err(error));
                return Ok(());
            }
        };
        scope.spawn("h2", async move { drop(connection.await) });
        for mut times in loops {
            let (load, mut sender) = (self.clone(), sender.clone());
            scope.spawn("stream", async move {
                while let Some(start) = times.next().await {
                    let outcome = load.once(&mut sender).await;
                    times.note(start, &outcome);
                    if outcome.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(())
    }

    async fn once(&self, sender: &mut h2::client::SendRequest<Bytes>) -> Result<()> {
        let grpc = self.protocol == Protocol::Grpc;
        let mut request = Request::new(());
        *request.uri_mut() = http::Uri::builder()
            .scheme("http")
            .authority("bench")
            .path_and_query(&*self.path)
            .build()?;
        let headers = request.headers_mut();
        headers.insert("user-agent", http::HeaderValue::from_static("bench"));
        headers.insert("x-noise", http::HeaderValue::from_static("1"));
        if grpc {
            headers.insert("content-type", http::HeaderValue::from_static(GRPC));
            headers.insert("te", http::HeaderValue::from_static("trailers"));
            *request.method_mut() = Method::POST;
        }
        futures_util::future::poll_fn(|cx| sender.poll_ready(cx)).await?;
        let (response, mut upload) = sender.send_request(request, !grpc)?;
        if grpc {
            upload.send_data(Bytes::from_static(MESSAGE), true)?;
        }
        let response = response.await?;
        ensure!(response.status() == 200, "status {}", response.status());
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        if grpc {
            let trailers = body.trailers().await?.context("no trailers")?;
            let status = trailers.get("grpc-status").context("no grpc-status")?;
            ensure!(status == "0", "grpc-status {status:?}");
        }
        Ok(())
    }
}

pub(super) async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let tcp = TcpStream::connect(to).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Reads one reply, which nothing follows, and leaves its head in the buffer.
pub(super) async fn read_reply(
    tcp: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> Result<()> {
    let mut filled = 0;
    let end = loop {
        let count = tcp.read(&mut buffer[filled..]).await?;
        ensure!(count > 0, "the connection ended");
        filled += count;
        if let Some(end) = head_end(&buffer[..filled]) {
            break end;
        }
        ensure!(filled < buffer.len() / 2, "the head is too long");
    };
    let length = content_length(&buffer[..end]).context("no content-length")?;
    let good = buffer.starts_with(b"HTTP/1.1 200");
    let mut missing = length.saturating_sub(filled - end);
    while missing > 0 {
        let room = missing.min(buffer.len() - end);
        let count = tcp.read(&mut buffer[end..end + room]).await?;
        ensure!(count > 0, "the connection ended within a body");
        missing -= count;
    }
    if good {
        return Ok(());
    }
    let head = String::from_utf8_lossy(&buffer[..end]);
    bail!("{}", head.lines().next().unwrap_or_default())
}

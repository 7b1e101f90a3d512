//! Spans on their way to a collector: OTLP over gRPC, in batches, with as much patience as a batch may need.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;

use crate::queue::{Outcome, Spans, Waiting};
use crate::request::{attribute, bounded};

/// Most spans that are sent at once, and how long the first of them waits for others.
const BATCH: usize = 512;
const PAUSE: Duration = Duration::from_secs(5);
/// A batch that the collector has not taken by then is dropped.
const LIMIT: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(3);
/// Waits between connections to a collector that does not answer, doubled from one to the next.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What a collector may have on its way to us: its answers are a few bytes.
const WINDOW: u32 = 64 * 1024;
const ANSWER: usize = 64 * 1024;
const HEADERS: u32 = 16 * 1024;
/// Of what a collector says, in the log.
const TOLD: usize = 200;

/// Where spans go, and what they are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Host name or address.
    pub host: String,
    /// Port of OTLP over gRPC.
    pub port: u16,
    /// What the spans are of: `service.name` and others.
    pub resource: Vec<(&'static str, String)>,
}

/// Finds the addresses of a host; none where it is not known.
pub type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, Vec<IpAddr>> + Send + Sync>;

/// Sends what is recorded.
pub struct Exporter {
    waiting: Waiting,
    spans: Spans,
    collector: watch::Receiver<Option<Collector>>,
    resolve: Resolve,
    client: Option<TraceServiceClient<Channel>>,
    wait: Duration,
    /// No connection is made before.
    not_before: Instant,
    /// The last answer was a refusal of some spans: told once until one is not.
    refuses: bool,
}

impl Exporter {
    /// The one exporter of these spans; `None` if there was one before.
    #[must_use]
    pub fn new(
        spans: &Spans,
        collector: watch::Receiver<Option<Collector>>,
        resolve: Resolve,
    ) -> Option<Self> {
        Some(Self {
            waiting: spans.open()?,
            spans: spans.clone(),
            collector,
            resolve,
            client: None,
            wait: Duration::ZERO,
            not_before: Instant::now(),
            refuses: false,
        })
    }

    /// Sends batches until no more spans are recorded.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        while self.gather(&mut batch).await {
            let spans = std::mem::take(&mut batch);
            self.deliver(spans).await;
        }
    }

    /// Waits for spans; false if there will be none.
    async fn gather(&mut self, batch: &mut Vec<Span>) -> bool {
        loop {
            tokio::select! {
                biased;
                Ok(()) = self.collector.changed() => self.begin_anew(),
                spans = self.waiting.queue.recv_many(batch, BATCH) => match spans {
                    0 => return false,
                    _ => break,
                },
            }
        }
        let end = Instant::now() + PAUSE;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            match timeout_at(end, self.waiting.queue.recv_many(batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        true
    }

    /// Forgets how it went with the collector before.
    fn begin_anew(&mut self) {
        self.client = None;
        self.wait = Duration::ZERO;
        self.not_before = Instant::now();
        self.refuses = false;
    }

    async fn deliver(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        if self.collector.has_changed().unwrap_or_default() {
            self.begin_anew();
        }
        let Some(collector) = self.collector.borrow_and_update().clone() else {
            self.spans.count(Outcome::Dropped, count);
            return;
        };
        let request = request(&collector, spans);
        let end = Instant::now() + LIMIT;
        let lost = loop {
            if self.client.is_none() && self.not_before >= end {
                break count;
            }
            let sent = timeout_at(end, self.send(&collector, &request)).await;
            let late = || Err(Status::deadline_exceeded("no answer in time"));
            match sent.unwrap_or_else(|_| late()) {
                Ok(lost) => {
                    self.wait = Duration::ZERO;
                    break lost.min(count);
                }
                Err(status) => {
                    self.failed(&collector, &status);
                    if !may_retry(status.code()) {
                        break count;
                    }
                }
            }
        };
        self.spans.count(Outcome::Dropped, lost);
        self.spans.count(Outcome::Exported, count - lost);
    }

    /// Sends one batch; how many of its spans the collector refused.
    async fn send(
        &mut self,
        collector: &Collector,
        request: &ExportTraceServiceRequest,
    ) -> Result<u64, Status> {
        let client = match &mut self.client {
            Some(client) => client,
            none => {
                sleep_until(self.not_before).await;
                let made = connect(collector, &self.resolve).await;
                let made = made.map_err(|error| Status::unavailable(chain(&*error)))?;
                let client = TraceServiceClient::new(made);
                none.insert(client.max_decoding_message_size(ANSWER))
            }
        };
        let answer = client.export(request.clone()).await?.into_inner();
        let partial = answer.partial_success.unwrap_or_default();
        let refused = u64::try_from(partial.rejected_spans).unwrap_or_default();
        if refused > 0 && !self.refuses {
            let why = bounded(&partial.error_message, TOLD);
            tracing::warn!(refused, why, "the collector refused spans");
        }
        self.refuses = refused > 0;
        Ok(refused)
    }

    fn failed(&mut self, collector: &Collector, status: &Status) {
        self.client = None;
        // Told once until it works again.
        if self.wait.is_zero() {
            let (host, port) = (&collector.host, collector.port);
            let why = bounded(status.message(), TOLD);
            tracing::warn!(host, port, code = ?status.code(), why, "spans are not taken");
        }
        self.wait = (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        // Proxies that lost the same collector do not come back all at once.
        let shorter = rand::random_range(0.5..=1.0);
        self.not_before = Instant::now() + self.wait.mul_f64(shorter);
    }
}

/// Codes after which the same batch may be sent again (OTLP's list).
const fn may_retry(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unknown
    )
}

fn request(collector: &Collector, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let told = collector.resource.iter();
    let resource = Resource {
        attributes: told.map(|(key, value)| attribute(key, value)).collect(),
        ..Resource::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "isobar".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

async fn connect(
    collector: &Collector,
    resolve: &Resolve,
) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
    let (host, port) = (collector.host.clone(), collector.port);
    let authority = match host.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host.clone(),
    };
    let endpoint = Endpoint::from_shared(format!("http://{authority}:{port}"))?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(HEADERS)
        .tcp_nodelay(true);
    let addresses = match host.parse() {
        Ok(ip) => vec![ip],
        Err(_) => resolve(host.clone()).await,
    };
    let connector = service_fn(move |_: Uri| dial(addresses.clone(), port));
    Ok(endpoint.connect_with_connector(connector).await?)
}

async fn dial(addresses: Vec<IpAddr>, port: u16) -> io::Result<TokioIo<TcpStream>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for ip in addresses {
        match timeout(CONNECT, TcpStream::connect((ip, port))).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(TokioIo::new(stream));
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// An error and what caused it, in one line.
fn chain(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;

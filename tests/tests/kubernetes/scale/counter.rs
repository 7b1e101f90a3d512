//! A discovery client with no model of the mesh, so that fifty of them leave the machine to the
//! control plane that is measured.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{future, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isobar_proto::istio::workload::{Address, address};
use isobar_proto::type_url::{ADDRESS, AUTHORIZATION};
use isobar_tls::{ClientStream, control};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

const METHOD: &str = "https://127.0.0.1/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// What may be under way to it: everything there is, several times.
const WINDOW: u32 = 64 << 20;

/// Attempts to connect, and the pause between them.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// What a client was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Addresses, each as often as it was told.
    pub(super) held: u32,
    /// The watched pod's canonical revision.
    pub(super) revision: String,
    /// When its bytes arrived.
    pub(super) at: Option<Instant>,
}

/// One client.
pub(super) struct Counter {
    pub(super) address: String,
    pub(super) roots: String,
    pub(super) token: String,
    /// The uid of the pod that is looked at.
    pub(super) watched: &'static str,
    pub(super) seen: watch::Sender<Seen>,
}

impl Counter {
    /// Connects, and takes what comes until the connection ends.
    pub(super) async fn run(self) -> Result<()> {
        let stream = TokioIo::new(self.connected().await?);
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream)
            .await?;
        let (requests, outgoing) = mpsc::channel::<Bytes>(16);
        for kind in [AUTHORIZATION, ADDRESS] {
            requests.send(request(kind, "")).await?;
        }
        let outgoing = stream::unfold(outgoing, |mut outgoing| async {
            let request = outgoing.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(request)), outgoing))
        });
        let request = http::Request::post(METHOD)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", self.token.trim()))
            .body(StreamBody::new(outgoing).boxed_unsync())?;
        let told = async {
            let response = sender.send_request(request).await?;
            self.take(response.into_body(), requests).await
        };
        let connection = async { connection.await.context("the connection") };
        future::try_join(told, connection).await?;
        Ok(())
    }

    /// A connection; one address has so many handshakes at once, and the others come again.
    async fn connected(&self) -> Result<ClientStream<TcpStream>> {
        let tls = control::client_config(&self.roots, None)?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let tcp = TcpStream::connect(&self.address).await?;
            tcp.set_nodelay(true)?;
            match tls.connect(tcp, "127.0.0.1").await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("never connected: {last:?}")
    }

    async fn take(
        &self,
        mut body: hyper::body::Incoming,
        requests: mpsc::Sender<Bytes>,
    ) -> Result<()> {
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let now = Instant::now();
            match frame?.into_data() {
                Ok(data) => buffer.extend_from_slice(&data),
                Err(trailers) => bail!("the stream ended: {:?}", trailers.into_trailers()),
            }
            while let Some(message) = message(&mut buffer) {
                let response = DeltaDiscoveryResponse::decode(message)?;
                let answer = request(&response.type_url, &response.nonce);
                requests.send(answer).await?;
                if response.type_url == ADDRESS {
                    self.seen
                        .send_modify(|seen| self.note(seen, &response, now));
                }
            }
        }
        bail!("the stream ended")
    }

    fn note(&self, seen: &mut Seen, response: &DeltaDiscoveryResponse, now: Instant) {
        for resource in &response.resources {
            seen.held += 1;
            let content = resource.resource.as_ref();
            if resource.name == self.watched
                && let Some(content) = content
                && let Ok(address) = Address::decode(&*content.value)
                && let Some(address::Type::Workload(workload)) = address.r#type
            {
                seen.revision = workload.canonical_revision;
                seen.at = Some(now);
            }
        }
    }
}

/// A whole message from the front of what has arrived.
fn message(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = buffer.get(1..5)?.try_into().ok().map(u32::from_be_bytes)?;
    let length = usize::try_from(length).ok()?;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(length))
}

/// A subscription to everything of a kind, or an acknowledgement.
fn request(kind: &str, nonce: &str) -> Bytes {
    let request = DeltaDiscoveryRequest {
        type_url: kind.to_owned(),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let body = request.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], &body].concat().into()
}

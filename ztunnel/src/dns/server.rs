//! Answering the queries of one pod.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use isobar_runtime::Scope;
use isobar_state::Workload;
use isobar_state::names::{NameRules, addresses, find};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::forward::Upstreams;
use super::message::{Query, Read, read};
use super::metrics::{DnsLabels, DnsMetrics, kind_label};
use crate::config::Dns;
use crate::proxy::{Pod, World};

/// Queries and connections of one pod served at once; more wait in the socket.
const AT_ONCE: usize = 512;
/// Queries of one pod that are answered before others have their turn.
const A_TURN: u64 = 16;
/// Addresses in one answer: those of a headless service with more pods would not fit a message. Which
/// ones is chosen anew each time.
const MOST_ADDRESSES: usize = 512;
/// A client that sends nothing for that long is dropped.
const IDLE: Duration = Duration::from_secs(5);
/// Largest datagram.
const DATAGRAM: usize = 65_535;
/// Pause after an error of a socket that may pass.
const PAUSE: Duration = Duration::from_millis(50);
/// For queries that wait in the socket when the pod drains.
const LAST_LOOK: Duration = Duration::from_millis(20);
/// For queries under way when the pod drains.
const DRAIN: Duration = Duration::from_secs(1);

/// One pod's DNS proxy.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) world: Arc<World>,
    pub(super) pod: Arc<Pod>,
    pub(super) config: Arc<Dns>,
    pub(super) upstreams: Upstreams,
    pub(super) metrics: DnsMetrics,
    pub(super) search: Option<Vec<String>>,
}

impl Server {
    pub(super) async fn run(self, sockets: Vec<(UdpSocket, TcpListener)>) {
        let pod = self.pod.clone();
        let scope = Scope::new("dns");
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let server = Arc::new(self);
        for (datagrams, streams) in sockets {
            scope.spawn(
                "udp",
                server.clone().udp(Arc::new(datagrams), slots.clone()),
            );
            scope.spawn("tcp", server.clone().tcp(streams, slots.clone()));
        }
        drop(server);
        pod.draining().await;
        // The tasks that read new queries end here; those that answer get a moment.
        scope.shutdown(DRAIN).await;
    }

    async fn udp(self: Arc<Self>, socket: Arc<UdpSocket>, slots: Arc<Semaphore>) {
        let queries = Scope::new("dns.query");
        let mut buffer = vec![0; DATAGRAM];
        for number in 1_u64.. {
            if number.is_multiple_of(A_TURN) {
                // One thread answers all pods: however many one sends, others wait for so many of them.
                tokio::task::yield_now().await;
            }
            // Never closed.
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let received = tokio::select! {
                () = self.pod.draining() => break,
                received = socket.recv_from(&mut buffer) => received,
            };
            let (packet, client) = match received {
                Ok((len, client)) => (buffer[..len].to_vec(), client),
                Err(error) => {
                    tracing::debug!(%error, "DNS socket");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            self.clone()
                .query(&queries, &socket, packet, client, slot)
                .await;
        }
        // What waited in the socket would be lost with it.
        let end = tokio::time::Instant::now() + LAST_LOOK;
        while let Ok(Ok((len, client))) =
            tokio::time::timeout_at(end, socket.recv_from(&mut buffer)).await
        {
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                break;
            };
            let packet = buffer[..len].to_vec();
            self.clone()
                .query(&queries, &socket, packet, client, slot)
                .await;
        }
        queries.shutdown(DRAIN).await;
    }

    /// Answers what is known at once. What has to be asked for is answered by a task of its own.
    async fn query(
        self: Arc<Self>,
        queries: &Scope,
        socket: &Arc<UdpSocket>,
        packet: Vec<u8>,
        client: SocketAddr,
        slot: OwnedSemaphorePermit,
    ) {
        let socket = socket.clone();
        let mut answered = Box::pin(async move {
            if let Some(answer) = self.answer(&packet, false).await {
                // A client that is gone needs no answer.
                let _ = socket.send_to(&answer, client).await;
            }
            drop(slot);
        });
        let now = poll_fn(|cx| Poll::Ready(answered.as_mut().poll(cx))).await;
        if now.is_pending() {
            queries.spawn("query", answered);
        }
    }

    async fn tcp(self: Arc<Self>, listener: TcpListener, slots: Arc<Semaphore>) {
        let connections = Scope::new("dns.connection");
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                () = self.pod.draining() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, client)) => {
                    let server = self.clone();
                    connections.spawn("connection", async move {
                        if let Err(error) = server.stream(tcp).await {
                            tracing::debug!(%client, %error, "DNS connection ended");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "DNS listener");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        connections.shutdown(DRAIN).await;
    }

    async fn stream(&self, mut tcp: TcpStream) -> io::Result<()> {
        loop {
            let len = match tokio::time::timeout(IDLE, tcp.read_u16()).await {
                Ok(Ok(len)) => usize::from(len),
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            let mut packet = vec![0; len];
            tokio::time::timeout(IDLE, tcp.read_exact(&mut packet)).await??;
            let Some(answer) = self.answer(&packet, true).await else {
                return Ok(());
            };
            let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            tokio::time::timeout(IDLE, tcp.write_all(&framed)).await??;
        }
    }

    pub(super) async fn answer(&self, packet: &[u8], stream: bool) -> Option<Vec<u8>> {
        let query = match read(packet) {
            Read::Query(query) => query,
            Read::Answer(bytes) => return Some(bytes),
            Read::Drop => return None,
        };
        let Ok(client) = self.world.workload(&self.pod).await else {
            self.log(None, &query, "client unknown", 0);
            return query.failed(ResponseCode::ServFail);
        };
        let labels = DnsLabels {
            kind: kind_label(query.kind),
            protocol: if stream { "tcp" } else { "udp" },
            service: client.canonical_name.clone(),
            revision: client.canonical_revision.clone(),
        };
        self.metrics.asked(&labels);
        if let Some(answer) = self.mesh_answer(&query, &client) {
            let answer = answer?;
            if !stream && answer.len() > query.payload() {
                return query.truncated();
            }
            return Some(answer);
        }
        self.forward(packet, &query, &client, &labels, stream).await
    }

    /// `None`: not a name of the mesh.
    fn mesh_answer(&self, query: &Query, client: &Workload) -> Option<Option<Vec<u8>>> {
        let v6 = match query.kind {
            RecordType::A => false,
            RecordType::AAAA => true,
            _ => return None,
        };
        let snapshot = self.world.store.load();
        let rules = NameRules {
            namespace: &client.namespace,
            network: &client.network,
            domain: &self.config.domain,
            search: self.search.as_deref(),
            preferred_namespace: self.config.preferred_namespace.as_deref(),
        };
        let found = find(&snapshot, &rules, &query.name)?;
        let mut list = if v6 && !self.world.config.ipv6 {
            Vec::new()
        } else {
            addresses(&snapshot, &rules, found.service, v6)
        };
        shuffle(&mut list);
        list.truncate(MOST_ADDRESSES);
        let result = if list.is_empty() {
            "no records"
        } else {
            "success"
        };
        self.log(Some(client), query, result, list.len());
        Some(query.answer(found.alias.as_deref(), &list))
    }

    async fn forward(
        &self,
        packet: &[u8],
        query: &Query,
        client: &Workload,
        labels: &DnsLabels,
        stream: bool,
    ) -> Option<Vec<u8>> {
        let started = Instant::now();
        self.metrics.forwarded.get_or_create(labels).inc();
        let asked = self
            .upstreams
            .ask(&self.world, &self.pod, packet, stream)
            .await;
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.duration.get_or_create(labels).observe(seconds);
        match asked {
            Ok(answer) => {
                self.log(Some(client), query, "forwarded", 0);
                Some(answer)
            }
            Err(error) => {
                self.metrics.failures.get_or_create(labels).inc();
                self.log(Some(client), query, &error.to_string(), 0);
                query.failed(ResponseCode::ServFail)
            }
        }
    }

    fn log(&self, client: Option<&Workload>, query: &Query, result: &str, endpoints: usize) {
        let workload = client.map_or(&*self.pod.info.name, |c| &*c.name);
        tracing::debug!(
            target: "dns",
            { src.workload = workload,
              src.namespace = self.pod.info.namespace.as_str(),
              query = %query.kind,
              domain = query.name.as_str(),
              result,
              endpoints },
            "request"
        );
    }
}

/// In random order, so that clients that take the first spread.
fn shuffle<T>(list: &mut [T]) {
    for at in (1..list.len()).rev() {
        let other = rand::random_range(0..=at);
        list.swap(at, other);
    }
}

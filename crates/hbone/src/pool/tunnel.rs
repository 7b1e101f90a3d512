use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use isobar_net::dial as dial_tcp;
use isobar_tls::{ClientStream, HandshakeError, VerifiedPeer, WorkloadCertificate, client_config};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::entry::Entry;
use super::{Shared, TunnelKey};
use crate::cork::{self, Corked};
use crate::guard::{Guard, Role, Watch, in_turns};
use crate::liveness::{self, Liveness};
use crate::settings::{CLIENT_HEADERS, DATA_FRAME_BUDGET, SEND_BUFFER};
use crate::unsent::UnsentTotal;
use crate::{Http2, Stage, Timeouts, TunnelError};

/// One HTTP/2 connection to a peer proxy.
pub(crate) struct Tunnel {
    requests: SendRequest<Bytes>,
    peer: VerifiedPeer,
    guard: Rc<Guard>,
    unsent: UnsentTotal,
    /// End of our own certificate: new streams beyond it need a new tunnel.
    expires: SystemTime,
    active: Cell<usize>,
    used: Cell<bool>,
    /// The peer's SETTINGS have arrived, so that its stream limit is known.
    settled: Cell<bool>,
    condemned: Cell<bool>,
    idle_since: Cell<Instant>,
    /// What ended the connection, once it has ended.
    ended: RefCell<Option<Ending>>,
    over: Notify,
}

/// How a connection ended under its streams.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    /// The peer did not accept our certificate: it says so after the handshake (TLS 1.3).
    Refused(Arc<HandshakeError>),
    /// The peer's SETTINGS did not come in time.
    Unsettled,
    /// The peer ended it in order: it takes no new streams, but another process at its address may.
    Closed,
    /// Anything else.
    Lost(String),
}

impl Ending {
    /// As the callers are told.
    pub(crate) fn error(&self, to: SocketAddr, timeouts: &Timeouts) -> TunnelError {
        match self {
            Self::Refused(source) => TunnelError::Tls {
                to,
                source: Arc::clone(source),
            },
            Self::Unsettled => TunnelError::Timeout {
                to,
                stage: Stage::Settings,
                after: timeouts.settings,
            },
            Self::Closed => TunnelError::Lost {
                to,
                detail: "the peer closed it".to_owned(),
            },
            Self::Lost(detail) => TunnelError::Lost {
                to,
                detail: detail.clone(),
            },
        }
    }
}

impl Tunnel {
    pub(crate) fn requests(&self) -> SendRequest<Bytes> {
        self.requests.clone()
    }

    pub(crate) const fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Bytes of its streams that are not written yet.
    pub(crate) const fn unsent(&self) -> &UnsentTotal {
        &self.unsent
    }

    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    pub(crate) const fn active(&self) -> usize {
        self.active.get()
    }

    pub(crate) const fn is_settled(&self) -> bool {
        self.settled.get()
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.condemned.get() && SystemTime::now() < self.expires
    }

    /// Streams it takes beyond those it has. Before its SETTINGS: one, which costs no waiting.
    pub(crate) fn room(&self, most: usize) -> usize {
        if !self.settled.get() {
            return usize::from(!self.used.get());
        }
        let limit = most.min(self.requests.current_max_send_streams());
        limit.saturating_sub(self.active.get())
    }

    /// The peer has said that it takes no streams at all.
    pub(crate) fn allows_none(&self) -> bool {
        self.settled.get() && self.requests.current_max_send_streams() == 0
    }

    /// Takes a place; true if the tunnel has been used before.
    pub(crate) fn take(&self) -> bool {
        self.active.set(self.active.get() + 1);
        self.used.replace(true)
    }

    pub(crate) fn give_back(&self) {
        self.active.set(self.active.get() - 1);
        self.idle_since.set(Instant::now());
    }

    pub(crate) fn condemn(&self) {
        self.condemned.set(true);
    }

    /// What ended the connection; waits for the driver to say so.
    pub(crate) async fn ending(&self) -> Ending {
        let over = self.over.notified();
        tokio::pin!(over);
        over.as_mut().enable();
        if let Some(ending) = self.ended.borrow().clone() {
            return ending;
        }
        over.await;
        let ending = self.ended.borrow().clone();
        ending.unwrap_or_else(|| Ending::Lost("the tunnel ended".to_owned()))
    }
}

/// Certificate, TCP, TLS, HTTP/2.
pub(super) async fn dial(
    pool: &Weak<Shared>,
    key: &TunnelKey,
    entry: &Rc<Entry>,
) -> Result<Rc<Tunnel>, TunnelError> {
    let pool = pool.upgrade().ok_or(TunnelError::Drained)?;
    let tcp = dial_tcp(&pool.options.dial, key.to)
        .await
        .map_err(|error| TunnelError::Dial(Arc::new(error)))?;
    establish(&pool, key, entry, tcp).await
}

/// TLS and HTTP/2 over `io`, and the task that drives them.
pub(super) async fn establish<IO>(
    pool: &Rc<Shared>,
    key: &TunnelKey,
    entry: &Rc<Entry>,
    io: IO,
) -> Result<Rc<Tunnel>, TunnelError>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (http2, timeouts) = (pool.options.http2, pool.options.timeouts);
    let certificate = pool
        .certificates
        .fetch(&key.source)
        .await
        .map_err(|detail| TunnelError::Certificate {
            identity: key.source.clone(),
            detail,
        })?;
    let (io, gate) = cork::hold(io);
    let (tls, peer) = handshake(key, &certificate, io, &timeouts).await?;
    let cork = Corked::new(tls, gate);
    let guard = Guard::new(None);
    let watched = Watch::new(cork.clone(), Role::Client, Rc::clone(&guard));
    let (requests, connection) =
        settings(&http2)
            .handshake(watched)
            .await
            .map_err(|error| TunnelError::Lost {
                to: key.to,
                detail: error.to_string(),
            })?;
    let tunnel = Rc::new(Tunnel {
        requests,
        peer,
        guard: Rc::clone(&guard),
        unsent: UnsentTotal::default(),
        expires: certificate.not_after(),
        active: Cell::new(0),
        used: Cell::new(false),
        settled: Cell::new(false),
        condemned: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
        ended: RefCell::new(None),
        over: Notify::new(),
    });
    let driver = Driver {
        tunnel: Rc::downgrade(&tunnel),
        entry: Rc::downgrade(entry),
        pool: Rc::downgrade(pool),
        key: key.clone(),
        timeouts,
        guard,
    };
    cork.close();
    // Boxed: a future keeps room for what it is given, and again for what it makes of it.
    let running = driver.run(Box::pin(connection), cork);
    pool.scope.spawn("tunnel", running);
    Ok(tunnel)
}

async fn handshake<IO>(
    key: &TunnelKey,
    certificate: &WorkloadCertificate,
    io: IO,
    timeouts: &Timeouts,
) -> Result<(ClientStream<IO>, VerifiedPeer), TunnelError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let tls = |source| TunnelError::Tls {
        to: key.to,
        source: Arc::new(source),
    };
    let config = client_config(certificate, &key.expect)
        .map_err(|error| tls(HandshakeError::Protocol(error.to_string())))?;
    timeout(timeouts.tls, config.connect(io))
        .await
        .map_err(|_| TunnelError::Timeout {
            to: key.to,
            stage: Stage::Tls,
            after: timeouts.tls,
        })?
        .map_err(tls)
}

fn settings(http2: &Http2) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .max_frame_size(http2.frame_size)
        .max_header_list_size(CLIENT_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(http2.streams_per_tunnel)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .enable_push(false);
    builder
}

/// Runs a connection until it ends, keeps it alive, and takes it out of the pool.
struct Driver {
    tunnel: Weak<Tunnel>,
    entry: Weak<Entry>,
    pool: Weak<Shared>,
    key: TunnelKey,
    timeouts: Timeouts,
    guard: Rc<Guard>,
}

impl Driver {
    async fn run<IO>(
        self,
        mut connection: Pin<Box<Connection<Watch<Corked<IO>>, Bytes>>>,
        cork: Corked<IO>,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let pings = connection.ping_pong();
        // What is to be sent leaves when there is nothing more to do.
        let driven = std::future::poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            cork.poll_release(cx, polled.is_ready());
            polled
        });
        let ending = tokio::select! {
            result = in_turns(&self.guard, driven) => self.ending(result),
            ending = self.keep_alive(pings) => ending,
            () = self.revoked() => {
                Ending::Lost("the peer's certificate is revoked".to_owned())
            }
            () = self.outlived() => {
                Ending::Lost("the peer's certificate has expired long ago".to_owned())
            }
            misuse = self.guard.trips() => {
                Ending::Lost(format!("the peer abused it: {}", misuse.as_str()))
            }
        };
        tracing::debug!(to = %self.key.to, ?ending, "a tunnel ended");
        if let Some(tunnel) = self.tunnel.upgrade() {
            tunnel.condemn();
            if !tunnel.is_settled()
                && let Some(entry) = self.entry.upgrade()
            {
                let is_goodbye = matches!(ending, Ending::Closed);
                if !(is_goodbye && entry.said_goodbye()) {
                    entry.never_settled(ending.error(self.key.to, &self.timeouts));
                }
            }
            *tunnel.ended.borrow_mut() = Some(ending);
            self.leave(&tunnel);
            tunnel.over.notify_waiters();
        }
        // Dropped last: its streams fail now, and find the cause already noted.
        drop(connection);
    }

    fn ending(&self, result: Result<(), h2::Error>) -> Ending {
        let settled = self
            .tunnel
            .upgrade()
            .is_none_or(|tunnel| tunnel.is_settled());
        match result {
            Ok(()) => Ending::Closed,
            // Nothing but TLS has spoken yet, and what it said was no I/O failure: an alert.
            Err(error)
                if !settled
                    && error
                        .get_io()
                        .is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData) =>
            {
                Ending::Refused(Arc::new(HandshakeError::Alert(error.to_string())))
            }
            Err(error) => Ending::Lost(error.to_string()),
        }
    }

    /// Resolves when the connection is to end: no SETTINGS, no answer to a PING.
    async fn keep_alive(&self, pings: Option<h2::PingPong>) -> Ending {
        let Some(mut pings) = pings else {
            return std::future::pending().await;
        };
        // SETTINGS come before anything else, so an answer proves that they have arrived.
        match liveness::ping(&mut pings, self.timeouts.settings).await {
            Ok(()) => self.settle(),
            Err(Liveness::Silent) => return Ending::Unsettled,
            // The connection's own future tells what happened.
            Err(Liveness::Ended) => return std::future::pending().await,
        }
        let (interval, limit) = (self.timeouts.ping_interval, self.timeouts.ping_timeout);
        match liveness::watch(&mut pings, interval, limit, || self.close_if_idle()).await {
            Liveness::Silent => Ending::Lost(format!("no answer to PING within {limit:?}")),
            Liveness::Ended => std::future::pending().await,
        }
    }

    /// Resolves when the peer's certificate has ended too long ago.
    async fn outlived(&self) {
        let Some(end) = self.tunnel.upgrade().map(|t| t.peer.not_after()) else {
            return std::future::pending().await;
        };
        liveness::past(end, self.timeouts.past_expiry).await;
    }

    /// Resolves when the peer's certificate is revoked.
    async fn revoked(&self) {
        let Some(peer) = self.tunnel.upgrade().map(|t| t.peer.clone()) else {
            return std::future::pending().await;
        };
        peer.revoked().await;
    }

    fn settle(&self) {
        if let Some(tunnel) = self.tunnel.upgrade() {
            tunnel.settled.set(true);
        }
        if let Some(entry) = self.entry.upgrade() {
            entry.settled();
        }
    }

    /// Takes an idle tunnel out of the pool. It then ends politely: nobody holds it any more.
    fn close_if_idle(&self) -> bool {
        if let Some(tunnel) = self.tunnel.upgrade()
            && tunnel.active() == 0
            && tunnel.idle_since.get().elapsed() >= self.timeouts.idle
        {
            tunnel.condemn();
            self.leave(&tunnel);
        }
        true
    }

    fn leave(&self, tunnel: &Rc<Tunnel>) {
        if let Some(entry) = self.entry.upgrade() {
            entry.remove(tunnel);
            if let Some(pool) = self.pool.upgrade() {
                pool.forget_if_empty(&self.key, &entry);
            }
        }
    }
}

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{Request, Response};
use foldhash::fast::RandomState;
use isobar_route::{PoolRules, TryFailure};
use isobar_runtime::LocalScope;
use isobar_state::TunnelProtocol;
use isobar_tls::outwards::Within;
use isobar_types::{Reason, Str};

use crate::cluster::{Cluster, Load};
use crate::credentials::Credentials;
use crate::endpoint::Endpoint;
use crate::http::RequestBody;
use crate::message::{LARGE, PIECE};
use crate::stream::AnyStream;
use crate::upstream::http1::{Error as Error1, Idle, Line, Terms};
use crate::upstream::http2::{Sender as Sender2, Unanswered};
use crate::upstream::{Answer, Dial, DialFailure, Origin, Origins, Preface, Tls};

/// An idle connection is not reused after that; the far end may be about to close it.
const IDLE: Duration = Duration::from_secs(60);
/// The same where the endpoint was told of one caller: nobody else may use it, and the caller may have gone.
const IDLE_OF_ONE_CALLER: Duration = Duration::from_secs(5);
/// Turns of other tasks that a request waits for a connection to become ready.
const ROUNDS: usize = 8;

/// HTTP version towards the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// The pod counts, not its address alone: addresses are reused. So does how TLS was begun.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: Str,
    address: SocketAddr,
    tunnel: TunnelProtocol,
    tls: Option<(Str, u64)>,
    preface: Option<Preface>,
}

/// Held while dialling, so that requests that come together share one connection.
type Slot2 = Rc<tokio::sync::Mutex<Vec<Shared>>>;

/// How the rules of a destination want its connections.
#[derive(Debug, Clone, Default)]
pub struct How {
    /// Limits.
    pub limits: PoolRules,
    /// Where loads are counted, if they are.
    pub cluster: Option<Arc<Cluster>>,
    /// TLS towards the endpoint, if this waypoint begins it.
    pub tls: Option<Tls>,
    /// What the endpoint is told about the caller, if it is.
    pub preface: Option<Preface>,
    /// The caller has no other answers on its connection, so that more of this one may wait for it.
    pub alone: bool,
}

impl How {
    fn idle(&self) -> Duration {
        let idle = self.limits.http_idle.unwrap_or(IDLE);
        match self.preface {
            Some(_) => idle.min(IDLE_OF_ONE_CALLER),
            None => idle,
        }
    }

    /// Bytes of an answer that are read at once at most.
    const fn piece(&self) -> usize {
        if self.alone { LARGE } else { PIECE }
    }

    /// True if a connection may take one more request.
    fn still_good(&self, born: Instant, uses: u32) -> bool {
        let most = self.limits.max_requests_per_connection;
        let life = self.limits.max_duration;
        most.is_none_or(|most| uses < most) && life.is_none_or(|life| born.elapsed() < life)
    }
}

/// An HTTP/2 connection.
struct Shared {
    sender: Sender2,
    load: Rc<Load2>,
    idle: Duration,
    born: Instant,
    uses: u32,
}

#[derive(Debug)]
struct Load2 {
    streams: Cell<u32>,
    since: Cell<Instant>,
}

impl Shared {
    fn is_good(&self) -> bool {
        let idle = self.load.streams.get() == 0 && self.load.since.get().elapsed() >= self.idle;
        self.sender.is_open() && !idle
    }
}

/// A stream of a shared connection, until it is dropped.
#[derive(Debug)]
pub struct InUse(Rc<Load2>);

impl InUse {
    fn of(load: &Rc<Load2>) -> Self {
        load.streams.set(load.streams.get() + 1);
        Self(load.clone())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let left = self.0.streams.get().saturating_sub(1);
        self.0.streams.set(left);
        if left == 0 {
            self.0.since.set(Instant::now());
        }
    }
}

/// Connections of one worker.
pub struct Pool {
    dialer: Rc<dyn Dial>,
    scope: Rc<LocalScope>,
    idle: RefCell<HashMap<Key, Idle, RandomState>>,
    shared: RefCell<HashMap<Key, Slot2, RandomState>>,
    origins: Origins,
}

/// Where a request goes and how.
struct Way<'a> {
    to: &'a Endpoint,
    how: &'a How,
    origin: Option<Origin>,
}

/// A response.
#[derive(Debug)]
pub struct Sent {
    /// The response head; the body follows.
    pub response: Response<Answer>,
    /// To be held until the body is through.
    pub stream: Option<InUse>,
}

/// Why a request has no response.
#[derive(Debug)]
pub struct SendError {
    /// For log, metric and reply.
    pub reason: Reason,
    /// Names what went wrong.
    pub detail: String,
    /// How far it came.
    pub failure: TryFailure,
}

impl Pool {
    /// An empty pool; connections live in `scope`, and TLS of their own is begun with `credentials`
    /// where rules name them.
    #[must_use]
    pub fn new(dialer: Rc<dyn Dial>, scope: Rc<LocalScope>, credentials: Credentials) -> Self {
        Self {
            dialer,
            scope,
            idle: RefCell::default(),
            shared: RefCell::default(),
            origins: Origins::new(credentials),
        }
    }

    /// Opens a stream for what is spoken `within`, with TLS around it where that is asked for.
    ///
    /// # Errors
    /// When the endpoint cannot be reached or is not who it should be.
    pub async fn open(
        &self,
        to: &Endpoint,
        how: &How,
        within: Within,
    ) -> Result<AnyStream, DialFailure> {
        let origin = match &how.tls {
            Some(tls) => Some(self.origins.of(tls).await?),
            None => None,
        };
        self.dial(to, how, origin.as_ref(), within).await
    }

    async fn dial(
        &self,
        to: &Endpoint,
        how: &How,
        origin: Option<&Origin>,
        within: Within,
    ) -> Result<AnyStream, DialFailure> {
        let limits = &how.limits;
        let dial = async {
            let mut stream = self.dialer.dial(to, limits.keepalive).await?;
            if let Some(preface) = &how.preface {
                preface.send(&mut stream).await?;
            }
            match origin {
                Some(origin) => origin.begin(stream, within).await,
                None => Ok(stream),
            }
        };
        let Some(limit) = limits.connect_timeout else {
            return dial.await;
        };
        let late = || DialFailure {
            reason: Reason::UpstreamConnectTimeout,
            detail: format!("{} did not answer within {limit:?}", to.address),
        };
        let dialled = tokio::time::timeout(limit, dial).await;
        dialled.unwrap_or_else(|_| Err(late()))
    }

    /// A connection for a request that waits for it.
    async fn fresh(&self, way: &Way<'_>, within: Within) -> Result<AnyStream, SendError> {
        let how = way.how;
        let waits = how
            .cluster
            .as_ref()
            .filter(|_| how.limits.max_pending.is_some());
        let waiting = waits.map(|c| c.hold(Load::Pending, how.limits.max_pending));
        let _waiting = waiting.transpose().map_err(|_| SendError {
            reason: Reason::Overload,
            detail: "too many requests wait for a connection".to_owned(),
            failure: TryFailure::Overflow,
        })?;
        let origin = way.origin.as_ref();
        let dialled = self.dial(way.to, how, origin, within).await;
        dialled.map_err(undialled)
    }

    /// Sends a request and waits for the response's head. A kept connection that turns out to be
    /// closed before the request left is replaced by another one. Boxed: it is handed on several times.
    ///
    /// # Errors
    /// When no connection stands, or the connection ends before the response.
    pub async fn send(
        &self,
        to: &Endpoint,
        version: Version,
        request: Box<Request<RequestBody>>,
        how: &How,
    ) -> Result<Sent, SendError> {
        let origin = match &how.tls {
            Some(tls) => Some(Box::pin(self.origins.of(tls)).await.map_err(undialled)?),
            None => None,
        };
        let key = Key {
            uid: to.workload.uid.clone(),
            address: to.address,
            tunnel: to.workload.tunnel,
            tls: origin.as_ref().map(Origin::mark),
            preface: how.preface,
        };
        let way = Way { to, how, origin };
        match version {
            Version::H1 => {
                let idle = self.idle.borrow_mut().entry(key).or_default().clone();
                self.send1(idle, &way, request).await
            }
            Version::H2 => {
                let slot = self.shared.borrow_mut().entry(key).or_default().clone();
                self.send2(slot, &way, request).await
            }
        }
    }

    async fn send1(
        &self,
        idle: Idle,
        way: &Way<'_>,
        request: Box<Request<RequestBody>>,
    ) -> Result<Sent, SendError> {
        let how = way.how;
        let line = match reuse(&idle, how).await {
            Some(line) => line,
            None => {
                // Seldom, and large: apart, so that requests on kept connections have no room for it.
                let stream = Box::pin(self.fresh(way, Within::Http1)).await?;
                Line::begin(stream, &idle, &self.scope)
            }
        };
        let most = how.limits.max_requests_per_connection;
        let terms = Terms {
            piece: how.piece(),
            idle: how.idle(),
            last: most.is_some_and(|most| line.uses.get() + 1 >= most),
        };
        match line.send(*request, terms).await {
            Ok(response) => Ok(Sent {
                response: response.map(Answer::from),
                stream: None,
            }),
            Err(error) => Err(ended(&error)),
        }
    }

    async fn send2(
        &self,
        slot: Slot2,
        way: &Way<'_>,
        request: Box<Request<RequestBody>>,
    ) -> Result<Sent, SendError> {
        let (sender, stream) = self.sender2(&slot, way).await?;
        match sender.send(request, &self.scope).await {
            Ok(response) => Ok(Sent {
                response,
                stream: Some(stream),
            }),
            Err(unanswered) => Err(ended2(&unanswered)),
        }
    }

    async fn sender2(&self, slot: &Slot2, way: &Way<'_>) -> Result<(Sender2, InUse), SendError> {
        let how = way.how;
        let mut slot = slot.lock().await;
        // Without this list a connection ends once its streams have.
        slot.retain(|shared| shared.is_good() && how.still_good(shared.born, shared.uses));
        let most = how.limits.max_streams.unwrap_or(u32::MAX);
        if let Some(shared) = slot.iter_mut().find(|s| s.load.streams.get() < most) {
            shared.uses += 1;
            return Ok((shared.sender.clone(), InUse::of(&shared.load)));
        }
        let stream = Box::pin(self.fresh(way, Within::Http2)).await?;
        let begun = Box::pin(Sender2::begin(stream, how.limits.ping, &self.scope)).await;
        let sender = begun.map_err(|error| {
            undialled(DialFailure {
                reason: Reason::UpstreamProtocol,
                detail: format!("no HTTP/2 with the endpoint: {error}"),
            })
        })?;
        let now = Instant::now();
        let load = Rc::new(Load2 {
            streams: Cell::new(0),
            since: Cell::new(now),
        });
        let stream = InUse::of(&load);
        slot.push(Shared {
            sender: sender.clone(),
            load,
            idle: how.idle(),
            born: now,
            uses: 1,
        });
        Ok((sender, stream))
    }

    /// Drops what nobody uses: closed connections and those idle for long. Call it now and then.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, idle| {
            let mut list = idle.borrow_mut();
            list.retain(|line| line.is_good(now));
            // One with other holders is being used, or has connections that are.
            !list.is_empty() || Rc::strong_count(idle) > 1 || Rc::weak_count(idle) > 0
        });
        self.shared.borrow_mut().retain(|_, slot| {
            // A locked slot is being dialled for; one with other holders is being used.
            Rc::strong_count(slot) > 1
                || slot.try_lock().is_ok_and(|mut list| {
                    list.retain(Shared::is_good);
                    !list.is_empty()
                })
        });
    }
}

/// A kept connection. Where connections are few, the one whose request is just ending is waited for.
async fn reuse(idle: &Idle, how: &How) -> Option<Rc<Line>> {
    let kept = take_idle(idle, how);
    if kept.is_some() || how.limits.max_connections.is_none() {
        return kept;
    }
    for _ in 0..ROUNDS {
        tokio::task::yield_now().await;
        let kept = take_idle(idle, how);
        if kept.is_some() {
            return kept;
        }
    }
    None
}

/// The one that was used last: it is looked at, and what is bad on the way to it goes. The others wait
/// for [`Pool::sweep`], or each request would look at all.
fn take_idle(idle: &Idle, how: &How) -> Option<Rc<Line>> {
    let mut list = idle.borrow_mut();
    let now = Instant::now();
    while let Some(line) = list.pop() {
        let good = line.is_good(now) && how.still_good(line.born, line.uses.get());
        if good && line.wake_up() {
            return Some(line);
        }
    }
    None
}

fn undialled(failure: DialFailure) -> SendError {
    SendError {
        reason: failure.reason,
        detail: failure.detail,
        failure: TryFailure::BeforeRequest,
    }
}

fn ended(error: &Error1) -> SendError {
    SendError {
        reason: if error.is_protocol() {
            Reason::UpstreamProtocol
        } else {
            Reason::UpstreamReset
        },
        detail: chain(error),
        failure: TryFailure::Reset,
    }
}

fn ended2(unanswered: &Unanswered) -> SendError {
    let Unanswered { error, silent } = unanswered;
    SendError {
        reason: if *silent {
            Reason::UpstreamTimeout
        } else {
            Reason::UpstreamReset
        },
        detail: format!("http2 error: {}", chain(error)),
        failure: if refused(error) {
            TryFailure::Refused
        } else {
            TryFailure::Reset
        },
    }
}

/// True if the peer said that it has not looked at the request (RFC 9113 §8.7).
fn refused(error: &h2::Error) -> bool {
    let unseen = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    error.is_remote() && (unseen || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

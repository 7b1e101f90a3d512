use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use isobar_runtime::LocalScope;
use isobar_state::TunnelProtocol;
use isobar_types::{Reason, Str};

use crate::endpoint::Endpoint;
use crate::http::RequestBody;
use crate::stream::{AnyStream, Pinned};
use crate::upstream::{Dial, DialFailure};

/// An idle connection is not reused after that; the far end may be about to close it.
const IDLE: Duration = Duration::from_secs(60);
/// Idle HTTP/1.1 connections kept for one endpoint.
const IDLE_PER_ENDPOINT: usize = 256;
/// Tries on kept connections before a fresh one is made.
const STALE_TRIES: usize = 3;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const HEADER_LIST: u32 = 64 * 1024;

/// HTTP version towards the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// The pod counts, not its address alone: addresses are reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: Str,
    address: SocketAddr,
    tunnel: TunnelProtocol,
}

type Sender1 = http1::SendRequest<RequestBody>;
type Sender2 = http2::SendRequest<RequestBody>;
/// Held while dialling, so that requests that come together share one connection.
type Slot2 = Rc<tokio::sync::Mutex<Option<Sender2>>>;

/// Connections of one worker.
pub struct Pool {
    dialer: Rc<dyn Dial>,
    scope: Rc<LocalScope>,
    idle: RefCell<HashMap<Key, Vec<(Sender1, Instant)>>>,
    shared: RefCell<HashMap<Key, Slot2>>,
}

/// A response, and whether it came over a connection that stood before.
#[derive(Debug)]
pub struct Sent {
    /// The response head; the body follows.
    pub response: Response<Incoming>,
}

/// Why a request has no response. With `unsent`, not a byte of it has left.
#[derive(Debug)]
pub struct SendError {
    /// For log, metric and reply.
    pub reason: Reason,
    /// Names what went wrong.
    pub detail: String,
    /// The request, if it may be sent elsewhere.
    pub unsent: Option<Box<Request<RequestBody>>>,
}

/// Runs hyper's tasks on this worker.
#[derive(Clone)]
pub(crate) struct LocalExecutor(pub(crate) Rc<LocalScope>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        self.0.spawn("h2", future);
    }
}

impl Pool {
    /// An empty pool; connections live in `scope`.
    #[must_use]
    pub fn new(dialer: Rc<dyn Dial>, scope: Rc<LocalScope>) -> Self {
        Self {
            dialer,
            scope,
            idle: RefCell::default(),
            shared: RefCell::default(),
        }
    }

    /// Opens a stream for opaque data.
    ///
    /// # Errors
    /// When the endpoint cannot be reached.
    pub async fn open(&self, to: &Endpoint) -> Result<AnyStream, DialFailure> {
        self.dialer.dial(to).await
    }

    /// Sends a request and waits for the response's head. A kept connection that turns out to be
    /// closed before the request left is replaced once by a fresh one.
    ///
    /// # Errors
    /// When no connection stands, or the connection ends before the response.
    pub async fn send(
        &self,
        to: &Endpoint,
        version: Version,
        request: Request<RequestBody>,
    ) -> Result<Sent, SendError> {
        let key = Key {
            uid: to.workload.uid.clone(),
            address: to.address,
            tunnel: to.workload.tunnel,
        };
        match version {
            Version::H1 => self.send1(key, to, request).await,
            Version::H2 => self.send2(key, to, request).await,
        }
    }

    async fn send1(
        &self,
        key: Key,
        to: &Endpoint,
        mut request: Request<RequestBody>,
    ) -> Result<Sent, SendError> {
        for _ in 0..STALE_TRIES {
            let Some(mut sender) = self.take_idle(&key) else {
                break;
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.keep(key, sender);
                    return Ok(Sent { response });
                }
                Err(mut error) => match error.take_message() {
                    Some(back) => request = back,
                    None => return Err(ended(&error.into_error(), None)),
                },
            }
        }
        let stream = match self.dialer.dial(to).await {
            Ok(stream) => stream,
            Err(failure) => return Err(undialled(failure, request)),
        };
        let (mut sender, connection) =
            match http1::handshake(TokioIo::new(Pinned::new(stream))).await {
                Ok(parts) => parts,
                Err(error) => return Err(ended(&error, Some(request))),
            };
        self.scope.spawn("upstream h1", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        });
        match sender.try_send_request(request).await {
            Ok(response) => {
                self.keep(key, sender);
                Ok(Sent { response })
            }
            Err(mut error) => {
                let back = error.take_message();
                Err(ended(&error.into_error(), back))
            }
        }
    }

    fn take_idle(&self, key: &Key) -> Option<Sender1> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(key)?;
        list.retain(|(sender, since)| {
            !sender.is_closed() && (since.elapsed() < IDLE || !sender.is_ready())
        });
        let at = list.iter().rposition(|(sender, _)| sender.is_ready())?;
        let taken = list.swap_remove(at);
        if list.is_empty() {
            idle.remove(key);
        }
        Some(taken.0)
    }

    /// Kept at once, while the body still flows: it is taken again only when it is ready.
    fn keep(&self, key: Key, sender: Sender1) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(key).or_default();
        if list.len() < IDLE_PER_ENDPOINT {
            list.push((sender, Instant::now()));
        }
    }

    async fn send2(
        &self,
        key: Key,
        to: &Endpoint,
        mut request: Request<RequestBody>,
    ) -> Result<Sent, SendError> {
        let slot = self.shared.borrow_mut().entry(key).or_default().clone();
        let mut last = false;
        loop {
            let (mut sender, fresh) = match self.sender2(&slot, to).await {
                Ok(found) => found,
                Err(failure) => return Err(undialled(failure, request)),
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(Sent { response }),
                Err(mut error) => match error.take_message() {
                    Some(back) if !fresh && !last => request = back,
                    back => return Err(ended(&error.into_error(), back)),
                },
            }
            last = true;
        }
    }

    async fn sender2(&self, slot: &Slot2, to: &Endpoint) -> Result<(Sender2, bool), DialFailure> {
        let mut slot = slot.lock().await;
        if let Some(sender) = slot.as_ref().filter(|s| !s.is_closed()) {
            return Ok((sender.clone(), false));
        }
        *slot = None;
        let stream = self.dialer.dial(to).await?;
        let (sender, connection) = http2::Builder::new(LocalExecutor(self.scope.clone()))
            .timer(hyper_util::rt::TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_LIST)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| DialFailure {
                reason: Reason::UpstreamProtocol,
                detail: format!("no HTTP/2 with the endpoint: {error}"),
            })?;
        self.scope.spawn("upstream h2", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        });
        *slot = Some(sender.clone());
        Ok((sender, true))
    }

    /// Drops what nobody uses: closed connections and those idle for long. Call it now and then.
    pub fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|(sender, since)| {
                !sender.is_closed() && (since.elapsed() < IDLE || !sender.is_ready())
            });
            !list.is_empty()
        });
        self.shared.borrow_mut().retain(|_, slot| {
            // A locked slot is being dialled for; one with other holders is being used.
            Rc::strong_count(slot) > 1
                || slot
                    .try_lock()
                    .is_ok_and(|s| s.as_ref().is_some_and(|sender| !sender.is_closed()))
        });
    }
}

fn undialled(failure: DialFailure, request: Request<RequestBody>) -> SendError {
    SendError {
        reason: failure.reason,
        detail: failure.detail,
        unsent: Some(Box::new(request)),
    }
}

fn ended(error: &hyper::Error, back: Option<Request<RequestBody>>) -> SendError {
    let reason = if error.is_parse() {
        Reason::UpstreamProtocol
    } else if error.is_timeout() {
        Reason::UpstreamTimeout
    } else {
        Reason::UpstreamReset
    };
    SendError {
        reason,
        detail: chain(error),
        unsent: back.map(Box::new),
    }
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

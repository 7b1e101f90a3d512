//! The server's half: accepts an HBONE connection and hands out its CONNECT requests.

mod connect;

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason as H2Reason;
use h2::server::{Connection, SendResponse};
use http::Request;
use isobar_runtime::{Lifetime, LocalScope};
use isobar_tls::{ServerTls, VerifiedPeer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

pub use connect::Connect;

use crate::cork::{self, Corked};
use crate::guard::{Admission, Guard, Member, Misuse, Role, Visit, Watch, in_turns, paced};
use crate::liveness::{self, Liveness};
use crate::settings::{
    DATA_FRAME_BUDGET, ERROR_RESETS, PENDING_RESETS, SEND_BUFFER, SERVER_HEADERS, SERVER_STREAMS,
};
use crate::{ConnectHeaders, HeaderError, Http2, ServeError, Stage, Timeouts};

/// After a goodbye for misuse, the connection may linger this long to deliver it.
const LINGER: Duration = Duration::from_secs(1);
/// What a caller gets that is turned away after its handshake: SETTINGS without entries, then
/// GOAWAY of no stream, `ENHANCE_YOUR_CALM`.
const TURNED_AWAY: [u8; 26] = [
    0, 0, 0, 4, 0, 0, 0, 0, 0, //
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11,
];

/// How connections are served.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// HTTP/2 parameters.
    pub http2: Http2,
    /// Time limits.
    pub timeouts: Timeouts,
    /// What callers may have open. Share one between all connections to a destination.
    pub admission: Admission,
    /// Where this connection comes from, for limits by address.
    pub source: Option<IpAddr>,
}

/// Serves one connection until it ends. `handle` makes the future that answers a request; each
/// runs as a task of its own on this thread, and is dropped if the connection ends by `life`.
/// Requests that are no CONNECT, or name no `host:port`, are answered 400 here.
///
/// When `life` drains, the client is told (GOAWAY) and open streams may end by themselves.
///
/// # Errors
/// As [`ServeError`] says; a connection closed by the client is no error.
///
/// # Cancel safety
/// Dropping the future drops the connection and its requests' futures.
pub async fn serve<IO, H, F>(
    io: IO,
    tls: &ServerTls,
    options: &ServerOptions,
    life: &Lifetime,
    handle: H,
) -> Result<(), ServeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Connect) -> F,
    F: Future<Output = ()> + 'static,
{
    let permit = options.admission.handshake(options.source)?;
    permit.turn().await;
    // Dropped with the connection, which may have been too short to be worth its handshake.
    let visit = permit.visit();
    let limit = permit.deadline(options.timeouts.tls);
    let (io, gate) = cork::hold(io);
    // Boxed: the room of a handshake must not stay with its connection.
    let (io, peer) = timeout(limit, Box::pin(paced(tls.accept(io))))
        .await
        .map_err(|_| ServeError::Timeout {
            stage: Stage::Tls,
            after: limit,
        })??;
    drop(permit);
    let cork = Corked::new(io, gate);
    Box::pin(serve_verified(cork, peer, options, life, &visit, handle)).await
}

/// Serves HTTP/2 over a connection whose other end is known.
async fn serve_verified<IO, H, F>(
    mut cork: Corked<IO>,
    peer: VerifiedPeer,
    options: &ServerOptions,
    life: &Lifetime,
    visit: &Visit,
    handle: H,
) -> Result<(), ServeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Connect) -> F,
    F: Future<Output = ()> + 'static,
{
    let timeouts = &options.timeouts;
    let member = match options.admission.connect(peer.identity()) {
        Ok(member) => Rc::new(member),
        Err(turned) => {
            // Told if it listens; nothing more is owed to it.
            let told = async {
                cork.write_all(&TURNED_AWAY).await?;
                cork.shutdown().await
            };
            let _ = timeout(LINGER, told).await;
            return Err(turned.into());
        }
    };
    let guard = Guard::new(Some(Rc::clone(&member)));
    let io = Watch::new(cork.clone(), Role::Server, Rc::clone(&guard));
    let hello = Box::pin(settings(&options.http2).handshake(io));
    let handshake = tokio::select! {
        misuse = guard.trips() => return Err(ServeError::Abuse(misuse.as_str())),
        handshake = timeout(timeouts.settings, hello) => handshake,
    };
    // Boxed: a future keeps room for what it is given, and again for what it makes of it.
    let connection = handshake
        .map_err(|_| ServeError::Timeout {
            stage: Stage::Settings,
            after: timeouts.settings,
        })?
        .map(Box::new)
        .map_err(ServeError::Http2)?;
    cork.close();
    let serving = Serving {
        peer,
        member,
        guard,
        streams: LocalScope::new("hbone-streams"),
        timeouts: *timeouts,
    };
    let running = Box::pin(serving.run(connection, &cork, life, handle));
    let result = in_turns(&serving.guard, running).await;
    if serving.guard.has_carried() && !matches!(result, Err(ServeError::Abuse(_))) {
        visit.was_worth_its_handshake();
    }
    // The connection is gone: every stream fails at its next use, so futures end by themselves.
    // Those that wait for something else end when the process stops.
    tokio::select! {
        _ = serving.streams.shutdown(Duration::MAX) => {}
        () = life.stopped() => {}
    }
    result
}

fn settings(http2: &Http2) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .max_frame_size(http2.frame_size)
        .max_header_list_size(SERVER_HEADERS)
        .max_concurrent_streams(SERVER_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(ERROR_RESETS))
        .data_frame_budget(DATA_FRAME_BUDGET);
    builder
}

struct Serving {
    peer: VerifiedPeer,
    member: Rc<Member>,
    guard: Rc<Guard>,
    streams: LocalScope,
    timeouts: Timeouts,
}

impl Serving {
    async fn run<IO, H, F>(
        &self,
        mut connection: Box<Connection<Watch<Corked<IO>>, Bytes>>,
        cork: &Corked<IO>,
        life: &Lifetime,
        handle: H,
    ) -> Result<(), ServeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
        H: Fn(Connect) -> F,
        F: Future<Output = ()> + 'static,
    {
        let mut pings = connection.ping_pong();
        let silence = self.silence(pings.as_mut());
        let expiry = liveness::past(self.peer.not_after(), self.timeouts.past_expiry);
        let revoked = self.peer.revoked();
        tokio::pin!(silence, expiry, revoked);
        let mut draining = false;
        loop {
            tokio::select! {
                request = accept(&mut connection, cork) => match request {
                    Some(Ok((request, respond))) => self.begin(request, respond, &handle),
                    Some(Err(error)) => return Err(self.ended(error)),
                    None => return Ok(()),
                },
                () = life.draining(), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                () = life.stopped() => return Err(ServeError::Stopped),
                () = &mut silence => {
                    goodbye(&mut connection, cork, H2Reason::NO_ERROR).await;
                    return Err(ServeError::Silent { after: self.timeouts.ping_timeout });
                }
                () = &mut expiry => {
                    goodbye(&mut connection, cork, H2Reason::NO_ERROR).await;
                    return Err(ServeError::Expired);
                }
                () = &mut revoked => {
                    goodbye(&mut connection, cork, H2Reason::NO_ERROR).await;
                    return Err(ServeError::Revoked);
                }
                misuse = self.guard.trips() => {
                    goodbye(&mut connection, cork, H2Reason::ENHANCE_YOUR_CALM).await;
                    return Err(ServeError::Abuse(misuse.as_str()));
                }
            }
        }
    }

    /// A connection ended by the HTTP/2 library.
    fn ended(&self, error: h2::Error) -> ServeError {
        match error.reason() {
            Some(H2Reason::ENHANCE_YOUR_CALM) if error.is_go_away() && error.is_library() => {
                self.guard.misuse(Misuse::Protocol);
                ServeError::Abuse(Misuse::Protocol.as_str())
            }
            _ => ServeError::Http2(error),
        }
    }

    /// Resolves when the client does not answer a PING.
    async fn silence(&self, pings: Option<&mut h2::PingPong>) {
        let Some(pings) = pings else {
            return std::future::pending().await;
        };
        let (interval, limit) = (self.timeouts.ping_interval, self.timeouts.ping_timeout);
        match liveness::watch(pings, interval, limit, || true).await {
            Liveness::Silent => {}
            // The connection's own result tells what happened.
            Liveness::Ended => std::future::pending().await,
        }
    }

    fn begin<H, F>(
        &self,
        request: Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
        handle: &H,
    ) where
        H: Fn(Connect) -> F,
        F: Future<Output = ()> + 'static,
    {
        match ConnectHeaders::from_request(&request) {
            Ok(headers) => {
                let Some(permit) = self.member.stream() else {
                    tracing::debug!(peer = %self.peer.identity(), "too many streams of one identity");
                    return connect::answer(&mut respond, http::StatusCode::SERVICE_UNAVAILABLE);
                };
                let connect = Connect::new(
                    Box::new(headers),
                    self.peer.clone(),
                    request.into_body(),
                    respond,
                    Rc::clone(&self.guard),
                    permit,
                );
                self.streams.spawn("connect", handle(connect));
            }
            Err(error) => {
                tracing::debug!(peer = %self.peer.identity(), %error, "a request is refused");
                let method = matches!(error, HeaderError::Method);
                self.guard.misuse(if method {
                    Misuse::NoConnect
                } else {
                    Misuse::EarlyReset
                });
                connect::answer(&mut respond, http::StatusCode::BAD_REQUEST);
            }
        }
    }
}

/// The next request. What is to be sent leaves when there is nothing more to do.
async fn accept<IO>(
    connection: &mut Connection<Watch<Corked<IO>>, Bytes>,
    cork: &Corked<IO>,
) -> Option<Result<(Request<h2::RecvStream>, SendResponse<Bytes>), h2::Error>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    std::future::poll_fn(|cx| {
        let polled = connection.poll_accept(cx);
        if polled.is_pending() {
            cork.poll_release(cx, false);
        }
        polled
    })
    .await
}

/// Says goodbye with `reason` and drops what is open; waits a moment for it to be sent.
async fn goodbye<IO>(
    connection: &mut Connection<Watch<Corked<IO>>, Bytes>,
    cork: &Corked<IO>,
    reason: H2Reason,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    connection.abrupt_shutdown(reason);
    let ended = std::future::poll_fn(|cx| {
        let polled = connection.poll_closed(cx);
        cork.poll_release(cx, true);
        polled
    });
    // A client that does not read it is cut off.
    let _ = timeout(LINGER, ended).await;
}

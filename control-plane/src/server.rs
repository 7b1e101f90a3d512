//! The TLS listener on 15012 and the two services behind it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use isobar_runtime::{Lifetime, Scope};
use isobar_tls::ServerStream;
use isobar_tls::ca::{Authority, AuthorityError};
use isobar_tls::control::{self, ControlServer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::admission::Admission;

/// Accepted connections that wait for the HTTP/2 server.
const ACCEPTED: usize = 64;
/// Life of the server certificate.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often it is made anew.
const CERTIFICATE_RENEWAL: Duration = Duration::from_secs(24 * 3600);
/// Pause after an error of `accept`, for example too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Address a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// One TLS connection.
pub(crate) struct Connection {
    stream: ServerStream<TcpStream>,
    peer: SocketAddr,
}

/// What is spoken on a listener's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
}

/// The server's certificate, made anew every day, and when there is another authority.
pub(crate) struct ServerCertificates {
    authority: watch::Receiver<Arc<Authority>>,
    names: Vec<String>,
    speaks: Speaks,
    current: Arc<ArcSwap<ControlServer>>,
}

impl ServerCertificates {
    /// The first certificate for `names`.
    pub(crate) fn issue(
        authority: watch::Receiver<Arc<Authority>>,
        names: Vec<String>,
        speaks: Speaks,
    ) -> Result<Self, AuthorityError> {
        let first = issue(&authority.borrow(), &names, speaks)?;
        Ok(Self {
            authority,
            names,
            speaks,
            current: Arc::new(ArcSwap::from_pointee(first)),
        })
    }

    /// What to accept connections with.
    pub(crate) fn current(&self) -> Arc<ArcSwap<ControlServer>> {
        self.current.clone()
    }

    /// Makes certificates until `life` ends.
    pub(crate) async fn renew(mut self, life: Lifetime) {
        loop {
            let another = async {
                // Without a sender it stays the one it is.
                if self.authority.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = life.draining() => return,
                () = tokio::time::sleep(CERTIFICATE_RENEWAL) => {}
                () = another => {}
            }
            let authority = self.authority.borrow().clone();
            match issue(&authority, &self.names, self.speaks) {
                Ok(next) => self.current.store(Arc::new(next)),
                Err(error) => tracing::error!(%error, "the server certificate was not renewed"),
            }
        }
    }
}

fn issue(
    authority: &Authority,
    names: &[String],
    speaks: Speaks,
) -> Result<ControlServer, AuthorityError> {
    let certificate = authority.issue_server(names, CERTIFICATE_LIFE)?;
    Ok(match speaks {
        Speaks::Http1 => control::web_server_config(&certificate)?,
        Speaks::Http2 => control::server_config(&certificate)?,
    })
}

/// Connections after their TLS handshake, until `life` drains.
pub(crate) fn connections(
    scope: &Scope,
    listener: TcpListener,
    tls: Arc<ArcSwap<ControlServer>>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, accepted) = mpsc::channel(ACCEPTED);
    let life = scope.lifetime();
    scope.spawn("accept", accept(listener, tls, ready, life));
    ReceiverStream::new(accepted)
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ArcSwap<ControlServer>>,
    ready: mpsc::Sender<io::Result<Connection>>,
    life: Lifetime,
) {
    let handshakes = Scope::new("handshakes");
    let admission = Arc::new(Admission::default());
    loop {
        admission.room().await;
        let accepted = tokio::select! {
            () = life.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let Some(place) = admission.enter(peer.ip()) else {
                    tracing::debug!(%peer, "too many handshakes of one address");
                    continue;
                };
                let tls = tls.load_full();
                let ready = ready.clone();
                handshakes.spawn("handshake", async move {
                    let limit = place.limit();
                    handshake(tcp, peer, &tls, limit, &ready).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(
    tcp: TcpStream,
    peer: SocketAddr,
    tls: &ControlServer,
    limit: Duration,
    ready: &mpsc::Sender<io::Result<Connection>>,
) {
    // Small messages must not wait for each other's acknowledgement.
    let _ = tcp.set_nodelay(true);
    match tokio::time::timeout(limit, tls.accept(tcp)).await {
        Ok(Ok(stream)) => {
            // Fails only when the server has ended, and the connection with it.
            let _ = ready.send(Ok(Connection { stream, peer })).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

impl Connection {
    /// Where it came from.
    pub(crate) const fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerAddress;

    fn connect_info(&self) -> PeerAddress {
        PeerAddress(self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use isobar_tls::ClientStream;
use isobar_tls::https::{self, ClientIdentity, HttpsClient};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Limit of connecting and of the TLS handshake together.
const PATIENCE: Duration = Duration::from_secs(10);
/// A peer that is silent this long is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes without an answer for this long mean that the peer is gone.
const UNANSWERED: Duration = Duration::from_secs(20);

/// Opens connections to one API server.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Settings>);

/// Whom to trust and what to show.
pub(crate) struct Settings {
    /// Root certificates, DER.
    pub(crate) roots: Vec<Vec<u8>>,
    /// File with root certificates, read again for each connection: it is replaced in a running pod.
    pub(crate) roots_file: Option<PathBuf>,
    /// Name in the server's certificate, where it is not the one dialled.
    pub(crate) server_name: Option<String>,
    /// Chain and key that are shown, PEM.
    pub(crate) identity: Option<(String, String)>,
}

impl Connector {
    pub(crate) fn new(settings: Settings) -> Self {
        Self(Arc::new(settings))
    }

    async fn open(self, uri: Uri) -> io::Result<TokioIo<Wire>> {
        let host = uri.host().unwrap_or_default().to_owned();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((bare, port)).await?;
        tcp.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(SILENCE)
            .with_interval(SILENCE / 2);
        let socket = SockRef::from(&tcp);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(UNANSWERED))?;
        if !secure {
            return Ok(TokioIo::new(Wire::Plain(tcp)));
        }
        let tls = self.0.tls().map_err(io::Error::other)?;
        let stream = tls.connect(tcp, &host).await.map_err(io::Error::other)?;
        Ok(TokioIo::new(Wire::Tls(Box::new(stream))))
    }
}

impl Settings {
    fn tls(&self) -> Result<HttpsClient, isobar_tls::CryptoFailure> {
        let from_file = self.roots_file.as_ref().and_then(|file| {
            let text = std::fs::read(file).ok()?;
            https::roots_of(&text).ok()
        });
        let identity = self
            .identity
            .as_ref()
            .map(|(chain, key)| ClientIdentity { chain, key });
        let roots = from_file.as_ref().unwrap_or(&self.roots);
        https::client_config(roots, self.server_name.as_deref(), identity)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Wire>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            tokio::time::timeout(PATIENCE, connector.open(uri))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        })
    }
}

/// One connection.
pub(crate) enum Wire {
    /// To an address on this machine, for tests and proxies.
    Plain(TcpStream),
    /// As always.
    Tls(Box<ClientStream<TcpStream>>),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

macro_rules! either {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Wire::Tls(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, poll_read(cx, buffer))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown(cx))
    }
}

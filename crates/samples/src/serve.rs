use std::future::Future;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use isobar_runtime::Scope;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// Largest body an application reads.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Time open requests get when the application is told to end.
const GRACE: Duration = Duration::from_secs(5);

/// An HTTP application: a request and its peer in, a reply out.
pub(crate) trait Application: Send + Sync + 'static {
    fn answer(
        &self,
        request: Request<Bytes>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<Bytes>> + Send;
}

/// Serves HTTP/1.1 and HTTP/2 (prior knowledge) until told to end.
pub(crate) async fn http(port: u16, application: impl Application) -> Result<()> {
    let listener = bind(port).await?;
    let application = Arc::new(application);
    let scope = Scope::new("http");
    let end = until_told_to_end();
    tokio::pin!(end);
    loop {
        tokio::select! {
            told = &mut end => {
                drop(listener);
                scope.shutdown(GRACE).await;
                return told;
            }
            accepted = listener.accept() => {
                // An aborted connection is no reason to end.
                let Ok((stream, peer)) = accepted else { continue };
                // A caller over IPv4 has its own address, not the form it has in IPv6.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                let (application, life) = (Arc::clone(&application), scope.lifetime());
                scope.spawn("connection", connection(stream, peer, application, life));
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    application: Arc<impl Application>,
    life: isobar_runtime::Lifetime,
) {
    // Without it a reply may wait for an acknowledgement; a failure only makes it slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let application = Arc::clone(&application);
        async move {
            let (head, body) = request.into_parts();
            let reply = match Limited::new(body, MOST_BYTES).collect().await {
                Ok(body) => {
                    application
                        .answer(Request::from_parts(head, body.to_bytes()), peer)
                        .await
                }
                Err(_) => text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n"),
            };
            Ok::<_, std::convert::Infallible>(reply.map(Full::new))
        }
    });
    let builder = Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        // How a caller ends a connection is its own affair.
        _ = serving.as_mut() => return,
        () = life.draining() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

/// Sends back every byte until told to end.
pub(crate) async fn tcp_echo(port: u16) -> Result<()> {
    let listener = bind(port).await?;
    let scope = Scope::new("echo");
    let end = until_told_to_end();
    tokio::pin!(end);
    loop {
        tokio::select! {
            told = &mut end => return told,
            accepted = listener.accept() => {
                let Ok((mut stream, _)) = accepted else { continue };
                scope.spawn("connection", async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn until_told_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// At every address, of both families where the kernel has IPv6.
async fn bind(port: u16) -> Result<TcpListener> {
    let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await;
    let listener = match both {
        Err(error) if error.kind() != ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        both => both,
    };
    listener.with_context(|| format!("listening on port {port}: choose another with --port"))
}

/// A plain text reply.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    typed(status, "text/plain; charset=utf-8", body)
}

/// A reply with a content type.
pub(crate) fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Bytes> {
    let mut reply = Response::new(body.into());
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    reply
}

/// A JSON reply.
pub(crate) fn json(value: &serde_json::Value) -> Response<Bytes> {
    typed(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

//! The application behind the proxies: HTTP/1.1, HTTP/2 and gRPC on one port, as cheap as can be, since
//! it shares the machine with what is measured.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use isobar_runtime::LocalScope;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::GRPC;
use crate::server::head_end;

/// Addresses it listens on, with one port: two endpoints to choose from.
pub(super) const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
/// Body of a reply where the path asks for none: of typical small size.
const SMALL: usize = 128;
/// More than any load asks for.
const LARGEST: usize = 1 << 20;
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;
const PREFACE: &[u8] = b"PRI";
/// A gRPC message of 32 bytes with its prefix.
pub(super) const MESSAGE: &[u8] = b"\0\0\0\0\x200123456789abcdef0123456789abcdef";

/// Serves until it is killed; prints its port first.
pub(crate) async fn run() -> Result<()> {
    let scope = Rc::new(LocalScope::new("server"));
    let (listener, others) = listen().await?;
    println!("{}", listener.local_addr()?.port());
    for listener in others.into_iter().chain([listener]) {
        scope.spawn("accept", accept(scope.clone(), listener));
    }
    std::future::pending().await
}

/// The same free port on every address.
async fn listen() -> Result<(TcpListener, Vec<TcpListener>)> {
    let first = TcpListener::bind((ADDRESSES[0], 0)).await?;
    let port = first.local_addr()?.port();
    let mut others = Vec::new();
    for ip in &ADDRESSES[1..] {
        let bound = TcpListener::bind((*ip, port)).await;
        others.push(bound.with_context(|| format!("{ip}:{port}"))?);
    }
    Ok((first, others))
}

async fn accept(scope: Rc<LocalScope>, listener: TcpListener) {
    while let Ok((tcp, _)) = listener.accept().await {
        let connection = connection(scope.clone(), tcp);
        // A connection that breaks shows as a failure at the load generator.
        scope.spawn("connection", async move { drop(connection.await) });
    }
}

async fn connection(scope: Rc<LocalScope>, tcp: TcpStream) -> Result<()> {
    tcp.set_nodelay(true)?;
    let mut first = [0; PREFACE.len()];
    loop {
        let count = tcp.peek(&mut first).await?;
        if count == 0 {
            return Ok(());
        }
        if first[..count] != PREFACE[..count] {
            return http1(tcp).await;
        }
        if count == PREFACE.len() {
            return http2(scope, tcp).await;
        }
    }
}

async fn http1(mut tcp: TcpStream) -> Result<()> {
    let mut replies: HashMap<usize, Vec<u8>> = HashMap::new();
    let mut seen = Vec::with_capacity(16 * 1024);
    loop {
        while let Some(end) = head_end(&seen) {
            let size = wanted(std::str::from_utf8(&seen[..end])?.split(' ').nth(1));
            seen.drain(..end);
            let reply = replies.entry(size).or_insert_with(|| whole(size));
            tcp.write_all(reply).await?;
        }
        if tcp.read_buf(&mut seen).await? == 0 {
            return Ok(());
        }
    }
}

fn whole(size: usize) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-internal: bench\r\n";
    let mut reply = format!("{head}content-length: {size}\r\n\r\n").into_bytes();
    reply.resize(reply.len() + size, b'x');
    reply
}

/// The size of body that a path ends with.
fn wanted(path: Option<&str>) -> usize {
    let last = path.and_then(|p| p.rsplit('/').next());
    let size = last.and_then(|word| word.parse().ok());
    size.unwrap_or(SMALL).min(LARGEST)
}

async fn http2(scope: Rc<LocalScope>, tcp: TcpStream) -> Result<()> {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(1000);
    let mut connection = builder.handshake::<_, Bytes>(tcp).await?;
    let body = Bytes::from(vec![b'x'; LARGEST]);
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        if request.body().is_end_stream() {
            plain(&body, &request, respond)?;
        } else {
            scope.spawn("unary", async move { drop(unary(request, respond).await) });
        }
    }
    Ok(())
}

fn plain<B>(
    body: &Bytes,
    request: &Request<B>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<()> {
    let size = wanted(Some(request.uri().path()));
    let head = Response::builder()
        .header("content-type", "text/plain")
        .header("x-internal", "bench")
        .header("content-length", size)
        .body(())?;
    let mut stream = respond.send_response(head, false)?;
    Ok(stream.send_data(body.slice(..size), true)?)
}

/// Reads the message, answers with one and a status.
async fn unary(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<()> {
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let head = Response::builder()
        .header("content-type", GRPC)
        .header("x-internal", "bench");
    let mut stream = respond.send_response(head.body(())?, false)?;
    stream.send_data(Bytes::from_static(MESSAGE), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(stream.send_trailers(trailers)?)
}

/// The endpoints' addresses at `port`.
pub(super) fn endpoints(port: u16) -> impl Iterator<Item = SocketAddr> {
    ADDRESSES.into_iter().map(move |ip| (ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_how_much() {
        assert_eq!(wanted(Some("/r7/1024")), 1024);
        assert_eq!(wanted(Some("/r7/")), SMALL);
        assert_eq!(wanted(Some("/99999999999")), LARGEST);
        assert_eq!(wanted(None), SMALL);
        let reply = whole(3);
        assert!(reply.ends_with(b"content-length: 3\r\n\r\nxxx"));
    }
}

//! The application behind the proxies: HTTP/1.1, HTTP/2 and gRPC on one port, as cheap as can be, since
//! it shares the machine with what is measured.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use isobar_runtime::LocalScope;
use isobar_types::ports;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;

use super::{answers, hbone};
use crate::server::head_end;

/// Addresses it listens on, with one port: two endpoints to choose from.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
/// The port of endpoints that are reached by tunnels; nobody listens there.
const TARGET: u16 = 8080;
/// Body of a reply where the path asks for none: of typical small size.
const SMALL: usize = 128;
/// More than any load asks for.
pub(super) const LARGEST: usize = 1 << 20;
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;
const PREFACE: &[u8] = b"PRI";
/// A gRPC message of 32 bytes with its prefix.
pub(super) const MESSAGE: &[u8] = b"\0\0\0\0\x200123456789abcdef0123456789abcdef";

/// Serves until its input ends; prints its addresses first. Those of endpoints in a `mesh`, which is the folder of
/// its authority, take tunnels on the mesh's port. Each line of its input is the size of body that
/// requests of HTTP/2 are answered with from then on, and is printed once that is so.
pub(crate) async fn run(mesh: Option<&Path>) -> Result<()> {
    let scope = Rc::new(LocalScope::new("server"));
    let size = Rc::new(Cell::new(SMALL));
    let mut endpoints = Vec::new();
    if let Some(folder) = mesh {
        let tls = hbone::of_application(folder)?;
        for listener in listen(own_addresses(), ports::HBONE).await? {
            endpoints.push(SocketAddr::new(listener.local_addr()?.ip(), TARGET).to_string());
            let tunnels = hbone::accept(scope.clone(), listener, tls.clone(), Rc::clone(&size));
            scope.spawn("accept", tunnels);
        }
    } else {
        for listener in listen(ADDRESSES, 0).await? {
            endpoints.push(listener.local_addr()?.to_string());
            scope.spawn("accept", accept(scope.clone(), listener, Rc::clone(&size)));
        }
    }
    println!("{}", endpoints.join(" "));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        size.set(line.parse().context("a line that is no size")?);
        println!("{line}");
    }
    Ok(())
}

/// The same port on every address: any that is free where it is 0.
async fn listen(addresses: [Ipv4Addr; 2], mut port: u16) -> Result<Vec<TcpListener>> {
    let mut all = Vec::new();
    for ip in addresses {
        let bound = TcpListener::bind((ip, port)).await;
        let bound = bound.with_context(|| format!("{ip}:{port}"))?;
        port = bound.local_addr()?.port();
        all.push(bound);
    }
    Ok(all)
}

/// Loopback addresses of this process alone: the port of tunnels is the same for everybody.
fn own_addresses() -> [Ipv4Addr; 2] {
    // An id has 22 bits at most.
    let first = u32::from(Ipv4Addr::new(127, 128, 0, 0)) | std::process::id() << 1;
    [first.into(), (first | 1).into()]
}

pub(super) async fn accept(scope: Rc<LocalScope>, listener: TcpListener, size: Rc<Cell<usize>>) {
    while let Ok((tcp, _)) = listener.accept().await {
        if tcp.set_nodelay(true).is_err() {
            continue;
        }
        let connection = connection(tcp, Rc::clone(&size));
        // A connection that breaks shows as a failure at the load generator.
        scope.spawn("connection", async move { drop(connection.await) });
    }
}

/// Answers on one connection.
pub(super) async fn connection(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    size: Rc<Cell<usize>>,
) -> Result<()> {
    let mut seen = Vec::with_capacity(16 * 1024);
    while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
        if io.read_buf(&mut seen).await? == 0 {
            return Ok(());
        }
    }
    if seen.starts_with(PREFACE) {
        answers::run(io, &seen, &size).await
    } else {
        http1(io, seen).await
    }
}

async fn http1(mut tcp: impl AsyncRead + AsyncWrite + Unpin, mut seen: Vec<u8>) -> Result<()> {
    let mut replies: HashMap<usize, Vec<u8>> = HashMap::new();
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

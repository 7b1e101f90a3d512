//! The application behind the proxies: HTTP/1.1, HTTP/2 and gRPC on one port, as cheap as can be, since
//! it shares the machine with what is measured.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use isobar_runtime::LocalScope;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::answers;
use crate::server::head_end;

/// Addresses it listens on, with one port: two endpoints to choose from.
pub(super) const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
/// Body of a reply where the path asks for none: of typical small size.
const SMALL: usize = 128;
/// More than any load asks for.
pub(super) const LARGEST: usize = 1 << 20;
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;
const PREFACE: &[u8] = b"PRI";
/// A gRPC message of 32 bytes with its prefix.
pub(super) const MESSAGE: &[u8] = b"\0\0\0\0\x200123456789abcdef0123456789abcdef";

/// Serves until its input ends; prints its port first. Each line of its input is the size of body that
/// requests of HTTP/2 are answered with from then on, and is printed once that is so.
pub(crate) async fn run() -> Result<()> {
    let scope = Rc::new(LocalScope::new("server"));
    let (listener, others) = listen().await?;
    println!("{}", listener.local_addr()?.port());
    let size = Rc::new(Cell::new(SMALL));
    for listener in others.into_iter().chain([listener]) {
        scope.spawn("accept", accept(scope.clone(), listener, Rc::clone(&size)));
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        size.set(line.parse().context("a line that is no size")?);
        println!("{line}");
    }
    Ok(())
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

pub(super) async fn accept(scope: Rc<LocalScope>, listener: TcpListener, size: Rc<Cell<usize>>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let connection = connection(tcp, Rc::clone(&size));
        // A connection that breaks shows as a failure at the load generator.
        scope.spawn("connection", async move { drop(connection.await) });
    }
}

async fn connection(tcp: TcpStream, size: Rc<Cell<usize>>) -> Result<()> {
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
            return answers::run(tcp, &size).await;
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

use std::net::Ipv4Addr;

use isobar_runtime::Scope;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A reply of typical small size: 128 bytes of body.
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 128\r\n\r\n\
0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Serves until it is killed.
pub(crate) async fn run(port: u16) -> anyhow::Result<()> {
    let scope = Scope::new("server");
    let http = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let sink = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port + 1)).await?;
    loop {
        tokio::select! {
            accepted = http.accept() => {
                let (stream, _) = accepted?;
                scope.spawn("http", async move { drop(answer(stream).await) });
            }
            accepted = sink.accept() => {
                let (stream, _) = accepted?;
                scope.spawn("sink", async move { drop(swallow(stream).await) });
            }
        }
    }
}

/// Answers every request head; bodies are not expected.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut seen = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut seen).await? == 0 {
            return Ok(());
        }
        while let Some(end) = head_end(&seen) {
            seen.drain(..end);
            stream.write_all(REPLY).await?;
        }
    }
}

/// Length of the first complete head, its blank line included.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| at + 4)
}

async fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while stream.read(&mut buffer).await? > 0 {}
    // The last byte tells the sender that all the others have arrived.
    stream.write_all(b"!").await
}

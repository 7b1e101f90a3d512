//! HTTP/2 of the application, as cheap as can be: frames by hand, and no look at what a request says. What
//! it answers with was agreed upon beforehand, so no field block has to be read.

use std::cell::Cell;
use std::collections::VecDeque;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::GRPC;
use super::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEAD, HEADERS, INITIAL_WINDOW, INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS, PING, PREFACE, RST_STREAM, SETTINGS, STATUS_200, WINDOW_UPDATE, frame,
    greet, parse, settings,
};
use super::server::{CONNECTION_WINDOW, LARGEST, MESSAGE};

/// Octets of a frame's payload (RFC 9113 §6.5.2, the least that peers may have).
const FRAME: usize = 16 * 1024;

/// Answers everything on one connection, of which `seen` was read, until the peer ends it: a request without a body
/// with `size` octets, another one with a gRPC message.
///
/// # Errors
/// When the connection breaks, or the peer does what a load never sees.
pub(super) async fn run(
    mut tcp: impl AsyncRead + AsyncWrite + Unpin,
    seen: &[u8],
    size: &Cell<usize>,
) -> Result<()> {
    let begun = seen.len().min(PREFACE.len());
    tcp.read_exact(&mut [0; PREFACE.len()][begun..]).await?;
    let mut answers = Answers::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut filled = seen.len() - begun;
    buffer[..filled].copy_from_slice(&seen[begun..]);
    loop {
        let mut at = 0;
        while let Some((kind, flags, stream, payload)) = parse(&buffer[at..filled]) {
            at += HEAD + payload.len();
            answers.take(kind, flags, stream, payload, size.get())?;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        answers.send_bodies();
        tcp.write_all(&answers.out).await?;
        answers.out.clear();
        let count = tcp.read(&mut buffer[filled..]).await?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
    }
}

/// A body that is not sent whole yet.
struct Body {
    stream: u32,
    left: usize,
    window: i64,
    /// A message, with trailers behind it.
    grpc: bool,
}

struct Answers {
    bodies: VecDeque<Body>,
    /// What the peer takes on the connection, and on a new stream.
    window: i64,
    stream_window: i64,
    taken: u32,
    zeros: Vec<u8>,
    out: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let mut out = Vec::new();
        greet(&mut out, &[(MAX_CONCURRENT_STREAMS, 1000)]);
        Self {
            bodies: VecDeque::new(),
            window: i64::from(INITIAL_WINDOW),
            stream_window: i64::from(INITIAL_WINDOW),
            taken: 0,
            zeros: vec![b'x'; FRAME],
            out,
        }
    }

    fn take(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        size: usize,
    ) -> Result<()> {
        match kind {
            HEADERS if flags & END_STREAM != 0 => self.answer(stream, size.min(LARGEST), false),
            DATA => {
                self.taken += u32::try_from(payload.len())?;
                if self.taken >= CONNECTION_WINDOW / 2 {
                    let more = self.taken.to_be_bytes();
                    frame(&mut self.out, WINDOW_UPDATE, 0, 0, &more);
                    self.taken = 0;
                }
                if flags & END_STREAM != 0 {
                    self.answer(stream, MESSAGE.len(), true);
                }
            }
            RST_STREAM => self.bodies.retain(|body| body.stream != stream),
            SETTINGS if flags & ACK == 0 => {
                let all = settings(payload);
                for (_, value) in all.filter(|(setting, _)| *setting == INITIAL_WINDOW_SIZE) {
                    let window = i64::from(value);
                    let more = window - self.stream_window;
                    self.bodies.iter_mut().for_each(|body| body.window += more);
                    self.stream_window = window;
                }
                frame(&mut self.out, SETTINGS, ACK, 0, &[]);
            }
            PING if flags & ACK == 0 => frame(&mut self.out, PING, ACK, 0, payload),
            WINDOW_UPDATE => {
                let more = payload.first_chunk().context("a window without a size")?;
                let more = i64::from(u32::from_be_bytes(*more));
                let mut of = self.bodies.iter_mut().filter(|body| body.stream == stream);
                match of.next() {
                    Some(body) => body.window += more,
                    None if stream == 0 => self.window += more,
                    // Of an answer that went out whole.
                    None => {}
                }
            }
            GOAWAY if payload.get(4..8).is_some_and(|code| code != [0; 4]) => {
                bail!("the peer complains: {payload:?}")
            }
            _ => {}
        }
        Ok(())
    }

    fn answer(&mut self, stream: u32, size: usize, grpc: bool) {
        let mut block = vec![STATUS_200];
        // Fields that are not indexed (RFC 7541 §6.2.2), by their names' index of the static table.
        literal(
            &mut block,
            &[0x0f, 16],
            if grpc { GRPC } else { "text/plain" },
        );
        if !grpc {
            literal(&mut block, &[0x0f, 13], &size.to_string());
        }
        named(&mut block, "x-internal", "bench");
        frame(&mut self.out, HEADERS, END_HEADERS, stream, &block);
        self.bodies.push_back(Body {
            stream,
            left: size,
            window: self.stream_window,
            grpc,
        });
    }

    /// Sends what the windows have room for.
    fn send_bodies(&mut self) {
        for mut body in std::mem::take(&mut self.bodies) {
            self.send(&mut body);
            if body.left > 0 {
                self.bodies.push_back(body);
            }
        }
    }

    fn send(&mut self, body: &mut Body) {
        while body.left > 0 {
            let room = usize::try_from(self.window.min(body.window)).unwrap_or_default();
            let part = body.left.min(FRAME).min(room);
            if part == 0 {
                return;
            }
            body.left -= part;
            let sent = i64::try_from(part).unwrap_or_default();
            self.window -= sent;
            body.window -= sent;
            let whole = body.left == 0;
            let end = if whole && !body.grpc { END_STREAM } else { 0 };
            let content = if body.grpc {
                &MESSAGE[..part]
            } else {
                &self.zeros[..part]
            };
            frame(&mut self.out, DATA, end, body.stream, content);
            if whole && body.grpc {
                let mut trailers = Vec::new();
                named(&mut trailers, "grpc-status", "0");
                let flags = END_HEADERS | END_STREAM;
                frame(&mut self.out, HEADERS, flags, body.stream, &trailers);
            }
        }
    }
}

fn literal(block: &mut Vec<u8>, name: &[u8], value: &str) {
    block.extend_from_slice(name);
    text(block, value);
}

fn named(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    text(block, name);
    text(block, value);
}

/// A text of less than 127 octets.
fn text(block: &mut Vec<u8>, text: &str) {
    block.push(u8::try_from(text.len()).unwrap_or_default());
    block.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::rc::Rc;

    use bytes::Bytes;
    use http::Request;
    use isobar_runtime::LocalScope;
    use tokio::net::TcpListener;

    use super::*;
    use crate::l7::caller::connect;

    /// What an ordinary client is answered: header fields, octets of body, status in the trailers.
    async fn asked(size: usize, message: bool) -> (http::HeaderMap, usize, Option<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let scope = Rc::new(LocalScope::new("test"));
        scope.spawn("server", async move {
            let (tcp, _) = listener.accept().await.unwrap();
            run(tcp, b"", &Cell::new(size)).await.unwrap();
        });
        let tcp = connect(to).await.unwrap();
        let (mut client, connection) = h2::client::handshake(tcp).await.unwrap();
        scope.spawn("client", async move { connection.await.unwrap() });
        let request = Request::get("http://bench/").body(()).unwrap();
        let (response, mut upload) = client.send_request(request, !message).unwrap();
        if message {
            upload.send_data(Bytes::from_static(MESSAGE), true).unwrap();
        }
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut octets = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            octets += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        let trailers = body.trailers().await.unwrap();
        let status = trailers.map(|trailers| trailers["grpc-status"].to_str().unwrap().to_owned());
        (head.headers, octets, status)
    }

    #[tokio::test]
    async fn an_ordinary_client_understands_the_answers() {
        let local = tokio::task::LocalSet::new();
        let all = async {
            // Less than a frame, and more than the client's first windows.
            for size in [1024, 300_000] {
                let (fields, octets, status) = asked(size, false).await;
                assert_eq!(octets, size);
                assert_eq!(fields["content-length"], size.to_string().as_str());
                assert_eq!(fields["content-type"], "text/plain");
                assert_eq!(status, None);
            }
            let (fields, octets, status) = asked(1, true).await;
            assert_eq!(octets, MESSAGE.len());
            assert_eq!(fields["content-type"], GRPC);
            assert_eq!(fields["x-internal"], "bench");
            assert_eq!(status.as_deref(), Some("0"));
        };
        local.run_until(all).await;
    }
}

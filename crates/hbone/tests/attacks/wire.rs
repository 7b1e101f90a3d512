//! HTTP/2 frames made and read by hand: no library would let us send these.

use std::time::Duration;

use isobar_tls::ClientStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The port of requests that are accepted and held until they end.
pub(crate) const HOLD: u16 = 1;
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const STREAM_CLOSED: u32 = 5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const COMPRESSION_ERROR: u32 = 9;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// How long an answer may take here, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A frame as it goes on the wire.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HPACK: a literal without indexing. `name` is an index of the static table, or a text.
pub(crate) fn literal(block: &mut Vec<u8>, name: Result<u8, &[u8]>, value: &[u8]) {
    match name {
        Ok(index) if index < 15 => block.push(index),
        Ok(index) => block.extend([0x0f, index - 15]),
        Err(text) => {
            block.push(0);
            length(block, text.len());
            block.extend(text);
        }
    }
    length(block, value.len());
    block.extend(value);
}

/// HPACK: an integer with a 7-bit prefix.
fn length(block: &mut Vec<u8>, value: usize) {
    if value < 127 {
        block.push(u8::try_from(value).unwrap());
        return;
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The header block of `CONNECT 10.0.0.1:port`; the port chooses what the server does.
pub(crate) fn connect_block(port: u16) -> Vec<u8> {
    request_block(b"CONNECT", format!("10.0.0.1:{port}").as_bytes())
}

pub(crate) fn request_block(method: &[u8], authority: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    literal(&mut block, Ok(2), method);
    literal(&mut block, Ok(1), authority);
    block
}

/// A whole CONNECT request without END_STREAM.
pub(crate) fn connect(stream: u32, port: u16) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &connect_block(port))
}

pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(crate) fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub(crate) fn setting(id: u16, value: u32) -> Vec<u8> {
    let mut entry = id.to_be_bytes().to_vec();
    entry.extend(value.to_be_bytes());
    entry
}

/// A frame that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of a HEADERS frame, if it is one of the static table's or a literal.
    pub(crate) fn status(&self) -> u16 {
        match self.payload[0] {
            0x88 => 200,
            0x8c => 400,
            0x8d => 404,
            0x8e => 500,
            // Literal with the name from the static table (:status is 8 to 14).
            _ => {
                let text = &self.payload[2..];
                let text: String = if self.payload[1] & 0x80 == 0 {
                    String::from_utf8_lossy(text).into_owned()
                } else {
                    huffman_digits(text)
                };
                text.chars().take(3).collect::<String>().parse().unwrap()
            }
        }
    }
}

/// Decodes digits in HPACK's Huffman code (RFC 7541 appendix B): 0 to 2 have 5 bits, 3 to 9 have 6.
fn huffman_digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|b| (0..8).rev().map(move |i| b >> i & 1))
        .collect();
    let number = |bits: &[u8]| bits.iter().fold(0_u8, |n, bit| n << 1 | bit);
    let (mut at, mut text) = (0, String::new());
    while text.len() < 3 && at + 5 <= bits.len() {
        let five = number(&bits[at..at + 5]);
        if five < 3 {
            text.push(char::from(b'0' + five));
            at += 5;
        } else {
            let six = number(&bits[at..at + 6]);
            text.push(char::from(b'3' + six - 0x19));
            at += 6;
        }
    }
    text
}

/// One raw connection.
pub(crate) struct Raw {
    pub(crate) io: ClientStream<TcpStream>,
    /// Bytes sent, for the ratio of costs.
    pub(crate) sent: usize,
}

impl Raw {
    pub(crate) fn new(io: ClientStream<TcpStream>) -> Self {
        Self { io, sent: 0 }
    }

    /// Sends; false when the server has closed.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.sent += bytes.len();
        let written = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        timeout(PATIENCE, written).await.unwrap().is_ok()
    }

    /// Sends as much as the server takes within `limit`; returns the bytes taken.
    pub(crate) async fn push(&mut self, bytes: &[u8], limit: Duration) -> usize {
        let mut taken = 0;
        let writing = async {
            while taken < bytes.len() {
                match self.io.write(&bytes[taken..]).await {
                    Ok(more) => taken += more,
                    Err(_) => return,
                }
            }
            let _ = self.io.flush().await;
        };
        let _ = timeout(limit, writing).await;
        self.sent += taken;
        taken
    }

    /// The next frame; `None` at the end, orderly or not.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let reading = async {
            let mut head = [0; 9];
            self.io.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.io.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
            Some(Frame {
                kind: head[3],
                flags: head[4],
                stream,
                payload,
            })
        };
        timeout(PATIENCE, reading)
            .await
            .expect("the server neither answers nor closes")
    }

    /// The next frame of `kind` that is no acknowledgement; `None` at the end.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            let ack = matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK != 0;
            if frame.kind == kind && !ack {
                return Some(frame);
            }
        }
    }

    /// Everything to the end; the code of the last GOAWAY, if there was one.
    pub(crate) async fn goodbye(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }

    /// Proves that the connection still serves: a request is answered 200.
    pub(crate) async fn serves(&mut self, stream: u32) {
        assert!(self.send(&connect(stream, HOLD)).await);
        loop {
            let frame = self.next().await.expect("the connection has ended");
            assert_ne!(frame.kind, GOAWAY, "{}", frame.code());
            if frame.kind == HEADERS && frame.stream == stream {
                assert_eq!(frame.status(), 200);
                return;
            }
        }
    }
}

/// Whether long forms of tests are asked for.
fn long() -> bool {
    std::env::var_os("ISOBAR_TEST_LONG").is_some()
}

/// The short or the long form of a figure.
pub(crate) fn form<T: Copy>(of: [T; 2]) -> T {
    of[usize::from(long())]
}

/// Tells the person who waits for a long form.
pub(crate) fn progress(bar: &str, round: u32, rounds: u32) {
    use std::io::Write as _;

    // Not `eprintln!`, which the test harness keeps for itself.
    let _ = writeln!(std::io::stderr(), "{bar}: {round} of {rounds}");
}

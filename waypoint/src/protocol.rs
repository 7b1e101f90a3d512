//! HTTP or opaque: by declaration, else by the first bytes, which get 100 ms to come. Of TLS, the server
//! name that its client asks for.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isobar_state::AppProtocol;
use isobar_tls::Hello;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How long an undeclared port may wait for its client to speak first.
const SNIFF: Duration = Duration::from_millis(100);
/// How long a client of an HTTP port may take to show which HTTP it speaks, and one of a TLS port to
/// say hello.
const CLIENT_START: Duration = Duration::from_secs(10);
/// What a client of HTTP/2 says first (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line that is not complete by then is not HTTP for us.
const LONGEST_LINE: usize = 8192;
/// Longest method name taken for one.
const LONGEST_METHOD: usize = 24;

/// What flows over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge, gRPC included.
    Http2,
    /// Anything else.
    Tcp,
}

/// What a stream turned out to be.
#[derive(Debug)]
pub struct Detected {
    /// What flows over it.
    pub protocol: Protocol,
    /// Bytes read to find out.
    pub first: Bytes,
    /// The server name that a client of TLS asks for.
    pub server_name: Option<String>,
}

/// Reads until it is clear what the stream is.
///
/// # Errors
/// When the stream fails.
pub async fn detect<S: AsyncRead + Unpin>(
    declared: Option<AppProtocol>,
    stream: &mut S,
) -> std::io::Result<Detected> {
    let mut seen = BytesMut::new();
    let found = |protocol, seen: BytesMut, server_name| {
        Ok(Detected {
            protocol,
            first: seen.freeze(),
            server_name,
        })
    };
    let limit = match declared {
        Some(AppProtocol::Tcp) => return found(Protocol::Tcp, seen, None),
        Some(_) => CLIENT_START,
        None => SNIFF,
    };
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some((protocol, name)) = look(&seen, declared) {
            return found(protocol, seen, name);
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(&mut seen)).await {
            Ok(Ok(0)) | Err(_) => return found(settle(&seen, declared), seen, None),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

fn look(seen: &[u8], declared: Option<AppProtocol>) -> Option<(Protocol, Option<String>)> {
    let tls = declared == Some(AppProtocol::Tls) || (declared.is_none() && seen.starts_with(&[22]));
    if !tls {
        return judge(seen, declared.is_some()).map(|protocol| (protocol, None));
    }
    match Hello::read(seen) {
        Hello::Part => None,
        Hello::Other => Some((Protocol::Tcp, None)),
        Hello::Whole(name) => Some((Protocol::Tcp, name)),
    }
}

/// No more bytes came: what was seen decides.
fn settle(seen: &[u8], declared: Option<AppProtocol>) -> Protocol {
    match declared {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => Protocol::Http2,
        Some(AppProtocol::Http1) => Protocol::Http1,
        Some(AppProtocol::Tcp | AppProtocol::Tls) => Protocol::Tcp,
        None if looks_like_request(seen) == Some(true) => Protocol::Http1,
        None => Protocol::Tcp,
    }
}

fn judge(seen: &[u8], declared_http: bool) -> Option<Protocol> {
    let common = seen.len().min(PREFACE.len());
    if seen.is_empty() {
        return None;
    }
    if seen[..common] == PREFACE[..common] {
        return (common == PREFACE.len()).then_some(Protocol::Http2);
    }
    if declared_http {
        return Some(Protocol::Http1);
    }
    match looks_like_request(seen) {
        Some(false) => Some(Protocol::Tcp),
        Some(true) => {
            // The whole line tells; until it is there the deadline decides.
            let line = seen.iter().position(|b| *b == b'\n');
            match line {
                Some(end) if is_request_line(&seen[..end]) => Some(Protocol::Http1),
                Some(_) => Some(Protocol::Tcp),
                None if seen.len() > LONGEST_LINE => Some(Protocol::Tcp),
                None => None,
            }
        }
        None => None,
    }
}

/// `Some(true)`: a method and a space; `None`: could still become one.
fn looks_like_request(seen: &[u8]) -> Option<bool> {
    let head = &seen[..seen.len().min(LONGEST_METHOD + 1)];
    let method = head
        .iter()
        .take_while(|b| b.is_ascii_uppercase() || **b == b'-')
        .count();
    match head.get(method) {
        Some(b' ') => Some(method > 0),
        Some(_) => Some(false),
        None if method > LONGEST_METHOD => Some(false),
        None => None,
    }
}

fn is_request_line(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.len() > 8 && line[line.len() - 8..].starts_with(b"HTTP/1.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn sniff(declared: Option<AppProtocol>, sent: &[u8]) -> (Protocol, Bytes) {
        let (mut near, mut far) = tokio::io::duplex(1024);
        far.write_all(sent).await.unwrap();
        let found = detect(declared, &mut near).await.unwrap();
        drop(far);
        (found.protocol, found.first)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_tell() {
        let (protocol, seen) = sniff(None, b"GET / HTTP/1.1\r\nhost: a\r\n").await;
        assert_eq!(protocol, Protocol::Http1);
        assert_eq!(&seen[..5], b"GET /");
        assert_eq!(sniff(None, PREFACE).await.0, Protocol::Http2);
        assert_eq!(sniff(None, b"\x16\x03\x01\x02").await.0, Protocol::Tcp);
        assert_eq!(sniff(None, b"HELO me\r\n").await.0, Protocol::Tcp);
        assert_eq!(sniff(None, b"GET / HTTP").await.0, Protocol::Http1);
        assert_eq!(sniff(None, b"").await.0, Protocol::Tcp);
        assert_eq!(
            sniff(Some(AppProtocol::Tcp), b"GET / HTTP/1.1\r\n").await.0,
            Protocol::Tcp
        );
        assert_eq!(
            sniff(Some(AppProtocol::Http1), PREFACE).await.0,
            Protocol::Http2
        );
    }
}

//! Heads of callers' requests, read strictly.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use ::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use bytes::{Bytes, BytesMut};

use crate::http::HEAD;
use crate::message::{FIELDS, Framing, digits, into_map, length, lists, says_close};

/// Octets of a head with its first line.
pub(super) const MOST: usize = HEAD + 4096;
/// Room for fields of one head that is kept; the few with more have it made.
const ROOM: usize = 64;
/// Heads for which there is room.
const SPARES: usize = 64;

thread_local! {
    /// Room for the fields of the next heads.
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// A head, and what it says of what follows.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) request: Request<()>,
    pub(super) framing: Framing,
    pub(super) told: Told,
    /// The caller sends nothing after this request, or nobody could say where it begins.
    pub(super) closes: bool,
    /// The caller waits to be told that its body is wanted.
    pub(super) expects: bool,
    /// It may speak something else from here on.
    pub(super) switches: bool,
    /// What was read behind it.
    pub(super) rest: Bytes,
}

/// What of a request its response depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// It asks for a head alone.
    pub(super) head: bool,
    /// Its caller speaks HTTP/1.0.
    pub(super) old: bool,
    /// Its caller takes trailers.
    pub(super) trailers: bool,
}

/// Takes a head out of what was read; `None` if it is not all there.
///
/// # Errors
/// What a caller is told whose request is none. Nothing that follows it can be read.
pub(super) fn read(unread: &mut BytesMut) -> Result<Option<Head>, StatusCode> {
    // Lines that some send behind a body (RFC 9112 §2.2).
    while unread.starts_with(b"\r\n") {
        let _ = unread.split_to(2);
    }
    if unread.is_empty() {
        return Ok(None);
    }
    let mut whole = std::mem::take(unread).freeze();
    let Some((request, length)) = parse(&whole)? else {
        if whole.len() >= MOST {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        *unread = whole.into();
        return Ok(None);
    };
    if length > MOST {
        return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let rest = whole.split_off(length);
    judge(request, rest).map(Some)
}

/// Takes back the room that the fields of a head had.
pub(super) fn give_back(mut headers: HeaderMap) {
    if headers.capacity() > ROOM {
        return;
    }
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARES {
            headers.clear();
            spare.push(headers);
        }
    });
}

/// The head at the begin of `whole`, and its length.
fn parse(whole: &Bytes) -> Result<Option<(Request<()>, usize)>, StatusCode> {
    let mut room = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(whole, &mut room) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        Err(_) => return Err(StatusCode::BAD_REQUEST),
    };
    let bad = StatusCode::BAD_REQUEST;
    if has_bare_feeds(&whole[..length]) {
        return Err(bad);
    }
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(bad);
    };
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_| bad)?;
    let target = whole.slice_ref(target.as_bytes());
    *request.uri_mut() = Uri::from_maybe_shared(target).map_err(|_| bad)?;
    *request.version_mut() = match parsed.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let mut headers = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    into_map(parsed.headers, whole, &mut headers).map_err(|_| bad)?;
    *request.headers_mut() = headers;
    Ok(Some((request, length)))
}

/// True if a line ends with a line feed alone. In what the parser takes a CR stands before an LF only, so that
/// counting them is enough.
fn has_bare_feeds(head: &[u8]) -> bool {
    let sum = head.iter().fold(0_i32, |sum, byte| {
        sum + i32::from(*byte == b'\n') - i32::from(*byte == b'\r')
    });
    sum != 0
}

/// What a head says of what follows.
fn judge(mut request: Request<()>, rest: Bytes) -> Result<Head, StatusCode> {
    let (mut framed, mut connection, mut expects) = (false, false, false);
    let mut upgrade = false;
    let mut told = Told {
        head: *request.method() == Method::HEAD,
        old: request.version() != Version::HTTP_11,
        trailers: false,
    };
    // In one pass: each look by name would cost as much.
    for (name, value) in request.headers() {
        match name.as_str() {
            "content-length" | "transfer-encoding" => framed = true,
            "connection" => connection = true,
            "expect" => expects = value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            "te" => told.trailers |= lists(value, b"trailers"),
            "upgrade" => upgrade = true,
            _ => {}
        }
    }
    let (framing, doubtful) = match framed {
        true => framing(&mut request, told.old)?,
        false => (Framing::Over, false),
    };
    let closes = told.old
        || doubtful
        // What it sends from here on may be no HTTP.
        || *request.method() == Method::CONNECT
        || connection && says_close(request.headers());
    Ok(Head {
        expects: expects && !told.old && !framing.is_over(),
        switches: upgrade && !told.old,
        request,
        framing,
        told,
        closes,
        rest,
    })
}

/// How the body ends; true if that was told in two ways. Chunks win over a length, which is dropped, and
/// nothing may follow (RFC 9112 §6.3).
fn framing(request: &mut Request<()>, old: bool) -> Result<(Framing, bool), StatusCode> {
    let bad = StatusCode::BAD_REQUEST;
    let headers = request.headers_mut();
    let encoding = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    let Some(encoding) = encoding else {
        // A list of lengths in one field is none, as before whoever else may read it.
        let fields = headers.get_all(CONTENT_LENGTH);
        let lists = |field: &HeaderValue| digits(field.as_bytes()).is_none();
        if fields.iter().any(lists) {
            return Err(bad);
        }
        let length = length(headers).map_err(|_| bad)?;
        return Ok(match length {
            None | Some(0) => (Framing::Over, false),
            Some(length) => (Framing::Length(length), false),
        });
    };
    // Others before it are refused with an answer of the usual kind.
    let last = encoding.as_bytes().rsplit(|byte| *byte == b',').next();
    let chunked = last.is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
    if old || !chunked {
        return Err(bad);
    }
    let both = headers.remove(CONTENT_LENGTH).is_some();
    Ok((Framing::chunked(), both))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Result<Option<Head>, StatusCode> {
        read(&mut BytesMut::from(text))
    }

    fn with(fields: &str) -> Result<Head, StatusCode> {
        let text = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        given(&text).map(Option::unwrap)
    }

    fn kind(framing: &Framing) -> String {
        match framing {
            Framing::Over => "over".to_owned(),
            Framing::Length(length) => length.to_string(),
            Framing::Chunked(_) => "chunks".to_owned(),
            Framing::Close => "close".to_owned(),
        }
    }

    #[test]
    fn a_head_says_how_its_body_ends_and_whether_another_may_follow() {
        for (fields, how, closes) in [
            ("", "over", false),
            ("content-length: 0\r\n", "over", false),
            ("Content-Length: 5\r\n", "5", false),
            ("content-length: 5\r\ncontent-length: 5\r\n", "5", false),
            ("transfer-encoding: Chunked\r\n", "chunks", false),
            ("transfer-encoding: gzip, chunked\r\n", "chunks", false),
            (
                "content-length: 5\r\ntransfer-encoding: chunked\r\n",
                "chunks",
                true,
            ),
            (
                "transfer-encoding: chunked\r\ncontent-length: x\r\n",
                "chunks",
                true,
            ),
            ("connection: keep-alive\r\n", "over", false),
            ("connection: x, Close\r\n", "over", true),
            (
                "connection: close\r\nconnection: keep-alive\r\n",
                "over",
                true,
            ),
        ] {
            let head = with(fields).unwrap();
            assert_eq!(kind(&head.framing), how, "{fields:?}");
            assert_eq!(head.closes, closes, "{fields:?}");
            let lengths = head.request.headers().get_all(CONTENT_LENGTH).iter();
            assert!(lengths.count() <= 1, "{fields:?}");
        }
        let both = with("content-length: 5\r\ntransfer-encoding: chunked\r\n").unwrap();
        assert!(!both.request.headers().contains_key(CONTENT_LENGTH));
        let old = given("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
        let old = old.unwrap().unwrap();
        assert!(old.closes && old.told.old);
        let connect = given("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n");
        assert!(connect.unwrap().unwrap().closes);
    }

    #[test]
    fn heads_that_others_may_read_differently_are_refused() {
        for fields in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: 5, 5\r\n",
            "content-length: +5\r\n",
            "content-length: -1\r\n",
            "content-length: 0x5\r\n",
            "content-length:\r\n",
            "content-length: 99999999999999999999\r\n",
            "transfer-encoding: gzip\r\n",
            "transfer-encoding: chunked, gzip\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
            "transfer-encoding: xchunked\r\n",
            "transfer-encoding: \x0bchunked\r\n",
            "content-length : 5\r\n",
            "transfer-encoding : chunked\r\n",
            "x: a\r\n folded\r\n",
            " x: a\r\n",
            "x: a\0b\r\n",
            "x(y: a\r\n",
            "x y: a\r\n",
            "x\r\n",
            ": a\r\n",
            "x: a\n",
            "x: a\rb\r\n",
            "x: a\r\r\n",
        ] {
            let refused = with(fields).err();
            assert_eq!(refused, Some(StatusCode::BAD_REQUEST), "{fields:?}");
        }
        for text in [
            "GET / HTTP/1.1\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\n",
            "\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nhost: a\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/3.7\r\nhost: a\r\n\r\n",
            "GET / http/1.1\r\nhost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "G@T / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET\r\n\r\n",
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            let refused = given(text).err();
            assert_eq!(refused, Some(StatusCode::BAD_REQUEST), "{text:?}");
        }
    }

    #[test]
    fn a_head_says_what_its_response_depends_on() {
        let told = with("te: gzip, Trailers\r\n").unwrap().told;
        assert!(told.trailers && !told.head && !told.old);
        let head = given("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
            .unwrap()
            .unwrap();
        assert!(head.told.head);
        let waits = with("expect: 100-Continue\r\ncontent-length: 5\r\n").unwrap();
        assert!(waits.expects);
        let nothing = with("expect: 100-continue\r\n").unwrap();
        assert!(!nothing.expects, "there is no body to wait with");
        assert!(with("upgrade: websocket\r\n").unwrap().switches);
        let old = given("GET / HTTP/1.0\r\nupgrade: websocket\r\n\r\n");
        assert!(!old.unwrap().unwrap().switches);
    }

    #[test]
    fn targets_have_every_form() {
        for (target, path, authority) in [
            ("/a?b", "/a?b", None),
            ("http://b:1/a", "/a", Some("b:1")),
            ("*", "*", None),
        ] {
            let text = format!("OPTIONS {target} HTTP/1.1\r\nhost: a\r\n\r\n");
            let head = given(&text).unwrap().unwrap();
            let uri = head.request.uri();
            assert_eq!(uri.path_and_query().map(|path| path.as_str()), Some(path));
            assert_eq!(uri.authority().map(|host| host.as_str()), authority);
        }
    }

    #[test]
    fn a_head_may_come_bit_by_bit_and_more_may_come_with_it() {
        let text = "\r\n\r\nPOST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n";
        let mut unread = BytesMut::new();
        for byte in text.as_bytes() {
            assert!(read(&mut unread).unwrap().is_none());
            unread.extend_from_slice(&[*byte]);
        }
        unread.extend_from_slice(b"abGET");
        let head = read(&mut unread).unwrap().unwrap();
        assert_eq!(head.rest, b"abGET"[..]);
        assert!(unread.is_empty());
    }

    #[test]
    fn a_head_has_a_size() {
        let text = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(MOST));
        let large = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        assert_eq!(given(&text).unwrap_err(), large);
        assert_eq!(given(&format!("{text}\r\n\r\n")).unwrap_err(), large);
        assert!(given(&text[..MOST - 1]).unwrap().is_none());
        assert!(with(&"a: b\r\n".repeat(FIELDS - 1)).is_ok());
        assert_eq!(with(&"a: b\r\n".repeat(FIELDS)).unwrap_err(), large);
    }

    #[test]
    fn fields_of_the_request_before_are_gone() {
        let first = with("x-secret: 1\r\n").unwrap();
        give_back(first.request.into_parts().0.headers);
        let second = with("").unwrap();
        assert_eq!(second.request.headers().len(), 1);
    }
}

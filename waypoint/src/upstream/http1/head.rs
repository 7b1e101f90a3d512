//! Heads of requests to endpoints, and of their responses.

use std::mem::MaybeUninit;

use ::http::header::TRANSFER_ENCODING;
use ::http::request::Parts;
use ::http::{Response, StatusCode, Version};
use bytes::{Bytes, BytesMut};

use crate::message::{Error, FIELDS, Framing, Phrase, into_map, length, says_close, write_fields};

/// Octets of a response's head.
pub(super) const MOST: usize = 64 * 1024;

/// The head of a response, and what it says of what follows.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    /// The endpoint takes another request on the connection.
    pub(super) stays: bool,
    /// It is no HTTP from here on.
    pub(super) switches: bool,
    /// What was read behind it.
    pub(super) rest: Bytes,
}

/// Writes the head of a request.
pub(super) fn write(head: &Parts, out: &mut Vec<u8>) {
    out.reserve(64 + 48 * head.headers.len());
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    match head.uri.path_and_query() {
        Some(path) if head.uri.authority().is_none() => {
            out.extend_from_slice(path.as_str().as_bytes());
        }
        _ => out.extend_from_slice(head.uri.to_string().as_bytes()),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_fields(&head.headers, out);
    out.extend_from_slice(b"\r\n");
}

/// Takes the head of the final response out of what was read, and those that announce it; `None` if it is not
/// all there.
pub(super) fn read(unread: &mut BytesMut, without_body: bool) -> Result<Option<Head>, Error> {
    // Values are parts of the whole: a copy of each would cost more.
    let mut whole = std::mem::take(unread).freeze();
    while !whole.is_empty() {
        let Some((response, length)) = parse(&whole)? else {
            if whole.len() >= MOST {
                return Err(Error::Malformed("the head is too long"));
            }
            *unread = whole.into();
            return Ok(None);
        };
        let rest = whole.split_off(length);
        match response.status().as_u16() {
            100 | 102..=199 => whole = rest,
            _ => return judge(response, rest, without_body).map(Some),
        }
    }
    Ok(None)
}

/// What a head says of what follows.
fn judge(mut response: Response<()>, rest: Bytes, without_body: bool) -> Result<Head, Error> {
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let empty = without_body || matches!(response.status().as_u16(), 101 | 204 | 304);
    let framing = if empty {
        Framing::Over
    } else {
        framing(&mut response)?
    };
    let stays = response.version() == Version::HTTP_11 && !says_close(response.headers());
    Ok(Head {
        stays: stays && !switches && !matches!(framing, Framing::Close),
        response,
        framing,
        switches,
        rest,
    })
}

/// One length, or chunks, never both (RFC 9112 §6.3).
fn framing(response: &mut Response<()>) -> Result<Framing, Error> {
    let version = response.version();
    let headers = response.headers_mut();
    let length = length(headers)?;
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(encoding) = encodings.next() else {
        return Ok(match length {
            None => Framing::Close,
            Some(0) => Framing::Over,
            Some(length) => Framing::Length(length),
        });
    };
    let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if !chunked || encodings.next().is_some() || version != Version::HTTP_11 {
        return Err(Error::Malformed("its transfer-encoding is not chunked"));
    }
    if length.is_some() {
        return Err(Error::Malformed("it has a length and comes in chunks"));
    }
    Ok(Framing::chunked())
}

/// The head at the begin of `whole`, and its length.
fn parse(whole: &Bytes) -> Result<Option<(Response<()>, usize)>, Error> {
    let mut room = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let found = parser.parse_response_with_uninit_headers(&mut parsed, whole, &mut room)?;
    let httparse::Status::Complete(length) = found else {
        return Ok(None);
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Error::Malformed("its status is none"))?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = match parsed.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    if let Some(reason) = parsed.reason
        && status.canonical_reason() != Some(reason)
    {
        response.extensions_mut().insert(Phrase::new(reason));
    }
    into_map(parsed.headers, whole, response.headers_mut())?;
    Ok(Some((response, length)))
}

#[cfg(test)]
mod tests {
    use ::http::header::CONTENT_LENGTH;

    use super::*;

    fn given(text: &str, without_body: bool) -> Result<Option<Head>, Error> {
        read(&mut BytesMut::from(text), without_body)
    }

    fn refused(fields: &str) -> bool {
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        given(&text, false).is_err_and(|error| error.is_protocol())
    }

    #[test]
    fn a_head_says_how_its_body_ends_and_whether_the_connection_stays() {
        let told = |text: &str, without_body| {
            let head = given(text, without_body).unwrap().unwrap();
            let kind = match head.framing {
                Framing::Over => "over".to_owned(),
                Framing::Length(length) => length.to_string(),
                Framing::Chunked(_) => "chunks".to_owned(),
                Framing::Close => "close".to_owned(),
            };
            (kind, head.stays)
        };
        let is = |kind: &str, stays| (kind.to_owned(), stays);
        let with = |fields: &str| told(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), false);
        assert_eq!(with("content-length: 5\r\n"), is("5", true));
        assert_eq!(with("content-length: 0\r\n"), is("over", true));
        assert_eq!(
            with("Content-Length: 5\r\ncontent-length: 5\r\n"),
            is("5", true)
        );
        assert_eq!(with("content-length: 5, 5\r\n"), is("5", true));
        assert_eq!(with("transfer-encoding: Chunked\r\n"), is("chunks", true));
        assert_eq!(with(""), is("close", false));
        assert_eq!(
            with("content-length: 5\r\nconnection: x, Close\r\n"),
            is("5", false)
        );
        let two = "content-length: 5\r\nconnection: close\r\nconnection: keep-alive\r\n";
        assert_eq!(with(two), is("5", false));
        for status in ["204 No Content", "304 Not Modified"] {
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: 9\r\n\r\n");
            assert_eq!(told(&text, false), is("over", true));
        }
        let to_head = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n";
        assert_eq!(told(to_head, true), is("over", true));
        let old = "HTTP/1.0 200 OK\r\ncontent-length: 9\r\nconnection: keep-alive\r\n\r\n";
        assert_eq!(told(old, false), is("9", false));
    }

    #[test]
    fn lengths_that_are_equal_become_one() {
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n";
        let head = given(text, false).unwrap().unwrap();
        let lengths: Vec<_> = head
            .response
            .headers()
            .get_all(CONTENT_LENGTH)
            .iter()
            .collect();
        assert_eq!(lengths, ["5"]);
    }

    #[test]
    fn heads_that_others_may_read_differently_are_refused() {
        for fields in [
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 5, 6",
            "content-length: 5,",
            "content-length: +5",
            "content-length: 0x5",
            "content-length: 5 5",
            "content-length:",
            "content-length: 99999999999999999999",
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: gzip",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked, gzip",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: xchunked",
            "content-length : 5",
            "x: a\r\n folded",
            " x: a",
            "x: a\0b",
            "x(y: a",
        ] {
            assert!(refused(fields), "{fields:?}");
        }
        let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(given(old, false).is_err());
        for first in [
            "HTTP/2.0 200 OK",
            "HTTP/1.1 20 OK",
            "ICY 200 OK",
            "HTTP/1.1 099 ?",
        ] {
            assert!(
                given(&format!("{first}\r\n\r\n"), false).is_err(),
                "{first}"
            );
        }
    }

    #[test]
    fn what_announces_a_response_is_not_the_response() {
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
        let last = "HTTP/1.1 404 Nobody Home\r\ncontent-length: 1\r\n\r\nx";
        let mut unread = BytesMut::from(&*format!("HTTP/1.1 100 Continue\r\n\r\n{early}"));
        assert!(read(&mut unread, false).unwrap().is_none());
        assert!(unread.is_empty());
        unread.extend_from_slice(early.as_bytes());
        unread.extend_from_slice(last.as_bytes());
        let head = read(&mut unread, false).unwrap().unwrap();
        assert_eq!(head.response.status(), 404);
        assert!(!head.response.headers().contains_key("link"));
        let reason = head.response.extensions().get::<Phrase>();
        assert_eq!(reason.map(Phrase::as_bytes), Some(&b"Nobody Home"[..]));
        assert_eq!(head.rest, b"x"[..]);
        assert!(unread.is_empty());
    }

    #[test]
    fn a_head_has_a_size() {
        let text = format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(MOST));
        assert!(given(&text, false).unwrap_err().is_protocol());
        let short = &text[..MOST - 1];
        assert!(given(short, false).unwrap().is_none());
        assert!(!refused(&["a: b"; FIELDS].join("\r\n")));
        assert!(refused(&["a: b"; FIELDS + 1].join("\r\n")));
    }
}

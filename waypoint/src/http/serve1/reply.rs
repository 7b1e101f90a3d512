//! Heads of responses to callers.

use ::http::header::CONTENT_LENGTH;
use ::http::response::Parts;
use ::http::{HeaderMap, HeaderValue, StatusCode};
use bytes::Bytes;
use http_body::Body;

use super::head::Told;
use crate::http::date;
use crate::message::{Coding, Phrase, announced, digits, lists};

/// How the length of a response is told.
enum Length {
    /// It has none.
    Without,
    /// That of what a GET would have had, as its head says.
    OfGet,
    Is(u64),
    Chunks,
}

/// Writes a head. Gives how its body goes, if it has one, and whether nothing follows on the connection.
pub(super) fn write(
    parts: &mut Parts,
    body: &impl Body<Data = Bytes>,
    told: Told,
    last: bool,
    out: &mut Vec<u8>,
) -> (Option<Coding>, bool) {
    if parts.status.is_informational() && parts.status != StatusCode::SWITCHING_PROTOCOLS {
        // It would be read as the announcement of another one.
        parts.status = StatusCode::INTERNAL_SERVER_ERROR;
    }
    let headers = &parts.headers;
    let (length, coding) = length(parts.status, headers, body, told);
    out.reserve(128 + 48 * headers.len());
    write_status(parts, told.old, out);
    let seen = write_fields(headers, &length, out);
    if last && !seen.closes && !told.old && parts.status != StatusCode::SWITCHING_PROTOCOLS {
        out.extend_from_slice(b"connection: close\r\n");
    }
    match length {
        Length::Is(length) if !seen.length => write_length(length, out),
        Length::Chunks => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        _ => {}
    }
    if !seen.date {
        out.extend_from_slice(b"date: ");
        out.extend_from_slice(date::now().as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    (coding, last || seen.closes)
}

/// A whole response to what is no request.
pub(super) fn refusal(status: StatusCode) -> Vec<u8> {
    let (mut parts, ()) = ::http::Response::new(()).into_parts();
    parts.status = status;
    let mut out = Vec::new();
    let body = http_body_util::Empty::<Bytes>::new();
    write(&mut parts, &body, Told::default(), true, &mut out);
    out
}

fn length(
    status: StatusCode,
    headers: &HeaderMap,
    body: &impl Body,
    told: Told,
) -> (Length, Option<Coding>) {
    let has = || headers.get(CONTENT_LENGTH).map(HeaderValue::as_bytes);
    let whole = body.is_end_stream();
    let exact = body.size_hint().exact().filter(|_| !whole);
    if told.head {
        let length = match exact {
            _ if has().is_some() => Length::OfGet,
            Some(length) if may_have_body(status) => Length::Is(length),
            _ => Length::Without,
        };
        return (length, None);
    }
    if !may_have_body(status) {
        return (Length::Without, None);
    }
    if whole {
        return (Length::Is(0), None);
    }
    match exact.or_else(|| has().and_then(digits)) {
        Some(length) => (Length::Is(length), Some(Coding::Length(length))),
        None => {
            // Who cannot take trailers is spared them (RFC 9110 §6.5.1).
            let trailers = told.trailers.then(|| announced(headers));
            let coding = Coding::Chunks(trailers.unwrap_or_default());
            (Length::Chunks, Some(coding))
        }
    }
}

/// RFC 9110 §6.4.1.
fn may_have_body(status: StatusCode) -> bool {
    !status.is_informational()
        && status != StatusCode::NO_CONTENT
        && status != StatusCode::NOT_MODIFIED
}

fn write_status(parts: &Parts, old: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.push(b' ');
    let phrase = parts.extensions.get::<Phrase>().map(Phrase::as_bytes);
    let usual = || parts.status.canonical_reason().unwrap_or("<none>");
    out.extend_from_slice(phrase.unwrap_or_else(|| usual().as_bytes()));
    out.extend_from_slice(b"\r\n");
}

/// What there is among a head's fields.
#[derive(Default)]
struct Seen {
    length: bool,
    date: bool,
    /// Nothing follows.
    closes: bool,
}

/// Writes fields, but for those that the length decides.
fn write_fields(headers: &HeaderMap, length: &Length, out: &mut Vec<u8>) -> Seen {
    let mut seen = Seen::default();
    for (name, value) in headers {
        let name = name.as_str();
        match name {
            "content-length" => match length {
                Length::OfGet => {}
                Length::Is(length) => {
                    if !std::mem::replace(&mut seen.length, true) {
                        write_length(*length, out);
                    }
                    continue;
                }
                Length::Without | Length::Chunks => continue,
            },
            "transfer-encoding" => continue,
            "connection" => seen.closes |= lists(value, b"close"),
            "date" => seen.date = true,
            _ => {}
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    seen
}

fn write_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use ::http::Response;
    use http_body_util::{BodyExt as _, Full, StreamBody};

    use super::*;

    type Made = (String, Option<Coding>, bool);

    fn made(
        status: u16,
        fields: &[(&'static str, &'static str)],
        body: &impl Body<Data = Bytes>,
        told: Told,
    ) -> Made {
        let mut response = Response::builder().status(status).header("date", "now");
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        let mut out = Vec::new();
        let (coding, last) = write(&mut parts, body, told, false, &mut out);
        (String::from_utf8(out).unwrap(), coding, last)
    }

    fn full(text: &'static str) -> Full<Bytes> {
        Full::new(Bytes::from_static(text.as_bytes()))
    }

    /// A body whose length nobody knows.
    fn unknown() -> impl Body<Data = Bytes> {
        let frames =
            futures_util::stream::empty::<Result<http_body::Frame<Bytes>, std::io::Error>>();
        StreamBody::new(frames).boxed_unsync()
    }

    const GET: Told = Told {
        head: false,
        old: false,
        trailers: false,
    };
    const HEAD: Told = Told { head: true, ..GET };

    #[test]
    fn a_head_tells_where_its_body_ends() {
        let (text, coding, last) = made(200, &[("x-a", "1")], &full("abc"), GET);
        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\ndate: now\r\nx-a: 1\r\ncontent-length: 3\r\n\r\n"
        );
        assert_eq!((coding, last), (Some(Coding::Length(3)), false));
        // Where the head says so, and what it says of another length is not believed.
        let (text, coding, _) = made(200, &[("content-length", "7")], &full("abc"), GET);
        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 3\r\n\r\n"
        );
        assert_eq!(coding, Some(Coding::Length(3)));
        let (text, coding, _) = made(200, &[("content-length", "7")], &full(""), GET);
        assert!(text.ends_with("content-length: 0\r\n\r\n"), "{text}");
        assert_eq!(text.matches("content-length").count(), 1);
        assert_eq!(coding, None);
        let (text, coding, _) = made(200, &[], &unknown(), GET);
        assert!(
            text.ends_with("transfer-encoding: chunked\r\n\r\n"),
            "{text}"
        );
        assert_eq!(coding, Some(Coding::Chunks(Vec::new())));
        let (text, coding, _) = made(200, &[("content-length", "7")], &unknown(), GET);
        assert!(text.ends_with("content-length: 7\r\n\r\n"), "{text}");
        assert_eq!(coding, Some(Coding::Length(7)));
        // What an edit of a rule wrote.
        let (text, ..) = made(200, &[("transfer-encoding", "gzip")], &full("abc"), GET);
        assert!(!text.contains("transfer-encoding"), "{text}");
    }

    #[test]
    fn what_has_no_body_has_none() {
        for status in [204, 304] {
            let (text, coding, _) = made(status, &[("content-length", "7")], &full(""), GET);
            assert!(!text.contains("content-length"), "{text}");
            assert_eq!(coding, None);
            let (text, coding, _) = made(status, &[], &full("abc"), GET);
            assert!(!text.contains("content-length"), "{text}");
            assert_eq!(coding, None);
        }
        let (text, coding, _) = made(200, &[("content-length", "7")], &full(""), HEAD);
        assert!(text.ends_with("content-length: 7\r\n\r\n"), "{text}");
        assert_eq!(coding, None);
        let (text, coding, _) = made(404, &[], &full("abc"), HEAD);
        assert!(text.ends_with("content-length: 3\r\n\r\n"), "{text}");
        assert_eq!(coding, None);
        let (text, coding, _) = made(200, &[], &full(""), HEAD);
        assert!(!text.contains("content-length"), "{text}");
        assert_eq!(coding, None);
        let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
        let (text, coding, last) = made(101, &upgrade, &full(""), GET);
        assert_eq!(
            text,
            "HTTP/1.1 101 Switching Protocols\r\ndate: now\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\n\r\n"
        );
        assert_eq!((coding, last), (None, false));
        let (text, ..) = made(103, &[], &full(""), GET);
        assert!(text.starts_with("HTTP/1.1 500 "), "{text}");
    }

    #[test]
    fn nothing_follows_what_says_so() {
        let closes = made(400, &[("connection", "close")], &full(""), GET);
        assert!(closes.2);
        let refused = String::from_utf8(refusal(StatusCode::BAD_REQUEST)).unwrap();
        let begin = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: ";
        assert!(refused.starts_with(begin), "{refused}");
        assert!(refused.ends_with(" GMT\r\n\r\n"), "{refused}");
        let old = Told { old: true, ..GET };
        let (text, ..) = made(426, &[], &full(""), old);
        assert!(text.starts_with("HTTP/1.0 426 "), "{text}");
    }

    #[test]
    fn trailers_are_for_those_who_take_them() {
        let told = Told {
            trailers: true,
            ..GET
        };
        let fields = [("trailer", "x-a, x-b")];
        let (text, coding, _) = made(200, &fields, &unknown(), told);
        assert!(text.contains("trailer: x-a, x-b\r\n"), "{text}");
        let Some(Coding::Chunks(names)) = coding else {
            panic!("{coding:?}");
        };
        assert_eq!(names, ["x-a", "x-b"]);
        let (_, coding, _) = made(200, &fields, &unknown(), GET);
        assert_eq!(coding, Some(Coding::Chunks(Vec::new())));
    }

    #[test]
    fn a_status_is_called_what_its_endpoint_called_it() {
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.extensions.insert(Phrase::new("Fine"));
        let mut out = Vec::new();
        write(&mut parts, &full(""), GET, false, &mut out);
        assert!(out.starts_with(b"HTTP/1.1 200 Fine\r\n"));
    }

    #[test]
    fn lengths_are_written_as_numbers() {
        for length in [0, 9, 10, 1_234_567_890, u64::MAX] {
            let mut out = Vec::new();
            write_length(length, &mut out);
            let text = format!("content-length: {length}\r\n");
            assert_eq!(out, text.as_bytes());
        }
    }
}

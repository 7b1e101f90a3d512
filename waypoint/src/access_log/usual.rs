//! Lines of requests in Envoy's default format. Piece by piece: nearly every request gets one, and the general
//! way to format costs more than all the policies that it tells of.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use ::http::HeaderValue;

use super::{HttpLine, clean, is_plain, version};

/// Most lines are not longer.
const ROOM: usize = 512;

thread_local! {
    /// The second of the last line, as text without its fraction.
    static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// The line of a request.
pub(super) fn line(line: &HttpLine<'_>) -> String {
    let request = line.request;
    let mut out = String::with_capacity(ROOM);
    out.push('[');
    put_time(&mut out, line.start);
    out.push_str("] \"");
    out.push_str(request.method.as_str());
    out.push(' ');
    put_clean(&mut out, &request.path);
    out.push(' ');
    out.push_str(version(request.version));
    out.push_str("\" ");
    put_number(&mut out, line.code.into());
    out.push(' ');
    out.push_str(line.flags);
    out.push(' ');
    put_word(&mut out, |out| out.push_str(line.detail));
    out.push_str(" - \"");
    put_or_dash(&mut out, line.failure);
    out.push_str("\" ");
    put_number(&mut out, line.bytes_received);
    out.push(' ');
    put_number(&mut out, line.bytes_sent);
    out.push(' ');
    put_millis(&mut out, line.duration);
    out.push(' ');
    match line.upstream_time {
        Some(time) => put_millis(&mut out, time),
        None => out.push('-'),
    }
    out.push_str(" \"");
    put_header(&mut out, request.forwarded_for.as_ref());
    out.push_str("\" \"");
    put_header(&mut out, request.user_agent.as_ref());
    out.push_str("\" \"");
    put_header(&mut out, line.request_id());
    out.push_str("\" \"");
    put_or_dash(&mut out, &request.authority);
    out.push_str("\" \"");
    match line.upstream {
        Some(address) => put_address(&mut out, address),
        None => out.push('-'),
    }
    out.push_str("\" ");
    put_word(&mut out, |out| line.cluster.put(out));
    out.push_str(" - ");
    put_address(&mut out, line.local);
    out.push(' ');
    put_address(&mut out, line.remote);
    out.push_str(" - ");
    put_word(&mut out, |out| line.route.put(out));
    out
}

/// To the millisecond, as RFC 3339 has it.
fn put_time(out: &mut String, time: jiff::Timestamp) {
    let Ok(nanos) = u64::try_from(time.subsec_nanosecond()) else {
        // Before 1970.
        let _ = write!(out, "{time:.3}");
        return;
    };
    let millis = nanos / 1_000_000;
    SECOND.with_borrow_mut(|(second, text)| {
        if time.as_second() != *second
            && let Ok(whole) = jiff::Timestamp::from_second(time.as_second())
        {
            (*second, *text) = (time.as_second(), whole.to_string());
        }
        out.push_str(text.trim_end_matches('Z'));
    });
    out.push('.');
    for place in [100, 10, 1] {
        out.push(char::from(digit(millis / place)));
    }
    out.push('Z');
}

/// The last digit of a number.
fn digit(number: u64) -> u8 {
    b"0123456789"[usize::try_from(number % 10).unwrap_or_default()]
}

fn put_millis(out: &mut String, time: Duration) {
    put_number(out, u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
}

pub(crate) fn put_number(out: &mut String, number: u64) {
    out.push_str(itoa::Buffer::new().format(number));
}

pub(crate) fn put_address(out: &mut String, address: SocketAddr) {
    let SocketAddr::V4(four) = address else {
        let _ = write!(out, "{address}");
        return;
    };
    let [first, rest @ ..] = four.ip().octets();
    put_number(out, first.into());
    for octet in rest {
        out.push('.');
        put_number(out, octet.into());
    }
    out.push(':');
    put_number(out, four.port().into());
}

/// What does not end a quoted part, or the line.
fn put_clean(out: &mut String, text: &str) {
    out.push_str(&clean(text));
}

fn put_or_dash(out: &mut String, text: &str) {
    if text.is_empty() {
        out.push('-');
    } else {
        put_clean(out, text);
    }
}

fn put_header(out: &mut String, value: Option<&HeaderValue>) {
    match value.map(HeaderValue::as_bytes) {
        None => out.push('-'),
        Some(bytes) => put_clean(out, &String::from_utf8_lossy(bytes)),
    }
}

/// What `put` writes, or a dash; outside quotes a blank would shift the columns.
fn put_word(out: &mut String, put: impl FnOnce(&mut String)) {
    let start = out.len();
    put(out);
    let word = &out[start..];
    if word.is_empty() {
        out.push('-');
    } else if !is_plain(word) || word.contains(' ') {
        let better = clean(word).replace(' ', "_");
        out.truncate(start);
        out.push_str(&better);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(put: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        put(&mut out);
        out
    }

    #[test]
    fn numbers_and_addresses_are_written_as_ever() {
        for number in [0, 1, 9, 10, 99, 100, 200, 65_535, 1_000_000, u64::MAX] {
            assert_eq!(of(|out| put_number(out, number)), number.to_string());
        }
        for text in ["10.0.0.1:80", "255.255.0.9:65535", "[2001:db8::1]:8080"] {
            assert_eq!(of(|out| put_address(out, text.parse().unwrap())), text);
        }
    }

    #[test]
    fn times_are_written_as_ever() {
        let second = 1_700_000_000;
        for nanos in [0, 1_000_000, 12_345_678, 999_999_999] {
            for second in [second, second + 1, second, -1, 0] {
                let time = jiff::Timestamp::new(second, nanos).unwrap();
                assert_eq!(of(|out| put_time(out, time)), format!("{time:.3}"));
            }
        }
    }

    #[test]
    fn words_keep_their_column() {
        let word = |text: &str| of(|out| put_word(out, |out| out.push_str(text)));
        assert_eq!(word(""), "-");
        assert_eq!(word("via_upstream"), "via_upstream");
        assert_eq!(word("a b c"), "a_b_c");
        assert_eq!(word("a\n\"b"), "a\\n\\\"b");
        assert_eq!(of(|out| put_header(out, None)), "-");
        let odd = HeaderValue::from_bytes(b"x\"\xff").unwrap();
        assert_eq!(of(|out| put_header(out, Some(&odd))), "x\\\"\u{fffd}");
    }
}

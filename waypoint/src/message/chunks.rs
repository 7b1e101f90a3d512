//! Chunks of a body (RFC 9112 §7.1), read strictly: whoever disagrees about where a body ends can have others
//! read one message as two.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::{Buf as _, Bytes, BytesMut};

use super::Error;

/// Octets of what is said besides sizes in one body, and of its trailers.
const ASIDES: usize = 16 * 1024;
/// Fields of its trailers.
const FIELDS: usize = 100;

/// Where in a body in chunks the reader is.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    at: At,
    /// Octets of extensions so far.
    extensions: usize,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

/// What comes next in a body.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Data(Bytes),
    /// The end.
    End(Option<HeaderMap>),
}

impl Chunks {
    /// Takes what comes next out of what was read; `None` if that is not all of it.
    pub(crate) fn next(&mut self, read: &mut BytesMut) -> Result<Option<Event>, Error> {
        loop {
            match self.at {
                At::Size => {
                    let Some(size) = self.size(read)? else {
                        return Ok(None);
                    };
                    self.at = match size {
                        0 => At::Trailers,
                        size => At::Data(size),
                    };
                }
                At::Data(left) => {
                    if read.is_empty() {
                        return Ok(None);
                    }
                    let take =
                        usize::try_from(left).map_or(read.len(), |left| left.min(read.len()));
                    let data = read.split_to(take).freeze();
                    let left = left.saturating_sub(take as u64);
                    self.at = if left == 0 {
                        At::DataEnd
                    } else {
                        At::Data(left)
                    };
                    return Ok(Some(Event::Data(data)));
                }
                At::DataEnd => {
                    let Some(end) = read.first_chunk::<2>() else {
                        return Ok(None);
                    };
                    if end != b"\r\n" {
                        return Err(Error::Malformed("a chunk is longer than it says"));
                    }
                    read.advance(2);
                    self.at = At::Size;
                }
                At::Trailers => return Ok(trailers(read)?.map(Event::End)),
            }
        }
    }

    fn size(&mut self, read: &mut BytesMut) -> Result<Option<u64>, Error> {
        let Some(end) = read.iter().position(|byte| *byte == b'\n') else {
            return match read.len() > ASIDES {
                true => Err(Error::Malformed("the size of a chunk does not end")),
                false => Ok(None),
            };
        };
        let line = read[..end].strip_suffix(b"\r");
        let line = line.filter(|line| !line.contains(&b'\r'));
        let line = line.ok_or(Error::Malformed("a line feed of its own among chunks"))?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let (digits, rest) = line.split_at(digits.count());
        let size = number(digits).ok_or(Error::Malformed("the size of a chunk is none"))?;
        let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t'));
        let rest = &rest[blanks.count()..];
        if !rest.is_empty() && rest[0] != b';' {
            return Err(Error::Malformed("the size of a chunk is none"));
        }
        self.extensions += rest.len();
        if self.extensions > ASIDES {
            return Err(Error::Malformed("extensions of chunks are too long"));
        }
        read.advance(end + 1);
        Ok(Some(size))
    }
}

/// A number that fits; without digits there is none.
fn number(digits: &[u8]) -> Option<u64> {
    let text = str::from_utf8(digits).ok()?;
    u64::from_str_radix(text, 16).ok()
}

/// The fields behind the last chunk, if there are some; `None` if they are not all there yet.
fn trailers(read: &mut BytesMut) -> Result<Option<Option<HeaderMap>>, Error> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let (length, fields) = match httparse::parse_headers(read, &mut fields) {
        Ok(httparse::Status::Complete(complete)) => complete,
        Ok(httparse::Status::Partial) if read.len() >= ASIDES => {
            return Err(Error::Malformed("the trailers are too long"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let lines = &read[..length];
    let bare = |at: usize| lines[at] == b'\n' && (at == 0 || lines[at - 1] != b'\r');
    if (0..length).any(bare) {
        return Err(Error::Malformed("a line feed of its own among trailers"));
    }
    let mut found = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Error::Malformed("a trailer is no field"));
        };
        found.append(name, value);
    }
    read.advance(length);
    Ok(Some(Some(found).filter(|found| !found.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, fields, and what is left.
    type Whole = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// What a body is read as that arrives in pieces of this length.
    fn read(body: &[u8], piece: usize) -> Result<Whole, Error> {
        let (mut chunks, mut unread) = (Chunks::default(), BytesMut::new());
        let mut pieces = body.chunks(piece);
        let mut data = Vec::new();
        loop {
            match chunks.next(&mut unread)? {
                Some(Event::Data(more)) => data.extend_from_slice(&more),
                Some(Event::End(fields)) => {
                    unread.extend_from_slice(&pieces.flatten().copied().collect::<Vec<u8>>());
                    return Ok((data, fields, unread.to_vec()));
                }
                None => match pieces.next() {
                    Some(more) => unread.extend_from_slice(more),
                    None => return Err(Error::Incomplete),
                },
            }
        }
    }

    #[test]
    fn a_body_is_the_same_however_it_arrives() {
        let body =
            b"4\r\nwiki\r\n00A ; name=\"v\"\r\n0123456789\r\n0\r\nX-T: 1\r\nx-t: 2\r\n\r\nHTTP/1.1";
        for piece in [1, 2, 3, 7, body.len()] {
            let (data, fields, rest) = read(body, piece).unwrap();
            assert_eq!(data, b"wiki0123456789", "in pieces of {piece}");
            let fields: Vec<_> = fields.unwrap().get_all("x-t").iter().cloned().collect();
            assert_eq!(fields, ["1", "2"]);
            assert_eq!(rest, b"HTTP/1.1");
        }
        let (data, fields, rest) = read(b"0\r\n\r\n", 1).unwrap();
        assert!(data.is_empty() && fields.is_none() && rest.is_empty());
    }

    #[test]
    fn what_others_may_read_differently_is_refused() {
        let bad: [&[u8]; 19] = [
            b"\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\na\r\n0\r\n\r\n",
            b" 1\r\na\r\n0\r\n\r\n",
            b"0x1\r\na\r\n0\r\n\r\n",
            b"1_0\r\n",
            b"1 1\r\n",
            b"1,\r\n",
            b"1\na\r\n0\r\n\r\n",
            b"1;a\nb\r\na\r\n0\r\n\r\n",
            b"1;a\rb\r\na\r\n0\r\n\r\n",
            b"1\r\nab\r\n0\r\n\r\n",
            b"1\r\na\n0\r\n\r\n",
            b"1\r\na\r0\r\n\r\n",
            b"10000000000000000\r\n",
            b"0\r\n\n",
            b"0\r\na: b\n\r\n",
            b"0\r\n a: b\r\n\r\n",
        ];
        for body in bad {
            for piece in [1, body.len()] {
                let refused = read(body, piece).unwrap_err();
                let shown = String::from_utf8_lossy(body);
                assert!(refused.is_protocol(), "{shown:?} gave {refused}");
            }
        }
    }

    #[test]
    fn asides_do_not_grow_for_ever() {
        let mut long = b"1;".to_vec();
        long.resize(ASIDES + 3, b'x');
        assert!(read(&long, 1000).unwrap_err().is_protocol());
        // Each short, and many.
        let many = b"1;0123456789abcdef\r\na\r\n".repeat(ASIDES / 16);
        assert!(read(&many, 4096).unwrap_err().is_protocol());
        let mut trailers = b"0\r\na: ".to_vec();
        trailers.resize(ASIDES + 10, b'x');
        assert!(read(&trailers, 1000).unwrap_err().is_protocol());
        let fields = [
            b"0\r\n".to_vec(),
            b"a: b\r\n".repeat(FIELDS + 1),
            b"\r\n".to_vec(),
        ];
        assert!(read(&fields.concat(), 1000).unwrap_err().is_protocol());
    }
}

//! Fields of heads.

use ::http::header::{CONNECTION, CONTENT_LENGTH, TRAILER};
use ::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::Error;

/// What a status line says behind its status, where that is not what the status is called.
#[derive(Debug, Clone)]
pub(crate) struct Phrase(Bytes);

impl Phrase {
    /// `text` is part of a head that was found to be one.
    pub(crate) fn new(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Adds the fields that were found in `whole`. Values are parts of it: a copy of each would cost more.
pub(crate) fn into_map(
    found: &[httparse::Header<'_>],
    whole: &Bytes,
    headers: &mut HeaderMap,
) -> Result<(), Error> {
    headers.reserve(found.len());
    for field in found {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(whole.slice_ref(field.value));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Error::Malformed("a field of the head is none"));
        };
        headers.append(name, value);
    }
    Ok(())
}

/// Writes fields, a line each.
pub(crate) fn write_fields<'a>(
    fields: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    out: &mut Vec<u8>,
) {
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// The length that a head tells, as one field: equal ones are the same, others are none.
pub(crate) fn length(headers: &mut HeaderMap) -> Result<Option<u64>, Error> {
    let mut fields = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = fields.next() else {
        return Ok(None);
    };
    let length = digits(first.as_bytes());
    if fields.next().is_none()
        && let Some(length) = length
    {
        return Ok(Some(length));
    }
    let all = headers.get_all(CONTENT_LENGTH).iter();
    let mut all = all.flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    let first = all.next().and_then(|text| digits(text.trim_ascii()));
    let same = all.all(|text| digits(text.trim_ascii()) == first);
    let length = first.filter(|_| same);
    let length = length.ok_or(Error::Malformed("its length is none"))?;
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(Some(length))
}

/// A number of nothing but digits, if it fits.
pub(crate) fn digits(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok()
}

/// True if a `connection` names `close`.
pub(crate) fn says_close(headers: &HeaderMap) -> bool {
    let mut fields = headers.get_all(CONNECTION).iter();
    fields.any(|field| lists(field, b"close"))
}

/// True if this word is in a list.
pub(crate) fn lists(field: &HeaderValue, word: &[u8]) -> bool {
    let mut words = field.as_bytes().split(|byte| *byte == b',');
    words.any(|listed| listed.trim_ascii().eq_ignore_ascii_case(word))
}

/// Fields that a head says may follow its body.
pub(crate) fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let announced = headers.get_all(TRAILER).iter();
    let announced = announced.flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    let announced = announced.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    announced.collect()
}

//! A request on its way to an endpoint over HTTP/1.1.

use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderValue, Request};
use bytes::Bytes;
use http_body::Body;

use super::{Error, head};
use crate::http::RequestError;
use crate::message::{Coding, Outgoing, announced, digits, room, says_close};
use crate::stream::AnyStream;

/// What is left of a request.
pub(super) struct Upload {
    out: Outgoing<Pin<Box<dyn Body<Data = Bytes, Error = RequestError>>>>,
    closes: bool,
}

impl Upload {
    pub(super) fn begin(
        request: Request<impl Body<Data = Bytes, Error = RequestError> + 'static>,
    ) -> Self {
        let (mut parts, body) = request.into_parts();
        let coding = coding(&mut parts.headers, &body);
        let mut out = room();
        head::write(&parts, &mut out);
        let body = coding.map(|coding| {
            (
                Box::pin(body) as Pin<Box<dyn Body<Data = _, Error = _>>>,
                coding,
            )
        });
        Self {
            out: Outgoing::new(out, body),
            closes: says_close(&parts.headers),
        }
    }

    /// True if the endpoint is told that nothing follows.
    pub(super) const fn closes(&self) -> bool {
        self.closes
    }

    /// Writes what there is of it; ready once that is all.
    pub(super) fn poll(
        &mut self,
        stream: &mut AnyStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        self.out.poll(stream, cx).map_err(Error::from)
    }
}

/// How a body goes, said in its head; `None` without one.
fn coding(headers: &mut HeaderMap, body: &impl Body) -> Option<Coding> {
    let chunked = headers.remove(TRANSFER_ENCODING).is_some();
    let told = headers.get(CONTENT_LENGTH).map(HeaderValue::as_bytes);
    if body.is_end_stream() {
        // The endpoint would wait for it, and take the next request for it.
        if told.is_some_and(|length| length != b"0") {
            headers.remove(CONTENT_LENGTH);
        }
        return None;
    }
    let told = told.and_then(digits);
    if !chunked && let Some(length) = told.or(body.size_hint().exact()) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        return Some(Coding::Length(length));
    }
    headers.remove(CONTENT_LENGTH);
    headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    Some(Coding::Chunks(announced(headers)))
}

//! A request on its way to an endpoint over HTTP/1.1.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use ::http::{HeaderMap, HeaderName, HeaderValue, Request};
use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite as _;

use super::{Error, head};
use crate::http::RequestError;
use crate::stream::{AnyStream, poll_write_all_of};

/// A piece of a body that is shorter is put behind what is there already.
const SMALL: usize = 4 * 1024;
/// Octets that are put together before they are written.
const GATHERED: usize = 16 * 1024;

/// What is left of a request.
pub(super) struct Upload {
    out: Vec<u8>,
    /// Octets of `out` that are written.
    written: usize,
    /// Follows `out`.
    chunk: Bytes,
    coding: Coding,
    body: Option<Pin<Box<dyn Body<Data = Bytes, Error = RequestError>>>>,
    /// Something was written and not flushed.
    dirty: bool,
    closes: bool,
}

/// How a body is told from what follows it.
enum Coding {
    /// There are so many octets left of it.
    Length(u64),
    /// By chunks; with the fields that may follow the last one.
    Chunks(Vec<HeaderName>),
}

impl Upload {
    pub(super) fn begin(
        request: Request<impl Body<Data = Bytes, Error = RequestError> + 'static>,
    ) -> Self {
        let (mut parts, body) = request.into_parts();
        let coding = coding(&mut parts.headers, &body);
        let mut out = Vec::new();
        head::write(&parts, &mut out);
        Self {
            out,
            written: 0,
            chunk: Bytes::new(),
            body: coding.is_some().then(|| Box::pin(body) as _),
            coding: coding.unwrap_or(Coding::Length(0)),
            dirty: false,
            closes: head::says_close(&parts.headers),
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
        loop {
            self.gather(cx)?;
            if self.written < self.out.len() || !self.chunk.is_empty() {
                ready!(self.poll_write(stream, cx))?;
                continue;
            }
            if self.dirty {
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                self.dirty = false;
            }
            return match self.body {
                Some(_) => Poll::Pending,
                None => Poll::Ready(Ok(())),
            };
        }
    }

    /// Takes from the body what is there, up to a write's worth. When it has nothing, the task of `cx` is woken
    /// once it has.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while self.chunk.is_empty() && self.out.len() < GATHERED {
            let Some(body) = self.body.as_mut() else {
                return Ok(());
            };
            match body.as_mut().poll_frame(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.end(None)?,
                Poll::Ready(Some(Err(error))) => return Err(Error::Request(error)),
                Poll::Ready(Some(Ok(frame))) => {
                    let last = body.is_end_stream();
                    self.take(frame)?;
                    if last && self.chunk.is_empty() {
                        self.end(None)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), Error> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let trailers = frame.into_trailers();
                return trailers.map_or(Ok(()), |trailers| self.end(Some(&trailers)));
            }
        };
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.coding {
            Coding::Length(left) => {
                // What is more than was said would be read as the next request.
                *left = left.checked_sub(data.len() as u64).ok_or(Error::Length)?;
            }
            Coding::Chunks(_) => {
                let line = format!("{:x}\r\n", data.len());
                self.out.extend_from_slice(line.as_bytes());
            }
        }
        if data.len() < SMALL {
            self.out.extend_from_slice(&data);
            self.end_chunk();
        } else {
            self.chunk = data;
        }
        Ok(())
    }

    fn end_chunk(&mut self) {
        if let Coding::Chunks(_) = self.coding {
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Error> {
        if self.body.take().is_none() {
            return Ok(());
        }
        match &self.coding {
            Coding::Length(0) => {}
            Coding::Length(_) => return Err(Error::Length),
            Coding::Chunks(announced) => {
                self.out.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    let may = |name: &HeaderName| announced.contains(name) && may_trail(name);
                    let told = trailers.iter().filter(|(name, _)| may(name));
                    head::write_fields(told, &mut self.out);
                }
                self.out.extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }

    fn poll_write(
        &mut self,
        stream: &mut AnyStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let head = &self.out[self.written..];
        let slices = [IoSlice::new(head), IoSlice::new(&self.chunk)];
        let count = ready!(poll_write_all_of(stream, cx, &slices))?;
        if count == 0 {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
        }
        self.dirty = true;
        let of_out = count.min(head.len());
        self.written += of_out;
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        if count > of_out {
            self.chunk.advance(count - of_out);
            if self.chunk.is_empty() {
                self.end_chunk();
                if self.body.as_ref().is_some_and(|body| body.is_end_stream()) {
                    self.end(None)?;
                }
            }
        }
        Poll::Ready(Ok(()))
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
    let told = told.and_then(head::digits);
    if !chunked && let Some(length) = told.or(body.size_hint().exact()) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        return Some(Coding::Length(length));
    }
    headers.remove(CONTENT_LENGTH);
    headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    let announced = headers.get_all(TRAILER).iter();
    let announced = announced.flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    let announced = announced.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    Some(Coding::Chunks(announced.collect()))
}

/// False for what would change how a message is read that was read already (RFC 9110 §6.5.1).
fn may_trail(name: &HeaderName) -> bool {
    let never = [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        MAX_FORWARDS,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
    ];
    !never.contains(name)
}

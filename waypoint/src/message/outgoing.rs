//! A message on its way out.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use ::http::{HeaderMap, HeaderName};
use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite as _;

use super::fields;
use crate::stream::{AnyStream, poll_write_all_of};

/// A piece of a body that is shorter is put behind what is there already.
const SMALL: usize = 4 * 1024;
/// Octets that are put together before they are written.
const GATHERED: usize = 16 * 1024;

/// Room of that kind which is kept.
const ROOM: usize = 8 * 1024;

thread_local! {
    /// Where the next message is put together: most leave at once.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Room for the head of a message.
pub(crate) fn room() -> Vec<u8> {
    SPARE.take()
}

/// What is left of a message.
pub(crate) struct Outgoing<B> {
    out: Vec<u8>,
    /// Octets of `out` that are written.
    written: usize,
    /// Follows `out`.
    chunk: Bytes,
    coding: Coding,
    body: Option<B>,
    /// Something was written and not flushed.
    dirty: bool,
}

/// How a body is told from what follows it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// There are so many octets left of it.
    Length(u64),
    /// By chunks; with the fields that may follow the last one.
    Chunks(Vec<HeaderName>),
}

/// Why a message did not go out.
#[derive(Debug)]
pub(crate) enum Broken<E> {
    /// The stream's own error.
    Io(io::Error),
    /// The body has another length than the head says.
    Length,
    /// The body broke off.
    Body(E),
}

impl<B: Body<Data = Bytes> + Unpin> Outgoing<B> {
    /// A head that is written already, and its body.
    pub(crate) fn new(head: Vec<u8>, body: Option<(B, Coding)>) -> Self {
        let (body, coding) = body.unzip();
        Self {
            out: head,
            written: 0,
            chunk: Bytes::new(),
            body,
            coding: coding.unwrap_or(Coding::Length(0)),
            dirty: false,
        }
    }

    /// Writes what there is of it; ready once that is all.
    pub(crate) fn poll(
        &mut self,
        stream: &mut AnyStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken<B::Error>>> {
        loop {
            self.gather(cx)?;
            if self.written < self.out.len() || !self.chunk.is_empty() {
                ready!(self.poll_write(stream, cx))?;
                continue;
            }
            if self.dirty {
                ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(Broken::Io)?;
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
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(), Broken<B::Error>> {
        while self.chunk.is_empty() && self.out.len() < GATHERED {
            let Some(body) = self.body.as_mut() else {
                return Ok(());
            };
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.end(None)?,
                Poll::Ready(Some(Err(error))) => return Err(Broken::Body(error)),
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

    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), Broken<B::Error>> {
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
                // What is more than was said would be read as the next message.
                *left = left.checked_sub(data.len() as u64).ok_or(Broken::Length)?;
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

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Broken<B::Error>> {
        if self.body.take().is_none() {
            return Ok(());
        }
        match &self.coding {
            Coding::Length(0) => {}
            Coding::Length(_) => return Err(Broken::Length),
            Coding::Chunks(announced) => {
                self.out.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    let may = |name: &HeaderName| announced.contains(name) && may_trail(name);
                    let told = trailers.iter().filter(|(name, _)| may(name));
                    fields::write_fields(told, &mut self.out);
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
    ) -> Poll<Result<(), Broken<B::Error>>> {
        let head = &self.out[self.written..];
        let slices = [IoSlice::new(head), IoSlice::new(&self.chunk)];
        let count = ready!(poll_write_all_of(stream, cx, &slices)).map_err(Broken::Io)?;
        if count == 0 {
            let error = io::Error::from(io::ErrorKind::WriteZero);
            return Poll::Ready(Err(Broken::Io(error)));
        }
        self.dirty = true;
        let of_out = count.min(head.len());
        self.written += of_out;
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            if self.body.is_none() && self.out.capacity() <= ROOM {
                SPARE.set(std::mem::take(&mut self.out));
            }
        }
        if count > of_out {
            self.chunk.advance(count - of_out);
            if self.chunk.is_empty() {
                self.end_chunk();
                if self.body.as_ref().is_some_and(Body::is_end_stream) {
                    self.end(None)?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
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

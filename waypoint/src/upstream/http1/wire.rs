//! What goes over one connection, for whoever has it just now.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::Frame;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::chunks::Event;
use super::head::{self, Head};
use super::upload::Upload;
use super::{Error, Framing, PIECE};
use crate::stream::AnyStream;

/// A piece of a body that is shorter, and not its last, is copied: otherwise it keeps the whole buffer that it
/// was read into, and a caller who reads slowly has many of them kept.
const COPIED: usize = 4 * 1024;

thread_local! {
    /// What is read into: connections that wait hold no memory for it.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection, and how far its exchange is.
pub(super) struct Wire {
    /// `None` once it is over.
    pub(super) stream: Option<AnyStream>,
    /// What was read and not looked at.
    pub(super) unread: BytesMut,
    /// The rest of the request.
    pub(super) upload: Option<Upload>,
    /// How the rest of the response ends.
    pub(super) framing: Framing,
    /// Another request may follow.
    pub(super) reusable: bool,
    /// No request has it.
    pub(super) rests: bool,
    /// Woken when the rest of the request has nowhere to go.
    pub(super) uploader: Option<Waker>,
    /// Woken when the rest of the response will not come.
    pub(super) reader: Option<Waker>,
    /// Why it broke, for whoever reads.
    pub(super) failed: Option<Error>,
}

impl Wire {
    pub(super) fn new(stream: AnyStream) -> Self {
        Self {
            stream: Some(stream),
            unread: BytesMut::new(),
            upload: None,
            framing: Framing::Over,
            reusable: false,
            rests: false,
            uploader: None,
            reader: None,
            failed: None,
        }
    }

    pub(super) fn begin(&mut self, upload: Upload, last: bool) {
        self.reusable = !last && !upload.closes();
        self.upload = Some(upload);
        // Until it is known what comes.
        self.framing = Framing::Close;
    }

    /// Writes what there is of the request and waits for the head of its response.
    pub(super) fn poll_answer(
        &mut self,
        first: bool,
        without_body: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, Error>> {
        // What the endpoint has said already comes before what it might not take any more.
        if !first {
            let head = self.poll_head(without_body, cx);
            if head.is_ready() || self.upload.is_none() {
                return head;
            }
        }
        match self.poll_upload(cx) {
            Poll::Ready(Err(Error::Io(error))) => {
                // Its last words may tell why.
                (self.upload, self.reusable) = (None, false);
                match self.poll_head(without_body, cx) {
                    Poll::Ready(Ok(head)) => Poll::Ready(Ok(head)),
                    _ => Poll::Ready(Err(error.into())),
                }
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ if first => self.poll_head(without_body, cx),
            _ => Poll::Pending,
        }
    }

    /// Writes what there is of the request; ready once that is all.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let (Some(stream), Some(upload)) = (&mut self.stream, &mut self.upload) {
            ready!(upload.poll(stream, cx))?;
        }
        self.upload = None;
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, without_body: bool, cx: &mut Context<'_>) -> Poll<Result<Head, Error>> {
        loop {
            let count = ready!(self.poll_fill(cx))?;
            if count == 0 {
                return Poll::Ready(Err(Error::Incomplete));
            }
            // A head that comes bit by bit is not read from its begin for each.
            let length = self.unread.len();
            if length < head::MOST && !self.unread[length - count..].contains(&b'\n') {
                continue;
            }
            if let Some(head) = head::read(&mut self.unread, without_body)? {
                self.reusable &= head.stays;
                return Poll::Ready(Ok(head));
            }
        }
    }

    /// Takes what was read behind a head. A body that is all there is given back, and the exchange is over.
    pub(super) fn take(&mut self, framing: Framing, mut rest: Bytes) -> Option<Bytes> {
        let length = match framing {
            Framing::Over => Some(0),
            Framing::Length(length) => usize::try_from(length).ok(),
            Framing::Chunked(_) | Framing::Close => None,
        };
        if let Some(length) = length.filter(|length| *length <= rest.len()) {
            // More than it said: nobody knows what that is.
            self.reusable &= length == rest.len();
            self.framing = Framing::Over;
            rest.truncate(length);
            return Some(rest);
        }
        self.unread = rest.into();
        self.framing = framing;
        None
    }

    /// What comes next of the response's body.
    pub(super) fn poll_body(
        &mut self,
        piece: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = ready!(self.poll_frame(piece, cx));
        if self.framing.is_over() {
            // More than it said: nobody knows what that is.
            self.reusable &= self.unread.is_empty();
            self.unread = BytesMut::new();
        }
        Poll::Ready(frame.transpose())
    }

    fn poll_frame(
        &mut self,
        piece: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, Error>> {
        loop {
            match &mut self.framing {
                Framing::Over => return Poll::Ready(Ok(None)),
                Framing::Length(left) => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX);
                    let data = if !self.unread.is_empty() {
                        let most = most.min(self.unread.len());
                        self.unread.split_to(most).freeze()
                    } else {
                        // With room left the kernel has said all that it has: nobody asks again for nothing.
                        let room = most.min(piece) + usize::from(most <= piece);
                        let mut data = ready!(poll_read(&mut self.stream, room, cx))?;
                        // More than it said: nobody knows what that is.
                        self.reusable &= data.len() <= most;
                        data.truncate(most);
                        data
                    };
                    *left = left.saturating_sub(data.len() as u64);
                    if *left == 0 {
                        self.framing = Framing::Over;
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Framing::Chunked(chunks) => match chunks.next(&mut self.unread)? {
                    Some(Event::Data(data)) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                    Some(Event::End(trailers)) => {
                        self.framing = Framing::Over;
                        return Poll::Ready(Ok(trailers.map(Frame::trailers)));
                    }
                    None if ready!(self.poll_fill(cx))? == 0 => {
                        return Poll::Ready(Err(Error::Incomplete));
                    }
                    None => {}
                },
                Framing::Close if self.unread.is_empty() => {
                    if ready!(self.poll_fill(cx))? == 0 {
                        self.framing = Framing::Over;
                    }
                }
                Framing::Close => {
                    let data = std::mem::take(&mut self.unread).freeze();
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
            }
        }
    }

    /// Reads more than there is; 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(Error::Incomplete));
        };
        let mut scratch = SCRATCH.take();
        scratch.resize(PIECE, 0);
        let mut room = ReadBuf::new(&mut scratch);
        let polled = Pin::new(stream).poll_read(cx, &mut room);
        let read = room.filled();
        self.unread.extend_from_slice(read);
        let count = read.len();
        SCRATCH.set(scratch);
        ready!(polled)?;
        Poll::Ready(Ok(count))
    }

    /// Ready once an endpoint that should be silent says something, or ends the connection.
    pub(super) fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(());
        };
        let mut byte = [0];
        let mut room = ReadBuf::new(&mut byte);
        Pin::new(stream).poll_read(cx, &mut room).map(|_| ())
    }
}

/// Reads at most so much of a body.
fn poll_read(
    stream: &mut Option<AnyStream>,
    most: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Bytes, Error>> {
    let Some(stream) = stream else {
        return Poll::Ready(Err(Error::Incomplete));
    };
    let mut room = BytesMut::with_capacity(most).limit(most);
    let count = ready!(poll_read_buf(Pin::new(stream), cx, &mut room))?;
    if count == 0 {
        return Poll::Ready(Err(Error::Incomplete));
    }
    let data = room.into_inner();
    Poll::Ready(Ok(if count < COPIED && count < most {
        Bytes::copy_from_slice(&data)
    } else {
        data.freeze()
    }))
}

//! What comes over one connection.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::Frame;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::chunks::{Chunks, Event};
use super::{Error, PIECE};
use crate::stream::AnyStream;

/// A piece of a body that is shorter, and not its last, is copied: otherwise it keeps the whole buffer that it
/// was read into, and a caller who reads slowly has many of them kept.
const COPIED: usize = 4 * 1024;

thread_local! {
    /// What is read into: connections that wait hold no memory for it.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How the end of a body is found.
#[derive(Debug)]
pub(crate) enum Framing {
    /// Nothing more is to come.
    Over,
    /// So many octets.
    Length(u64),
    Chunked(Box<Chunks>),
    /// Until the peer ends the connection.
    Close,
}

impl Framing {
    pub(crate) fn chunked() -> Self {
        Self::Chunked(Box::default())
    }

    pub(crate) const fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }
}

/// A connection as it is read.
pub(crate) struct Intake {
    /// `None` once it is over.
    pub(crate) stream: Option<AnyStream>,
    /// What was read and not looked at.
    pub(crate) unread: BytesMut,
    /// How the body that is being read ends.
    pub(crate) framing: Framing,
}

impl Intake {
    pub(crate) fn new(stream: AnyStream) -> Self {
        Self {
            stream: Some(stream),
            unread: BytesMut::new(),
            framing: Framing::Over,
        }
    }

    /// What comes next of a body; what follows it stays unread.
    pub(crate) fn poll_frame(
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
                        if data.len() > most {
                            self.unread.extend_from_slice(&data[most..]);
                            data.truncate(most);
                        }
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

    /// Drops what was read of a body that nobody wants.
    pub(crate) fn skip(&mut self) -> Result<(), Error> {
        match &mut self.framing {
            Framing::Over => {}
            Framing::Length(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let count = most.min(self.unread.len());
                self.unread.advance(count);
                *left = left.saturating_sub(count as u64);
                if *left == 0 {
                    self.framing = Framing::Over;
                }
            }
            Framing::Chunked(chunks) => {
                while let Some(event) = chunks.next(&mut self.unread)? {
                    if let Event::End(_) = event {
                        self.framing = Framing::Over;
                        break;
                    }
                }
            }
            Framing::Close => self.unread.clear(),
        }
        Ok(())
    }

    /// Reads more than there is; 0 at the end.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
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

    /// Ready once a peer that should be silent says something, or ends the connection.
    pub(crate) fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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

//! What goes over one connection, for whoever has it just now.

use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;

use super::Error;
use super::head::{self, Head};
use super::upload::Upload;
use crate::message::{self, Framing, Intake};
use crate::stream::AnyStream;

/// A connection, and how far its exchange is.
pub(super) struct Wire {
    pub(super) intake: Intake,
    /// The rest of the request.
    pub(super) upload: Option<Upload>,
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
            intake: Intake::new(stream),
            upload: None,
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
        self.intake.framing = Framing::Close;
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
            Poll::Ready(Err(Error::Message(message::Error::Io(error)))) => {
                // Its last words may tell why.
                (self.upload, self.reusable) = (None, false);
                match self.poll_head(without_body, cx) {
                    Poll::Ready(Ok(head)) => Poll::Ready(Ok(head)),
                    _ => Poll::Ready(Err(message::Error::Io(error).into())),
                }
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ if first => self.poll_head(without_body, cx),
            _ => Poll::Pending,
        }
    }

    /// Writes what there is of the request; ready once that is all.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let (Some(stream), Some(upload)) = (&mut self.intake.stream, &mut self.upload) {
            ready!(upload.poll(stream, cx))?;
        }
        self.upload = None;
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, without_body: bool, cx: &mut Context<'_>) -> Poll<Result<Head, Error>> {
        loop {
            let count = ready!(self.intake.poll_fill(cx))?;
            if count == 0 {
                return Poll::Ready(Err(message::Error::Incomplete.into()));
            }
            // A head that comes bit by bit is not read from its begin for each.
            let length = self.intake.unread.len();
            if length < head::MOST && !self.intake.unread[length - count..].contains(&b'\n') {
                continue;
            }
            if let Some(head) = head::read(&mut self.intake.unread, without_body)? {
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
            self.intake.framing = Framing::Over;
            rest.truncate(length);
            return Some(rest);
        }
        self.intake.unread = rest.into();
        self.intake.framing = framing;
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
        let frame = ready!(self.intake.poll_frame(piece, cx)).map_err(Error::from);
        if self.intake.framing.is_over() {
            // More than it said: nobody knows what that is.
            self.reusable &= self.intake.unread.is_empty();
            self.intake.unread = BytesMut::new();
        }
        Poll::Ready(frame.transpose())
    }
}

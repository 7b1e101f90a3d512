use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};

use crate::stream::poll_write_all_of;

/// Bytes that are read at once at most for a caller that may have many answers on its connection: what a tunnel
/// carries in one frame. hyper doubles its buffer whenever
/// a read fills it; a little less than 16 KiB leaves it at that, and each buffer is nearly full.
pub(crate) const PIECE: usize = 16_000;

/// The same for a caller whose connection carries one answer at a time: nearly what the allocator keeps at hand.
pub(super) const LARGE: usize = 2 * PIECE;

/// A stream that is read in pieces. A body waits for its reader in whole pieces, some of them at several
/// places on the way, so that larger ones are memory that a caller who does not read has us hold.
pub(super) struct Piecewise<S> {
    stream: Take<S>,
    most: Rc<Cell<usize>>,
}

impl<S: AsyncRead> Piecewise<S> {
    /// Pieces are as large as `most` says when they are read.
    pub(super) fn new(stream: S, most: Rc<Cell<usize>>) -> Self {
        Self {
            stream: stream.take(0),
            most,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Piecewise<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // For this read, not for all.
        let most = self.most.get() as u64;
        self.stream.set_limit(most);
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Piecewise<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write_all_of(self.stream.get_mut(), cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_of_it_comes_and_no_piece_is_larger() {
        let bytes = (0..=250).cycle().take(3 * PIECE + 7);
        let whole: Vec<u8> = bytes.collect();
        let most = Rc::new(Cell::new(PIECE));
        let mut stream = Piecewise::new(&whole[..], most.clone());
        let mut room = vec![0; 5 * PIECE];
        let (mut seen, mut pieces) = (Vec::new(), Vec::new());
        loop {
            let read = stream.read(&mut room).await.unwrap();
            if read == 0 {
                break;
            }
            seen.extend_from_slice(&room[..read]);
            pieces.push(read);
        }
        assert_eq!(seen, whole);
        assert_eq!(pieces, [PIECE, PIECE, PIECE, 7]);
        most.set(LARGE);
        let mut stream = Piecewise::new(&whole[..], most);
        assert_eq!(stream.read(&mut room).await.unwrap(), LARGE);
    }
}

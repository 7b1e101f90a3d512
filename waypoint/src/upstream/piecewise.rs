use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};

/// Bytes that are read at once at most: what a tunnel carries in one frame. hyper doubles its buffer whenever
/// a read fills it; a little less than 16 KiB leaves it at that, and each buffer is nearly full.
pub(crate) const PIECE: usize = 16_000;

/// A stream that is read in pieces. A body waits for its reader in whole pieces, some of them at several
/// places on the way, so that larger ones are memory that a caller who does not read has us hold.
pub(super) struct Piecewise<S>(Take<S>);

impl<S: AsyncRead> Piecewise<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(stream.take(PIECE as u64))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Piecewise<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // For this read, not for all.
        self.0.set_limit(PIECE as u64);
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Piecewise<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.0.get_mut()).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.0.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.0.get_mut()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.0.get_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.get_ref().is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_of_it_comes_and_no_piece_is_larger() {
        let bytes = (0..=250).cycle().take(3 * PIECE + 7);
        let whole: Vec<u8> = bytes.collect();
        let mut stream = Piecewise::new(&whole[..]);
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
    }
}

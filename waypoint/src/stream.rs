//! Byte streams of any make, and one whose first bytes were already read.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of one write that are put together before they go: to the kernel the copy is cheaper than the list
/// of where they are.
const SMALL: usize = 4 * 1024;

thread_local! {
    /// Where they are put together.
    static TOGETHER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Writes what may be in several places: in one piece where it is in one, or little.
pub(crate) fn poll_write_all_of<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let all: usize = slices.iter().map(|slice| slice.len()).sum();
    if let Some(only) = slices.iter().find(|slice| slice.len() == all) {
        return Pin::new(stream).poll_write(cx, only);
    }
    if all > SMALL {
        return Pin::new(stream).poll_write_vectored(cx, slices);
    }
    let mut together = TOGETHER.take();
    together.clear();
    for slice in slices {
        together.extend_from_slice(slice);
    }
    let written = Pin::new(stream).poll_write(cx, &together);
    TOGETHER.set(together);
    written
}

/// What data flows over: a tunnel, a TCP connection, a pipe in a test.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Stream for T {}

/// A stream of a make that the holder need not know.
pub type AnyStream = Box<dyn Stream>;

/// A stream that gives back bytes that were read from it to find out what it is.
#[derive(Debug)]
pub struct Rewound<S> {
    first: Bytes,
    inner: S,
}

impl<S> Rewound<S> {
    /// `first` is read before anything from `inner`.
    pub const fn new(first: Bytes, inner: S) -> Self {
        Self { first, inner }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.has_remaining() {
            let take = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(take));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Notes how it is written to.
    #[derive(Default)]
    struct Written {
        whole: Vec<Vec<u8>>,
        lists: usize,
    }

    impl AsyncWrite for Written {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.whole.push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.lists += 1;
            Poll::Ready(Ok(bufs.iter().map(|slice| slice.len()).sum()))
        }
    }

    #[test]
    fn only_what_is_much_goes_as_a_list() {
        let large = [7; SMALL];
        let mut to = Written::default();
        let mut write = |slices: &[&[u8]]| {
            let slices: Vec<_> = slices.iter().copied().map(IoSlice::new).collect();
            let mut cx = Context::from_waker(Waker::noop());
            let written = poll_write_all_of(&mut to, &mut cx, &slices);
            let all: usize = slices.iter().map(|slice| slice.len()).sum();
            assert!(matches!(written, Poll::Ready(Ok(bytes)) if bytes == all));
        };
        write(&[b"head", b"", b"body"]);
        write(&[b"next"]);
        write(&[b"", &large, b""]);
        write(&[b"head", &large]);
        assert_eq!(to.whole, [&b"headbody"[..], b"next", &large]);
        assert_eq!(to.lists, 1);
    }
}

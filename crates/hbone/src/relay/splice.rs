//! Bulk between two sockets of this machine, which the kernel carries over by itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::{Context, Poll, ready};

use isobar_net::Pipe;
use tokio::net::TcpStream;

/// Parts of packets a pipe has room for; each holds up to 32 KiB.
const PAGES: u16 = 64;
/// Bytes moved in one step: others of the thread want their turn, too.
const MOST: usize = 256 * 1024;
/// Pipes a thread has in use: two descriptors each, of which every process has a reserve of 64 only.
const PIPES: usize = 16;
/// Pipes a thread keeps for the next bulk.
const SPARE: usize = 4;
/// Vain looks for something to move after which the stream is no bulk any more.
const RESTS: u8 = 8;

thread_local! {
    static USED: Cell<usize> = const { Cell::new(0) };
    static FREE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// One direction of a bulk between two sockets.
#[derive(Debug)]
pub(super) struct Splice {
    /// Always there until the drop.
    pipe: Option<Pipe>,
    rests: u8,
}

impl Splice {
    /// `None` where the thread has enough of them, or the system has no descriptors.
    pub(super) fn new() -> Option<Box<Self>> {
        if USED.get() >= PIPES {
            return None;
        }
        let spare = FREE.with_borrow_mut(Vec::pop);
        let pipe = spare.or_else(|| Pipe::new(PAGES).ok())?;
        USED.set(USED.get() + 1);
        Some(Box::new(Self {
            pipe: Some(pipe),
            rests: 0,
        }))
    }

    /// True once there has been nothing to move for a while.
    pub(super) const fn is_idle(&self) -> bool {
        self.rests >= RESTS
    }

    /// Takes in what has arrived, if nothing waits to be passed on; false at the end.
    pub(super) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
    ) -> Poll<io::Result<bool>> {
        let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() == 0) else {
            return Poll::Ready(Ok(true));
        };
        let filled = pipe.poll_fill(cx, from, MOST);
        self.rests = if filled.is_pending() {
            self.rests.saturating_add(1)
        } else {
            0
        };
        Poll::Ready(Ok(ready!(filled)? > 0))
    }

    /// Passes on what was taken in; returns how many bytes.
    pub(super) fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        to: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        match &mut self.pipe {
            Some(pipe) => pipe.poll_drain(cx, to),
            None => Poll::Ready(Ok(0)),
        }
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        USED.set(USED.get() - 1);
        let Some(pipe) = self.pipe.take().filter(|pipe| pipe.held() == 0) else {
            return;
        };
        // Fails where the thread is ending.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < SPARE {
                free.push(pipe);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::relay;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(at), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|n| (n % 251) as u8).collect()
    }

    #[tokio::test]
    async fn bulk_goes_by_itself_and_arrives_as_it_was_sent() {
        let (mut caller, mut downstream) = pair().await;
        let (mut upstream, mut server) = pair().await;
        let sent = pattern(24 << 20);
        let client = async {
            caller.write_all(&sent).await.unwrap();
            caller.shutdown().await.unwrap();
            let mut answer = Vec::new();
            caller.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let application = async {
            let mut half = vec![0; 16 << 20];
            server.read_exact(&mut half).await.unwrap();
            let used = USED.get();
            let mut rest = Vec::new();
            server.read_to_end(&mut rest).await.unwrap();
            half.extend(rest);
            server.write_all(b"thanks").await.unwrap();
            drop(server);
            (half, used)
        };
        let relaying = async {
            let relayed = relay(&mut downstream, &mut upstream).await;
            drop((downstream, upstream));
            relayed
        };
        let (answer, (arrived, used), relayed) = tokio::join!(client, application, relaying);
        assert_eq!(used, 1, "one way of it is bulk");
        assert!(arrived == sent, "the bytes that were sent");
        assert_eq!(answer, b"thanks");
        assert!(relayed.end.is_ok(), "{:?}", relayed.end);
        assert_eq!((relayed.sent, relayed.received), (24 << 20, 6));
        assert_eq!((USED.get(), FREE.with_borrow(Vec::len)), (0, 1));
    }

    #[tokio::test]
    async fn a_reader_that_breaks_off_is_told_of() {
        let (mut caller, mut downstream) = pair().await;
        let (mut upstream, mut server) = pair().await;
        let client = async {
            let chunk = pattern(1 << 20);
            while caller.write_all(&chunk).await.is_ok() {}
        };
        let application = async {
            let mut some = vec![0; 4 << 20];
            server.read_exact(&mut some).await.unwrap();
            // Unread bytes make it a reset.
            drop(server);
        };
        let relaying = async {
            let relayed = relay(&mut downstream, &mut upstream).await;
            drop((downstream, upstream));
            relayed
        };
        let ((), (), relayed) = tokio::join!(client, application, relaying);
        let side = relayed.end.unwrap_err().side;
        assert_eq!(side, relay::RelaySide::Upstream);
        assert_eq!(USED.get(), 0);
    }

    #[tokio::test]
    async fn a_thread_has_so_many_and_no_more() {
        let mut all: Vec<_> = (0..PIPES).filter_map(|_| Splice::new()).collect();
        assert_eq!((all.len(), USED.get()), (PIPES, PIPES));
        assert!(Splice::new().is_none());
        all.clear();
        assert_eq!((USED.get(), FREE.with_borrow(Vec::len)), (0, SPARE));
    }
}

use std::future::poll_fn;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A socket that remembers what each call brought, takes only so much of it, and can break.
#[derive(Default)]
struct Socket {
    calls: Vec<usize>,
    bytes: Vec<u8>,
    flushed: usize,
    room: Option<usize>,
    broken: bool,
}

#[derive(Clone, Default)]
struct Far(Rc<RefCell<Socket>>);

impl AsyncRead for Far {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Far {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.0.borrow_mut();
        if socket.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let all: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
        let taken = socket.room.map_or(all.len(), |room| room.min(all.len()));
        if taken == 0 {
            return Poll::Pending;
        }
        if let Some(room) = &mut socket.room {
            *room -= taken;
        }
        socket.calls.push(taken);
        socket.bytes.extend_from_slice(&all[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().flushed += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn stack() -> (Far, Gathered<Far>) {
    let far = Far::default();
    (far.clone(), Gathered::new(far, 0))
}

async fn release(gathered: &Gathered<Far>) {
    poll_fn(|cx| {
        gathered.poll_release(ANSWERS, cx);
        Poll::Ready(())
    })
    .await;
}

fn pattern(from: usize, length: usize) -> Vec<u8> {
    let octets = from..from + length;
    octets.map(|n| u8::try_from(n % 251).unwrap()).collect()
}

#[tokio::test]
async fn what_is_written_between_two_releases_leaves_at_once() {
    let (far, mut near) = stack();
    for _ in 0..5 {
        near.write_all(&[0; 1000]).await.unwrap();
        near.flush().await.unwrap();
    }
    assert!(far.0.borrow().calls.is_empty());
    release(&near).await;
    assert_eq!(far.0.borrow().calls, [5000]);
    assert_eq!(far.0.borrow().flushed, 1, "TLS below needs that");
    release(&near).await;
    assert_eq!(far.0.borrow().calls.len(), 1);
    assert_eq!(far.0.borrow().flushed, 1);
}

#[tokio::test]
async fn much_does_not_wait_and_stays_in_order() {
    let (far, mut near) = stack();
    let mut sent = 0;
    for _ in 0..20 {
        let frame = pattern(sent, 16 * 1024 + 9);
        near.write_all(&frame).await.unwrap();
        sent += frame.len();
        assert!(near.0.borrow().waiting.len() <= MOST);
    }
    release(&near).await;
    assert_eq!(far.0.borrow().bytes, pattern(0, sent));
    assert!(
        far.0.borrow().calls.len() <= 10,
        "{:?}",
        far.0.borrow().calls
    );
    assert_eq!(near.0.borrow().waiting.capacity(), 0);
}

#[tokio::test]
async fn a_full_socket_holds_the_writer_up() {
    let (far, mut near) = stack();
    far.0.borrow_mut().room = Some(10_000);
    near.write_all(&pattern(0, 30_000)).await.unwrap();
    release(&near).await;
    assert_eq!(far.0.borrow().calls, [10_000]);
    let more = pattern(30_000, 10_000);
    let slice = [IoSlice::new(&more)];
    let offer = poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_write_vectored(cx, &slice)));
    assert!(offer.await.is_pending(), "it has as much as it may have");
    // A part of what waits and nothing of what is offered, then the rest of both.
    far.0.borrow_mut().room = Some(5_000);
    let offer = poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_write_vectored(cx, &slice)));
    assert!(offer.await.is_pending());
    far.0.borrow_mut().room = None;
    near.write_all(&more).await.unwrap();
    release(&near).await;
    assert_eq!(far.0.borrow().bytes, pattern(0, 40_000));
}

#[tokio::test]
async fn an_error_shows_at_the_next_use() {
    let (far, mut near) = stack();
    near.write_all(b"lost").await.unwrap();
    far.0.borrow_mut().broken = true;
    release(&near).await;
    let error = near.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    near.write_all(b"lost too").await.unwrap();
    release(&near).await;
    let error = near.write_all(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn the_end_holds_nothing_back() {
    let (far, mut near) = stack();
    near.write_all(b"goodbye").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(far.0.borrow().bytes, b"goodbye");
}

#[tokio::test]
async fn little_waits_until_nothing_else_is_ready() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let scope = isobar_runtime::LocalScope::new("test");
            scope.spawn("turns", turn::carry());
            tokio::task::yield_now().await;
            let (far, mut near) = stack();
            let (other_far, mut other) = stack();
            near.write_all(b"first").await.unwrap();
            release(&near).await;
            other.write_all(b"another").await.unwrap();
            release(&other).await;
            assert!(far.0.borrow().calls.is_empty());
            // A second answer comes by a task that is ready meanwhile.
            let (done, told) = tokio::sync::oneshot::channel();
            scope.spawn("late", async move {
                near.write_all(b", second").await.unwrap();
                release(&near).await;
                drop(done.send(near));
            });
            let mut near = told.await.unwrap();
            while far.0.borrow().calls.is_empty() {
                tokio::task::yield_now().await;
            }
            assert_eq!(far.0.borrow().calls, [13]);
            assert_eq!(other_far.0.borrow().bytes, b"another");
            // Much does not wait, and takes along what did.
            near.write_all(b"x").await.unwrap();
            release(&near).await;
            near.write_all(&[0; ANSWERS]).await.unwrap();
            release(&near).await;
            assert_eq!(far.0.borrow().calls, [13, 1 + ANSWERS]);
            // What waits when turns end goes.
            near.write_all(b"last").await.unwrap();
            release(&near).await;
            assert_eq!(far.0.borrow().calls.len(), 2);
            scope.stop();
            assert!(scope.shutdown(std::time::Duration::from_secs(5)).await);
            assert_eq!(far.0.borrow().calls, [13, 1 + ANSWERS, 4]);
            near.write_all(b"now").await.unwrap();
            release(&near).await;
            assert_eq!(far.0.borrow().calls.len(), 4, "nobody carries turns");
        })
        .await;
}

#[tokio::test]
async fn an_error_at_the_end_of_a_turn_wakes_the_writer() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let scope = isobar_runtime::LocalScope::new("test");
            scope.spawn("turns", turn::carry());
            tokio::task::yield_now().await;
            let (far, mut near) = stack();
            far.0.borrow_mut().broken = true;
            near.write_all(b"lost").await.unwrap();
            let mut released = false;
            poll_fn(|cx| {
                if std::mem::replace(&mut released, true) {
                    return Poll::Ready(());
                }
                near.poll_release(ANSWERS, cx);
                Poll::Pending
            })
            .await;
            let error = near.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            scope.stop();
            assert!(scope.shutdown(std::time::Duration::from_secs(5)).await);
        })
        .await;
}

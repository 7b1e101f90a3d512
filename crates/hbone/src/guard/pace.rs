use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use tokio::sync::Semaphore;
use tokio::task::yield_now;

thread_local! {
    static TURN: Rc<Semaphore> = Rc::new(Semaphore::new(1));
}

/// Runs `handshake` so that of all those on this thread at most one takes one step in each turn of
/// the event loop: a storm of handshakes then delays what is established by one step at a time.
/// (A step is a signature or a key exchange, a good part of a millisecond.)
pub(crate) async fn paced<F: Future>(handshake: F) -> F::Output {
    let turns = TURN.with(Rc::clone);
    let mut handshake = pin!(handshake);
    loop {
        // Fails only when closed, which nobody does.
        let turn = turns.acquire().await;
        // Whoever else is ready goes first.
        yield_now().await;
        let step = poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
        drop(turn);
        if let Poll::Ready(output) = step {
            return output;
        }
        // No await between that poll and this one, so no wake-up is lost.
        let mut waited = false;
        poll_fn(|_| {
            if std::mem::replace(&mut waited, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

use std::rc::Rc;

use tokio::io::{DuplexStream, duplex};
use tokio::task::LocalSet;

use super::*;

type Far = h2::server::Connection<DuplexStream, Bytes>;

/// Shakes hands with an endpoint in memory.
async fn shaken(ping: Option<(Duration, Duration)>, scope: &LocalScope) -> (Sender, Far) {
    let (near, far) = duplex(64 * 1024);
    let near: AnyStream = Box::new(near);
    let both = tokio::join!(Sender::begin(near, ping, scope), h2::server::handshake(far));
    (both.0.unwrap(), both.1.unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_answers_no_ping_is_given_up() {
    let scope = Rc::new(LocalScope::new("test"));
    let times = Some((Duration::from_secs(3), Duration::from_secs(2)));
    LocalSet::new()
        .run_until(async {
            let (sender, mut far) = shaken(times, &scope).await;
            // As long as the endpoint does its part.
            let answers = async { far.accept().await.is_none() };
            let asked = tokio::time::timeout(Duration::from_secs(60), answers).await;
            assert!(asked.is_err() && sender.is_open());
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert!(!sender.is_open());
            assert!(sender.state.silent.get());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_says_goodbye_gets_nothing_more() {
    let scope = Rc::new(LocalScope::new("test"));
    LocalSet::new()
        .run_until(async {
            let (sender, mut far) = shaken(None, &scope).await;
            assert!(sender.is_open());
            far.graceful_shutdown();
            let request = far.accept().await;
            assert!(!matches!(request, Some(Ok(_))));
            // The goodbye is on its way: everybody else has a turn.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!sender.is_open());
            assert!(!sender.state.silent.get());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_holds_ends() {
    let scope = Rc::new(LocalScope::new("test"));
    LocalSet::new()
        .run_until(async {
            let (sender, mut far) = shaken(None, &scope).await;
            drop(sender);
            assert!(far.accept().await.is_none());
            assert!(scope.shutdown(Duration::from_secs(1)).await);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_what_a_peer_takes_wait_and_refuse_no_other() {
    let scope = Rc::new(LocalScope::new("test"));
    LocalSet::new()
        .run_until(async {
            let (near, far) = duplex(64 * 1024);
            let near: AnyStream = Box::new(near);
            let mut one_stream = h2::server::Builder::new();
            let far = one_stream.max_concurrent_streams(1).handshake(far);
            let (sender, far) = tokio::join!(Sender::begin(near, None, &scope), far);
            let (sender, mut far): (Sender, Far) = (sender.unwrap(), far.unwrap());
            // Until the peer's settings are there.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let open = |_| {
                let head = Request::get("http://svc/").body(()).unwrap();
                sender.open(head, true).unwrap()
            };
            let opened: Vec<_> = (0..3).map(open).collect();
            assert!(sender.is_open());
            scope.spawn("endpoint", async move {
                while let Some(Ok((_, mut reply))) = far.accept().await {
                    let _ = reply.send_response(Response::new(()), true).unwrap();
                }
            });
            for (response, _, full) in opened {
                if let Some(mut full) = full {
                    poll_fn(|cx| full.poll_ready(cx)).await.unwrap();
                }
                assert_eq!(response.await.unwrap().status(), 200);
            }
        })
        .await;
}

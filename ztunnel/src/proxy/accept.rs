//! Accepting, without end: what the system refuses for a while is tried again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::Pod;

/// Pause after a failed accept: without descriptors the next try fails too.
const PAUSE: Duration = Duration::from_millis(50);
/// At most one log line about failed accepts in this time.
const TELL: Duration = Duration::from_secs(10);

/// Hands every connection to `take` until the pod drains. What waited in the queue then is still
/// taken: the kernel would reset it.
pub(super) async fn accept_all(
    pod: &Pod,
    what: &'static str,
    listener: TcpListener,
    mut take: impl FnMut(TcpStream, SocketAddr),
) {
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            () = pod.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => take(tcp, canonical(peer)),
            Err(error) => {
                if told.is_none_or(|at| at.elapsed() > TELL) {
                    tracing::warn!(pod = pod.display_name(), listener = what, %error, "accept failed");
                    told = Some(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    while let Some(Ok((tcp, peer))) = listener.accept().now_or_never() {
        take(tcp, canonical(peer));
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

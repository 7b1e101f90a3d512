//! What a call looks like from the application that makes it, in few words.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::{Caller, Reply};

/// Calls of one look.
pub(super) const CALLS: usize = 5;
/// An application gives up then.
const LIMIT: Duration = Duration::from_secs(4);

/// Calls, each on a connection of its own, in words: `5× 200`.
pub(super) async fn calls(caller: &Caller, to: SocketAddr, path: &str) -> String {
    calls_read(caller, to, path, CALLS, |reply| reply.status.to_string()).await
}

/// `count` calls, in the words that `read` has for a reply.
pub(super) async fn calls_read(
    caller: &Caller,
    to: SocketAddr,
    path: &str,
    count: usize,
    read: impl Fn(&Reply) -> String,
) -> String {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..count {
        *seen.entry(one(caller, to, path, &read).await).or_default() += 1;
    }
    counted(&seen)
}

async fn one(
    caller: &Caller,
    to: SocketAddr,
    path: &str,
    read: &impl Fn(&Reply) -> String,
) -> String {
    match tokio::time::timeout(LIMIT, caller.get(to, path)).await {
        Ok(Ok(reply)) => read(&reply),
        Ok(Err(error)) if timed_out(&error) => "no answer".to_owned(),
        Ok(Err(_)) => "closed".to_owned(),
        Err(_) => "no answer".to_owned(),
    }
}

fn timed_out(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut)
}

fn counted(seen: &BTreeMap<String, usize>) -> String {
    let words: Vec<_> = seen
        .iter()
        .map(|(what, count)| format!("{count}× {what}"))
        .collect();
    words.join(", ")
}

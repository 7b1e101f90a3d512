//! One agent a node at a time: two would each undo what the other did.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until no other agent holds the folder; holds it until dropped, or until the process ends
/// however it does.
///
/// # Errors
/// When the folder cannot be written to.
pub async fn hold(folder: &Path) -> io::Result<Flock<File>> {
    let mut file = File::create(folder.join("agent.lock"))?;
    let mut told = false;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, error)) => return Err(error.into()),
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(folder = %folder.display(), "another agent is still here: waiting for its end");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_waits_for_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let first = hold(dir.path()).await.unwrap();
        let mut second = std::pin::pin!(hold(dir.path()));
        let early = tokio::time::timeout(PAUSE * 3, &mut second).await;
        assert!(early.is_err(), "two hold it");
        drop(first);
        assert!(second.await.is_ok());
    }
}

//! Room for questions: nobody proves who asks, so no address has more than its part.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes, connections, or whatever is counted, of which one address may have a part at a time.
#[derive(Debug)]
pub(super) struct Budget {
    whole: Arc<Semaphore>,
    of_one: u32,
    parts: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// A piece of the budget; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Piece {
    budget: Arc<Budget>,
    address: IpAddr,
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Budget {
    /// Of which one address has `of_one` at most.
    pub(super) fn new(whole: u32, of_one: u32) -> Arc<Self> {
        Arc::new(Self {
            whole: Arc::new(Semaphore::new(whole as usize)),
            of_one,
            parts: Mutex::default(),
        })
    }

    /// Waits for a piece, but not longer than `limit`. What an address asks for beyond its part waits for
    /// its own earlier pieces, and keeps nobody else waiting.
    pub(super) async fn take(
        self: &Arc<Self>,
        address: IpAddr,
        size: u32,
        limit: Duration,
    ) -> Option<Piece> {
        let mut piece = Piece {
            budget: Arc::clone(self),
            address: address.to_canonical(),
            permits: None,
        };
        let part = self.part(piece.address);
        let taken = tokio::time::timeout(limit, async {
            let own = part.acquire_many_owned(size).await.ok()?;
            let whole = Arc::clone(&self.whole);
            Some((own, whole.acquire_many_owned(size).await.ok()?))
        });
        piece.permits = Some(taken.await.ok()??);
        Some(piece)
    }

    fn part(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Semaphore::new(self.of_one as usize));
        Arc::clone(parts.entry(address).or_insert_with(new))
    }

    /// What nobody has.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.whole.available_permits()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        drop(self.permits.take());
        let mut parts = self.budget.parts.lock();
        let parts = parts.as_mut().unwrap_or_else(|poisoned| poisoned.get_mut());
        // Others of the address hold or await theirs with a reference of their own.
        let part = parts.get(&self.address);
        if part.is_some_and(|part| Arc::strong_count(part) == 1) {
            parts.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_has_its_part_keeps_nobody_else_waiting() {
        let budget = Budget::new(100, 40);
        let first = budget.take(address(1), 40, SHORT).await.unwrap();
        // It waits for itself, and others come past it.
        let more = budget.take(address(1), 40, SHORT * 10);
        let mut more = std::pin::pin!(more);
        assert!(futures_util::poll!(more.as_mut()).is_pending());
        let other = budget.take(address(2), 40, SHORT).await.unwrap();
        assert!(budget.take(address(1), 1, SHORT).await.is_none());
        drop(first);
        assert!(more.await.is_some());
        drop(other);
        assert_eq!(budget.left(), 100);
        assert!(
            budget.parts.lock().unwrap().is_empty(),
            "who left is forgotten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn all_together_have_no_more_than_the_whole() {
        let budget = Budget::new(100, 40);
        let mut held = Vec::new();
        for n in 1..=2 {
            held.extend(budget.take(address(n), 40, SHORT).await);
        }
        assert!(budget.take(address(3), 40, SHORT).await.is_none());
        assert!(budget.take(address(3), 20, SHORT).await.is_some());
        assert_eq!(held.len(), 2);
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert!(
            budget.take(mapped, 10, SHORT).await.is_none(),
            "the same one"
        );
    }
}

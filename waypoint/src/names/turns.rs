//! How many names of callers are asked for at once: so many in all, and fewer of them for one caller, so
//! that none keeps all others waiting.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use isobar_types::Str;

/// Names of callers that are asked for at once; others are refused meanwhile.
pub(super) const AT_ONCE: usize = 64;
/// The same for one caller.
pub(super) const OF_ONE: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// Of callers with any.
    by_caller: HashMap<Str, usize>,
}

impl Counts {
    fn is_full(&self, caller: &str) -> bool {
        let own = self.by_caller.get(caller).copied();
        self.all >= AT_ONCE || own.unwrap_or_default() >= OF_ONE
    }
}

impl Turns {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True while there are enough who ask, or enough of this caller.
    pub(super) fn is_full(&self, caller: &str) -> bool {
        self.counts().is_full(caller)
    }

    /// A turn that lasts until it is dropped; `None` while there are enough.
    pub(super) fn take(&self, caller: &str) -> Option<Turn<'_>> {
        let mut counts = self.counts();
        if counts.is_full(caller) {
            return None;
        }
        counts.all += 1;
        let caller = Str::from(caller);
        *counts.by_caller.entry(caller.clone()).or_default() += 1;
        Some(Turn {
            turns: self,
            caller,
        })
    }
}

#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    caller: Str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut counts = self.turns.counts();
        counts.all = counts.all.saturating_sub(1);
        if let Some(own) = counts.by_caller.get_mut(&self.caller) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.by_caller.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_turns_to_others() {
        let turns = Turns::default();
        let mut held: Vec<_> = (0..OF_ONE).map(|_| turns.take("a").unwrap()).collect();
        assert!(turns.is_full("a") && turns.take("a").is_none());
        assert!(!turns.is_full("b"));
        held.extend((0..OF_ONE).map(|_| turns.take("b").unwrap()));
        held.pop();
        assert!(!turns.is_full("b") && turns.is_full("a"));
        drop(held);
        assert!(turns.counts().by_caller.is_empty());
        let all: Vec<_> = (0..AT_ONCE)
            .map(|n| turns.take(&n.to_string()).unwrap())
            .collect();
        assert!(turns.is_full("a"), "there are enough in all");
        drop(all);
        assert_eq!(turns.counts().all, 0);
    }
}

//! How many certificates one caller may ask for: whoever asks without end must not take the authority
//! from the others.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::Caller;

/// At once: more accounts than a full node holds.
const BURST: u32 = 500;
/// Afterwards, one each.
const INTERVAL: Duration = Duration::from_millis(20);
/// Callers remembered; beyond it those that have everything free again are forgotten.
const REMEMBERED: usize = 4096;

/// Who asks: an account on a node, so that one bad node does not use up what the others have.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    identity: String,
    node: Option<String>,
}

/// Counts requests of each caller.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When each caller has everything free again.
    free_at: Mutex<HashMap<Key, Instant>>,
}

impl Pace {
    /// Counts a request of `caller`; the error is how long to wait.
    pub(crate) fn ask(&self, caller: &Caller, now: Instant) -> Result<(), Duration> {
        let key = Key {
            identity: caller.identity.to_string(),
            node: caller.node.clone(),
        };
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        if free_at.len() >= REMEMBERED && !free_at.contains_key(&key) {
            free_at.retain(|_, at| *at > now);
        }
        let at = free_at.entry(key).or_insert(now);
        let next = (*at).max(now) + INTERVAL;
        let used = next - now;
        let most = INTERVAL * BURST;
        if used > most {
            return Err(used - most);
        }
        *at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use isobar_types::Identity;

    use super::*;

    fn caller(node: &str) -> Caller {
        Caller {
            identity: Identity::new("cluster.local", "s", "zt"),
            pod: None,
            node: Some(node.into()),
        }
    }

    #[test]
    fn a_burst_of_one_node_leaves_the_others_alone() {
        let (pace, now) = (Pace::default(), Instant::now());
        let passed = (0..10_000)
            .filter(|_| pace.ask(&caller("bad"), now).is_ok())
            .count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(pace.ask(&caller("bad"), now), Err(INTERVAL));
        assert_eq!(pace.ask(&caller("good"), now), Ok(()));
        assert_eq!(pace.ask(&caller("bad"), now + INTERVAL), Ok(()));
        assert!(pace.ask(&caller("bad"), now + INTERVAL).is_err());
    }

    #[test]
    fn callers_that_are_quiet_again_are_forgotten() {
        let (pace, now) = (Pace::default(), Instant::now());
        for node in 0..REMEMBERED {
            assert_eq!(pace.ask(&caller(&node.to_string()), now), Ok(()));
        }
        assert_eq!(pace.ask(&caller("next"), now + INTERVAL), Ok(()));
        assert_eq!(pace.free_at.lock().unwrap().len(), 1);
    }
}

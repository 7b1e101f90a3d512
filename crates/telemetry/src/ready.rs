use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The readiness of a process: a set of named gates. Cheap to clone.
///
/// A gate that was dropped without having passed stays closed: readiness is affirmative.
#[derive(Debug, Clone)]
pub struct Ready {
    // Invariant: name -> passed. Held only to read or flip one entry.
    gates: Arc<Mutex<BTreeMap<&'static str, bool>>>,
    changes: Arc<watch::Sender<bool>>,
}

/// One thing the process waits for before it is ready.
#[derive(Debug, Clone)]
pub struct Gate {
    name: &'static str,
    ready: Ready,
}

impl Default for Ready {
    fn default() -> Self {
        Self::new()
    }
}

impl Ready {
    /// No gates: ready.
    #[must_use]
    pub fn new() -> Self {
        Self {
            gates: Arc::default(),
            changes: Arc::new(watch::Sender::new(true)),
        }
    }

    /// Adds a closed gate. Istio's ztunnel calls its own `state manager`, `proxy`, `dns proxy` and
    /// `workload proxy manager`.
    #[must_use]
    pub fn gate(&self, name: &'static str) -> Gate {
        self.set(name, false);
        Gate {
            name,
            ready: self.clone(),
        }
    }

    /// Names of the closed gates, sorted.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .filter_map(|(name, passed)| (!passed).then_some(*name))
            .collect()
    }

    /// True when no gate is closed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.pending().is_empty()
    }

    /// Resolves when no gate is closed.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn wait(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.changes.subscribe().wait_for(|ready| *ready).await;
    }

    fn set(&self, name: &'static str, passed: bool) {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.insert(name, passed);
        self.changes
            .send_replace(gates.values().all(|passed| *passed));
    }
}

impl Gate {
    /// Opens the gate.
    pub fn pass(&self) {
        self.ready.set(self.name, true);
    }

    /// Closes the gate again: what it stands for was lost.
    pub fn close(&self) {
        self.ready.set(self.name, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_gates_must_be_passed_and_may_close_again() {
        let ready = Ready::new();
        assert!(ready.is_ready());
        let state = ready.gate("state manager");
        let proxy = ready.gate("proxy");
        assert_eq!(ready.pending(), ["proxy", "state manager"]);
        state.pass();
        assert_eq!(ready.pending(), ["proxy"]);
        proxy.pass();
        ready.wait().await;
        state.close();
        assert!(!ready.is_ready());
        drop(state);
        assert_eq!(ready.pending(), ["state manager"]);
    }
}

use tokio::sync::watch;

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accept and serve.
    Running,
    /// Take nothing new; say goodbye politely; what is open may end by itself.
    Draining,
    /// End now.
    Stopped,
}

/// The receiving half of a stop: cheap to clone, handed to every task.
#[derive(Debug, Clone)]
pub struct Lifetime {
    phase: watch::Receiver<Phase>,
}

/// The deciding half of a stop. Dropping it stops everything below it.
#[derive(Debug)]
pub struct LifetimeOwner {
    phase: watch::Sender<Phase>,
}

impl Default for LifetimeOwner {
    fn default() -> Self {
        Self::new()
    }
}

impl LifetimeOwner {
    /// A new life in the phase [`Phase::Running`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
        }
    }

    /// A handle for a task.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        Lifetime {
            phase: self.phase.subscribe(),
        }
    }

    /// Asks for a polite end. Never goes back from a later phase.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Ends now.
    pub fn stop(&self) {
        self.advance(Phase::Stopped);
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = *phase < to;
            if forward {
                *phase = to;
            }
            forward
        });
    }
}

impl Lifetime {
    /// The phase now; a dropped owner counts as stopped.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.phase.has_changed().is_err() {
            Phase::Stopped
        } else {
            *self.phase.borrow()
        }
    }

    /// Resolves when draining or stopped.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves when stopped.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn stopped(&self) {
        self.reached(Phase::Stopped).await;
    }

    async fn reached(&self, phase: Phase) {
        self.clone().until(phase).await;
    }

    /// Resolves when this phase is reached; as [`Self::stopped`], and keeps no second handle.
    pub(crate) async fn until(mut self, phase: Phase) {
        // An error means that the owner is gone, which is the last phase.
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }

    /// True once the phase is another than when this handle was made. Looks at one number.
    pub(crate) fn has_moved(&self) -> bool {
        self.phase.has_changed().unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let owner = LifetimeOwner::new();
        let life = owner.lifetime();
        assert_eq!(life.phase(), Phase::Running);
        owner.stop();
        owner.drain();
        assert_eq!(life.phase(), Phase::Stopped);
        life.draining().await;
        life.stopped().await;
    }

    #[tokio::test]
    async fn a_dropped_owner_stops() {
        let owner = LifetimeOwner::new();
        let life = owner.lifetime();
        drop(owner);
        life.stopped().await;
        assert_eq!(life.phase(), Phase::Stopped);
    }
}

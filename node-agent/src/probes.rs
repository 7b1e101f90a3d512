//! The node's own rules: what root on the node opens to a probed port of an enrolled pod carries a
//! source address that the pod's rules leave alone there, so that health checks work whatever the
//! policies say.
//!
//! Any program of root in the node's namespace passes this way, not only the one that probes;
//! whoever is root there controls the pods anyway. Ports without a probe are closed to it too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::backend::{Backend, BackendError, NodeRules};

/// The probed ports of pods with rules. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Probes {
    rules: NodeRules,
    // Held while the rules are written, so that writes come in order.
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Vec<SocketAddr>>,
    /// The rules as listed after the last write; none before the first.
    written: Option<String>,
}

impl Probes {
    /// Nothing is written before the first pod.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self {
            rules: NodeRules::new(backend),
            state: Arc::default(),
        }
    }

    /// Lets probes to these ports of this pod through.
    ///
    /// # Errors
    /// When the node's rules cannot be written.
    pub async fn insert(
        &self,
        uid: &str,
        ips: &[IpAddr],
        ports: &BTreeSet<u16>,
    ) -> Result<(), BackendError> {
        let probed = probed(ips, ports);
        let mut state = self.state.lock().await;
        if state.pods.get(uid) == Some(&probed) && state.written.is_some() {
            return Ok(());
        }
        state.pods.insert(uid.to_owned(), probed);
        self.write(&mut state).await
    }

    /// Takes a pod over that was let through by an earlier agent; written with the next change or
    /// by [`Probes::restore`].
    pub async fn seed(&self, uid: &str, ips: &[IpAddr], ports: &BTreeSet<u16>) {
        let mut state = self.state.lock().await;
        state.pods.insert(uid.to_owned(), probed(ips, ports));
    }

    /// Makes what an earlier agent left agree with the pods that were taken over.
    ///
    /// # Errors
    /// When the node's rules cannot be read or written.
    pub async fn restore(&self) -> Result<(), BackendError> {
        let mut state = self.state.lock().await;
        let other = self.rules.other();
        if blocking(move || other.list())
            .await
            .is_ok_and(|found| found.is_some())
        {
            blocking(move || other.remove()).await?;
        }
        if state.pods.is_empty() && self.list().await?.is_none() {
            return Ok(());
        }
        self.write(&mut state).await
    }

    /// Forgets a pod.
    ///
    /// # Errors
    /// When the node's rules cannot be written.
    pub async fn remove(&self, uid: &str) -> Result<(), BackendError> {
        let mut state = self.state.lock().await;
        if state.pods.remove(uid).is_none() {
            return Ok(());
        }
        self.write(&mut state).await
    }

    /// Writes the rules again if they are not as they were left. True if that was so.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub async fn verify(&self) -> Result<bool, BackendError> {
        let mut state = self.state.lock().await;
        if state.written.is_none() || self.list().await? == state.written {
            return Ok(false);
        }
        self.write(&mut state).await?;
        Ok(true)
    }

    /// Removes the rules.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub async fn clear(&self) -> Result<(), BackendError> {
        let mut state = self.state.lock().await;
        state.pods.clear();
        state.written = None;
        let rules = self.rules;
        blocking(move || rules.remove()).await
    }

    async fn write(&self, state: &mut State) -> Result<(), BackendError> {
        let probed: Vec<SocketAddr> = state.pods.values().flatten().copied().collect();
        let rules = self.rules;
        state.written = None;
        blocking(move || rules.write(&probed)).await?;
        state.written = self.list().await?;
        Ok(())
    }

    async fn list(&self) -> Result<Option<String>, BackendError> {
        let rules = self.rules;
        blocking(move || rules.list()).await
    }
}

fn probed(ips: &[IpAddr], ports: &BTreeSet<u16>) -> Vec<SocketAddr> {
    let of = |ip: &IpAddr| {
        let ip = *ip;
        ports.iter().map(move |port| SocketAddr::new(ip, *port))
    };
    ips.iter().flat_map(of).collect()
}

/// Runs something that blocks away from the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, BackendError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(BackendError::Kernel {
            doing: "running a blocking task",
            error: std::io::Error::other(error),
        }),
    }
}

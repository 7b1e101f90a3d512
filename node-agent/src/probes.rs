//! The node's own rules: what root on the node opens to a probed port of an enrolled pod carries a
//! source address that the pod's rules leave alone there, so that health checks work whatever the
//! policies say.
//!
//! Any program of root in the node's namespace passes this way, not only the one that probes;
//! whoever is root there controls the pods anyway. Ports without a probe are closed to it too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::backend::{Backend, BackendError, NodeRules};

/// The node's rules, as some tool keeps them.
trait Table: fmt::Debug + Send + Sync {
    fn write(&self, probed: &[SocketAddr]) -> Result<(), BackendError>;
    fn list(&self) -> Result<Option<String>, BackendError>;
    fn remove(&self) -> Result<(), BackendError>;
}

impl Table for NodeRules {
    fn write(&self, probed: &[SocketAddr]) -> Result<(), BackendError> {
        (*self).write(probed)
    }

    fn list(&self) -> Result<Option<String>, BackendError> {
        (*self).list()
    }

    fn remove(&self) -> Result<(), BackendError> {
        (*self).remove()
    }
}

/// The probed ports of pods with rules. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Probes {
    rules: Arc<dyn Table>,
    /// What an earlier agent may have used.
    other: Arc<dyn Table>,
    // Held while the rules are written, so that writes come in order.
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Vec<SocketAddr>>,
    /// The rules as listed after the last write; none before the first.
    written: Option<String>,
    /// A write has failed, and nothing after it succeeded.
    is_owed: bool,
}

impl Probes {
    /// Nothing is written before the first pod.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        let rules = NodeRules::new(backend);
        Self {
            rules: Arc::new(rules),
            other: Arc::new(rules.other()),
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

    /// The same for a pod that is whole already: nothing is tried again that failed before, which
    /// [`Probes::verify`] does.
    ///
    /// # Errors
    /// When the node's rules cannot be written.
    pub async fn keep(
        &self,
        uid: &str,
        ips: &[IpAddr],
        ports: &BTreeSet<u16>,
    ) -> Result<(), BackendError> {
        let is_known = self.state.lock().await.pods.get(uid) == Some(&probed(ips, ports));
        match is_known {
            true => Ok(()),
            false => self.insert(uid, ips, ports).await,
        }
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
        state.is_owed = true;
        let other = self.other.clone();
        if blocking(move || other.list())
            .await
            .is_ok_and(|found| found.is_some())
        {
            let other = self.other.clone();
            blocking(move || other.remove()).await?;
        }
        if state.pods.is_empty() && self.list().await?.is_none() {
            state.is_owed = false;
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

    /// Writes the rules again if they are not as they were left, or could not be written the last
    /// time. True if that was so.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub async fn verify(&self) -> Result<bool, BackendError> {
        let mut state = self.state.lock().await;
        let is_never_written = state.written.is_none();
        if !state.is_owed && (is_never_written || self.list().await? == state.written) {
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
        state.is_owed = false;
        let rules = self.rules.clone();
        blocking(move || rules.remove()).await
    }

    async fn write(&self, state: &mut State) -> Result<(), BackendError> {
        let probed: Vec<SocketAddr> = state.pods.values().flatten().copied().collect();
        let rules = self.rules.clone();
        state.written = None;
        state.is_owed = true;
        blocking(move || rules.write(&probed)).await?;
        state.written = self.list().await?;
        state.is_owed = false;
        Ok(())
    }

    async fn list(&self) -> Result<Option<String>, BackendError> {
        let rules = self.rules.clone();
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

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Rules that can be removed by hand, and a tool that can be out of order.
    #[derive(Debug, Default)]
    struct Node {
        rules: std::sync::Mutex<Option<String>>,
        is_busy: AtomicBool,
    }

    impl Node {
        fn rules(&self) -> std::sync::MutexGuard<'_, Option<String>> {
            self.rules.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl Table for Node {
        fn write(&self, probed: &[SocketAddr]) -> Result<(), BackendError> {
            if self.is_busy.load(Ordering::Relaxed) {
                let error = std::io::Error::other("busy");
                let doing = "writing";
                return Err(BackendError::Kernel { doing, error });
            }
            *self.rules() = Some(format!("{probed:?}"));
            Ok(())
        }

        fn list(&self) -> Result<Option<String>, BackendError> {
            Ok(self.rules().clone())
        }

        fn remove(&self) -> Result<(), BackendError> {
            *self.rules() = None;
            Ok(())
        }
    }

    fn probes() -> (Probes, Arc<Node>) {
        let node = Arc::new(Node::default());
        let probes = Probes {
            rules: node.clone(),
            other: Arc::new(Node::default()),
            state: Arc::default(),
        };
        (probes, node)
    }

    fn ip() -> [IpAddr; 1] {
        [IpAddr::from([10, 0, 0, 2])]
    }

    #[tokio::test]
    async fn what_could_not_be_written_once_is_written_later() {
        let (probes, node) = probes();
        assert!(!probes.verify().await.unwrap(), "there is no pod yet");
        assert_eq!(*node.rules(), None);
        probes.insert("u", &ip(), &[80].into()).await.unwrap();
        let whole = node.rules().clone();
        assert!(!probes.verify().await.unwrap());
        probes.keep("v", &ip(), &[81].into()).await.unwrap();
        assert_ne!(*node.rules(), whole, "one more pod");
        let whole = node.rules().clone();
        // Removed by hand, at a time when the tool does not work.
        *node.rules() = None;
        node.is_busy.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            probes.verify().await.unwrap_err();
        }
        probes.keep("v", &ip(), &[81].into()).await.unwrap();
        node.is_busy.store(false, Ordering::Relaxed);
        assert!(probes.verify().await.unwrap());
        assert_eq!(*node.rules(), whole);
        assert!(!probes.verify().await.unwrap());
        // Nor does a pod that is gone stay, whose removal failed.
        node.is_busy.store(true, Ordering::Relaxed);
        probes.remove("u").await.unwrap_err();
        node.is_busy.store(false, Ordering::Relaxed);
        assert!(probes.verify().await.unwrap());
        assert_eq!(node.rules().as_deref(), Some("[10.0.0.2:81]"));
        probes.clear().await.unwrap();
        assert!(!probes.verify().await.unwrap());
        assert_eq!(*node.rules(), None);
    }

    #[tokio::test]
    async fn so_is_what_failed_when_pods_were_taken_over() {
        let (probes, node) = probes();
        probes.seed("u", &ip(), &[80].into()).await;
        node.is_busy.store(true, Ordering::Relaxed);
        probes.restore().await.unwrap_err();
        probes.verify().await.unwrap_err();
        node.is_busy.store(false, Ordering::Relaxed);
        assert!(probes.verify().await.unwrap());
        assert_eq!(node.rules().as_deref(), Some("[10.0.0.2:80]"));
    }
}

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::future::join_all;

use super::message::{PodInfo, Request};

/// What serves pods, as the node agent's announcements see it.
pub trait PodHost: Send + Sync {
    /// Serves a pod; returns once its listeners exist. Success at once if it is served in that
    /// namespace already; if it is served in another, that one ends first.
    fn start(
        &self,
        uid: &str,
        info: &PodInfo,
        netns: Arc<OwnedFd>,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Ends serving a pod at once, its connections included. Unknown pods are no error.
    fn stop(&self, uid: &str) -> impl Future<Output = ()> + Send;

    /// Pods served now.
    fn running(&self) -> Vec<String>;
}

/// A break of the protocol after which this process cannot know what it should serve.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The agent repeats its snapshot, or adds to it after its end.
    #[error("the node agent sent {0} after its snapshot was complete")]
    AfterSnapshot(&'static str),
}

/// What to answer to a request: success, or a text for the agent's log.
pub type Answer = Result<(), String>;

/// One connection to the node agent: what its snapshot names so far, and which pods still could
/// not be started.
#[derive(Debug, Default)]
pub struct Session {
    snapshot: Option<BTreeSet<String>>,
    pending: BTreeMap<String, (PodInfo, Arc<OwnedFd>)>,
}

impl Session {
    /// A connection on which nothing was received.
    #[must_use]
    pub fn new() -> Self {
        Self {
            snapshot: Some(BTreeSet::new()),
            pending: BTreeMap::new(),
        }
    }

    /// True once the snapshot is complete and every pod of it is served.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.snapshot.is_none() && self.pending.is_empty()
    }

    /// Number of pods that could not be started yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Pods that could not be started yet, for dumps.
    pub fn pending_pods(&self) -> impl Iterator<Item = (&str, &PodInfo)> {
        self.pending.iter().map(|(uid, (info, _))| (&**uid, info))
    }

    /// Does what a request asks for.
    ///
    /// # Errors
    /// [`Fatal`] when the agent contradicts itself.
    pub async fn handle<H: PodHost>(
        &mut self,
        request: Request,
        host: &H,
    ) -> Result<Answer, Fatal> {
        let answer = match request {
            Request::Add { uid, info, netns } => {
                if let Some(names) = &mut self.snapshot {
                    names.insert(uid.clone());
                }
                self.add(uid, info, Arc::new(netns), host).await
            }
            Request::Keep { uid } => {
                let names = self.snapshot.as_mut().ok_or(Fatal::AfterSnapshot("keep"))?;
                names.insert(uid);
                Ok(())
            }
            Request::Del { uid } => {
                self.pending.remove(&uid);
                match &mut self.snapshot {
                    // What runs is compared with the snapshot when that is complete.
                    Some(names) => drop(names.remove(&uid)),
                    None => host.stop(&uid).await,
                }
                Ok(())
            }
            Request::SnapshotSent => {
                let names = self
                    .snapshot
                    .take()
                    .ok_or(Fatal::AfterSnapshot("snapshot_sent"))?;
                let mut gone = host.running();
                gone.retain(|uid| !names.contains(uid));
                for uid in &gone {
                    tracing::info!(uid, "pod is not in the node agent's snapshot: dropped");
                }
                // All at once: the agent waits 5 s for the answer, however many they are.
                join_all(gone.iter().map(|uid| host.stop(uid))).await;
                Ok(())
            }
        };
        Ok(answer)
    }

    /// Tries again to start the pods that could not be started.
    pub async fn retry<H: PodHost>(&mut self, host: &H) {
        for (uid, (info, netns)) in std::mem::take(&mut self.pending) {
            // A failure puts it back and is logged.
            let _ = self.add(uid, info, netns, host).await;
        }
    }

    async fn add<H: PodHost>(
        &mut self,
        uid: String,
        info: PodInfo,
        netns: Arc<OwnedFd>,
        host: &H,
    ) -> Result<(), String> {
        let result = host.start(&uid, &info, netns.clone()).await;
        match &result {
            Ok(()) => drop(self.pending.remove(&uid)),
            Err(error) => {
                tracing::warn!(
                    uid,
                    pod = %format_args!("{}/{}", info.namespace, info.name),
                    error,
                    "pod could not be started; will be tried again"
                );
                self.pending.insert(uid, (info, netns));
            }
        }
        result
    }
}

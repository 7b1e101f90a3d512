use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use isobar_objects::{Kind, LiveSet, ObjectSource, Published};
use isobar_runtime::{Lifetime, Scope};
use tokio::sync::{mpsc, watch};

use crate::cluster::Cluster;
use crate::watch::{Notice, Watch};

/// Notices that may wait for the one who puts them together.
const WAITING: usize = 1024;

/// What a source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOptions {
    /// Kinds that are watched. Default all but Secrets.
    pub kinds: Vec<Kind>,
    /// Only pods of this node. Default all pods.
    pub node: Option<String>,
    /// Forget what only matters to whoever runs pods: images, volumes, environments. Default true.
    pub slim: bool,
}

/// Who wants everybody's keys has to say so.
fn without_secrets() -> Vec<Kind> {
    let all = Kind::ALL.iter().copied();
    all.filter(|kind| *kind != Kind::Secret).collect()
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            kinds: without_secrets(),
            node: None,
            slim: true,
        }
    }
}

/// The objects of the mesh as an API server has them, watched.
///
/// Nothing is published before every kind was listed once, or is known not to be served: a part of
/// the objects, taken for all of them, would remove what is in force. While the server is away the
/// last objects stay; when a watch has to start over, the new list replaces the old one as a whole.
#[derive(Debug)]
pub struct KubernetesSource {
    cluster: Cluster,
    options: SourceOptions,
    sender: watch::Sender<Arc<Published>>,
}

impl KubernetesSource {
    /// A source that reads nothing before it runs.
    #[must_use]
    pub fn new(cluster: Cluster, options: SourceOptions) -> Self {
        Self {
            cluster,
            options,
            sender: watch::Sender::default(),
        }
    }

    fn watches(&self, notices: &mpsc::Sender<Notice>) -> Vec<Watch> {
        let node = self.options.node.as_ref();
        let watch = |kind: &Kind| Watch {
            kind: *kind,
            client: self.cluster.client(),
            fields: node
                .filter(|_| *kind == Kind::Pod)
                .map(|node| format!("spec.nodeName={node}")),
            slim: self.options.slim,
            notices: notices.clone(),
        };
        self.options.kinds.iter().map(watch).collect()
    }
}

impl ObjectSource for KubernetesSource {
    fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.sender.subscribe()
    }

    fn run(self: Box<Self>, life: Lifetime) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            tracing::info!(server = self.cluster.address(), "watching the API server");
            let scope = Scope::new("kubernetes");
            let (notices, incoming) = mpsc::channel(WAITING);
            for watch in self.watches(&notices) {
                scope.spawn("watch", watch.run());
            }
            drop(notices);
            tokio::select! {
                () = collect(incoming, &self.options.kinds, &self.sender) => {}
                () = life.stopped() => {}
            }
            scope.shutdown(Duration::ZERO).await;
        })
    }
}

async fn collect(
    mut incoming: mpsc::Receiver<Notice>,
    kinds: &[Kind],
    sender: &watch::Sender<Arc<Published>>,
) {
    let mut live = LiveSet::new();
    let mut listed: BTreeSet<Kind> = BTreeSet::new();
    let mut batch = Vec::new();
    let mut was_complete = false;
    while incoming.recv_many(&mut batch, WAITING).await > 0 {
        for notice in batch.drain(..) {
            match notice {
                Notice::Listed(kind, all) => {
                    listed.insert(kind);
                    live.replace(kind, all);
                }
                Notice::Present(served) => live.put(*served),
                Notice::Gone(object) => live.remove(&object),
            }
        }
        let is_complete = kinds.iter().all(|kind| listed.contains(kind));
        if !is_complete {
            continue;
        }
        let published = live.publish();
        if let Some(published) = &published {
            sender.send_replace(Arc::new(published.clone()));
        } else if !was_complete {
            // An empty cluster is complete too.
            let synced = true;
            sender.send_replace(Arc::new(Published {
                synced,
                ..Published::default()
            }));
        }
        was_complete = true;
    }
}

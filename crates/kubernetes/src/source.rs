use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use isobar_objects::{Kind, LiveSet, ObjectRef, ObjectSet, ObjectSource, Published, Stranger};
use isobar_runtime::{Lifetime, Scope};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::last_valid::LastValid;
use crate::named::{Named, Names, Which};
use crate::strangers::Strangers;
use crate::watch::{Notice, Watch};

/// Notices that may wait for the one who puts them together.
const WAITING: usize = 1024;

/// For Secrets that are named for the first time to be found, before the rest goes on without them.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same when nothing was told yet: what was shown before should not be taken back, but one Secret
/// that cannot be read does not keep everything else from everybody.
const AT_START: Duration = Duration::from_secs(30);

/// What a source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOptions {
    /// Kinds that are watched. Default all but Secrets and ConfigMaps.
    pub kinds: Vec<Kind>,
    /// Only pods of this node. Default all pods.
    pub node: Option<String>,
    /// Forget what only matters to whoever runs pods: images, volumes, environments. Default true.
    pub slim: bool,
}

/// Who wants everybody's keys and texts has to say so.
fn usual() -> Vec<Kind> {
    let all = Kind::ALL.iter().copied();
    all.filter(|kind| !matches!(kind, Kind::Secret | Kind::ConfigMap))
        .collect()
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            kinds: usual(),
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
    secrets: Option<Which>,
    strangers: &'static [Stranger],
    single: Vec<ObjectRef>,
    last_valid: Option<LastValid>,
    sender: watch::Sender<Arc<Published>>,
}

impl KubernetesSource {
    /// A source that reads nothing before it runs.
    #[must_use]
    pub fn new(cluster: Cluster, options: SourceOptions) -> Self {
        Self {
            cluster,
            options,
            secrets: None,
            strangers: &[],
            single: Vec::new(),
            last_valid: None,
            sender: watch::Sender::default(),
        }
    }

    /// The same, with the Secrets that something among the objects names, each asked for by its name.
    #[must_use]
    pub fn with_secrets(
        mut self,
        which: impl Fn(&ObjectSet) -> Names + Send + Sync + 'static,
    ) -> Self {
        self.secrets = Some(Which::new(which));
        self
    }

    /// The same, with a finding for each object of these kinds, which have no effect.
    #[must_use]
    pub const fn with_strangers(mut self, kinds: &'static [Stranger]) -> Self {
        self.strangers = kinds;
        self
    }

    /// The same, with one object of a kind that is not watched as a whole, asked for by its name: nothing
    /// is published before it is known, or the server does not let us have it.
    #[must_use]
    pub fn with_object(mut self, object: ObjectRef) -> Self {
        self.single.push(object);
        self
    }

    /// The same, with last valid versions that are kept: nothing is published before they are known, or
    /// the server does not tell them.
    #[must_use]
    pub fn with_last_valid(mut self, kept: LastValid) -> Self {
        self.last_valid = Some(kept);
        self
    }

    fn watches(&self, notices: &mpsc::Sender<Notice>) -> Vec<Watch> {
        let node = self.options.node.as_ref();
        let watch = |kind: &Kind| Watch {
            kind: *kind,
            client: self.cluster.client(),
            fields: node
                .filter(|_| *kind == Kind::Pod)
                .map(|node| format!("spec.nodeName={node}")),
            only: None,
            slim: self.options.slim,
            notices: notices.clone(),
        };
        let whole = self.options.kinds.iter().map(watch);
        let single = self.single.iter().filter_map(|object| {
            let kind = object.known()?;
            Some(Watch {
                only: Some(object.clone()),
                ..watch(&kind)
            })
        });
        whole.chain(single).collect()
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
            for kind in self.strangers {
                let strangers = Strangers {
                    kind: *kind,
                    client: self.cluster.client(),
                    notices: notices.clone(),
                };
                scope.spawn("strangers", strangers.run());
            }
            let waits = self.last_valid.is_some();
            if let Some(kept) = self.last_valid {
                scope.spawn("last valid", kept.run(notices.clone()));
            }
            let named = self
                .secrets
                .map(|which| Named::new(which, self.cluster.client(), notices.clone()));
            drop(notices);
            let collector = Collector {
                kinds: &self.options.kinds,
                sender: &self.sender,
                named,
                live: LiveSet::new(),
                listed: BTreeSet::new(),
                unknown: self.strangers.iter().copied().collect(),
                waits_for_versions: waits,
                awaited: self.single.into_iter().collect(),
                next: None,
                was_complete: false,
                was_told: false,
            };
            tokio::select! {
                () = collector.run(incoming, &scope) => {}
                () = life.stopped() => {}
            }
            scope.shutdown(Duration::ZERO).await;
        })
    }
}

/// Puts together what watches tell.
struct Collector<'a> {
    kinds: &'a [Kind],
    sender: &'a watch::Sender<Arc<Published>>,
    named: Option<Named>,
    live: LiveSet,
    listed: BTreeSet<Kind>,
    /// Kinds without effect of which nothing was heard yet.
    unknown: BTreeSet<Stranger>,
    /// Nothing was heard of versions that are kept.
    waits_for_versions: bool,
    /// Single objects of which nothing was heard yet.
    awaited: BTreeSet<ObjectRef>,
    /// What is to be told once the Secrets that are named in it are known.
    next: Option<Published>,
    was_complete: bool,
    was_told: bool,
}

impl Collector<'_> {
    async fn run(mut self, mut incoming: mpsc::Receiver<Notice>, scope: &Scope) {
        let mut batch = Vec::new();
        loop {
            if self.is_complete() {
                self.gather(scope);
            }
            let patience = if self.was_told { PATIENCE } else { AT_START };
            let wait = self.named.as_ref().and_then(|named| named.wait(patience));
            if wait.is_none_or(|end| end <= Instant::now()) {
                self.tell();
            }
            let wait = wait.filter(|_| self.next.is_some());
            let received = tokio::select! {
                received = incoming.recv_many(&mut batch, WAITING) => received,
                () = until(wait) => continue,
            };
            if received == 0 {
                return;
            }
            for notice in batch.drain(..) {
                self.take(notice);
            }
        }
    }

    fn is_complete(&self) -> bool {
        let mut kinds = self.kinds.iter();
        !self.waits_for_versions
            && self.awaited.is_empty()
            && self.unknown.is_empty()
            && kinds.all(|kind| self.listed.contains(kind))
    }

    fn take(&mut self, notice: Notice) {
        let is_asked = |object: &ObjectRef| match &self.named {
            Some(named) if object.known() == Some(Kind::Secret) => named.follows(object),
            _ => true,
        };
        match notice {
            Notice::Listing(kind) => self.live.unlist(kind),
            Notice::Part(kind, part) => self.live.list(kind, part),
            Notice::Listed(kind, rest) => {
                self.listed.insert(kind);
                self.live.replace(kind, rest);
            }
            // A watch that was ended may have said something before.
            Notice::Present(served) if !is_asked(served.reference()) => {}
            Notice::Present(served) => self.live.put(*served),
            Notice::Gone(object) => self.live.remove(&object),
            Notice::Found(object, found) => {
                self.awaited.remove(&object);
                if is_asked(&object) {
                    match found {
                        Some(served) => self.live.put(*served),
                        None => self.live.remove(&object),
                    }
                }
                if let Some(named) = &mut self.named {
                    named.known(&object);
                }
            }
            Notice::Strangers(kind, all) => {
                self.unknown.remove(&kind);
                self.live.replace_strangers(kind, all);
            }
            Notice::Stranger(kind, object) => self.live.put_stranger(kind, object),
            Notice::StrangersUnknown(kind) => {
                self.unknown.remove(&kind);
            }
            Notice::Recalled(kept) => {
                self.waits_for_versions = false;
                self.live.recall(kept);
            }
            Notice::Refused(object) => {
                self.awaited.remove(&object);
                if let Some(named) = &mut self.named {
                    named.known(&object);
                }
            }
        }
    }

    /// Makes what is to be told next.
    fn gather(&mut self, scope: &Scope) {
        let mut made = self.live.publish();
        if made.is_none() && !self.was_complete {
            // An empty cluster is complete too.
            made = Some(Published {
                synced: true,
                ..Published::default()
            });
        }
        self.was_complete = true;
        let (Some(published), Some(named)) = (&made, &mut self.named) else {
            self.next = made.or(self.next.take());
            return;
        };
        for secret in named.follow(&published.objects, scope) {
            self.live.remove(&secret);
        }
        self.next = self.live.publish().or(made);
    }

    fn tell(&mut self) {
        if let Some(next) = self.next.take() {
            let missing = self.named.as_mut().map(Named::give_up).unwrap_or_default();
            if !self.was_told && missing > 0 {
                tracing::warn!(
                    missing,
                    "Secrets that are named could not be read; going on without them"
                );
            }
            self.was_told = true;
            self.sender.send_replace(Arc::new(next));
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use isobar_objects::NamedSecret;
    use kube::Client;
    use kube::client::Body;

    use super::*;

    /// A server that never answers.
    fn deaf() -> Client {
        type Answer = std::io::Result<http::Response<Body>>;
        let silence = |_: http::Request<Body>| std::future::pending::<Answer>();
        Client::new(tower::service_fn(silence), "default")
    }

    #[tokio::test(start_paused = true)]
    async fn secrets_that_nobody_tells_of_hold_up_the_start_for_a_while_only() {
        let named = NamedSecret {
            secret: ObjectRef::new(Kind::Secret, "edge", "page"),
            by: ObjectRef::new(Kind::Gateway, "edge", "front"),
        };
        let (notices, incoming) = mpsc::channel(WAITING);
        let which = Which::new(move |_| vec![named.clone()]);
        let sender = watch::Sender::default();
        let mut told = sender.subscribe();
        let collector = Collector {
            kinds: &[Kind::Gateway],
            sender: &sender,
            named: Some(Named::new(which, deaf(), notices.clone())),
            live: LiveSet::new(),
            listed: BTreeSet::new(),
            unknown: BTreeSet::new(),
            waits_for_versions: false,
            awaited: BTreeSet::new(),
            next: None,
            was_complete: false,
            was_told: false,
        };
        let scope = Scope::new("test");
        let start = Instant::now();
        notices
            .send(Notice::Listed(Kind::Gateway, Vec::new()))
            .await
            .unwrap();
        tokio::select! {
            () = collector.run(incoming, &scope) => panic!("it ended"),
            told = told.changed() => told.unwrap(),
        }
        let took = start.elapsed();
        assert!(took >= AT_START && took < AT_START * 2, "{took:?}");
        scope.shutdown(Duration::ZERO).await;
    }
}

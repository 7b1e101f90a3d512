//! Secrets that something names, each watched by its name: the server is never asked for others, and what
//! it does not let us have is as if it were not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isobar_objects::{Kind, ObjectRef, ObjectSet};
use isobar_runtime::Scope;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::watch::{Notice, Watch};

/// Secrets that are followed at most; each takes a connection to the API server.
const MOST: usize = 256;
/// For a Secret that is named for the first time to be found, before the rest goes on without it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Secrets by namespace and name.
pub type Names = BTreeSet<ObjectRef>;

/// Says which Secrets the objects name.
#[derive(Clone)]
pub(crate) struct Which(Arc<dyn Fn(&ObjectSet) -> Names + Send + Sync>);

impl Which {
    pub(crate) fn new(which: impl Fn(&ObjectSet) -> Names + Send + Sync + 'static) -> Self {
        Self(Arc::new(which))
    }
}

impl fmt::Debug for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Which(..)")
    }
}

/// The Secrets that are followed.
pub(crate) struct Named {
    which: Which,
    client: Client,
    notices: mpsc::Sender<Notice>,
    followed: BTreeMap<ObjectRef, Followed>,
    /// How many were too many when that was last said.
    left_out: usize,
}

struct Followed {
    since: Instant,
    is_known: bool,
    /// The watch ends with it.
    _stop: watch::Sender<()>,
}

impl Named {
    pub(crate) fn new(which: Which, client: Client, notices: mpsc::Sender<Notice>) -> Self {
        Self {
            which,
            client,
            notices,
            followed: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// Begins and ends watches; Secrets that are not named any more.
    pub(crate) fn follow(&mut self, objects: &ObjectSet, scope: &Scope) -> Vec<ObjectRef> {
        let wanted = (self.which.0)(objects);
        let all = self.followed.keys();
        let gone: Vec<ObjectRef> = all.filter(|one| !wanted.contains(*one)).cloned().collect();
        for one in &gone {
            self.followed.remove(one);
        }
        let left_out = wanted.len().saturating_sub(MOST);
        if left_out > self.left_out {
            tracing::warn!(
                left_out,
                most = MOST,
                "too many Secrets are named: some are not read"
            );
        }
        self.left_out = left_out;
        for secret in wanted {
            if self.followed.len() < MOST && !self.followed.contains_key(&secret) {
                let followed = self.begin(secret.clone(), scope);
                self.followed.insert(secret, followed);
            }
        }
        gone
    }

    fn begin(&self, secret: ObjectRef, scope: &Scope) -> Followed {
        let (stop, mut stopped) = watch::channel(());
        let watch = Watch {
            kind: Kind::Secret,
            client: self.client.clone(),
            fields: None,
            only: Some(secret),
            slim: true,
            notices: self.notices.clone(),
        };
        scope.spawn("secret", async move {
            tokio::select! {
                () = watch.run() => {}
                _ = stopped.changed() => {}
            }
        });
        Followed {
            since: Instant::now(),
            is_known: false,
            _stop: stop,
        }
    }

    /// True if this Secret is one of those.
    pub(crate) fn follows(&self, secret: &ObjectRef) -> bool {
        self.followed.contains_key(secret)
    }

    /// It was found, or it is known that there is none to be had.
    pub(crate) fn known(&mut self, secret: &ObjectRef) {
        if let Some(followed) = self.followed.get_mut(secret) {
            followed.is_known = true;
        }
    }

    /// Until when others wait for what is not known yet, if anything is not.
    pub(crate) fn wait(&self) -> Option<Instant> {
        let unknown = self.followed.values().filter(|one| !one.is_known);
        unknown.map(|one| one.since + PATIENCE).max()
    }
}

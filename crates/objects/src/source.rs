use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use isobar_runtime::Lifetime;
use tokio::sync::watch;

use crate::finding::Finding;
use crate::invalid::Invalids;
use crate::kinds::ObjectRef;
use crate::read::Hidden;
use crate::set::ObjectSet;

/// What a source has to say at one moment.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Objects in force.
    pub objects: Arc<ObjectSet>,
    /// Everything that is wrong or worth knowing now, errors first within a file.
    pub findings: Arc<Vec<Finding>>,
    /// False until the source has seen everything once; nothing may be served before.
    pub synced: bool,
    /// What may be written where nothing could be read.
    pub hidden: Obscured,
    /// Objects whose present version is not in force, and why.
    pub invalid: Arc<Invalids>,
}

impl Published {
    /// True if nothing is known of the object, and it may be written in something that could not be
    /// read: that it is not among the objects then says nothing.
    #[must_use]
    pub fn may_hide(&self, object: &ObjectRef) -> bool {
        !self.objects.contains(object) && self.hidden.0.iter().any(|one| one.covers(object))
    }
}

/// Which objects may be written in files that are broken or cannot be read. Empty while all is well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obscured(pub(crate) Arc<Vec<Hidden>>);

/// Where objects come from: a directory, later also an API server.
pub trait ObjectSource: Send + 'static {
    /// Follows the source. The receiver always holds the latest publication.
    fn subscribe(&self) -> watch::Receiver<Arc<Published>>;

    /// Watches until `life` ends.
    fn run(self: Box<Self>, life: Lifetime) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A source whose publications are set by hand; for tests and offline tools.
#[derive(Debug)]
pub struct StaticSource {
    sender: watch::Sender<Arc<Published>>,
}

impl StaticSource {
    /// A synced source with these objects.
    #[must_use]
    pub fn new(objects: ObjectSet) -> Self {
        Self {
            sender: watch::Sender::new(Arc::new(Published {
                objects: Arc::new(objects),
                findings: Arc::default(),
                synced: true,
                ..Published::default()
            })),
        }
    }

    /// The sending side, to publish more.
    #[must_use]
    pub fn sender(&self) -> watch::Sender<Arc<Published>> {
        self.sender.clone()
    }
}

impl ObjectSource for StaticSource {
    fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.sender.subscribe()
    }

    fn run(self: Box<Self>, life: Lifetime) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { life.stopped().await })
    }
}

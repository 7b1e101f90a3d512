//! Workload certificates: one a identity, fetched early, renewed at half life, kept through any
//! outage of the authority until they expire.

mod client;
mod error;
mod follow;
mod revoked;
mod schedule;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use isobar_runtime::Lifetime;
use isobar_tls::WorkloadCertificate;
use isobar_types::Identity;
use tokio::sync::{mpsc, watch};

pub use client::CaClient;
pub use error::CertError;
pub use revoked::RevocationFile;
use schedule::Priority;
use worker::{Command, Worker};

use crate::saved::SavedCertificates;

/// Wishes that may wait for the worker.
const QUEUE: usize = 1024;

/// Gives certificates; the seam for tests and for static certificates.
pub trait CertSource: Send + Sync {
    /// A valid certificate for `identity`; waits for the first one, fails at once while the
    /// authority refuses. The caller sets the time limit.
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Arc<WorkloadCertificate>, CertError>>;
}

/// Asks an authority for one certificate.
pub trait Requester: Send + Sync {
    /// One request, no retry; the implementation sets a time limit.
    fn request<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<WorkloadCertificate, CertError>>;
}

/// Wall clock; a parameter so that tests can move it.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The certificates of this proxy and its pods. Cheap to clone.
#[derive(Clone)]
pub struct CertManager {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

struct Shared {
    /// Held for the time of a look-up or an insertion, never across an await.
    entries: RwLock<HashMap<Identity, watch::Sender<CertState>>>,
    clock: Clock,
}

/// What is known about one identity's certificate.
#[derive(Debug, Clone)]
pub enum CertState {
    /// Asked for, no answer yet.
    Initializing,
    /// In hand.
    Available(Arc<WorkloadCertificate>),
    /// The last attempt failed and no valid certificate is in hand; it will be tried again.
    Unavailable(CertError),
}

/// One line of a dump.
#[derive(Debug, Clone)]
pub struct CertReport {
    /// Whose.
    pub identity: Identity,
    /// In which state.
    pub state: CertState,
}

impl CertManager {
    /// A manager and the future that does its work; without the latter running nothing is fetched.
    pub fn new(
        requester: Arc<dyn Requester>,
        life: Lifetime,
    ) -> (Self, impl Future<Output = ()> + Send) {
        Self::with_clock(requester, life, Arc::new(SystemTime::now))
    }

    /// As [`Self::new`], with a clock of the caller's.
    pub fn with_clock(
        requester: Arc<dyn Requester>,
        life: Lifetime,
        clock: Clock,
    ) -> (Self, impl Future<Output = ()> + Send) {
        Self::with_saved(requester, life, clock, None)
    }

    /// As [`Self::with_clock`]; starts with the certificates that were saved, keeps them in step
    /// from then on, and renews them as if they had just been issued.
    pub fn with_saved(
        requester: Arc<dyn Requester>,
        life: Lifetime,
        clock: Clock,
        saved: Option<SavedCertificates>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            entries: RwLock::new(HashMap::new()),
            clock,
        });
        let mut worker = Worker::new(Arc::clone(&shared), requester, queue, saved);
        worker.restore();
        let work = async move {
            tokio::select! {
                () = life.stopped() => {}
                () = worker.run() => {}
            }
        };
        (Self { shared, commands }, work)
    }

    /// The certificate in hand, if it is valid now. Never waits and never asks for one.
    #[must_use]
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        let entries = self.shared.read();
        let state = entries.get(identity)?.borrow();
        match &*state {
            CertState::Available(cert) if cert.is_valid_at((self.shared.clock)()) => {
                Some(Arc::clone(cert))
            }
            _ => None,
        }
    }

    /// Wants a certificate soon, without waiting for it. Where too many are wanted at once the
    /// wish is dropped: the first connection will ask again.
    pub fn prefetch(&self, identity: &Identity) {
        if self.shared.read().contains_key(identity) {
            return;
        }
        self.shared.subscribe(identity);
        let wish = Command::Want(identity.clone(), Priority::Warmup);
        if self.commands.try_send(wish).is_err() {
            self.shared.write().remove(identity);
            tracing::debug!(%identity, "prefetch dropped: too many certificates wanted at once");
        }
    }

    /// Drops the certificate and stops renewing it.
    pub async fn forget(&self, identity: &Identity) {
        self.shared.write().remove(identity);
        // A worker that is gone renews nothing.
        let _ = self.commands.send(Command::Forget(identity.clone())).await;
    }

    /// Every identity, in order.
    #[must_use]
    pub fn report(&self) -> Vec<CertReport> {
        let entries = self.shared.read();
        let mut all: Vec<_> = entries
            .iter()
            .map(|(identity, state)| CertReport {
                identity: identity.clone(),
                state: state.borrow().clone(),
            })
            .collect();
        drop(entries);
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// Identities with a certificate or a wish for one.
    fn identities(&self) -> BTreeSet<Identity> {
        self.shared.read().keys().cloned().collect()
    }

    async fn wait(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, CertError> {
        if let Some(cert) = self.current(identity) {
            return Ok(cert);
        }
        let mut state = self.shared.subscribe(identity);
        if let CertState::Unavailable(error) = &*state.borrow_and_update() {
            return Err(error.clone());
        }
        let wish = Command::Want(identity.clone(), Priority::RealTime);
        self.commands
            .send(wish)
            .await
            .map_err(|_| CertError::Stopped)?;
        loop {
            match &*state.borrow_and_update() {
                CertState::Available(cert) if cert.is_valid_at((self.shared.clock)()) => {
                    return Ok(Arc::clone(cert));
                }
                CertState::Unavailable(error) => return Err(error.clone()),
                CertState::Available(_) | CertState::Initializing => {}
            }
            if state.changed().await.is_err() {
                return Err(if self.commands.is_closed() {
                    CertError::Stopped
                } else {
                    CertError::Forgotten
                });
            }
        }
    }
}

impl CertSource for CertManager {
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Arc<WorkloadCertificate>, CertError>> {
        Box::pin(self.wait(identity))
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<Identity, watch::Sender<CertState>>> {
        // Insertions and removals leave the map whole, so a poisoned lock is as good as any.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Identity, watch::Sender<CertState>>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of an identity, made if missing.
    fn subscribe(&self, identity: &Identity) -> watch::Receiver<CertState> {
        if let Some(entry) = self.read().get(identity) {
            return entry.subscribe();
        }
        self.write()
            .entry(identity.clone())
            .or_insert_with(|| watch::Sender::new(CertState::Initializing))
            .subscribe()
    }

    /// Tells the state of an identity; one that was forgotten stays so.
    fn set(&self, identity: &Identity, state: CertState) {
        if let Some(entry) = self.read().get(identity) {
            entry.send_replace(state);
        }
    }
}

impl fmt::Debug for CertManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertManager")
            .field("identities", &self.shared.read().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use isobar_tls::WorkloadCertificate;
use isobar_types::Identity;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::schedule::{Priority, Schedule};
use super::{CertError, CertState, Requester, Shared};
use crate::saved::SavedCertificates;

/// Requests under way at one time.
const IN_FLIGHT: usize = 8;
/// Longest sleep: a suspended machine's timers lag behind its wall clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

pub(super) enum Command {
    Want(Identity, Priority),
    Forget(Identity),
}

type Landing = (Identity, Result<WorkloadCertificate, CertError>);

pub(super) struct Worker {
    shared: Arc<Shared>,
    requester: Arc<dyn Requester>,
    queue: mpsc::Receiver<Command>,
    schedule: Schedule,
    saved: Option<SavedCertificates>,
}

enum Event {
    Command(Option<Command>),
    Landed(Box<Landing>),
    Time,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        requester: Arc<dyn Requester>,
        queue: mpsc::Receiver<Command>,
        saved: Option<SavedCertificates>,
    ) -> Self {
        Self {
            shared,
            requester,
            queue,
            schedule: Schedule::default(),
            saved,
        }
    }

    /// Puts the saved certificates in force, each with its renewal half-way through its life.
    pub(super) fn restore(&mut self) {
        let Some(saved) = &self.saved else { return };
        let (now, wall) = (Instant::now(), (self.shared.clock)());
        for cert in saved.load(wall) {
            let identity = cert.identity().clone();
            let due = now + until(cert.renew_at(), wall);
            tracing::info!(%identity, renew_in = ?(due - now), "certificate restored");
            self.schedule.want(&identity, Priority::Background, due);
            // The receiver is not needed: this makes the entry.
            let _ = self.shared.subscribe(&identity);
            self.shared
                .set(&identity, CertState::Available(Arc::new(cert)));
        }
    }

    /// Ends when the last manager is dropped.
    pub(super) async fn run(mut self) {
        let requester = Arc::clone(&self.requester);
        let mut flights: FuturesUnordered<BoxFuture<'_, Landing>> = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            while self.schedule.in_flight() < IN_FLIGHT {
                let Some(identity) = self.schedule.start(now) else {
                    break;
                };
                let requester = &requester;
                flights.push(Box::pin(async move {
                    let result = requester.request(&identity).await;
                    (identity, result)
                }));
            }
            let full = self.schedule.in_flight() >= IN_FLIGHT;
            let longest = now + LONGEST_SLEEP;
            let wake = match self.schedule.next_due() {
                Some(due) if !full => due.min(longest),
                _ => longest,
            };
            let event = tokio::select! {
                command = self.queue.recv() => Event::Command(command),
                Some(landing) = flights.next() => Event::Landed(Box::new(landing)),
                () = tokio::time::sleep_until(wake) => Event::Time,
            };
            match event {
                Event::Command(None) => return,
                Event::Command(Some(Command::Want(identity, priority))) => {
                    self.schedule.want(&identity, priority, Instant::now());
                }
                Event::Command(Some(Command::Forget(identity))) => {
                    self.schedule.forget(&identity);
                    if let Some(saved) = &self.saved {
                        saved.remove(&identity);
                    }
                }
                Event::Landed(landing) => {
                    let (identity, result) = *landing;
                    self.land(&identity, result);
                }
                Event::Time => {}
            }
        }
    }

    fn land(&mut self, identity: &Identity, result: Result<WorkloadCertificate, CertError>) {
        let now = Instant::now();
        let wall = (self.shared.clock)();
        match result.and_then(|cert| in_force(cert, wall)) {
            Ok(cert) => {
                let renew = now + until(cert.renew_at(), wall).max(Duration::from_secs(1));
                if self.schedule.succeeded(identity, renew, now) {
                    tracing::info!(%identity, renew_in = ?(renew - now), "certificate issued");
                    // Memory only, so this takes no longer than copying it.
                    if let Some(saved) = &self.saved
                        && let Err(error) = saved.save(&cert)
                    {
                        tracing::warn!(%identity, "the certificate is not saved: {error}");
                    }
                    self.shared
                        .set(identity, CertState::Available(Arc::new(cert)));
                }
            }
            Err(error) => {
                let held = self.valid_until(identity, wall);
                let latest = held.map(|end| now + until(end, wall));
                let unreachable = matches!(error, CertError::Unreachable { .. });
                let wait = self
                    .schedule
                    .failed(identity, unreachable, latest, now, rand::random());
                let Some(wait) = wait else { return };
                if held.is_some() {
                    tracing::warn!(?wait, "{error}; the one in hand is still valid");
                } else {
                    tracing::warn!(?wait, "{error}");
                    self.shared.set(identity, CertState::Unavailable(error));
                }
            }
        }
    }

    fn valid_until(&self, identity: &Identity, wall: SystemTime) -> Option<SystemTime> {
        let entries = self.shared.read();
        let state = entries.get(identity)?.borrow();
        match &*state {
            CertState::Available(cert) if cert.is_valid_at(wall) => Some(cert.not_after()),
            _ => None,
        }
    }
}

impl Drop for Worker {
    /// However the worker ends, whoever still waits for a certificate gets an answer.
    fn drop(&mut self) {
        self.queue.close();
        self.shared.write().clear();
    }
}

/// An answer that is out of date, or ahead of it, by the clock of this machine is as good as none: what is
/// in hand stays.
fn in_force(cert: WorkloadCertificate, wall: SystemTime) -> Result<WorkloadCertificate, CertError> {
    if cert.is_valid_at(wall) {
        return Ok(cert);
    }
    let detail = match cert.not_before().duration_since(wall) {
        Ok(ahead) => format!("it is not valid for another {} s", ahead.as_secs()),
        Err(_) => format!("it ended {} s ago", until(wall, cert.not_after()).as_secs()),
    };
    Err(CertError::Unusable {
        identity: cert.identity().clone(),
        detail: format!("{detail} by the clock of this machine: is one of the clocks wrong?"),
    })
}

fn until(at: SystemTime, wall: SystemTime) -> Duration {
    at.duration_since(wall).unwrap_or(Duration::ZERO)
}

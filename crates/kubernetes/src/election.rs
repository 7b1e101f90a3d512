//! Which of several replicas writes: the holder of a `Lease`.
//!
//! The holder renews it every [`Timing::retry`]; who could not renew it for [`Timing::renew`] stops
//! by itself, before others may take it, which they may after [`Timing::lease`] without a change.
//! Time is only ever compared on one clock: not what the lease says counts, but when this process
//! saw it change.

use std::time::Duration;

use isobar_runtime::Lifetime;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cluster::Cluster;

/// How patient the parties are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A lease that did not change for so long may be taken.
    pub lease: Duration,
    /// Who could not renew for so long stops leading.
    pub renew: Duration,
    /// Pause between two tries.
    pub retry: Duration,
}

impl Default for Timing {
    /// 10 s, 7 s and 2 s: writes go on less than 15 s after a holder died.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            renew: Duration::from_secs(7),
            retry: Duration::from_secs(2),
        }
    }
}

/// A candidate for one lease.
#[derive(Debug)]
pub struct Candidate {
    cluster: Cluster,
    namespace: String,
    lease: String,
    identity: String,
    timing: Timing,
    leads: watch::Sender<bool>,
    seen: Option<Seen>,
    /// When the lease was last held for sure.
    renewed: Option<Instant>,
}

/// The lease as it was when it last changed, and when that was seen.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    version: Option<String>,
    at: Instant,
}

/// What to do about the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// Renew it.
    Keep,
    /// Take it: it is free or its holder is silent.
    Take,
    /// Leave it.
    Wait,
}

/// True if somebody holds the lease and renews it: it changes within `timing.lease`, for which this
/// waits at most.
///
/// # Errors
/// When the API server refuses or cannot be reached.
pub async fn is_held(
    cluster: &Cluster,
    namespace: &str,
    lease: &str,
    timing: Timing,
) -> Result<bool, kube::Error> {
    let leases: Api<Lease> = Api::namespaced(cluster.client(), namespace);
    let begun = Instant::now();
    let mut first: Option<Option<String>> = None;
    loop {
        let Some(found) = leases.get_opt(lease).await? else {
            return Ok(false);
        };
        let holder = found.spec.and_then(|spec| spec.holder_identity);
        if holder.is_none_or(|holder| holder.is_empty()) {
            return Ok(false);
        }
        let version = found.metadata.resource_version;
        match &first {
            None => first = Some(version),
            Some(before) if *before != version => return Ok(true),
            Some(_) => {}
        }
        if begun.elapsed() >= timing.lease {
            return Ok(false);
        }
        tokio::time::sleep(timing.retry / 4).await;
    }
}

impl Candidate {
    /// A candidate that calls itself `identity`, which no other may.
    #[must_use]
    pub fn new(
        cluster: Cluster,
        namespace: &str,
        lease: &str,
        identity: &str,
        timing: Timing,
    ) -> Self {
        Self {
            cluster,
            namespace: namespace.to_owned(),
            lease: lease.to_owned(),
            identity: identity.to_owned(),
            timing,
            leads: watch::Sender::new(false),
            seen: None,
            renewed: None,
        }
    }

    /// True while this candidate leads.
    #[must_use]
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Stands until `life` drains, then gives the lease back so that another need not wait.
    pub async fn run(mut self, life: Lifetime) {
        loop {
            let limit = self.limit();
            let tried = tokio::time::timeout(limit, self.step());
            let tried = tokio::select! {
                tried = tried => tried,
                () = life.draining() => break,
            };
            match tried {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(lease = self.lease, %error, "the lease could not be written");
                }
                Err(_) => tracing::debug!(lease = self.lease, "no answer about the lease"),
            }
            self.judge();
            tokio::select! {
                () = life.draining() => break,
                () = tokio::time::sleep(self.pause()) => {}
            }
        }
        if *self.leads.borrow() {
            self.leads.send_replace(false);
            let released = tokio::time::timeout(self.timing.retry, self.release()).await;
            if !matches!(released, Ok(Ok(()))) {
                tracing::debug!(
                    lease = self.lease,
                    "the lease was not given back; it runs out"
                );
            }
        }
    }

    /// A try must not outlast the time to stop in.
    fn limit(&self) -> Duration {
        self.left().unwrap_or(self.timing.renew)
    }

    /// Nor must the pause before the next one: who cannot renew stops in time.
    fn pause(&self) -> Duration {
        let left = self.left().unwrap_or(self.timing.retry);
        left.min(self.timing.retry)
    }

    /// The time to stop in, for who leads.
    fn left(&self) -> Option<Duration> {
        let end = self.renewed.filter(|_| *self.leads.borrow())? + self.timing.renew;
        Some(end.saturating_duration_since(Instant::now()))
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.cluster.client(), &self.namespace)
    }

    async fn step(&mut self) -> Result<(), kube::Error> {
        let leases = self.leases();
        let asked = Instant::now();
        let Some(mut lease) = leases.get_opt(&self.lease).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.lease.clone()),
                    namespace: Some(self.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.held(&LeaseSpec::default(), true)),
            };
            leases.create(&PostParams::default(), &lease).await?;
            self.renewed = Some(asked);
            return Ok(());
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let step = self.decide(lease.metadata.resource_version.clone(), &spec, asked);
        if step == Move::Wait {
            self.renewed = None;
            return Ok(());
        }
        lease.spec = Some(self.held(&spec, step == Move::Take));
        // The version read goes with it: of two that take it at once, one is refused.
        leases
            .replace(&self.lease, &PostParams::default(), &lease)
            .await?;
        self.renewed = Some(asked);
        Ok(())
    }

    fn decide(&mut self, version: Option<String>, spec: &LeaseSpec, now: Instant) -> Move {
        let is_new = self
            .seen
            .as_ref()
            .is_none_or(|seen| seen.version != version);
        if is_new {
            self.seen = Some(Seen { version, at: now });
        }
        let silent = self.seen.as_ref().map_or(Duration::ZERO, |seen| {
            now.saturating_duration_since(seen.at)
        });
        match spec.holder_identity.as_deref() {
            Some(holder) if holder == self.identity => Move::Keep,
            None | Some("") => Move::Take,
            Some(_) if silent >= self.timing.lease => Move::Take,
            Some(_) => Move::Wait,
        }
    }

    fn held(&self, before: &LeaseSpec, is_taken: bool) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let turns = before.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs().max(1)).ok(),
            renew_time: Some(now.clone()),
            acquire_time: match is_taken {
                true => Some(now),
                false => before.acquire_time.clone(),
            },
            lease_transitions: Some(turns.saturating_add(i32::from(is_taken))),
            ..LeaseSpec::default()
        }
    }

    /// Leads exactly as long as the lease was renewed not too long ago.
    fn judge(&mut self) {
        let now = Instant::now();
        let leads = self
            .renewed
            .is_some_and(|at| now.saturating_duration_since(at) < self.timing.renew);
        let changed = self.leads.send_if_modified(|before| {
            let changed = *before != leads;
            *before = leads;
            changed
        });
        if changed {
            tracing::info!(
                lease = self.lease,
                identity = self.identity,
                leads,
                "leadership"
            );
        }
    }

    async fn release(&mut self) -> Result<(), kube::Error> {
        let leases = self.leases();
        let mut lease = leases.get(&self.lease).await?;
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            leases
                .replace(&self.lease, &PostParams::default(), &lease)
                .await?;
        }
        Ok(())
    }
}

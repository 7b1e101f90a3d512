//! One pod on one worker: accepts, and carries bytes.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_hbone::{BaggageValue, Batch, Endpoint, Pool, Progress, relay_counted};
use isobar_runtime::{Lifetime, LifetimeOwner, LocalScope};
use isobar_state::{Denied, DryRun, Permit, Workload};
use isobar_telemetry::access::{self, Direction};
use isobar_types::Reason;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::accept::accept_all;
use super::connections::InboundGuard;
use super::ledger::{Accounts, Ending, Ledger};
use super::together::Turn;
use super::{Pod, PodListeners, Refused, World, inbound, outbound, plaintext, socks5, tunnel};

/// How often the byte counters of an open connection are brought up to date.
const COUNT: Duration = Duration::from_secs(5);
/// For connections to write their last line once they were told to end.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// For both sides of a connection that is cut in order to see its end.
const FAREWELL: Duration = Duration::from_millis(150);
/// How long open connections may run on here; whoever drains sets the real limit.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Name of the tasks of captured connections of the pod's application.
const OUTBOUND: &str = "outbound";

/// One pod on one worker thread.
pub(super) struct PodWorker {
    pub(super) world: Arc<World>,
    pub(super) pod: Arc<Pod>,
    /// Tunnels of this pod from this thread.
    pub(super) pool: Pool,
    /// Counters of this pod's connections on this thread.
    pub(super) accounts: Accounts,
    /// What peers are told of the pod's workload, and of which object of it that is.
    described: RefCell<Option<(Arc<Workload>, Option<BaggageValue>)>>,
    /// Life of the tunnels that end here: drains with the pod, stops once their streams have
    /// written their last line.
    pub(super) tunnels: Lifetime,
    scope: LocalScope,
}

/// An inbound connection whose way to the application is open. Boxed as a whole: it lives long, and
/// moves.
pub(super) struct Delivered<A> {
    pub(super) downstream: A,
    pub(super) upstream: TcpStream,
    pub(super) guard: InboundGuard,
    pub(super) ledger: Ledger,
}

/// Serves a pod on the calling worker until it ends.
pub async fn serve_pod(world: Arc<World>, pod: Arc<Pod>, listeners: PodListeners) {
    let pool = tunnel::pool(&world, &pod);
    let tunnels = LifetimeOwner::new();
    let accounts = Accounts::new(world.metrics.clone(), world.store.clone());
    let worker = Rc::new(PodWorker {
        accounts,
        world,
        pod,
        pool,
        described: RefCell::default(),
        tunnels: tunnels.lifetime(),
        scope: LocalScope::new("pod"),
    });
    let PodListeners {
        outbound: captured,
        plaintext: plain,
        hbone,
        socks5: socks,
    } = listeners;
    if let Some(captured) = captured {
        worker.listen(OUTBOUND, captured, outbound::serve);
    }
    if let Some(plain) = plain {
        worker.listen("plaintext", plain, plaintext::serve);
    }
    if let Some(socks) = socks {
        worker.listen("socks5", socks, socks5::serve);
    }
    worker.listen("hbone", hbone, inbound::serve);
    worker.pod.draining().await;
    tunnels.drain();
    tokio::select! {
        _ = worker.pod.cut() => {}
        _ = worker.scope.shutdown(PATIENCE) => {}
    }
    // Every connection watches the cut itself and says why it ends; then its tunnel may go.
    tokio::select! {
        () = tokio::time::sleep(LAST_WORDS) => {}
        _ = worker.scope.shutdown(PATIENCE) => {}
    }
    tunnels.stop();
    worker.scope.shutdown(LAST_WORDS).await;
}

/// An orderly end towards both sides: each sees the end of the stream, and what it still sends is
/// taken for a moment, since closing with unread bytes would be a reset.
async fn farewell<A: Endpoint, B: Endpoint>(downstream: &mut A, upstream: &mut B) {
    let ends = async { tokio::join!(finish(downstream), finish(upstream)) };
    // Who does not end by then is cut.
    let _ = tokio::time::timeout(FAREWELL, ends).await;
}

async fn finish<E: Endpoint>(endpoint: &mut E) {
    if poll_fn(|cx| endpoint.poll_finish(cx)).await.is_err() {
        return;
    }
    let mut batch = Batch::default();
    while let Ok(true) = poll_fn(|cx| endpoint.poll_receive(cx, &mut batch)).await {
        while let Some(chunk) = batch.take(usize::MAX) {
            endpoint.passed_on(chunk.len());
        }
    }
}

impl PodWorker {
    /// What peers are told of the pod's workload: written anew when that has changed.
    pub(super) fn described(&self, workload: &Arc<Workload>) -> Option<BaggageValue> {
        let mut known = self.described.borrow_mut();
        match &*known {
            Some((of, value)) if Arc::ptr_eq(of, workload) => value.clone(),
            _ => {
                let value = BaggageValue::of(&tunnel::describe(workload));
                *known = Some((workload.clone(), value.clone()));
                value
            }
        }
    }

    fn listen<S, F>(
        self: &Rc<Self>,
        what: &'static str,
        listener: tokio::net::TcpListener,
        serve: S,
    ) where
        S: Fn(Rc<Self>, TcpStream, SocketAddr) -> F + Copy + 'static,
        F: Future<Output = ()> + 'static,
    {
        let worker = self.clone();
        self.scope.spawn(what, async move {
            let PodWorker { world, pod, .. } = &*worker;
            // What the application opens may go to one worker: callers' tunnels come one at a time.
            let workers = if what == OUTBOUND {
                world.config.worker_threads
            } else {
                1
            };
            let mut turn = Turn::new(pod, workers);
            accept_all(pod, &world.descriptors, listener, &mut turn, |tcp, peer| {
                worker.scope.spawn(what, serve(worker.clone(), tcp, peer));
            })
            .await;
        });
    }

    /// Carries bytes until both directions have ended, or `stop` says otherwise. Returns how it
    /// ended; `count` is told the bytes up and down so far, now and then and at the end.
    pub(super) async fn carry<A: Endpoint, B: Endpoint>(
        &self,
        downstream: &mut A,
        upstream: &mut B,
        mut count: impl FnMut(u64, u64),
        // Pinned by the caller: given by value it would take its room twice.
        mut stop: Pin<&mut impl Future<Output = Ending>>,
    ) -> Ending {
        let progress = Progress::default();
        let stopped = {
            let mut relay = pin!(relay_counted(downstream, upstream, &progress));
            let mut tick = interval_at(Instant::now() + COUNT, COUNT);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased; // the cause of an end must win over the broken pipe it produces
                    ending = &mut stop => break Err(ending),
                    end = &mut relay => break Ok(end),
                    _ = tick.tick() => count(progress.sent(), progress.received()),
                }
            }
        };
        count(progress.sent(), progress.received());
        match stopped {
            Ok(Ok(())) => Ending::complete(),
            Ok(Err(error)) => {
                tracing::debug!(%error, "relay ended");
                match downstream.cause().or_else(|| upstream.cause()) {
                    Some(cause) => Ending::failed(cause, "the peer's certificate is revoked"),
                    None => Ending::broken(error.reason()),
                }
            }
            Err(ending) => {
                if ending.is_gentle() {
                    // Boxed, like all that few connections ever need.
                    Box::pin(farewell(downstream, upstream)).await;
                } else {
                    downstream.reset();
                    upstream.reset();
                }
                ending
            }
        }
    }

    /// Carries an inbound connection while it is allowed, and closes its ledger.
    pub(super) async fn carry_inbound<A: Endpoint>(&self, mut delivered: Box<Delivered<A>>) {
        let ending = {
            let Delivered {
                downstream,
                upstream,
                guard,
                ledger,
            } = &mut *delivered;
            let stop = pin!(async {
                tokio::select! {
                    ending = guard.withdrawn() => ending,
                    ending = self.pod.cut_ending() => ending,
                }
            });
            let count = |sent, received| ledger.count(sent, received);
            self.carry(downstream, upstream, count, stop).await
        };
        let Delivered { guard, ledger, .. } = *delivered;
        drop(guard);
        ledger.close(ending);
    }

    /// Counts and logs a connection refused before its way was known.
    pub(super) fn tell_refused(
        &self,
        direction: Direction,
        client: SocketAddr,
        destination: SocketAddr,
        refused: &Refused,
    ) {
        let reason = refused.reason;
        self.world.metrics.refused_early(direction, reason);
        access::refused_early(direction, client, destination, reason, &refused.detail);
    }

    /// What is worth telling about a decision to let in.
    pub(super) fn tell_permit(&self, permit: &Permit) {
        for policy in permit.missing() {
            tracing::warn!(
                pod = self.pod.display_name(),
                %policy,
                "the workload lists a policy that has not arrived; it is skipped"
            );
        }
        self.tell_dry_runs(permit.dry_runs());
        let policy = permit.allowed_by().map(tracing::field::display);
        if self.world.config.logging.decisions_at_info {
            tracing::info!(policy, "allowed");
        } else {
            tracing::debug!(policy, "allowed");
        }
    }

    /// What is worth telling about a decision to refuse.
    pub(super) fn tell_denied(&self, denied: &Denied) {
        self.tell_dry_runs(&denied.dry_runs);
        let policy = denied.policy.as_ref().map(tracing::field::display);
        if self.world.config.logging.decisions_at_info {
            tracing::info!(policy, detail = denied.detail, "denied");
        } else {
            tracing::debug!(policy, detail = denied.detail, "denied");
        }
    }

    fn tell_dry_runs(&self, dry_runs: &[DryRun]) {
        for run in dry_runs {
            let policy = run.policy.as_ref().map(ToString::to_string);
            let reason = run.refusal().map(Reason::as_str);
            if let Some(reason) = run.refusal() {
                let policy = policy.as_deref().unwrap_or_default();
                self.world.metrics.dry_run_denial(policy, reason);
            }
            tracing::info!(
                pod = self.pod.display_name(),
                policy,
                action = ?run.action,
                reason,
                "dry run of a policy"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// Held for as long as a connection is open, and most are idle: what opens the way is boxed and
    /// gone by then. What is allocated beside it is measured by `make bench-l4`, part `idle`.
    #[test]
    fn an_open_connection_takes_little_room() {
        let rooms = [
            room(outbound::serve),
            room(plaintext::serve),
            room(socks5::serve),
            room(inbound::request),
        ];
        assert!(rooms.iter().all(|room| *room <= 1536), "{rooms:?}");
        let connection = room(inbound::serve);
        assert!(connection <= 768, "{connection}");
    }
}

//! Making the connection a way leads to, and trying another endpoint where one does not take it.

use std::time::Duration;

use futures_util::FutureExt as _;
use isobar_state::outbound::{NextHop, route_again};
use isobar_state::{ConnectionLimits, Place, Workload};
use isobar_types::Reason;

use super::{Attributed, Failed, Opened, Routed, Upstream, connect};
use crate::proxy::connections::{OutboundGuard, Passed, Slot, View};
use crate::proxy::ledger::{Ending, Ledger};
use crate::proxy::neighbour::{Caller, Neighbour};
use crate::proxy::way::way;
use crate::proxy::worker::PodWorker;

/// Endpoints that are tried for one connection, and for how long after it came: most applications wait
/// no longer.
const TRIES: usize = 3;
const TRYING: Duration = Duration::from_secs(15);

/// What came of one try.
enum Try {
    Open(Box<Connected>),
    Failed(Box<(Ledger, Failed)>),
    /// Told already.
    Over,
}

/// An open way to the other side.
struct Connected {
    upstream: Upstream,
    ledger: Ledger,
    listed: OutboundGuard,
    slot: Option<Slot>,
}

impl Routed {
    /// Tries the way, and where an endpoint does not take the connection another one: nothing of the
    /// application's has been sent. `None`: not opened, and told.
    pub(super) async fn open(mut self, worker: &PodWorker) -> Option<Box<Opened>> {
        let mut tried = Vec::new();
        loop {
            match self.connect(worker).await {
                Try::Open(way) => {
                    let Connected {
                        upstream,
                        ledger,
                        listed,
                        slot,
                    } = *way;
                    return Some(Box::new(Opened {
                        downstream: self.attributed.accepted.tcp,
                        upstream,
                        ledger,
                        listed,
                        slot,
                    }));
                }
                Try::Failed(both) => {
                    let (ledger, failed) = *both;
                    let next = self.elsewhere(worker, &failed, &mut tried);
                    ledger.close(Ending::failed(failed.reason, failed.detail));
                    self.hop = next?;
                }
                Try::Over => return None,
            }
        }
    }

    /// The way to another endpoint, if there is one and the last failed for no fault of this side.
    fn elsewhere(
        &self,
        worker: &PodWorker,
        failed: &Failed,
        tried: &mut Vec<Place>,
    ) -> Option<NextHop> {
        let endpoint = self.hop.endpoint().filter(|_| failed.by_endpoint)?;
        tried.push(Place::from(&**endpoint));
        let Attributed { accepted, .. } = &self.attributed;
        if tried.len() >= TRIES || accepted.since.elapsed() >= TRYING {
            return None;
        }
        let snapshot = worker.world.store.load();
        let call = self.attributed.call(worker);
        route_again(&snapshot, &call, tried, self.dice).ok()
    }

    async fn connect(&self, worker: &PodWorker) -> Try {
        let Self {
            attributed: Attributed { accepted, source },
            hop,
            limits,
            ..
        } = self;
        let neighbour = Neighbour::of(worker, hop);
        let way = way(hop, accepted.destination, neighbour.is_some());
        let view = View {
            src: accepted.client,
            original_dst: Some(accepted.destination.into()),
            actual_dst: match &way.authority {
                Some(authority) => authority.as_str().into(),
                None => way.to.into(),
            },
            protocol: if way.authority.is_some() {
                "HBONE"
            } else {
                "TCP"
            },
        };
        let route = way.route(accepted.client, source);
        let connections = &worker.pod.connections;
        let listed = match hop {
            NextHop::Passthrough(_) => {
                let passed = Passed::new(source.clone(), accepted.client, accepted.destination);
                let listed = connections.passed_through(view, passed);
                // The way was chosen before: a change between the two is seen here.
                listed.ask_again(&worker.world.store.load(), &worker.world.config.network);
                listed
            }
            _ => connections.outbound(view),
        };
        let mut ledger = Ledger::open(&worker.accounts, route, accepted.since);
        let caller = Caller {
            workload: source,
            address: accepted.client,
            since: accepted.since,
        };
        let connecting = connect_within(worker, hop, &caller, neighbour, *limits);
        let connected = tokio::select! {
            biased; // nothing is dialled for what is not allowed any more
            ending = listed.withdrawn() => {
                ledger.close(ending);
                return Try::Over;
            }
            connected = connecting => {
                tell_endpoint(worker, hop, *limits, connected.as_ref().err());
                connected
            }
            ending = worker.pod.cut_ending() => {
                ledger.close(ending);
                return Try::Over;
            }
        };
        match connected {
            Ok((upstream, slot)) => {
                if let Upstream::Tunnel(tunnel) = &upstream {
                    ledger.prove_destination(tunnel.peer().identity());
                }
                Try::Open(Box::new(Connected {
                    upstream,
                    ledger,
                    listed,
                    slot,
                }))
            }
            Err(failed) => Try::Failed(Box::new((ledger, failed))),
        }
    }
}

async fn next_door(
    worker: &PodWorker,
    neighbour: Neighbour,
    caller: &Caller<'_>,
) -> Result<Upstream, Failed> {
    match Box::pin(neighbour.reach(worker, caller)).await {
        Ok(reached) => Ok(Upstream::NextDoor(Box::new(reached))),
        Err(ending) => Err(Failed {
            reason: ending.reason,
            detail: ending.detail.unwrap_or_default(),
            by_endpoint: matches!(
                ending.reason,
                Reason::UpstreamRefused | Reason::UpstreamConnectTimeout
            ),
        }),
    }
}

/// Connects within the limits of the service, if it has any; what is returned beside the connection
/// counts it as long as it lives.
async fn connect_within(
    worker: &PodWorker,
    hop: &NextHop,
    caller: &Caller<'_>,
    neighbour: Option<Neighbour>,
    limits: Option<ConnectionLimits>,
) -> Result<(Upstream, Option<Slot>), Failed> {
    let connecting = async {
        match neighbour {
            Some(neighbour) => next_door(worker, neighbour, caller).await,
            None => connect(worker, hop, caller.workload, caller.address).await,
        }
    };
    let (Some(limits), Some(service)) = (limits, hop.service()) else {
        return Ok((connecting.await?, None));
    };
    let slot = worker
        .pod
        .connections
        .take_slot(service, &limits)
        .map_err(|refusal| Failed::here(refusal.reason, refusal.detail))?;
    let Some(limit) = limits.connect_timeout else {
        return Ok((connecting.await?, Some(slot)));
    };
    match tokio::time::timeout(limit, connecting).await {
        Ok(connected) => Ok((connected?, Some(slot))),
        Err(_) => Err(Failed {
            reason: Reason::UpstreamConnectTimeout,
            detail: format!(
                "no connection within {limit:?}, the connectTimeout of service {}/{}",
                service.key.namespace, service.name
            ),
            // The wait may have been for a certificate of ours.
            by_endpoint: holds_certificate(worker, hop, caller.workload),
        }),
    }
}

/// Remembers how the chosen endpoint took the connection, where its service has a rule for that.
fn tell_endpoint(
    worker: &PodWorker,
    hop: &NextHop,
    limits: Option<ConnectionLimits>,
    failed: Option<&Failed>,
) {
    let rule = limits.and_then(|limits| limits.outliers);
    let (Some(rule), Some((service, endpoint))) = (rule, hop.chosen()) else {
        return;
    };
    let ejections = &worker.pod.ejections;
    match failed {
        None => ejections.succeeded(service, endpoint, &rule),
        Some(failed) if failed.by_endpoint => {
            let snapshot = worker.world.store.load();
            let metrics = &worker.world.metrics;
            ejections.failed(&snapshot, service, endpoint, &rule, metrics);
        }
        Some(_) => {}
    }
}

/// True if a tunnel for `hop` need not wait for a certificate of `source`.
fn holds_certificate(worker: &PodWorker, hop: &NextHop, source: &Workload) -> bool {
    let tunnel = matches!(hop, NextHop::Tunnel { .. } | NextHop::DoubleTunnel { .. });
    let identity = source.identity();
    !tunnel
        || worker
            .world
            .certificates
            .fetch(&identity)
            .now_or_never()
            .is_some_and(|held| held.is_ok())
}

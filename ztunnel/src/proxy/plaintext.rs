//! Captured inbound plaintext (15006): authorise without an identity, then deliver.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use isobar_net::{dial, local_addr, original_dst};
use isobar_state::inbound::{Authority, InboundCall};
use isobar_state::unknown::before_inbound;
use isobar_state::{Peer, Permit, Workload, authorize};
use isobar_telemetry::access::Direction;
use isobar_types::Reason;
use tokio::net::TcpStream;

use super::connections::{InboundGuard, REJECTED, View};
use super::ledger::{End, Ending, Ledger, Route};
use super::target::service_of;
use super::worker::{Delivered, PodWorker};
use super::{Refused, workload_at};

/// A connection to the pod from outside the mesh.
struct Accepted {
    tcp: TcpStream,
    client: SocketAddr,
    destination: SocketAddr,
    since: Instant,
}

/// … whose pod is known to the mesh.
struct Attributed {
    accepted: Accepted,
    workload: Arc<Workload>,
}

/// … that policy allows; the guard tells when it does not any more.
struct Allowed {
    accepted: Accepted,
    guard: InboundGuard,
    ledger: Ledger,
    _permit: Permit,
}

/// Serves one connection to its end.
pub(super) async fn serve(worker: Rc<PodWorker>, tcp: TcpStream, client: SocketAddr) {
    let since = Instant::now();
    let destination = original_dst(&tcp).or_else(|_| local_addr(&tcp));
    let Ok(destination) = destination else {
        // Gone before it was looked at.
        return;
    };
    let accepted = Accepted {
        tcp,
        client,
        destination,
        since,
    };
    // Boxed: the room it takes to open the way must not stay with the connection.
    let delivered = Box::pin(accepted.open(&worker)).await;
    if let Some(delivered) = delivered {
        worker.carry_inbound(delivered).await;
    }
}

impl Accepted {
    /// `None`: refused or failed, and told.
    async fn open(self, worker: &PodWorker) -> Option<Box<Delivered<TcpStream>>> {
        let (client, destination) = (self.client, self.destination);
        match self.attribute(worker).await {
            Ok(attributed) => attributed.authorize(worker)?.deliver(worker).await,
            Err(refused) => {
                worker.tell_refused(Direction::Inbound, client, destination, &refused);
                None
            }
        }
    }

    async fn attribute(self, worker: &PodWorker) -> Result<Attributed, Refused> {
        if worker
            .world
            .config
            .ports
            .is_reserved(self.destination.port())
        {
            return Err(Refused::new(
                Reason::ReservedPort,
                format!(
                    "port {} belongs to the mesh itself",
                    self.destination.port()
                ),
            ));
        }
        let workload = worker.world.workload(&worker.pod).await?;
        let call = InboundCall {
            workload: &workload,
            local_ip: self.destination.ip(),
            authority: &Authority::Address(self.destination),
            network: &worker.world.config.network,
        };
        worker
            .world
            .learn(|known| before_inbound(known, &call))
            .await?;
        Ok(Attributed {
            accepted: self,
            workload,
        })
    }
}

impl Attributed {
    fn authorize(self, worker: &PodWorker) -> Option<Allowed> {
        let Self { accepted, workload } = self;
        let world = &worker.world;
        let destination = accepted.destination;
        let peer = Peer {
            identity: None,
            ip: accepted.client.ip(),
        };
        let guard = worker.pod.connections.inbound(
            peer.clone(),
            destination,
            workload.clone(),
            View {
                src: accepted.client,
                original_dst: None,
                actual_dst: destination.into(),
                protocol: "TCP",
            },
        );
        // Loaded after registering: a change between the two is then seen by the re-check.
        let snapshot = world.store.load();
        // The newest object of the workload; it may have changed while its service was asked for.
        let workload = snapshot.workload_by_uid(&workload.uid).unwrap_or(&workload);
        let route = Route {
            direction: Direction::Inbound,
            source_address: accepted.client,
            source: End {
                workload: workload_at(&snapshot, &world.config.network, accepted.client.ip()),
                ..End::default()
            },
            destination_address: destination,
            hbone_address: None,
            service: service_of(&snapshot, workload, None, destination.port()),
            destination: End {
                workload: Some(workload.clone()),
                ..End::default()
            },
            mutual_tls: false,
            proven: false,
        };
        let ledger = Ledger::open(&worker.accounts, route, accepted.since);
        match authorize(&snapshot, &peer, workload, destination) {
            Ok(permit) => {
                worker.tell_permit(&permit);
                Some(Allowed {
                    accepted,
                    guard,
                    ledger,
                    _permit: permit,
                })
            }
            Err(denied) => {
                worker.tell_denied(&denied);
                let text = format!("{REJECTED}: {}", denied.detail);
                ledger.close(Ending::failed(denied.reason, text));
                None
            }
        }
    }
}

impl Allowed {
    async fn deliver(self, worker: &PodWorker) -> Option<Box<Delivered<TcpStream>>> {
        let Self {
            accepted,
            guard,
            ledger,
            ..
        } = self;
        let options = worker.world.dial_application(
            &worker.pod,
            accepted.client.ip(),
            accepted.destination.ip(),
        );
        let dialled = tokio::select! {
            dialled = dial(&options, accepted.destination) => dialled,
            ending = guard.withdrawn() => {
                ledger.close(ending);
                return None;
            }
            ending = worker.pod.cut_ending() => {
                ledger.close(ending);
                return None;
            }
        };
        match dialled {
            Ok(upstream) => Some(Box::new(Delivered {
                downstream: accepted.tcp,
                upstream,
                guard,
                ledger,
            })),
            Err(error) => {
                ledger.close(Ending::failed(error.reason(), error.to_string()));
                None
            }
        }
    }
}

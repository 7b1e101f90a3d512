//! Captured outbound (15001): attribute to the pod's workload, route, connect, relay.

mod tries;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_hbone::{
    Authority, ConnectHeaders, Forwarded, TraceParent, TunnelError, TunnelKey, TunnelStream,
};
use isobar_net::{dial, local_addr, original_dst};
use isobar_state::outbound::{NextHop, OutboundCall, route};
use isobar_state::unknown::before_route;
use isobar_state::{self as state, ConnectionLimits, Service, Workload};
use isobar_telemetry::access::Direction;
use isobar_types::{Identity, Reason, Str};
use tokio::net::TcpStream;

use super::Refused;
use super::connections::{OutboundGuard, Slot};
use super::ledger::{End, Ending, Ledger, Route};
use super::neighbour::Reached;
use super::worker::PodWorker;

/// For the system's resolver to answer about a workload known by name only.
const RESOLVE: Duration = Duration::from_secs(5);

/// A connection of the pod's application.
struct Accepted {
    tcp: TcpStream,
    client: SocketAddr,
    destination: SocketAddr,
    since: Instant,
}

/// … whose workload is known.
struct Attributed {
    accepted: Accepted,
    source: Arc<Workload>,
}

/// … whose way is known.
struct Routed {
    attributed: Attributed,
    hop: NextHop,
    limits: Option<ConnectionLimits>,
    /// What the way was chosen by.
    dice: u64,
}

/// … whose other side is open. Boxed as a whole: it lives long, and moves.
struct Opened {
    downstream: TcpStream,
    upstream: Upstream,
    ledger: Ledger,
    listed: OutboundGuard,
    /// Lives as long as the connection it counts.
    slot: Option<Slot>,
}

/// The other side of a connection.
enum Upstream {
    Plain(TcpStream),
    Tunnel(Box<TunnelStream>),
    NextDoor(Box<Reached>),
}

/// A way that could not be gone.
struct Failed {
    reason: Reason,
    detail: String,
    /// The endpoint did not take the connection: nothing the caller or this proxy did.
    by_endpoint: bool,
}

impl Failed {
    fn here(reason: Reason, detail: String) -> Self {
        Self {
            reason,
            detail,
            by_endpoint: false,
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(worker: Rc<PodWorker>, tcp: TcpStream, client: SocketAddr) {
    let since = Instant::now();
    let Ok(destination) = original_dst(&tcp) else {
        // Gone before it was looked at.
        return;
    };
    let reserved_port = worker.world.config.ports.is_reserved(destination.port());
    if reserved_port && local_addr(&tcp).is_ok_and(|local| local == destination) {
        // Not redirected: somebody dialled our own port, and would be sent round for ever.
        let refused = reserved(destination.port());
        return worker.tell_refused(Direction::Outbound, client, destination, &refused);
    }
    carry(&worker, tcp, client, destination, since).await;
}

/// Carries a connection of the pod's application to `destination`, until its end.
pub(super) async fn carry(
    worker: &PodWorker,
    tcp: TcpStream,
    client: SocketAddr,
    destination: SocketAddr,
    since: Instant,
) {
    let accepted = Accepted {
        tcp,
        client,
        destination,
        since,
    };
    // Boxed: the room it takes to find and open the way must not stay with the connection.
    let opened = Box::pin(accepted.open(worker)).await;
    if let Some(opened) = opened {
        opened.carry(worker).await;
    }
}

fn reserved(port: u16) -> Refused {
    Refused::new(
        Reason::ReservedPort,
        format!("port {port} belongs to the mesh itself"),
    )
}

impl Accepted {
    /// `None`: refused or failed, and told.
    async fn open(self, worker: &PodWorker) -> Option<Box<Opened>> {
        let (client, destination) = (self.client, self.destination);
        match self.attribute(worker).await {
            Ok(attributed) => attributed.route(worker).await?.open(worker).await,
            Err(refused) => {
                worker.tell_refused(Direction::Outbound, client, destination, &refused);
                None
            }
        }
    }

    async fn attribute(self, worker: &PodWorker) -> Result<Attributed, Refused> {
        let port = self.destination.port();
        let own = self.destination.ip().to_canonical().is_loopback();
        if own && worker.world.config.ports.is_reserved(port) {
            return Err(reserved(port));
        }
        let source = worker.world.workload(&worker.pod).await?;
        Ok(Attributed {
            accepted: self,
            source,
        })
    }
}

impl Attributed {
    fn call<'a>(&'a self, worker: &'a PodWorker) -> OutboundCall<'a> {
        OutboundCall {
            source: &self.source,
            source_ip: self.accepted.client.ip(),
            destination: self.accepted.destination,
            network: &worker.world.config.network,
            crosses_networks: true,
            ejections: Some(&*worker.pod.ejections),
        }
    }

    /// `None`: refused, and told.
    async fn route(self, worker: &PodWorker) -> Option<Routed> {
        let call = self.call(worker);
        let learnt = worker.world.learn(|known| before_route(known, &call)).await;
        let snapshot = match learnt {
            Ok(snapshot) => snapshot,
            Err(Refused { reason, detail }) => {
                let snapshot = worker.world.store.load();
                self.tell_refusal(worker, &snapshot, state::Refusal { reason, detail });
                return None;
            }
        };
        let dice = rand::random();
        match route(&snapshot, &call, dice) {
            Ok(hop) => Some(Routed {
                limits: hop.service().and_then(|s| snapshot.limits(&s.key)),
                attributed: self,
                hop,
                dice,
            }),
            Err(refusal) => {
                self.tell_refusal(worker, &snapshot, refusal);
                None
            }
        }
    }
}

impl Opened {
    async fn carry(mut self: Box<Self>, worker: &PodWorker) {
        let Self {
            downstream,
            upstream,
            ledger,
            listed,
            ..
        } = &mut *self;
        let ending = match upstream {
            Upstream::NextDoor(reached) => {
                Box::pin(worker.carry_next_door(downstream, reached, ledger)).await
            }
            Upstream::Plain(upstream) => {
                let count = |sent, received| ledger.count(sent, received);
                let stop = pin!(async {
                    tokio::select! {
                        ending = listed.withdrawn() => ending,
                        ending = worker.pod.cut_ending() => ending,
                    }
                });
                worker.carry(downstream, upstream, count, stop).await
            }
            Upstream::Tunnel(upstream) => {
                let count = |sent, received| ledger.count(sent, received);
                let stop = pin!(worker.pod.cut_ending());
                worker.carry(downstream, &mut **upstream, count, stop).await
            }
        };
        let Self {
            downstream,
            upstream,
            ledger,
            listed,
            slot,
        } = *self;
        if let Upstream::NextDoor(reached) = upstream {
            reached.close(&ending);
        } else {
            drop(upstream);
        }
        drop((slot, listed));
        ledger.close(ending);
        drop(downstream);
    }
}

async fn connect(
    worker: &PodWorker,
    hop: &NextHop,
    source: &Arc<Workload>,
    client: SocketAddr,
) -> Result<Upstream, Failed> {
    match hop {
        NextHop::Passthrough(to) | NextHop::Direct { to, .. } => plain(worker, *to).await,
        NextHop::Resolve {
            hostname,
            port,
            prefer_v6,
            ..
        } => {
            let to = resolve(hostname, *port, *prefer_v6).await?;
            // Plain or a tunnel now: it does not come here again.
            Box::pin(connect(worker, &hop.resolved(to.ip()), source, client)).await
        }
        NextHop::DoubleTunnel {
            to,
            authority,
            expect_gateway,
            expect,
            gateway,
            service,
        } => {
            let gateway = key(source, client, (*to, gateway), expect_gateway);
            let headers = ConnectHeaders {
                forwarded_network: Some(worker.world.config.network.clone()),
                ..headers(worker, source, client, authority, Some(service))?
            };
            let opened = worker.pool.open_through(&gateway, expect, &headers);
            tunnel(worker, Box::pin(opened).await)
        }
        NextHop::Tunnel {
            to,
            authority,
            expect,
            workload,
            service,
            ..
        } => {
            let key = key(source, client, (*to, workload), expect);
            let headers = headers(worker, source, client, authority, service.as_ref())?;
            tunnel(worker, Box::pin(worker.pool.open(&key, &headers)).await)
        }
    }
}

fn key(
    source: &Workload,
    client: SocketAddr,
    (to, whose): (SocketAddr, &Workload),
    expect: &[Identity],
) -> TunnelKey {
    TunnelKey {
        source: source.identity(),
        expect: expect.to_vec(),
        to,
        from: client.ip(),
        workload: whose.uid.clone(),
    }
}

/// What the peer is told of this connection.
fn headers(
    worker: &PodWorker,
    source: &Arc<Workload>,
    client: SocketAddr,
    authority: &str,
    service: Option<&Arc<Service>>,
) -> Result<ConnectHeaders, Failed> {
    let authority = Authority::parse(authority)
        .ok_or_else(|| Failed::here(Reason::Internal, format!("{authority:?} is no authority")))?;
    Ok(ConnectHeaders {
        baggage: worker.described(source),
        forwarded: Some(Forwarded {
            client: Some(client),
            host: service.map(|s| s.key.hostname.to_string()),
        }),
        traceparent: Some(TraceParent::new(
            rand::random::<u128>() | 1,
            rand::random::<u64>() | 1,
        )),
        ..ConnectHeaders::new(authority)
    })
}

fn tunnel(
    worker: &PodWorker,
    opened: Result<TunnelStream, TunnelError>,
) -> Result<Upstream, Failed> {
    opened
        .map(|mut stream| {
            // Of no use to a proxy that knows where it sent the connection.
            stream.forget_baggage();
            Upstream::Tunnel(Box::new(stream))
        })
        .map_err(|error| {
            let reason = error.reason();
            let mut detail = chain(&error);
            if reason == Reason::CertificateRevoked {
                worker.world.metrics.revoked(Direction::Outbound);
            }
            if reason == Reason::UpstreamConnectTimeout {
                detail.push_str(": does a NetworkPolicy block port 15008?");
            }
            let by_endpoint = error.is_far_ends();
            Failed {
                reason,
                detail,
                by_endpoint,
            }
        })
}

async fn plain(worker: &PodWorker, to: SocketAddr) -> Result<Upstream, Failed> {
    let options = worker.pod.dial_options(&worker.world);
    dial(&options, to)
        .await
        .map(Upstream::Plain)
        .map_err(|error| Failed {
            reason: error.reason(),
            detail: error.to_string(),
            by_endpoint: !error.is_local(),
        })
}

/// Asks the system's resolver, on a thread where that may block.
async fn resolve(hostname: &Str, port: u16, prefer_v6: bool) -> Result<SocketAddr, Failed> {
    let lookup = tokio::net::lookup_host((hostname.to_string(), port));
    let found: io::Result<Vec<_>> = match tokio::time::timeout(RESOLVE, lookup).await {
        Ok(found) => found.map(Iterator::collect),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let failed = |detail: String| {
        let detail = format!("resolving {hostname}: {detail}");
        Failed::here(Reason::NoHealthyUpstream, detail)
    };
    let all = found.map_err(|error| failed(error.to_string()))?;
    let of_family: Vec<_> = all.iter().filter(|a| a.is_ipv6() == prefer_v6).collect();
    let pick = |n: usize| rand::random_range(0..n);
    match (of_family.len(), all.len()) {
        (0, 0) => Err(failed("no address".to_owned())),
        (0, n) => Ok(all[pick(n)]),
        (n, _) => Ok(*of_family[pick(n)]),
    }
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = source.source();
    }
    text
}

impl Attributed {
    /// Counts and logs a connection that is refused, with what is known of its destination.
    fn tell_refusal(
        &self,
        worker: &PodWorker,
        snapshot: &state::Snapshot,
        refusal: state::Refusal,
    ) {
        let destination = self.accepted.destination;
        let network = &worker.world.config.network;
        let address = isobar_types::NetworkAddress::new(network.as_str().into(), destination.ip());
        let namespace = Some(&*self.source.namespace);
        let route = Route {
            direction: Direction::Outbound,
            source_address: self.accepted.client,
            source: End {
                workload: Some(self.source.clone()),
                ..End::default()
            },
            destination_address: destination,
            hbone_address: None,
            destination: End {
                workload: snapshot.workload_by_address(&address).cloned(),
                ..End::default()
            },
            service: snapshot.service_by_vip(&address, namespace).cloned(),
            mutual_tls: false,
            proven: false,
        };
        Ledger::open(&worker.accounts, route, self.accepted.since)
            .close(Ending::failed(refusal.reason, refusal.detail));
    }
}

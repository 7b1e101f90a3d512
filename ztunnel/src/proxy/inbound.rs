//! HBONE (15008): mutual TLS with the pod's certificate, then for each CONNECT: resolve, authorise,
//! dial the application with the client's address, 200, relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use isobar_hbone::{
    Connect, Endpoint, ProxyHeader, ServeError, ServerOptions, Timeouts, TunnelStream,
    serve as serve_hbone,
};
use isobar_net::{DialOptions, dial, local_addr};
use isobar_state::inbound::{Authority, InboundCall, Target, resolve};
use isobar_state::unknown::before_inbound;
use isobar_state::{Peer, Permit, Snapshot, Workload, authorize};
use isobar_telemetry::access::Direction;
use isobar_tls::{HandshakeError, server_config};
use isobar_types::{Identity, NetworkAddress, Reason};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::connections::{InboundGuard, Place, REJECTED, View};
use super::ledger::{End, Ending, Ledger, Route};
use super::target::service_of;
use super::tunnel::{certificate, http2};
use super::worker::{Delivered, PodWorker};
use super::{Refused, World};

/// Statuses of the protocol (as Istio's ztunnel does).
const DENIED: StatusCode = StatusCode::UNAUTHORIZED;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// Where a request came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    client: SocketAddr,
    local: SocketAddr,
}

/// A request whose target is known.
struct Requested {
    connect: Connect,
    arrival: Arrival,
    workload: Arc<Workload>,
    target: Target,
    since: Instant,
}

/// … that policy allows; the guard tells when it does not any more.
struct Allowed {
    requested: Requested,
    guard: InboundGuard,
    ledger: Ledger,
    _permit: Permit,
}

/// Serves one HBONE connection to its end.
pub(super) async fn serve(worker: Rc<PodWorker>, tcp: TcpStream, client: SocketAddr) {
    let Ok(local) = local_addr(&tcp) else {
        // Gone before it was looked at.
        return;
    };
    let arrival = Arrival { client, local };
    let tls = match own_certificate(&worker).await {
        Ok(certificate) => server_config(&certificate),
        Err(refused) => return tell(&worker, arrival, &refused),
    };
    let options = ServerOptions {
        http2: http2(&worker.world),
        timeouts: Timeouts::default(),
        admission: worker.pod.admission(&worker.world),
        source: Some(client.ip()),
    };
    let handler = worker.clone();
    let served = serve_hbone(tcp, &tls, &options, &worker.tunnels, |connect| {
        request(handler.clone(), Box::new(connect), arrival)
    });
    match Box::pin(served).await {
        Ok(()) => {}
        Err(
            error @ (ServeError::Tls(_)
            | ServeError::Timeout { .. }
            | ServeError::Turned(_)
            | ServeError::Abuse(_)
            | ServeError::Expired
            | ServeError::Revoked),
        ) => {
            if matches!(&error, ServeError::Tls(HandshakeError::Revoked)) {
                worker.world.metrics.revoked(Direction::Inbound);
            }
            let refused = Refused::new(error.reason(), error.to_string());
            tell(&worker, arrival, &refused);
        }
        Err(error) => tracing::debug!(%client, %error, "HBONE connection ended"),
    }
}

async fn own_certificate(
    worker: &PodWorker,
) -> Result<Arc<isobar_tls::WorkloadCertificate>, Refused> {
    let world = &worker.world;
    let identity = if worker.pod.own {
        let info = &worker.pod.info;
        let domain = world.config.trust_domain.as_str();
        Identity::new(domain, &*info.namespace, &*info.service_account)
    } else {
        world.workload(&worker.pod).await?.identity()
    };
    certificate(&*worker.world.certificates, &identity)
        .await
        .map_err(|error| {
            Refused::new(
                Reason::NoCertificate,
                format!("no certificate for {identity}: {error}"),
            )
        })
}

pub(super) async fn request(worker: Rc<PodWorker>, connect: Box<Connect>, arrival: Arrival) {
    // Boxed: the room it takes to open the way must not stay with the stream.
    let delivered = Box::pin(open(&worker, *connect, arrival)).await;
    if let Some(delivered) = delivered {
        worker.carry_inbound(delivered).await;
    }
}

/// `None`: refused or failed, and told.
async fn open(
    worker: &PodWorker,
    connect: Connect,
    arrival: Arrival,
) -> Option<Box<Delivered<TunnelStream>>> {
    let since = Instant::now();
    let workload = match worker.world.workload(&worker.pod).await {
        Ok(workload) => workload,
        Err(refused) => {
            connect.refuse(UNAVAILABLE);
            tell(worker, arrival, &refused);
            return None;
        }
    };
    let authority = authority(&connect);
    let call = InboundCall {
        workload: &workload,
        local_ip: arrival.local.ip(),
        authority: &authority,
        network: &worker.world.config.network,
    };
    let snapshot = match worker
        .world
        .learn(|known| before_inbound(known, &call))
        .await
    {
        Ok(snapshot) => snapshot,
        Err(refused) => {
            connect.refuse(UNAVAILABLE);
            tell(worker, arrival, &refused);
            return None;
        }
    };
    match resolve(&snapshot, &call) {
        Ok(target) if worker.world.config.ports.is_reserved(target.to.port()) => {
            connect.refuse(UNAVAILABLE);
            let text = format!("port {} belongs to the mesh itself", target.to.port());
            tell(worker, arrival, &Refused::new(Reason::ReservedPort, text));
            None
        }
        Ok(target) => {
            let requested = Requested {
                connect,
                arrival,
                workload,
                target,
                since,
            };
            requested.authorize(worker)?.deliver(worker).await
        }
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(UNAVAILABLE);
            connect.refuse(status);
            let refused = Refused::new(refusal.reason, refusal.detail);
            tell(worker, arrival, &refused);
            None
        }
    }
}

fn tell(worker: &PodWorker, arrival: Arrival, refused: &Refused) {
    let Arrival { client, local } = arrival;
    worker.tell_refused(Direction::Inbound, client, local, refused);
}

fn authority(connect: &Connect) -> Authority {
    match &connect.headers().authority {
        isobar_hbone::Authority::Address(to) => Authority::Address(*to),
        isobar_hbone::Authority::Host { host, port } => Authority::Host {
            host: host.as_str().into(),
            port: *port,
        },
    }
}

impl Requested {
    fn authorize(self, worker: &PodWorker) -> Option<Allowed> {
        let world = &worker.world;
        let to = self.target.to;
        let peer = Peer {
            identity: Some(self.connect.peer().identity().clone()),
            ip: self.arrival.client.ip(),
        };
        let host = self.named_host();
        let guard = worker.pod.connections.inbound(
            peer.clone(),
            to,
            self.workload.clone(),
            View {
                src: self.arrival.client,
                original_dst: host.as_deref().map(Place::from),
                actual_dst: to.into(),
                protocol: "HBONE",
            },
        );
        // Loaded after registering: a change between the two is then seen by the re-check.
        let snapshot = world.store.load();
        // The newest object of the workload; it may have changed while the target was resolved.
        let workload = snapshot
            .workload_by_uid(&self.workload.uid)
            .unwrap_or(&self.workload);
        let route = self.route(&snapshot, &world.config.network, host.as_deref());
        let ledger = Ledger::open(&worker.accounts, route, self.since);
        match authorize(&snapshot, &peer, workload, to) {
            Ok(permit) => {
                worker.tell_permit(&permit);
                Some(Allowed {
                    requested: self,
                    guard,
                    ledger,
                    _permit: permit,
                })
            }
            Err(denied) => {
                worker.tell_denied(&denied);
                self.connect.refuse(DENIED);
                let text = format!("{REJECTED}: {}", denied.detail);
                ledger.close(Ending::failed(denied.reason, text));
                None
            }
        }
    }

    /// The host the caller asked for, as it says itself.
    fn named_host(&self) -> Option<String> {
        let forwarded = self.connect.headers().forwarded.as_ref()?;
        forwarded.host.clone()
    }

    fn route(&self, snapshot: &Snapshot, network: &str, host: Option<&str>) -> Route {
        let headers = self.connect.headers();
        let identity = self.connect.peer().identity();
        let elsewhere = headers
            .forwarded_network
            .as_ref()
            .is_some_and(|theirs| !theirs.eq_ignore_ascii_case(network));
        // Through a gateway the address is the gateway's.
        let source = (!elsewhere).then(|| {
            let at = NetworkAddress::new(network.into(), self.arrival.client.ip());
            let mut here = snapshot.workloads_at(&at).iter();
            here.find(|w| snapshot.has_identity(w, identity)).cloned()
        });
        let source = source.flatten();
        let told = headers.baggage.as_ref().filter(|_| source.is_none());
        let service = self.target.service.clone();
        Route {
            direction: Direction::Inbound,
            source_address: self.arrival.client,
            source: End {
                workload: source,
                identity: Some(identity.clone()),
                baggage: told.map(|told| Box::new(told.read())),
            },
            destination_address: self.arrival.local,
            hbone_address: Some(headers.authority.to_string()),
            service: service
                .or_else(|| service_of(snapshot, &self.workload, host, self.target.to.port())),
            destination: End {
                workload: Some(self.workload.clone()),
                identity: Some(self.workload.identity()),
                baggage: None,
            },
            mutual_tls: true,
            proven: true,
        }
    }
}

impl Allowed {
    async fn deliver(self, worker: &PodWorker) -> Option<Box<Delivered<TunnelStream>>> {
        let Self {
            requested,
            guard,
            ledger,
            ..
        } = self;
        let Requested {
            mut connect,
            arrival,
            workload,
            target,
            ..
        } = requested;
        let world = &worker.world;
        let header = target
            .proxy_protocol
            .then(|| proxy_header(world, &connect, arrival.client, &target));
        let (to, options) = way(worker, arrival.client.ip(), target.to, header.is_some());
        let dialled = tokio::select! {
            dialled = dial(&options, to) => dialled,
            () = connect.gone() => {
                ledger.close(Ending::broken(Reason::DownstreamReset));
                return None;
            }
            ending = guard.withdrawn() => {
                connect.refuse(DENIED);
                ledger.close(ending);
                return None;
            }
            ending = worker.pod.cut_ending() => {
                connect.refuse(UNAVAILABLE);
                ledger.close(ending);
                return None;
            }
        };
        let mut upstream = match dialled {
            Ok(upstream) => upstream,
            Err(error) => {
                connect.refuse(UNAVAILABLE);
                ledger.close(Ending::failed(error.reason(), error.to_string()));
                return None;
            }
        };
        let told = world.config.response_baggage;
        let baggage = told.then(|| worker.described(&workload)).flatten();
        let Ok(downstream) = connect.accept(baggage.as_ref()) else {
            upstream.reset();
            ledger.close(Ending::broken(Reason::DownstreamReset));
            return None;
        };
        if let Some(header) = header
            && let Err(error) = upstream.write_all(&header).await
        {
            tracing::debug!(%error, "the application left before its PROXY header");
            ledger.close(Ending::broken(Reason::UpstreamReset));
            return None;
        }
        Some(Box::new(Delivered {
            downstream,
            upstream,
            guard,
            ledger,
        }))
    }
}

/// Where the application is dialled, and how; one that is told who calls may listen on loopback.
fn way(
    worker: &PodWorker,
    client: IpAddr,
    to: SocketAddr,
    told: bool,
) -> (SocketAddr, DialOptions) {
    let world = &worker.world;
    if told && world.config.localhost_app_tunnel {
        let to = SocketAddr::new(loopback(to.ip()), to.port());
        return (to, worker.pod.dial_options(world));
    }
    (to, world.dial_application(&worker.pod, client, to.ip()))
}

/// The loopback address of the family of `ip`.
fn loopback(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// What the application is told first: the peer, where it wanted to go, and who it is.
fn proxy_header(world: &World, connect: &Connect, client: SocketAddr, target: &Target) -> Vec<u8> {
    let wanted = match authority(connect) {
        Authority::Address(to) => to,
        Authority::Host { port, .. } => {
            let network = world.config.network.as_str();
            let vips = target.service.iter().flat_map(|s| &s.vips);
            let vip = vips.min_by_key(|v| (&*v.network != network, v.ip.is_ipv6()));
            SocketAddr::new(vip.map_or(target.to.ip(), |v| v.ip), port)
        }
    };
    let mut header = ProxyHeader {
        source: client,
        destination: wanted,
        identity: Some(connect.peer().identity().to_string()),
    };
    header.encode().unwrap_or_else(|_| {
        // Who called is known, but its name is too long for the format: it is left out.
        header.identity = None;
        header.encode().expect("two addresses fit")
    })
}

//! Two pods of this process: a connection between them needs no tunnel. What a tunnel would have
//! checked is checked all the same: both certificates, the identity the caller expects, the
//! destination, policy at the start and whenever it changes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Instant;

use isobar_hbone::Endpoint;
use isobar_net::dial;
use isobar_state::inbound::{Authority, InboundCall, Target, resolve};
use isobar_state::outbound::NextHop;
use isobar_state::unknown::before_inbound;
use isobar_state::{Peer, Permit, Workload, authorize};
use isobar_telemetry::access::Direction;
use isobar_tls::WorkloadCertificate;
use isobar_types::{Identity, Reason};
use tokio::net::TcpStream;

use super::Pod;
use super::connections::{InboundGuard, Place, REJECTED, View};
use super::ledger::{End, Ending, Ledger, Route};
use super::target::service_of;
use super::tunnel::certificate;
use super::worker::PodWorker;
use crate::zds::PodInfo;

/// The pods of this process that take connections, by who they are. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Neighbours {
    // Weak: a pod has ended when nobody holds it, and this is not to keep it alive. Held to look
    // up, add or remove an entry.
    pods: Arc<RwLock<HashMap<PodInfo, Weak<Pod>>>>,
}

impl Neighbours {
    /// From now on `pod` can be found.
    pub fn add(&self, pod: &Arc<Pod>) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, held| held.strong_count() > 0);
        pods.insert(pod.info.clone(), Arc::downgrade(pod));
    }

    /// The pod that is `workload`, if it takes connections.
    fn find(&self, workload: &Workload) -> Option<Arc<Pod>> {
        let who = PodInfo {
            name: workload.name.to_string(),
            namespace: workload.namespace.to_string(),
            service_account: workload.service_account.to_string(),
        };
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(&who)?.upgrade().filter(|pod| pod.is_running())
    }
}

/// A pod next door, and what is asked of it.
pub(super) struct Neighbour {
    pod: Arc<Pod>,
    workload: Arc<Workload>,
    at: SocketAddr,
    authority: Authority,
    expect: Vec<Identity>,
    named_host: Option<String>,
}

/// Who calls.
pub(super) struct Caller<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) address: SocketAddr,
    pub(super) since: Instant,
}

/// An application next door that may be talked to.
pub(super) struct Reached {
    upstream: TcpStream,
    guard: InboundGuard,
    /// The destination's side.
    ledger: Ledger,
    pod: Arc<Pod>,
    /// The caller's and the destination's: what they prove ends when they are revoked.
    certificates: [Arc<WorkloadCertificate>; 2],
    _permit: Permit,
}

impl Neighbour {
    /// The pod `hop` leads to, if it is one of ours and the short way may be taken.
    pub(super) fn of(worker: &PodWorker, hop: &NextHop) -> Option<Self> {
        let world = &worker.world;
        let NextHop::Tunnel {
            to,
            authority,
            expect,
            workload,
            service,
            via_waypoint: false,
        } = hop
        else {
            return None;
        };
        // What wants a PROXY header, or speaks to a proxy of its own, takes the long way.
        let local = workload.node.as_ref() == world.node() && workload.application_tunnel.is_none();
        if !world.config.same_node || !local || !workload.addresses.contains(&to.ip()) {
            return None;
        }
        Some(Self {
            pod: world.neighbours.find(workload)?,
            workload: workload.clone(),
            at: *to,
            authority: Authority::parse(authority).ok()?,
            expect: expect.clone(),
            named_host: service.as_ref().map(|s| s.key.hostname.to_string()),
        })
    }

    /// Does what the two ends of a tunnel would do, up to the connection to the application. The
    /// error is the caller's ending.
    pub(super) async fn reach(
        self,
        worker: &PodWorker,
        caller: &Caller<'_>,
    ) -> Result<Reached, Ending> {
        let source = caller.workload.identity();
        let certificates = self.check_certificates(worker, &source).await?;
        let target = self.resolve(worker).await?;
        let (guard, ledger, permit) = self.authorize(worker, caller, source, &target)?;
        let to = target.to;
        let options = worker
            .world
            .dial_application(&self.pod, caller.address.ip(), to.ip());
        let dialled = tokio::select! {
            dialled = dial(&options, to) => dialled,
            ending = guard.withdrawn() => {
                ledger.close(ending.clone());
                return Err(ending);
            }
            ending = self.pod.cut_ending() => {
                ledger.close(ending.clone());
                return Err(ending);
            }
        };
        match dialled {
            Ok(upstream) => Ok(Reached {
                upstream,
                guard,
                ledger,
                pod: self.pod,
                certificates,
                _permit: permit,
            }),
            Err(error) => {
                let ending = Ending::failed(error.reason(), error.to_string());
                ledger.close(ending.clone());
                Err(ending)
            }
        }
    }

    /// Both ends have a certificate in force, which nobody has revoked, and the destination's names who is
    /// expected.
    async fn check_certificates(
        &self,
        worker: &PodWorker,
        source: &Identity,
    ) -> Result<[Arc<WorkloadCertificate>; 2], Ending> {
        let destination = self.workload.identity();
        if !self.expect.contains(&destination) {
            let text = format!("expected {:?}, found {destination}", self.expect);
            return Err(Ending::failed(Reason::UpstreamTls, text));
        }
        let snapshot = worker.world.store.load();
        if !snapshot.is_one_trust(&source.trust_domain, &destination.trust_domain) {
            let text = format!("{source} and {destination} are of different trust domains");
            return Err(Ending::failed(Reason::UpstreamTls, text));
        }
        Ok([
            valid(worker, source, Direction::Inbound).await?,
            valid(worker, &destination, Direction::Outbound).await?,
        ])
    }

    async fn resolve(&self, worker: &PodWorker) -> Result<Target, Ending> {
        let world = &worker.world;
        let call = InboundCall {
            workload: &self.workload,
            local_ip: self.at.ip(),
            authority: &self.authority,
            network: &world.config.network,
        };
        let learnt = world.learn(|known| before_inbound(known, &call)).await;
        let snapshot = learnt.map_err(|r| Ending::failed(r.reason, r.detail))?;
        let target = resolve(&snapshot, &call).map_err(|refusal| {
            world
                .metrics
                .refused_early(Direction::Inbound, refusal.reason);
            Ending::failed(refusal.reason, refusal.detail)
        })?;
        let port = target.to.port();
        if world.config.ports.is_reserved(port) {
            let reason = Reason::ReservedPort;
            world.metrics.refused_early(Direction::Inbound, reason);
            let text = format!("port {port} belongs to the mesh itself");
            return Err(Ending::failed(reason, text));
        }
        Ok(target)
    }

    fn authorize(
        &self,
        worker: &PodWorker,
        caller: &Caller<'_>,
        source: Identity,
        target: &Target,
    ) -> Result<(InboundGuard, Ledger, Permit), Ending> {
        let world = &worker.world;
        let peer = Peer {
            identity: Some(source.clone()),
            ip: caller.address.ip(),
        };
        let guard = self.pod.connections.inbound(
            peer.clone(),
            target.to,
            self.workload.clone(),
            View {
                src: caller.address,
                original_dst: self.named_host.as_deref().map(Place::from),
                actual_dst: target.to.into(),
                protocol: "TCP",
            },
        );
        // Loaded after registering: a change between the two is then seen by the re-check.
        let snapshot = world.store.load();
        let workload = snapshot
            .workload_by_uid(&self.workload.uid)
            .unwrap_or(&self.workload);
        let host = self.named_host.as_deref();
        let service = target.service.clone();
        let route = Route {
            direction: Direction::Inbound,
            source_address: caller.address,
            source: End {
                workload: Some(caller.workload.clone()),
                identity: Some(source),
                baggage: None,
            },
            destination_address: target.to,
            hbone_address: None,
            service: service.or_else(|| service_of(&snapshot, workload, host, target.to.port())),
            destination: End {
                workload: Some(workload.clone()),
                identity: Some(workload.identity()),
                baggage: None,
            },
            mutual_tls: false,
            proven: true,
        };
        let ledger = Ledger::open(&worker.accounts, route, caller.since);
        match authorize(&snapshot, &peer, workload, target.to) {
            Ok(permit) => {
                worker.tell_permit(&permit);
                Ok((guard, ledger, permit))
            }
            Err(denied) => {
                worker.tell_denied(&denied);
                let text = format!("{REJECTED}: {}", denied.detail);
                ledger.close(Ending::failed(denied.reason, text.clone()));
                Err(Ending::failed(denied.reason, text))
            }
        }
    }
}

/// The certificate of `identity`, if a handshake would take it; `told` is the side that would refuse it.
async fn valid(
    worker: &PodWorker,
    identity: &Identity,
    told: Direction,
) -> Result<Arc<WorkloadCertificate>, Ending> {
    let held = certificate(&*worker.world.certificates, identity).await;
    let now = std::time::SystemTime::now();
    let why = match held {
        Ok(held) if held.is_revoked() => {
            worker.world.metrics.revoked(told);
            return Err(revoked(identity));
        }
        Ok(held) if held.is_valid_at(now) && held.identity() == identity => return Ok(held),
        Ok(_) => "it is not in force".to_owned(),
        Err(error) => error,
    };
    let text = format!("no certificate for {identity}: {why}");
    Err(Ending::failed(Reason::NoCertificate, text))
}

fn revoked(identity: &Identity) -> Ending {
    let text = format!("the certificate of {identity} is revoked");
    Ending::failed(Reason::CertificateRevoked, text)
}

impl PodWorker {
    /// Carries a connection to a pod next door until it ends; both sides' counts are kept.
    pub(super) async fn carry_next_door(
        &self,
        downstream: &mut impl Endpoint,
        reached: &mut Reached,
        ledger: &mut Ledger,
    ) -> Ending {
        let Reached {
            upstream,
            guard,
            ledger: theirs,
            pod,
            certificates: [source, destination],
            ..
        } = reached;
        let stop = pin!(async {
            tokio::select! {
                ending = guard.withdrawn() => ending,
                ending = pod.cut_ending() => ending,
                ending = self.pod.cut_ending() => ending,
                () = source.revoked() => revoked(source.identity()),
                () = destination.revoked() => revoked(destination.identity()),
            }
        });
        let count = |sent, received| {
            ledger.count(sent, received);
            theirs.count(sent, received);
        };
        self.carry(downstream, upstream, count, stop).await
    }
}

impl Reached {
    /// Closes the destination's side.
    pub(super) fn close(self, ending: &Ending) {
        let Self { guard, ledger, .. } = self;
        drop(guard);
        ledger.close(ending.clone());
    }
}

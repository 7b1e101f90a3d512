//! Opaque connections: policy and routes by what TCP and TLS tell, then bytes.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::http::HeaderMap;
use isobar_hbone::{Plain, Progress, relay_counted};
use isobar_route::{
    HashKey, Target as RouteTarget, TcpCall, TcpDecision, TrafficRules, authorize_tcp, choose,
    match_tcp, observe_tcp,
};
use isobar_state::Service;
use isobar_tls::outwards::Within;
use isobar_types::{NamespacedHostname, Reason, Str};
use tokio::sync::watch;
use tokio::time::Instant as Now;

use crate::access_log::TcpLine;
use crate::attribution::Attributed;
use crate::cluster::{Cluster, Held, Load, Overflow};
use crate::edge;
use crate::endpoint::{Endpoint, Wanted};
use crate::metrics::TcpConnection;
use crate::observation;
use crate::outlier::Outcome;
use crate::resolved::{Asked, is_named_by_caller, turn_of};
use crate::session::{Session, until};
use crate::stream::{AnyStream, Stream};
use crate::target::Target;
use crate::upstream::{How, Preface, Tls};
use crate::world::View;

/// Endpoints tried after the first.
const RETRIES: usize = 2;
/// Byte counters advance at least so often while a connection is open (Istio's default).
const REPORT: Duration = Duration::from_secs(5);

/// Where there is no limit: longer than a process lives.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A connection that does not come about, or is cut.
struct Ended {
    reason: Reason,
    detail: String,
}

impl Ended {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

/// What is known of the connection for its line.
#[derive(Default)]
struct Facts {
    /// What a client of TLS asks for.
    server_name: Option<String>,
    service: Option<Arc<Service>>,
    cluster: String,
    endpoint: Option<Endpoint>,
    rules: Arc<TrafficRules>,
    memory: Option<Arc<Cluster>>,
    /// What it takes of the destination's limits.
    held: Option<Held>,
}

/// Serves one opaque connection to its end.
pub async fn serve<S: Stream>(session: Rc<Session>, stream: S, server_name: Option<String>) {
    let started = Instant::now();
    let start = jiff::Timestamp::now();
    let view = session.worker.world.view();
    let caller = session.caller(&view).await;
    let mut facts = Facts {
        server_name,
        service: session.addressed.service().cloned(),
        ..Facts::default()
    };
    let progress = Progress::default();
    // Before the first look: what changes while the endpoint is dialled counts.
    let world = &session.worker.world;
    let changes = (world.feed.versions(), world.store.versions());
    let opened = open(&session, &caller, &mut facts).await;
    let ended = match opened {
        Ok(upstream) => {
            let streams = (stream, upstream);
            carry(&session, &caller, &facts, streams, changes, &progress).await
        }
        Err(ended) => ended,
    };
    let worker = &session.worker;
    if let (Reason::NoRoute, Target::Listener(_)) = (ended.reason, &session.addressed.target) {
        worker.metrics.refused(ended.reason);
    }
    worker.access_log.tcp(&TcpLine {
        start,
        caller: session.peer.identity.as_ref(),
        own: &worker.world.own,
        flags: ended.reason.flag(),
        detail: &ended.detail,
        bytes_received: progress.sent(),
        bytes_sent: progress.received(),
        duration: started.elapsed(),
        upstream: facts.endpoint.as_ref().map(|e| e.address),
        cluster: &facts.cluster,
        local: session.addressed.destination,
        remote: session.peer.address,
    });
}

fn service_key(session: &Session) -> Option<NamespacedHostname> {
    session.addressed.service().map(|s| s.key.clone())
}

fn permitted(
    session: &Session,
    view: &View,
    caller: &Attributed,
    facts: &Facts,
) -> Result<(), String> {
    let key = service_key(session);
    let call = facts.call(session.addressed.destination);
    authorize_tcp(&view.tables, key.as_ref(), &call, &caller.caller)
        .map(|_| ())
        .map_err(|denied| denied.code_detail())
}

fn observe(session: &Session, view: &View, caller: &Attributed, facts: &Facts) {
    let key = service_key(session);
    let call = facts.call(session.addressed.destination);
    let observed = observe_tcp(&view.tables, key.as_ref(), &call, &caller.caller);
    observation::tell(session, caller, "connection", observed);
}

impl Facts {
    fn tls(&self) -> Option<Tls> {
        let rules = self.rules.tls()?.clone();
        let service = self.service.as_ref()?;
        let asked = self.asked(service).map(Str::from);
        let host = asked.unwrap_or_else(|| service.key.hostname.clone());
        Some(Tls { rules, host })
    }

    /// What a client of TLS asks for, where the service stands for all of a domain.
    fn asked(&self, service: &Service) -> Option<&str> {
        let many = service.key.hostname.starts_with("*.");
        self.server_name.as_deref().filter(|_| many)
    }

    fn call(&self, destination: SocketAddr) -> TcpCall<'_> {
        TcpCall {
            destination,
            sni: self.server_name.as_deref(),
        }
    }
}

async fn open(
    session: &Session,
    caller: &Attributed,
    facts: &mut Facts,
) -> Result<AnyStream, Ended> {
    let view = session.worker.world.view();
    observe(session, &view, caller, facts);
    permitted(session, &view, caller, facts)
        .map_err(|why| Ended::new(Reason::PolicyDenied, why))?;
    let mut tried: Vec<Str> = Vec::new();
    loop {
        let endpoint = endpoint(session, &view, caller, facts, &tried).await?;
        let (own, ip) = (&session.worker.world.own, endpoint.address.ip());
        if session.addressed.is_raw() && view.leads_back(own, &endpoint.workload, ip) {
            // It would be sent there again by the same name, without an end.
            let why = "the name leads back to this gateway";
            return Err(Ended::new(Reason::NoRoute, why));
        }
        tried.push(endpoint.workload.uid.clone());
        facts.endpoint = Some(endpoint.clone());
        let admitted = session.admitted(&view, &endpoint);
        admitted.map_err(|why| Ended::new(Reason::PolicyDenied, why))?;
        let limits = facts.rules.limits();
        if let Some(cluster) = facts.memory.as_ref().filter(|_| facts.held.is_none()) {
            let held = cluster.hold(Load::Connection, limits.max_connections);
            facts.held = Some(held.map_err(|Overflow(limit)| {
                if let Some(service) = &facts.service {
                    session.worker.metrics.overflowed(service, limit);
                }
                Ended::new(Reason::Overload, "too many connections to the destination")
            })?);
        }
        let how = How {
            limits,
            cluster: None,
            tls: facts.tls().filter(|_| !session.addressed.is_raw()),
            preface: facts.rules.proxy.map(|version| Preface {
                version,
                source: session.peer.address,
                destination: session.addressed.destination,
            }),
            alone: true,
        };
        let opened = session.worker.pool.open(&endpoint, &how, Within::Anything);
        let opened = opened.await;
        let outcome = match &opened {
            Ok(_) => Outcome::Answered(200),
            Err(_) => Outcome::Unreachable,
        };
        note(session, facts, &endpoint, outcome);
        match opened {
            Ok(stream) => return Ok(stream),
            Err(failure) if tried.len() > RETRIES || facts.service.is_none() => {
                return Err(Ended::new(failure.reason, failure.detail));
            }
            Err(failure) => tracing::debug!(%failure, "trying elsewhere"),
        }
    }
}

/// Notes how the attempt went, where endpoints that fail are left out.
fn note(session: &Session, facts: &Facts, endpoint: &Endpoint, outcome: Outcome) {
    let (Some(outliers), Some(cluster)) = (&facts.rules.outliers, &facts.memory) else {
        return;
    };
    // As with requests: of hosts that callers name nothing is counted.
    if is_named_by_caller(&endpoint.workload) {
        return;
    }
    let all = cluster.endpoints.load(Ordering::Relaxed);
    let uid = &endpoint.workload.uid;
    let out = cluster
        .outliers
        .note(uid, outcome, outliers, all, Instant::now());
    if let Some(service) = facts.service.as_ref().filter(|_| out) {
        session.worker.metrics.ejected(service);
    }
}

fn no_cluster(why: &str) -> Ended {
    Ended::new(Reason::NoCluster, why)
}

/// The destination that a rule chooses; `None` where there are no rules.
fn target(decision: &TcpDecision) -> Result<Option<&RouteTarget>, Ended> {
    let all = match decision {
        TcpDecision::NoRoute => return Err(Ended::new(Reason::NoRoute, "no rule matches")),
        TcpDecision::Default => return Ok(None),
        TcpDecision::Taken(..) => decision.route().map_or(&[][..], |r| &r.destinations),
    };
    let chosen = choose(all, rand::random());
    let (_, chosen) = chosen.ok_or_else(|| no_cluster("every weight is 0"))?;
    if chosen.target.refuse.is_some() {
        return Err(no_cluster("the route leads nowhere"));
    }
    Ok(Some(&chosen.target))
}

async fn endpoint(
    session: &Session,
    view: &View,
    caller: &Attributed,
    facts: &mut Facts,
    tried: &[Str],
) -> Result<Endpoint, Ended> {
    let addressed = &session.addressed;
    let asked = addressed.destination;
    let own = match &addressed.target {
        Target::Service(service) => service.key.clone(),
        Target::Listener(listener) => {
            let rules = edge::now(view, listener).ok().and_then(|now| now.opaque());
            let none = || Ended::new(Reason::NoRoute, "the listener has no rules");
            rules.cloned().ok_or_else(none)?
        }
        Target::Workload(workload) => {
            facts.cluster = format!("encap|{asked}");
            let now = view.snapshot.workload_by_uid(&workload.uid).cloned();
            let gone = || Ended::new(Reason::NoHealthyUpstream, "the pod is gone");
            return Ok(Endpoint {
                workload: now.ok_or_else(gone)?,
                address: asked,
            });
        }
    };
    let decision = match_tcp(&view.tables, &own, &facts.call(asked), &caller.caller);
    let target = target(&decision)?;
    let key = target.map_or(Some(&own), |t| t.service.as_ref());
    let service = key.and_then(|key| view.snapshot.service(key));
    let service = service.ok_or_else(|| no_cluster("the destination is not known"))?;
    let ports = service.ports.iter().map(|(port, _)| port);
    let port = target.map_or(asked.port(), |target| target.port_of(ports, asked.port()));
    facts.service = Some(service.clone());
    facts.cluster = format!("inbound-vip|{port}|tcp|{}", service.key.hostname);
    if let Target::Listener(_) = addressed.target {
        let through = edge::through(&session.worker, view, service, port);
        if let Some(waypoint) = through.map_err(|(reason, why)| Ended::new(reason, why))? {
            return Ok(waypoint);
        }
    }
    let subset = target.and_then(|t| t.subset.as_deref());
    let subset = subset.map(|name| {
        let subset = view.tables.subset(&service.key, name);
        subset.ok_or_else(|| no_cluster(&format!("no subset {name:?}")))
    });
    let subset = subset.transpose()?.map(|subset| &**subset);
    let rules = view.tables.traffic(&service.key, subset, port);
    facts.rules = rules.clone();
    facts.memory = session.worker.turns.cluster(rules, service, subset, port);
    let by_ip = rules.balancing.as_ref().and_then(|b| b.hash.as_ref());
    let hash = by_ip.filter(|key| **key == HashKey::SourceIp);
    let asked = facts.asked(service);
    let asked = asked.map(|host| (host, turn_of(&session.peer)));
    let wanted = Wanted {
        service,
        port,
        subset,
        rules,
        cluster: facts.memory.as_ref(),
        hash: hash.and_then(|k| k.of(&HeaderMap::new(), None, session.peer.address.ip())),
        source: session.source(caller),
        tried,
        remote: false,
        dialled: addressed.dialled(service),
        asked: asked.as_ref().map(|(host, turn)| Asked { host, turn }),
        session: None,
        dice: rand::random(),
    };
    let chosen = session.worker.turns.choose(view, &wanted).await;
    chosen.map_err(|none| Ended::new(none.reason, none.detail))
}

/// The mesh has changed, or it is time to look whether the target is still this waypoint's.
async fn changed(snapshots: &mut watch::Receiver<u64>, leave_at: Option<Now>) {
    tokio::select! {
        Ok(()) = snapshots.changed() => {}
        () = until(leave_at) => {}
    }
}

/// Asks the endpoint's policies again, and whether the target is still this waypoint's; when to look
/// at that again.
fn goes_on(session: &Session, facts: &Facts) -> Result<Option<Now>, Ended> {
    let view = session.worker.world.view();
    if let Some(endpoint) = &facts.endpoint {
        let admitted = session.admitted(&view, endpoint);
        admitted.map_err(|why| Ended::new(Reason::PolicyWithdrawn, why))?;
    }
    let stays = session.may_stay(&view);
    stays.map_err(|gone| Ended::new(gone.reason, gone.detail))
}

/// Carries bytes until both sides are done, or a policy written meanwhile forbids it.
async fn carry<S: Stream>(
    session: &Session,
    caller: &Attributed,
    facts: &Facts,
    (downstream, upstream): (S, AnyStream),
    (mut versions, mut snapshots): (watch::Receiver<u64>, watch::Receiver<u64>),
    progress: &Progress,
) -> Ended {
    let worker = &session.worker;
    let connection = TcpConnection {
        caller: Some(caller),
        peer: session.peer.identity.as_ref(),
        service: facts.service.as_deref(),
        workload: facts.endpoint.as_ref().map(|e| &*e.workload),
    };
    let counters = worker.metrics.tcp_opened(&connection);
    let mut downstream = Plain::new(downstream);
    let mut upstream = Plain::new(upstream);
    let mut report = tokio::time::interval(REPORT);
    let limits = facts.rules.limits();
    let life = limits.max_duration.unwrap_or(FOREVER);
    let end = tokio::time::sleep(life);
    tokio::pin!(end);
    let idle = limits.tcp_idle.unwrap_or(FOREVER);
    let silence = tokio::time::sleep(idle);
    tokio::pin!(silence);
    let mut carried = 0;
    // Looked at once at the start: it may have left while the endpoint was dialled.
    let mut leave_at = Some(Now::now());
    let ended = {
        let relay = relay_counted(&mut downstream, &mut upstream, progress);
        tokio::pin!(relay);
        loop {
            tokio::select! {
                end = &mut relay => break match end {
                    Ok(()) => Ended::new(Reason::Complete, ""),
                    Err(error) => Ended::new(error.reason(), error.to_string()),
                },
                Ok(()) = versions.changed() => {
                    let view = worker.world.view();
                    let caller = session.caller(&view).await;
                    if let Err(why) = permitted(session, &view, &caller, facts) {
                        break Ended::new(Reason::PolicyWithdrawn, why);
                    }
                    leave_at = Some(Now::now());
                }
                () = changed(&mut snapshots, leave_at) => match goes_on(session, facts) {
                    Ok(at) => leave_at = at,
                    Err(ended) => break ended,
                },
                () = &mut end => break Ended::new(Reason::Complete, "max_connection_duration"),
                () = &mut silence => {
                    let now = progress.sent() + progress.received();
                    if std::mem::replace(&mut carried, now) == now {
                        break Ended::new(Reason::Complete, "idle_timeout");
                    }
                    silence.as_mut().reset(tokio::time::Instant::now() + idle);
                }
                _ = report.tick() => counters.advance(progress.sent(), progress.received()),
            }
        }
    };
    counters.advance(progress.sent(), progress.received());
    worker.metrics.tcp_closed(&connection, ended.reason.flag());
    ended
}

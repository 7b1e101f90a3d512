//! A gateway at the edge of the mesh: ports that its description names, open to callers without an
//! identity. What they say of themselves counts for nothing; what they are served is decided by the same
//! rules as inside the mesh.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderValue;
use ::http::header::HeaderName;
use ::http::request::Parts;
use bytes::{Bytes, BytesMut};
use isobar_route::{
    HttpDecision, Listener, ListenerProtocol, WaypointInfo, fields, match_http, path,
};
use isobar_runtime::Lifetime;
use isobar_state::outbound::{NextHop, OutboundCall, route};
use isobar_state::{AppProtocol, Service};
use isobar_tls::Hello;
use isobar_tls::edge::EdgeServer;
use isobar_types::{Identity, Reason, Str};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::attribution::Peer;
use crate::credentials::Version;
use crate::endpoint::Endpoint;
use crate::listener::{ACCEPT_PAUSE, listen};
use crate::session::{Session, Worker};
use crate::stream::{AnyStream, Rewound, Stream};
use crate::target::{Addressed, Target, TargetRefusal};
use crate::world::{Own, View};

mod leave;
mod mutual;
mod room;

pub(crate) use leave::again;
pub(crate) use mutual::in_tunnel;
pub use room::Room;
pub(crate) use room::network;

/// Connections that may be open on one port of one worker; further ones are closed.
const OPEN: usize = 10_000;
/// For a caller to say hello and to end the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between tries to open a port that somebody else has.
const AGAIN: Duration = Duration::from_secs(1);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What only a proxy in front of us could say, besides what nobody may say: who calls, and what was
/// asked for before somebody changed it. So does whatever begins with `x-forwarded`.
const CLAIMS: [&str; 9] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-method",
    "x-original-uri",
];

/// Opens and closes ports as the description of this gateway says, until the worker drains.
pub async fn serve(worker: Rc<Worker>, any: IpAddr, shared: bool) {
    let life = worker.scope.lifetime();
    let mut versions = worker.world.feed.versions();
    let mut open: BTreeMap<u16, watch::Sender<()>> = BTreeMap::new();
    loop {
        versions.borrow_and_update();
        let wanted = ports(&worker);
        // Whoever accepts there ends with its sender; what is open there is told by its requests.
        open.retain(|port, _| wanted.contains(port));
        let mut missing = false;
        for port in wanted {
            if open.contains_key(&port) {
                continue;
            }
            match listen(SocketAddr::new(any, port), shared) {
                Ok(listener) => {
                    let (stop, stopped) = watch::channel(());
                    let accepting = accept(worker.clone(), listener, port, stopped);
                    worker.scope.spawn("accept at the edge", accepting);
                    open.insert(port, stop);
                    tracing::info!(port, "serving callers from outside the mesh");
                }
                Err(error) => {
                    missing = true;
                    tracing::warn!(port, %error, "a port of this gateway cannot be opened");
                }
            }
        }
        tokio::select! {
            () = life.draining() => return,
            changed = versions.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if missing => {}
        }
    }
}

fn ports(worker: &Worker) -> BTreeSet<u16> {
    let tables = worker.world.feed.load();
    let listeners = tables.waypoint().map_or(&[][..], |own| &own.listeners);
    listeners.iter().map(|one| one.port).collect()
}

/// TLS of listeners, as of some credentials and description of one of them.
type Known = BTreeMap<Str, (Version, Arc<Listener>, EdgeServer)>;

/// What one worker knows of it, for callers from outside and in tunnels alike.
#[derive(Default)]
pub(crate) struct Servers(RefCell<Known>);

/// Accepts on one port until the worker drains or the port is not wanted any more.
pub async fn accept(
    worker: Rc<Worker>,
    listener: TcpListener,
    port: u16,
    mut stopped: watch::Receiver<()>,
) {
    let life = worker.scope.lifetime();
    let room = Arc::new(Semaphore::new(OPEN));
    loop {
        let accepted = tokio::select! {
            () = life.draining() => return,
            _ = stopped.changed() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            worker.metrics.refused(Reason::Overload);
            continue;
        };
        let Some(share) = worker.world.room.enter(peer.ip()) else {
            worker.metrics.refused(Reason::Overload);
            continue;
        };
        let served = connection(worker.clone(), tcp, peer, port, life.clone());
        worker.scope.spawn("connection from outside", async move {
            served.await;
            drop((place, share));
        });
    }
}

async fn connection(
    worker: Rc<Worker>,
    mut tcp: TcpStream,
    address: SocketAddr,
    port: u16,
    life: Lifetime,
) {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%address, %error, "TCP_NODELAY");
    }
    let peer = Peer {
        identity: None,
        address: SocketAddr::new(address.ip().to_canonical(), address.port()),
        foreign: false,
    };
    let view = worker.world.view();
    let here = at(&view, port);
    if let Some(clear) = clear(&here) {
        let session = session(&worker, peer, clear);
        return leave::serve(session, tcp, None).await;
    }
    let hello = tokio::select! {
        hello = tokio::time::timeout(HANDSHAKE, hello(&mut tcp)) => hello,
        () = life.draining() => return,
    };
    let Ok(Some((name, first))) = hello else {
        tracing::debug!(%address, port, "a caller did not say hello");
        worker.metrics.refused(Reason::BadRequest);
        return;
    };
    let Some(listener) = for_name(&here, name.as_deref()) else {
        tracing::info!(%address, port, name, "no server of this gateway has that name");
        worker.metrics.refused(Reason::NoRoute);
        return;
    };
    secured(&worker, peer, listener, Rewound::new(first, tcp)).await;
}

/// The listener that is most exactly for this server name.
fn for_name<'a>(here: &'a [Arc<Listener>], name: Option<&str>) -> Option<&'a Arc<Listener>> {
    let taking = here.iter().filter_map(|one| Some((one.takes(name)?, one)));
    let exact = taking.max_by_key(|(exact, _)| *exact);
    exact.map(|(_, listener)| listener)
}

/// Serves a caller whose hello has chosen this listener.
async fn secured<S: Stream>(worker: &Rc<Worker>, peer: Peer, listener: &Arc<Listener>, stream: S) {
    let address = peer.address;
    if listener.tls.is_none() {
        let stream: AnyStream = Box::new(stream);
        return session(worker, peer, listener).serve(stream).await;
    }
    if listener.of_mesh() {
        return mutual::serve(worker, peer, listener, stream).await;
    }
    // Looked at before the handshake: a later one does not vouch for this caller.
    let signer = leave::Signer::of(&worker.world.credentials, listener);
    let server = match tls(worker, listener) {
        Ok(server) => server,
        Err(why) => {
            tracing::warn!(%address, listener = &*listener.name, "a caller is turned away: {why}");
            worker.metrics.refused(Reason::NoCertificate);
            return;
        }
    };
    match tokio::time::timeout(HANDSHAKE, server.accept(stream)).await {
        Ok(Ok(stream)) => {
            let stream: AnyStream = Box::new(stream);
            leave::serve(session(worker, peer, listener), stream, signer).await;
        }
        Ok(Err(error)) => tracing::debug!(%address, %error, "a handshake failed"),
        Err(_) => tracing::debug!(%address, "a handshake took too long"),
    }
}

/// The client hello, and everything that was read of the stream.
async fn hello(tcp: &mut TcpStream) -> Option<(Option<String>, Bytes)> {
    let mut seen = BytesMut::new();
    loop {
        match Hello::read(&seen) {
            Hello::Part => {}
            Hello::Other => return None,
            Hello::Whole(name) => return Some((name, seen.freeze())),
        }
        if tcp.read_buf(&mut seen).await.ok()? == 0 {
            return None;
        }
    }
}

/// The listener for callers without TLS: none on a port where some listener has TLS, or what only it
/// may show were there for everybody.
fn clear(here: &[Arc<Listener>]) -> Option<&Arc<Listener>> {
    let secured = here.iter().any(|one| one.in_tls());
    here.first().filter(|_| !secured)
}

fn info(view: &View) -> Option<&Arc<WaypointInfo>> {
    view.tables.waypoint()
}

/// The listeners of a port of this gateway.
pub(crate) fn at(view: &View, port: u16) -> Vec<Arc<Listener>> {
    let all = info(view).map_or(&[][..], |own| &own.listeners).iter();
    all.filter(|one| one.port == port).cloned().collect()
}

fn session(worker: &Rc<Worker>, peer: Peer, listener: &Arc<Listener>) -> Rc<Session> {
    let addressed = addressed(worker.world.own.ip, listener.clone());
    let session = Session::new(worker.clone(), peer, addressed);
    // Who comes from outside may not keep a connection without asking for something.
    session.heads.expected();
    session
}

/// A listener as what a connection is for.
pub(crate) fn addressed(ip: IpAddr, listener: Arc<Listener>) -> Addressed {
    let destination = SocketAddr::new(ip, listener.service_port);
    Addressed {
        authority: destination.to_string(),
        target: Target::Listener(listener),
        destination,
        by_address: true,
    }
}

/// Made once for each version of what it is made from.
fn tls(worker: &Worker, listener: &Arc<Listener>) -> Result<EdgeServer, String> {
    let known = &worker.servers.0;
    let credentials = &worker.world.credentials;
    let version = credentials.version();
    if let Some((of, was, server)) = known.borrow().get(&listener.name)
        && *of == version
        && was.tls == listener.tls
    {
        return Ok(server.clone());
    }
    let tls = listener.tls.as_ref().ok_or("the listener ends no TLS")?;
    let mut server = credentials.server(tls)?;
    if listener.protocol != ListenerProtocol::Https {
        server = server.opaque();
    }
    let entry = (version, listener.clone(), server.clone());
    let view = worker.world.view();
    let is_there = |name: &Str| info(&view).is_some_and(|own| own.listener(name).is_some());
    let mut known = known.borrow_mut();
    known.retain(|name, _| is_there(name));
    known.insert(listener.name.clone(), entry);
    Ok(server)
}

/// What a listener's clients speak.
pub(crate) const fn declared(listener: &Listener) -> AppProtocol {
    match listener.protocol {
        ListenerProtocol::Http | ListenerProtocol::Https => AppProtocol::Http1,
        ListenerProtocol::Tls if listener.tls.is_none() => AppProtocol::Tls,
        ListenerProtocol::Tls | ListenerProtocol::Tcp => AppProtocol::Tcp,
    }
}

/// The listener as it is now.
///
/// # Errors
/// When this gateway has it no more.
pub(crate) fn now<'a>(view: &'a View, before: &Listener) -> Result<&'a Listener, TargetRefusal> {
    let now = info(view).and_then(|own| own.listener(&before.name));
    now.map(|now| &**now).ok_or_else(|| TargetRefusal {
        status: 404,
        reason: Reason::UnknownDestination,
        detail: format!("this gateway has no listener {} any more", before.name),
    })
}

/// Takes back what a caller says of itself, and says what is true instead: there is no proxy in front of
/// us whose word counts. A waypoint's does not either, as it passes on what its own callers wrote.
pub(crate) fn disclaim(parts: &mut Parts, listener: &Listener, peer: &Peer) {
    let claims = parts.headers.keys().filter(|name| is_claim(name));
    let mut claims: Vec<HeaderName> = claims.cloned().collect();
    // Within the mesh it belongs to the trace of a call, outside it is anybody's.
    if peer.identity.is_none() {
        claims.push(REQUEST_ID);
    }
    for name in claims {
        parts.headers.remove(name);
    }
    let address = peer.address.ip().to_string();
    if let Ok(address) = HeaderValue::from_str(&address) {
        parts.headers.insert(FORWARDED_FOR, address);
    }
    let scheme = match listener.protocol {
        ListenerProtocol::Https => "https",
        ListenerProtocol::Http | ListenerProtocol::Tls | ListenerProtocol::Tcp => "http",
    };
    let scheme = HeaderValue::from_static(scheme);
    parts.headers.insert(FORWARDED_PROTO, scheme);
}

fn is_claim(name: &HeaderName) -> bool {
    let name = fields::folded(name);
    name.starts_with("x-forwarded") || CLAIMS.contains(&&*name)
}

/// What becomes of a request.
pub(crate) struct Decided {
    /// By the rules for its host.
    pub(crate) rules: HttpDecision,
    /// What its caller is told instead, once it may come in.
    pub(crate) instead: Option<Instead>,
}

/// A request that has to come again in another way.
pub(crate) enum Instead {
    /// In TLS, to this place.
    Https(HeaderValue),
    /// On a connection whose handshake was for its host.
    Misdirected,
}

/// Another listener of the port that is meant by the host of a request than the one whose handshake it was,
/// and whether who has come by this one would come in by that one as well: it may ask for another certificate
/// of its callers, or for one at all.
fn meant(
    view: &View,
    listener: &Listener,
    authority: &str,
    caller: Option<&Identity>,
) -> Option<(Arc<Listener>, bool)> {
    if listener.protocol != ListenerProtocol::Https {
        return None;
    }
    let (host, _) = path::split_port(authority);
    let own = listener.takes(Some(host));
    let here = at(view, listener.port);
    let others = here
        .into_iter()
        .filter(|one| one.in_tls() && one.name != listener.name);
    let taking = others.filter_map(|one| Some((one.takes(Some(host))?, one)));
    let (exact, other) = taking.max_by_key(|(exact, _)| *exact)?;
    if Some(exact) <= own {
        return None;
    }
    // Of the mesh both, who it is has been shown already, in a tunnel even without a server name: it needs
    // one of the names that the other asks for.
    let both = listener.of_mesh() && other.protocol == ListenerProtocol::Https;
    let asked = other.tls.as_ref().filter(|tls| tls.mesh);
    let admitted = asked.is_some_and(|tls| mutual::is_named(tls, caller, &view.snapshot));
    Some((other, both && admitted))
}

/// A listener that callers of the mesh reach in a tunnel, with the identity that they have there; where TLS
/// is spoken, any of the port.
pub(crate) fn in_tunnels(view: &View, own: &Own, to: SocketAddr) -> Option<Arc<Listener>> {
    if to.ip() != own.ip {
        return None;
    }
    let here = at(view, to.port());
    let secured = || here.iter().find(|one| one.in_tls());
    clear(&here).or_else(secured).cloned()
}

/// Finds the rules for the host of a request.
pub(crate) fn decide(
    view: &View,
    listener: &Listener,
    call: &isobar_route::HttpCall<'_>,
    caller: &isobar_route::Caller,
) -> Decided {
    let mut decided = Decided {
        rules: HttpDecision::NoRoute,
        instead: None,
    };
    let meant = meant(view, listener, call.authority, caller.identity.as_ref());
    let listener = match &meant {
        None => listener,
        Some((other, true)) => other,
        Some((_, false)) => {
            decided.instead = Some(Instead::Misdirected);
            return decided;
        }
    };
    let now = now(view, listener).ok();
    let Some(host) = now.and_then(|now| now.host(call.authority)) else {
        return decided;
    };
    if host.https_redirect {
        let (name, _) = path::split_port(call.authority);
        let query = call
            .query
            .map_or(String::new(), |query| format!("?{query}"));
        let place = format!("https://{name}{}{query}", call.path);
        decided.instead = HeaderValue::from_str(&place).ok().map(Instead::Https);
        return decided;
    }
    match match_http(&view.tables, &host.rules, call, caller) {
        // What no rule names is not for callers from outside.
        HttpDecision::Default => {}
        rules => decided.rules = rules,
    }
    decided
}

/// A pod of the waypoint that calls to this service go through first, where they do.
///
/// # Errors
/// Why that waypoint cannot be reached: nothing goes around it.
pub(crate) fn through(
    worker: &Worker,
    view: &View,
    service: &Service,
    port: u16,
) -> Result<Option<Endpoint>, (Reason, String)> {
    let wanted = info(view).is_some_and(|own| own.through_waypoint.contains(&service.key));
    if !wanted {
        return Ok(None);
    }
    let own = &worker.world.own;
    let vip = service.vips.iter().find(|vip| vip.network == own.network);
    let vip = vip.ok_or_else(|| {
        let text = format!(
            "service {} has no address to ask its waypoint for",
            service.key
        );
        (Reason::NoHealthyUpstream, text)
    })?;
    let destination = SocketAddr::new(vip.ip, port);
    let call = OutboundCall {
        source: &worker.own_workload,
        source_ip: own.ip,
        destination,
        network: &own.network,
        crosses_networks: false,
        ejections: None,
    };
    match route(&view.snapshot, &call, rand::random()) {
        Ok(NextHop::Tunnel {
            workload,
            via_waypoint: true,
            ..
        }) => Ok(Some(Endpoint {
            workload,
            address: destination,
        })),
        Ok(_) => Ok(None),
        Err(refusal) => Err((refusal.reason, refusal.detail)),
    }
}

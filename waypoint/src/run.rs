//! From start to end: what comes up in which order, and how it goes down.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_hbone::Certificates;
use isobar_runtime::{Lifetime, LifetimeOwner, LocalScope, Scope, Workers};
use isobar_telemetry::logging::LogControl;
use isobar_telemetry::{HttpServer, Ready, Registry, standard};
use isobar_tls::{PeerTrust, Revocations, TrustDomains, WorkloadCertificate};
use isobar_types::Identity;
use isobar_xds::{
    AdsClient, AdsConfig, CaClient, CaConfig, CertManager, CertSource, OutboundPolicyHandler,
    RevocationFile, SyncStatus,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::config::Config;
use crate::edge;
use crate::endpoint::Turns;
use crate::http::Live;
use crate::kept::Kept;
use crate::listener;
use crate::metrics::{Metrics, Recent};
use crate::plaintext::{self, Door};
use crate::session::Worker;
use crate::traces;
use crate::upstream::{Dial, HboneDialer, Pool};
use crate::world::{Own, World};

/// For control tasks once traffic has ended.
const CONTROL_DRAIN: Duration = Duration::from_millis(100);
/// Before the end of a drain: for a last status to reach callers.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Between looks for connections nobody uses.
const SWEEP: Duration = Duration::from_secs(5);

/// Why the process cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct RunError {
    /// What was wanted.
    pub what: &'static str,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError { what, source }
}

/// Certificates of the manager, for tunnels.
pub struct Fetch(pub Arc<dyn CertSource>);

impl Certificates for Fetch {
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Arc<WorkloadCertificate>, String>> + 'a>>
    {
        Box::pin(async move { self.0.fetch(identity).await.map_err(|e| e.to_string()) })
    }
}

/// Runs until a signal or `/quitquitquit`, drains and returns. The calling thread becomes the control
/// runtime.
///
/// # Errors
/// When the process cannot start.
pub fn run(config: Config, logging: LogControl) -> Result<(), RunError> {
    if let Err(error) = isobar_net::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(system("control runtime"))?;
    let workers = Workers::start("waypoint", config.workers).map_err(system("worker threads"))?;
    let handles = workers.all().to_vec();
    let result = runtime.block_on(control(Arc::new(config), handles, logging));
    workers.join();
    result
}

/// Who this process is.
#[must_use]
pub fn own(config: &Config) -> Own {
    Own {
        identity: Identity::new(
            config.trust_domain.as_str(),
            config.namespace.as_str(),
            config.service_account.as_str(),
        ),
        pod: config.pod_name.as_str().into(),
        ip: config.ip,
        network: config.network.as_str().into(),
        cluster_id: config.cluster_id.as_str().into(),
    }
}

async fn control(
    config: Arc<Config>,
    workers: Vec<isobar_runtime::Worker>,
    logging: LogControl,
) -> Result<(), RunError> {
    let end = Arc::new(LifetimeOwner::new());
    let scope = Scope::new("control");
    watch_signals(&scope, end.clone())?;

    let registry = Registry::new();
    registry.build_info("proxy", env!("CARGO_PKG_VERSION"));
    let ready = Ready::new();
    let synced = ready.gate("configuration");
    let serving = ready.gate("listeners");
    let certified = ready.gate("certificate");
    serve_readiness(&scope, &config, ready)?;

    let world = World::new(own(&config));
    let sync = start_discovery(&scope, &config, &world);
    let certificates = start_certificates(&scope, &config, &world);
    certificates.prefetch(&world.own.identity);
    let metrics = Metrics::new(&registry);
    let access_log = start_access_log(&scope, &config, &world)?;
    registry.register("isobar_spans", "Spans of requests", world.spans.outcomes());
    let followed = traces::follow(world.clone(), scope.lifetime());
    scope.spawn("spans", followed);
    let admin = Admin {
        config: config.clone(),
        world: world.clone(),
        sync: sync.clone(),
        certificates: certificates.clone(),
    };
    admin::serve(&scope, admin, &registry, logging, end.clone()).map_err(system("admin ports"))?;

    let life = end.lifetime();
    let source: Arc<dyn CertSource> = Arc::new(certificates);
    world.credentials.tell_mesh(source.clone());
    tokio::select! {
        () = life.draining() => {
            scope.shutdown(CONTROL_DRAIN).await;
            return Ok(());
        }
        () = sync.synced() => synced.pass(),
    }
    tracing::info!("the configuration is known");
    let own_id = world.own.identity.clone();
    let wait = source.clone();
    scope.spawn("own certificate", async move {
        while wait.fetch(&own_id).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        certified.pass();
    });
    let parts = Parts {
        world,
        metrics,
        access_log,
        certificates: source,
        drain: config.drain,
    };
    let ended = start_workers(&config, &workers, &parts, &end).await?;
    serving.pass();
    for door in &config.plaintext {
        tracing::info!(address = %door.listen, service = door.authority, "serving plain traffic");
    }
    tracing::info!(address = %config.hbone, "serving");
    life.draining().await;
    serving.close();
    for worker in ended {
        // A worker that is gone has drained.
        let _ = worker.await;
    }
    parts.world.spans.finish(LAST_WORDS).await;
    parts.access_log.flush(LAST_WORDS).await;
    end.stop();
    scope.shutdown(CONTROL_DRAIN).await;
    Ok(())
}

fn start_access_log(scope: &Scope, config: &Config, world: &World) -> Result<AccessLog, RunError> {
    if !config.access_log {
        return Ok(AccessLog::off());
    }
    let log = AccessLog::stdout().map_err(system("access log thread"))?;
    let followed = log.clone().follow(world.feed.clone(), scope.lifetime());
    scope.spawn("access log", followed);
    Ok(log)
}

fn serve_readiness(scope: &Scope, config: &Config, ready: Ready) -> Result<(), RunError> {
    let routes = standard::readiness(ready);
    let server = HttpServer::bind("readiness", &[config.readiness], routes)
        .map_err(system("readiness port"))?;
    scope.spawn("readiness", server.run(scope.lifetime()));
    Ok(())
}

/// What every worker gets.
#[derive(Clone)]
struct Parts {
    world: World,
    metrics: Metrics,
    access_log: AccessLog,
    certificates: Arc<dyn CertSource>,
    drain: Duration,
}

type Ended = tokio::sync::oneshot::Receiver<()>;

async fn start_workers(
    config: &Config,
    workers: &[isobar_runtime::Worker],
    parts: &Parts,
    end: &LifetimeOwner,
) -> Result<Vec<Ended>, RunError> {
    let mut all = Vec::with_capacity(workers.len());
    let shared = workers.len() > 1;
    for worker in workers {
        let (started, start) = tokio::sync::oneshot::channel();
        let (gone, ended) = tokio::sync::oneshot::channel();
        let (parts, life, address) = (parts.clone(), end.lifetime(), config.hbone);
        let doors = config.plaintext.clone();
        worker
            .run(move || async move {
                let listeners = match listen(address, &doors, shared) {
                    Ok(listeners) => listeners,
                    Err(error) => {
                        // Whoever asked has gone if this fails.
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let _ = started.send(Ok(()));
                work(&parts, listeners, (address.ip(), shared), life).await;
                let _ = gone.send(());
            })
            .await;
        let stopped = || std::io::Error::other("the worker has ended");
        let outcome = start.await.unwrap_or_else(|_| Err(stopped()));
        outcome.map_err(system("HBONE port, or one of ISOBAR_PLAINTEXT"))?;
        all.push(ended);
    }
    Ok(all)
}

/// Where one worker takes connections.
struct Listeners {
    hbone: TcpListener,
    plaintext: Vec<(TcpListener, String)>,
}

fn listen(hbone: SocketAddr, doors: &[Door], shared: bool) -> std::io::Result<Listeners> {
    let hbone = listener::listen(hbone, shared)?;
    let open = |door: &Door| {
        let listener = listener::listen(door.listen, shared)?;
        Ok((listener, door.authority.clone()))
    };
    let plaintext = doors.iter().map(open).collect::<std::io::Result<_>>()?;
    Ok(Listeners { hbone, plaintext })
}

/// One worker's life.
async fn work(parts: &Parts, listeners: Listeners, (any, shared): (IpAddr, bool), life: Lifetime) {
    let scope = Rc::new(LocalScope::new("waypoint"));
    let fetch = Rc::new(Fetch(parts.certificates.clone()));
    let tunnels = HboneDialer::tunnels(fetch);
    let dialer = HboneDialer::new(parts.world.own.clone(), tunnels);
    let worker = worker(
        parts.world.clone(),
        parts.metrics.clone(),
        parts.access_log.clone(),
        Rc::new(dialer),
        scope.clone(),
    );
    let accepting = listener::accept(worker.clone(), listeners.hbone, parts.certificates.clone());
    scope.spawn("accept", accepting);
    for (listener, authority) in listeners.plaintext {
        scope.spawn(
            "accept plain",
            plaintext::accept(worker.clone(), listener, authority),
        );
    }
    scope.spawn("edge", edge::serve(worker.clone(), any, shared));
    let sweeper = worker.clone();
    let sweeping = scope.lifetime();
    scope.spawn("sweep", async move {
        loop {
            tokio::select! {
                () = sweeping.draining() => return,
                () = tokio::time::sleep(SWEEP) => {
                    sweeper.pool.sweep();
                    sweeper.recent.forget();
                }
            }
        }
    });
    life.draining().await;
    let orderly = drain(&worker, parts.drain).await;
    tracing::info!(orderly, "a worker has drained");
}

/// Lets a worker finish what it is doing, at most for `limit`. Shortly before that, what is still on its
/// way is told so; what does not end then is cut. Returns true if nothing was cut.
pub async fn drain(worker: &Rc<Worker>, limit: Duration) -> bool {
    let last_words = limit.saturating_sub(LAST_WORDS.min(limit / 2));
    let telling = worker.clone();
    worker.upstreams.spawn("last words", async move {
        tokio::time::sleep(last_words).await;
        telling.live.end_all();
    });
    let orderly = worker.scope.shutdown(limit).await;
    worker.upstreams.shutdown(Duration::ZERO).await;
    orderly
}

/// Puts one worker together; `dialer` reaches endpoints.
#[must_use]
pub fn worker(
    world: World,
    metrics: Metrics,
    access_log: AccessLog,
    dialer: Rc<dyn Dial>,
    scope: Rc<LocalScope>,
) -> Rc<Worker> {
    let own_workload = Arc::new(world.own.as_workload());
    let upstreams = Rc::new(LocalScope::new("upstream"));
    let live: Rc<Live> = Rc::default();
    upstreams.spawn("policies", live.clone().watch(world.clone()));
    upstreams.spawn("turns", crate::gather::turn::carry());
    let kept: Rc<Kept> = Rc::default();
    upstreams.spawn("kept connections", kept.clone().watch(world.clone()));
    Rc::new(Worker {
        pool: Pool::new(dialer, upstreams.clone(), world.credentials.clone()),
        turns: Turns::new(&world, upstreams.clone()),
        upstreams,
        own_workload,
        world,
        scope,
        metrics,
        recent: Recent::default(),
        access_log,
        live,
        kept,
        servers: edge::Servers::default(),
    })
}

fn watch_signals(scope: &Scope, end: Arc<LifetimeOwner>) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("SIGINT"))?;
    scope.spawn("signals", async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end; draining");
        end.drain();
    });
    Ok(())
}

fn start_discovery(scope: &Scope, config: &Config, world: &World) -> SyncStatus {
    let mut metadata = serde_json::Map::new();
    metadata.insert("NAME".into(), config.pod_name.clone().into());
    metadata.insert("NAMESPACE".into(), config.namespace.clone().into());
    metadata.insert("INSTANCE_IPS".into(), config.ip.to_string().into());
    metadata.insert("NODE_NAME".into(), config.node.clone().into());
    metadata.insert("CLUSTER_ID".into(), config.cluster_id.clone().into());
    metadata.insert("ISOBAR_VERSION".into(), env!("CARGO_PKG_VERSION").into());
    metadata.insert(
        "SERVICE_ACCOUNT".into(),
        config.service_account.clone().into(),
    );
    metadata.insert("GATEWAY_NAME".into(), config.gateway.clone().into());
    let mut handlers = world.feed.handlers();
    // Keys before the description that names them.
    handlers.insert(0, world.credentials.handler());
    let names = OutboundPolicyHandler::trust_only(world.store.clone());
    handlers.insert(0, Box::new(names));
    let client = AdsClient::new(
        AdsConfig {
            address: config.xds_address.clone(),
            roots: config.xds_roots.clone(),
            alt_hostname: config.xds_name.clone(),
            token: config.token.clone(),
            cluster_id: config.cluster_id.clone(),
            headers: Vec::new(),
            node_id: config.node_id(),
            metadata,
        },
        world.store.clone(),
        handlers,
    );
    let status = client.status();
    scope.spawn("discovery", client.run(scope.lifetime()));
    status
}

fn start_certificates(scope: &Scope, config: &Config, world: &World) -> CertManager {
    let mesh = world.store.clone();
    let peers = PeerTrust {
        revocations: follow_revocations(scope, config),
        domains: TrustDomains::told_by(move |a, b| mesh.load().is_one_trust(a, b)),
    };
    let client = CaClient::new(CaConfig {
        address: config.ca_address.clone(),
        roots: config.ca_roots.clone(),
        alt_hostname: config.ca_name.clone(),
        token: config.token.clone(),
        cluster_id: config.cluster_id.clone(),
        headers: Vec::new(),
        ttl: config.secret_ttl,
        // A waypoint is nobody but itself.
        impersonate: false,
    })
    .with_peer_trust(peers);
    let (manager, work) = CertManager::new(Arc::new(client), scope.lifetime());
    scope.spawn("certificates", work);
    manager
}

/// Lists of revoked certificates, in force before the first handshake and followed from then on.
fn follow_revocations(scope: &Scope, config: &Config) -> Revocations {
    let Some(path) = config.revocation_file.clone() else {
        return Revocations::default();
    };
    let file = RevocationFile::open(path);
    let revocations = file.revocations();
    scope.spawn("revocations", file.follow(scope.lifetime()));
    revocations
}

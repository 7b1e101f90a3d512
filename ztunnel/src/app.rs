//! From start to end: the order in which parts come up, and how they go down.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isobar_runtime::{Lifetime, LifetimeOwner, Scope, Worker, Workers};
use isobar_state::{Snapshot, Traversal};
use isobar_telemetry::logging::LogControl;
use isobar_telemetry::{Ready, Registry, Runtimes};
use isobar_tls::{PeerTrust, PolicyInForce, Revocations, TlsPolicy, TrustDomains};
use isobar_xds::{
    AdsClient, AdsConfig, CaClient, CaConfig, CertManager, OnDemand, OutboundPolicyHandler,
    ResourceHandler, RevocationFile, Roots, SavedCertificates, SavedMesh, Store, SyncStatus, Token,
};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{self, Admin};
use crate::config::{Config, Mode, RootSource, TokenSource};
use crate::dns;
use crate::local::LocalError;
use crate::metrics::{DiscoveryMetrics, Metrics};
use crate::pods::{PendingPods, Pods};
use crate::proxy::{Descriptors, Neighbours, World};
use crate::zds::{self, PodInfo};

/// For control tasks once traffic has ended: most serve until they are stopped.
const CONTROL_DRAIN: Duration = Duration::from_millis(50);

/// Why the process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A socket, thread or signal handler was refused.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Dedicated mode could not listen.
    #[error("{0}")]
    Listen(String),
    /// The local mesh cannot be used.
    #[error("local configuration: {0}")]
    Local(#[source] LocalError),
    /// TLS was used before it was configured.
    #[error(transparent)]
    Tls(#[from] PolicyInForce),
    /// The node agent contradicted itself.
    #[error(transparent)]
    NodeAgent(#[from] zds::Fatality),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> AppError {
    move |source| AppError::System { what, source }
}

/// Runs the proxy until a signal or `/quitquitquit`, drains and returns. The calling thread becomes
/// the control runtime.
///
/// # Errors
/// When the process cannot start, or must start over.
pub fn run(config: Config, logging: LogControl) -> Result<(), AppError> {
    isobar_tls::set_policy(TlsPolicy {
        tls12: config.tls.tls12,
        post_quantum_only: config.tls.post_quantum_only,
    })?;
    if let Err(error) = isobar_net::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(system("control runtime"))?;
    let workers =
        Workers::start("ztunnel", config.worker_threads).map_err(system("worker threads"))?;
    let handles = workers.all().to_vec();
    let result = runtime.block_on(control(Arc::new(config), handles, logging));
    workers.join();
    result
}

async fn control(
    config: Arc<Config>,
    workers: Vec<Worker>,
    logging: LogControl,
) -> Result<(), AppError> {
    let end = Arc::new(LifetimeOwner::new());
    let scope = Scope::new("control");
    let life = scope.lifetime();
    watch_signals(&scope, end.clone())?;

    let registry = Registry::new();
    registry.build_info("ztunnel", env!("CARGO_PKG_VERSION"));
    let ready = Ready::new();
    let gates = Gates::new(&ready, &config);
    let server = admin::readiness(&config, ready).map_err(system("readiness port"))?;
    scope.spawn("readiness", server.run(life.clone()));

    let traversal = if config.require_waypoint {
        Traversal::Required
    } else {
        Traversal::Trusted
    };
    let told = config.local.apply(&Snapshot::empty(traversal));
    let store = Store::new(told.map_err(AppError::Local)?);
    let on_demand = config.on_demand.then(OnDemand::default);
    let sync = start_discovery(&scope, &config, &store, on_demand.clone());
    if let Some(sync) = &sync {
        registry.collector(Box::new(DiscoveryMetrics(sync.clone())));
    }
    let certificates = start_certificates(&scope, &config, &store, sync.clone());

    let mut runtimes = Vec::new();
    for worker in &workers {
        runtimes.extend(worker.call(|| async { Handle::current() }).await);
    }
    registry.collector(Box::new(Runtimes::new(&runtimes)));
    let metrics = Metrics::new(&registry);
    let pending = PendingPods::new(metrics.pending_pods.clone());
    let dns = config.dns.clone();
    let dns = dns.map(|dns| dns::Resolver::of_process(dns, &registry));
    tidy(&scope, &metrics, dns.as_ref(), &store);
    let world = Arc::new(World {
        config: config.clone(),
        store: store.clone(),
        on_demand,
        certificates: Arc::new(certificates.clone()),
        metrics,
        dns,
        descriptors: Descriptors::of_process(),
        neighbours: Neighbours::default(),
        admission: isobar_hbone::Admission::default(),
    });
    let pods = Pods::new(world, workers);
    scope.spawn("recheck", pods.clone().recheck(store.clone(), life.clone()));
    let admin = Admin {
        config: config.clone(),
        store,
        sync: sync.clone(),
        certificates,
        pods: pods.clone(),
        pending: pending.clone(),
    };
    admin::serve(&scope, &admin, &registry, logging, end.clone(), &life)
        .map_err(system("admin and metrics ports"))?;

    if let Some(own) = config.own_pod()
        && let Err(error) = pods.serve_own(own).await
    {
        // Only scrapers inside the mesh miss it.
        tracing::warn!(error, "no HBONE for this process's own pod");
    }
    let result = traffic(&config, sync, &pods, pending, &gates, &end.lifetime()).await;
    gates.drain.close();
    let orderly = pods.drain(config.drain).await;
    tracing::info!(orderly, "drained");
    drop((admin, pods));
    scope.shutdown(CONTROL_DRAIN).await;
    result
}

/// Waits for the mesh, then serves pods until the end is asked for.
async fn traffic(
    config: &Config,
    sync: Option<SyncStatus>,
    pods: &Pods,
    pending: PendingPods,
    gates: &Gates,
    life: &Lifetime,
) -> Result<(), AppError> {
    if let Some(sync) = sync {
        tokio::select! {
            () = life.draining() => return Ok(()),
            () = sync.synced() => {}
        }
    }
    gates.state.pass();
    tracing::info!("the mesh is known; serving pods");
    match &config.mode {
        Mode::Dedicated {
            name,
            namespace,
            service_account,
        } => {
            let info = PodInfo {
                name: name.clone(),
                namespace: namespace.clone(),
                service_account: service_account.clone(),
            };
            let served = pods.serve("dedicated", &info, None).await;
            served.map_err(AppError::Listen)?;
            gates.pass_proxy();
            life.draining().await;
            Ok(())
        }
        Mode::Shared => {
            gates.pass_proxy();
            let Some(gate) = gates.pods.clone() else {
                return Ok(());
            };
            let socket = config.zds_socket.clone();
            let client = zds::Client::new(socket, pods.clone(), gate, pending);
            Ok(client.run(life.clone()).await?)
        }
    }
}

/// Istio's readiness tasks.
struct Gates {
    state: isobar_telemetry::Gate,
    proxy: isobar_telemetry::Gate,
    dns: Option<isobar_telemetry::Gate>,
    pods: Option<isobar_telemetry::Gate>,
    /// Ours: closed once the process drains.
    drain: isobar_telemetry::Gate,
}

impl Gates {
    fn new(ready: &Ready, config: &Config) -> Self {
        let drain = ready.gate("draining");
        drain.pass();
        Self {
            drain,
            state: ready.gate("state manager"),
            proxy: ready.gate("proxy"),
            dns: config.dns.is_some().then(|| ready.gate("dns proxy")),
            pods: (config.mode == Mode::Shared).then(|| ready.gate("workload proxy manager")),
        }
    }

    fn pass_proxy(&self) {
        self.proxy.pass();
        if let Some(dns) = &self.dns {
            dns.pass();
        }
    }
}

/// Forgets the series of what is gone.
fn tidy(scope: &Scope, metrics: &Metrics, dns: Option<&dns::Resolver>, store: &Store) {
    let life = scope.lifetime();
    if let Some(dns) = dns {
        scope.spawn("dns series", dns.tidy(store.clone(), life.clone()));
    }
    scope.spawn("series", metrics.clone().tidy(store.clone(), life));
}

fn watch_signals(scope: &Scope, end: Arc<LifetimeOwner>) -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("SIGINT"))?;
    scope.spawn("signals", async move {
        let mut interrupts = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
                _ = interrupt.recv() => {
                    interrupts += 1;
                    if interrupts > 1 {
                        // Istio's ztunnel: the second one does not wait.
                        std::process::exit(0);
                    }
                    tracing::info!("SIGINT: draining");
                }
            }
            end.drain();
        }
    });
    Ok(())
}

/// What is asked for beyond Istio's resources: only of a control plane of ours, which alone has it.
fn own_resources(config: &Config, store: &Store) -> Vec<Box<dyn ResourceHandler>> {
    if !config.require_waypoint {
        return Vec::new();
    }
    vec![Box::new(OutboundPolicyHandler::new(store.clone()))]
}

fn start_discovery(
    scope: &Scope,
    config: &Config,
    store: &Store,
    on_demand: Option<OnDemand>,
) -> Option<SyncStatus> {
    let server = config.xds.as_ref()?;
    let mut metadata = serde_json::Map::new();
    metadata.insert("NAME".into(), config.pod_name.clone().into());
    metadata.insert("NAMESPACE".into(), config.pod_namespace.clone().into());
    metadata.insert("INSTANCE_IPS".into(), config.instance_ip.to_string().into());
    if let Some(node) = &config.node_name {
        metadata.insert("NODE_NAME".into(), node.clone().into());
    }
    metadata.insert("CLUSTER_ID".into(), config.cluster_id.clone().into());
    metadata.insert("ISOBAR_VERSION".into(), env!("CARGO_PKG_VERSION").into());
    metadata.extend(config.metadata.clone());
    let mut client = AdsClient::new(
        AdsConfig {
            address: server.address.clone(),
            roots: roots(&server.roots),
            alt_hostname: server.alt_hostname.clone(),
            token: config.token.as_ref().map(token),
            cluster_id: config.cluster_id.clone(),
            headers: server.headers.clone(),
            node_id: config.node_id(),
            metadata,
        },
        store.clone(),
        own_resources(config, store),
    );
    if let Some(on_demand) = on_demand {
        client = client.on_demand(on_demand);
    }
    if let Some(folder) = &config.state_dir {
        let origin = format!("{} at {}", config.cluster_id, server.address);
        match SavedMesh::open(folder, origin) {
            Ok(saved) => client = client.with_saved(saved),
            Err(error) => tracing::warn!("the mesh is not saved: {error}"),
        }
    }
    let status = client.status();
    scope.spawn("discovery", client.run(scope.lifetime()));
    Some(status)
}

fn start_certificates(
    scope: &Scope,
    config: &Config,
    store: &Store,
    sync: Option<SyncStatus>,
) -> CertManager {
    let server = &config.ca;
    let shared = config.mode == Mode::Shared;
    let revoked = config.revocation_file.clone().map(RevocationFile::open);
    let revocations = match &revoked {
        Some(file) => file.revocations(),
        None => Revocations::default(),
    };
    let mesh = store.clone();
    let peers = PeerTrust {
        revocations,
        domains: TrustDomains::told_by(move |a, b| mesh.load().is_one_trust(a, b)),
    };
    let client = CaClient::new(CaConfig {
        address: server.address.clone(),
        roots: roots(&server.roots),
        alt_hostname: server.alt_hostname.clone(),
        token: config.token.as_ref().map(token),
        cluster_id: config.cluster_id.clone(),
        headers: server.headers.clone(),
        ttl: config.secret_ttl,
        impersonate: shared,
    })
    .with_peer_trust(peers.clone());
    let life = scope.lifetime();
    if let Some(file) = revoked {
        scope.spawn("revocations", file.follow(life.clone()));
    }
    let saved = config.state_dir.as_deref().and_then(|folder| {
        let saved = SavedCertificates::open(folder);
        let told = |error| tracing::warn!("certificates are not saved: {error}");
        let saved = saved.map_err(told).ok()?;
        Some(saved.with_peer_trust(peers))
    });
    let clock = Arc::new(SystemTime::now);
    let (manager, work) = CertManager::with_saved(Arc::new(client), life.clone(), clock, saved);
    scope.spawn("certificates", work);
    if shared {
        let follower = manager.clone();
        let store = store.clone();
        let node = config.node_name.clone().unwrap_or_default();
        scope.spawn("prefetch", async move {
            let known = async {
                if let Some(sync) = sync {
                    sync.synced().await;
                }
            };
            follower.follow_node(store, node, known, life).await;
        });
    }
    manager
}

fn roots(source: &RootSource) -> Roots {
    match source {
        RootSource::File(path) => Roots::File(path.clone()),
        RootSource::Pem(text) => Roots::Pem(text.clone()),
        RootSource::System => Roots::System,
    }
}

fn token(source: &TokenSource) -> Token {
    match source {
        TokenSource::File(path) => Token::File(path.clone()),
        TokenSource::Literal(token) => Token::Literal(token.clone()),
    }
}

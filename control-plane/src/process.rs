use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use isobar_objects::{
    DirectoryOptions, DirectorySource, ObjectSource as _, ObjectWriter, OverlayWriter,
};
use isobar_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use isobar_runtime::Scope;
use isobar_telemetry::logging::{self, LogConfig, LogFormat};
use isobar_telemetry::{HttpServer, Ready, Registry};
use isobar_tls::ca::Authority;
use isobar_types::{CLUSTER_DOMAIN, NamespacedName, Str};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::auth::{Authenticator, JwksReviewer};
use crate::ca::{CertificateService, Roster, Rules};
use crate::config::Config;
use crate::controller::Controller;
use crate::engine::{Engine, Planned};
use crate::metrics::Metrics;
use crate::model::{KeptKeys, Settings};
use crate::monitoring::{self, Pages};
use crate::server::{self, ServerCertificates};
use crate::xds::catalog::Catalog;
use crate::xds::clients::Clients;
use crate::xds::service::DiscoveryService;

/// Names every server certificate carries.
const SERVER_NAMES: [&str; 2] = ["istiod.istio-system.svc", "isobard.istio-system.svc"];
/// Directory below the overlay root that belongs to this process.
const OVERLAY: &str = "control-plane";
/// File in the state directory that keeps the last good version of every object.
const LAST_GOOD: &str = "last-good-objects.json";
/// How long clients may take to leave.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// HTTP/2 PING on discovery connections, and how long its answer may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// Runs the control plane until it is told to end.
///
/// # Errors
/// When a directory, file or address cannot be used.
pub async fn run(config: Config) -> Result<()> {
    let log = logging::init(&LogConfig {
        format: LogFormat::parse(&config.log_format),
        filter: config.log_level.clone(),
    })?;
    let scope = Scope::new("isobard");
    let serving = Scope::new("serving");
    let result = start(&scope, &serving, &config, &log).await;
    if result.is_ok() {
        ended().await?;
        tracing::info!("ending");
    }
    serving.shutdown(SHUTDOWN).await;
    scope.shutdown(Duration::ZERO).await;
    log.flush();
    result
}

async fn start(
    scope: &Scope,
    serving: &Scope,
    config: &Config,
    log: &logging::LogControl,
) -> Result<()> {
    let Some(state) = &config.state_dir else {
        bail!("--state-dir is needed");
    };
    let registry = Registry::new();
    registry.build_info("isobard", env!("CARGO_PKG_VERSION"));
    let metrics = Metrics::new(&registry);
    let ready = Ready::new();
    let (objects_gate, listener_gate) = (ready.gate("objects"), ready.gate("listener"));
    let authority = Arc::new(authority(config, state)?);

    let (catalogs, catalog) = watch::channel(Arc::new(Catalog::default()));
    let (rosters, roster) = watch::channel(Arc::new(Roster::default()));
    let (plans, plan) = watch::channel(None);
    let source = objects(config, state)?;
    let clients = Clients::default();
    let pages = Pages {
        clients: clients.clone(),
        catalogs: catalog.clone(),
        plans: plan.clone(),
        objects: source.subscribe(),
    };
    let routes = monitoring::routes(pages, ready, &registry, log.clone());
    let monitoring = HttpServer::bind("monitoring", &[config.monitoring], routes)?;
    scope.spawn("monitoring", monitoring.run(scope.lifetime()));

    let engine = Engine {
        settings: settings(config),
        catalogs,
        rosters,
        plans,
        metrics: metrics.clone(),
        kept_keys: KeptKeys::default(),
    };
    follow_objects(scope, config, source, engine, plan)?;
    let mut first = catalog.clone();
    scope.spawn("first plan", async move {
        if first.wait_for(|catalog| catalog.revision > 0).await.is_ok() {
            objects_gate.pass();
        }
    });
    let (authenticator, rules) = authentication(config)?;
    let certificates = CertificateService {
        authority: authority.clone(),
        authenticator: authenticator.clone(),
        rules,
        rosters: roster,
        metrics: metrics.clone(),
    };
    let discovery = DiscoveryService {
        authenticator,
        catalogs: catalog,
        clients,
        life: serving.lifetime(),
        metrics,
    };
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listening on {}", config.listen))?;
    tracing::info!(address = %config.listen, "serving discovery and certificates");
    let names = server_names(config);
    serve(serving, listener, names, authority, certificates, discovery)?;
    listener_gate.pass();
    Ok(())
}

/// Reads everything once, and watches.
fn objects(config: &Config, state: &Path) -> Result<DirectorySource> {
    let options = DirectoryOptions {
        last_good: Some(state.join(LAST_GOOD)),
        ..DirectoryOptions::new(config.objects.clone(), config.overlay.clone())
    };
    DirectorySource::open(options).context("watching the objects")
}

/// Objects in, plans through the engine, writes out.
fn follow_objects(
    scope: &Scope,
    config: &Config,
    source: DirectorySource,
    engine: Engine,
    plan: watch::Receiver<Option<Planned>>,
) -> Result<()> {
    let Some(overlay) = &config.overlay else {
        bail!("--overlay is needed");
    };
    let own = overlay.join(OVERLAY);
    let writer: Arc<dyn ObjectWriter> = Arc::new(OverlayWriter::new(&own)?);
    let controller = Controller::new(writer, &own, config.waypoint_image.clone());
    scope.spawn("engine", engine.run(source.subscribe(), scope.lifetime()));
    scope.spawn("objects", Box::new(source).run(scope.lifetime()));
    scope.spawn("controller", controller.run(plan, scope.lifetime()));
    Ok(())
}

fn authentication(config: &Config) -> Result<(Authenticator, Rules)> {
    let Some(keys) = &config.token_keys else {
        bail!("--token-keys is needed");
    };
    let trust_domain: Str = config.trust_domain.as_str().into();
    let reviewer = JwksReviewer::new(
        keys.clone(),
        config.token_issuer.clone(),
        trust_domain.clone(),
    );
    let node_accounts: Arc<[NamespacedName]> = node_accounts(config)?.into();
    let rules = Rules {
        trust_domain,
        node_accounts: node_accounts.clone(),
    };
    Ok((Authenticator::new(Arc::new(reviewer), node_accounts), rules))
}

/// Serves discovery and certificates on `listener`, with a certificate for `names`.
pub(crate) fn serve(
    scope: &Scope,
    listener: TcpListener,
    names: Vec<String>,
    authority: Arc<Authority>,
    certificates: CertificateService,
    discovery: DiscoveryService,
) -> Result<()> {
    let server = ServerCertificates::issue(authority, names).context("the server certificate")?;
    let tls = server.current();
    scope.spawn("server certificate", server.renew(scope.lifetime()));
    let connections = server::connections(scope, listener, tls);
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(IstioCertificateServiceServer::new(certificates))
        .add_service(discovery);
    let life = scope.lifetime();
    scope.spawn("grpc", async move {
        let draining = async move { life.draining().await };
        let served = router.serve_with_incoming_shutdown(connections, draining);
        if let Err(error) = served.await {
            tracing::error!(%error, "the gRPC server ended");
        }
    });
    Ok(())
}

fn server_names(config: &Config) -> Vec<String> {
    let given = config.tls_san.iter().cloned();
    SERVER_NAMES
        .into_iter()
        .map(str::to_owned)
        .chain(given)
        .collect()
}

/// The authority, and its roots in the state directory where clients look for them.
fn authority(config: &Config, state: &Path) -> Result<Authority> {
    std::fs::create_dir_all(state).with_context(|| state.display().to_string())?;
    let Some(dir) = &config.ca_dir else {
        return Ok(Authority::load_or_create(state)?);
    };
    let authority = Authority::from_intermediate(dir)?;
    let path = state.join("root-cert.pem");
    let temporary = state.join(".root-cert.pem.new");
    std::fs::write(&temporary, authority.roots())
        .and_then(|()| std::fs::rename(&temporary, &path))
        .with_context(|| path.display().to_string())?;
    Ok(authority)
}

fn settings(config: &Config) -> Settings {
    Settings {
        trust_domain: config.trust_domain.as_str().into(),
        cluster_id: config.cluster_id.as_str().into(),
        network: config.network.as_str().into(),
        root_namespace: config.root_namespace.as_str().into(),
        cluster_domain: CLUSTER_DOMAIN.into(),
        waypoint_classes: config.waypoint_class.clone(),
        outbound: config.outbound_traffic_policy,
        port_rules: config.port_rules,
    }
}

fn node_accounts(config: &Config) -> Result<Vec<NamespacedName>> {
    config
        .trusted_node_account
        .iter()
        .map(|text| {
            NamespacedName::parse(text).with_context(|| {
                format!("--trusted-node-account {text:?} is not NAMESPACE/ACCOUNT")
            })
        })
        .collect()
}

async fn ended() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    Ok(())
}

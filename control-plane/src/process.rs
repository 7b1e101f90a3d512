use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use isobar_objects::WaypointLines;
use isobar_objects::enrolment::EnrolmentRules;
use isobar_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use isobar_route::path::Normalization;
use isobar_runtime::Scope;
use isobar_telemetry::logging::{self, LogConfig, LogFormat};
use isobar_telemetry::{Gate, HttpServer, Ready, Registry};
use isobar_tls::ca::Authority;
use isobar_types::{CLUSTER_DOMAIN, DEFAULT_ROOT_NAMESPACE, NamespacedName};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::auth::{Authenticator, TokenReviewer};
use crate::ca::{CertificateService, Roster, Rules};
use crate::classes;
use crate::config::Config;
use crate::controller::{Controller, Rejected, Scaling, WaypointPods};
use crate::engine::{Changeover, Engine, Planned};
use crate::metrics::Metrics;
use crate::model::{Given, KeptKeys, Settings};
use crate::monitoring::{self, Pages};
use crate::revision::Revision;
use crate::server::{self, ServerCertificates, Speaks};
use crate::surroundings::{MANAGER, Surroundings};
use crate::webhook;
use crate::xds::catalog::Catalog;
use crate::xds::clients::Clients;
use crate::xds::service::DiscoveryService;

/// Names every server certificate carries.
const SERVER_NAMES: [&str; 2] = ["istiod.istio-system.svc", "isobard.istio-system.svc"];

/// What the control plane and the node agent run as.
const OWN_ACCOUNTS: [&str; 3] = ["isobard", "istiod", "isobar-cni"];
/// The Service of a control plane, and its account; beside others with the revision after it.
pub(crate) const NAME: &str = "isobard";

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
    let election = Scope::new("election");
    let result = start(&scope, &serving, &election, &config, &log).await;
    if result.is_ok() {
        ended().await?;
        tracing::info!("ending");
    }
    // The lease is given back while clients leave, so that another replica need not wait for its end.
    tokio::join!(election.shutdown(SHUTDOWN), serving.shutdown(SHUTDOWN));
    scope.shutdown(Duration::ZERO).await;
    log.flush();
    result
}

async fn start(
    scope: &Scope,
    serving: &Scope,
    election: &Scope,
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
    let around = Surroundings::find(scope, election, config, state).await?;
    let authorities = Arc::clone(&around.authorities);
    let (authenticator, rules) = authentication(config, around.reviewer.clone())?;

    let (catalogs, catalog) = watch::channel(Arc::new(Catalog::default()));
    let (rosters, roster) = watch::channel(Arc::new(Roster::default()));
    let (plans, plan) = watch::channel(None);
    let clients = Clients::default();
    let rejections = watch::Sender::default();
    let pages = Pages {
        clients: clients.clone(),
        catalogs: catalog.clone(),
        plans: plan.clone(),
        objects: around.objects.clone(),
        rejected: rejections.subscribe(),
        rivals: around.rivals.clone(),
    };
    monitor(scope, config, pages, ready, &registry, log)?;

    let engine = Engine {
        settings: settings(config),
        catalogs,
        rosters,
        plans,
        metrics: metrics.clone(),
        kept_keys: KeptKeys::default(),
        clients: clients.clone(),
        changeover: Changeover::default(),
    };
    webhook::start(scope, serving, config, &around, &metrics).await?;
    follow_objects(scope, config, around, engine, (plan, rejections));
    open_with_first_plan(scope, catalog.clone(), objects_gate);
    let certificates = CertificateService {
        authorities: authorities.subscribe(),
        authenticator: authenticator.clone(),
        rules,
        rosters: roster,
        metrics: metrics.clone(),
        pace: crate::ca::Pace::default(),
    };
    let discovery = DiscoveryService {
        authenticator,
        catalogs: catalog,
        clients,
        life: serving.lifetime(),
        metrics,
    };
    let listener = listen(config.listen).await?;
    let (names, authorities) = (server_names(config), authorities.subscribe());
    // Beside another control plane nobody is certified here.
    let certificates = (!config.waypoints_only).then_some(certificates);
    serve(
        serving,
        listener,
        names,
        authorities,
        certificates,
        discovery,
    )?;
    listener_gate.pass();
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listening on {address}"))?;
    tracing::info!(%address, "serving discovery and certificates");
    Ok(listener)
}

/// Passes the gate when there is something to serve.
fn open_with_first_plan(scope: &Scope, mut catalogs: watch::Receiver<Arc<Catalog>>, gate: Gate) {
    scope.spawn("first plan", async move {
        if catalogs
            .wait_for(|catalog| catalog.revision > 0)
            .await
            .is_ok()
        {
            gate.pass();
        }
    });
}

/// Health, metrics and debug pages.
fn monitor(
    scope: &Scope,
    config: &Config,
    pages: Pages,
    ready: Ready,
    registry: &Registry,
    log: &logging::LogControl,
) -> Result<()> {
    if let Some(address) = config.health {
        let health = HttpServer::bind("health", &[address], monitoring::health(ready.clone()))?;
        scope.spawn("health", health.run(scope.lifetime()));
    }
    let routes = monitoring::routes(pages, ready, registry, log.clone());
    let monitoring = HttpServer::bind("monitoring", &[config.monitoring], routes)?;
    scope.spawn("monitoring", monitoring.run(scope.lifetime()));
    Ok(())
}

/// Objects in, plans through the engine, writes out.
fn follow_objects(
    scope: &Scope,
    config: &Config,
    around: Surroundings,
    engine: Engine,
    (plan, rejections): (watch::Receiver<Option<Planned>>, watch::Sender<Rejected>),
) {
    let writer = Arc::clone(&around.writer);
    let mut controller = Controller::new(
        around.writer,
        around.earlier,
        around.leads.clone(),
        waypoint_pods(config),
    )
    .telling_rejections(rejections)
    .only_waypoints(config.waypoints_only);
    if let Some(cluster) = around.cluster {
        let (own, classes) = (config.own_namespace(), config.waypoint_class.clone());
        let revision = Revision::of(config);
        let scaling = Scaling::new(cluster, MANAGER, own, classes, revision);
        controller = controller.with_parameters(scaling.parameters());
        let running = scaling.run(plan.clone(), around.leads.clone(), scope.lifetime());
        scope.spawn("scaling", running);
        if Revision::of(config).is_default() && config.gateway_class {
            classes::keep(scope, around.objects.clone(), around.leads, writer);
        }
    }
    scope.spawn("engine", engine.run(around.objects, scope.lifetime()));
    scope.spawn("objects", around.source.run(scope.lifetime()));
    scope.spawn("controller", controller.run(plan, scope.lifetime()));
}

/// Waypoints look for the control plane in the usual namespace by themselves.
fn waypoint_pods(config: &Config) -> WaypointPods {
    let namespace = config.own_namespace();
    let revision = Revision::of(config);
    let is_elsewhere = config.waypoints_only
        || namespace != DEFAULT_ROOT_NAMESPACE
        || revision.own_name().is_some();
    let service = revision.suffixed(NAME);
    WaypointPods {
        image: config.waypoint_image.clone(),
        control_plane: is_elsewhere
            .then(|| format!("https://{service}.{namespace}.svc:{}", config.listen.port())),
        authority: config
            .waypoints_only
            .then(|| config.authority_address.clone()),
        names: names_of(config),
        revision,
        ..WaypointPods::default()
    }
}

/// What a waypoint has to be told of the mesh it is of, as it takes something else by itself.
fn names_of(config: &Config) -> Vec<(&'static str, String)> {
    let all = [
        (
            "TRUST_DOMAIN",
            &config.trust_domain,
            isobar_types::DEFAULT_TRUST_DOMAIN,
        ),
        (
            "CLUSTER_ID",
            &config.cluster_id,
            isobar_types::DEFAULT_CLUSTER_ID,
        ),
        ("NETWORK", &config.network, ""),
    ];
    let others = all.into_iter().filter(|(_, value, usual)| value != usual);
    others
        .map(|(name, value, _)| (name, value.clone()))
        .collect()
}

fn authentication(
    config: &Config,
    reviewer: Arc<dyn TokenReviewer>,
) -> Result<(Authenticator, Rules)> {
    let node_accounts: Arc<[NamespacedName]> = match config.waypoints_only {
        // Node proxies are another control plane's.
        true => Arc::default(),
        false => node_accounts(config)?.into(),
    };
    let rules = Rules {
        trust_domain: config.trust_domain.as_str().into(),
        node_accounts: node_accounts.clone(),
    };
    Ok((Authenticator::new(reviewer, node_accounts), rules))
}

/// Serves discovery and certificates on `listener`, with a certificate for `names`.
pub(crate) fn serve(
    scope: &Scope,
    listener: TcpListener,
    names: Vec<String>,
    authorities: watch::Receiver<Arc<Authority>>,
    certificates: impl Into<Option<CertificateService>>,
    discovery: DiscoveryService,
) -> Result<()> {
    let server = ServerCertificates::issue(authorities, names, Speaks::Http2)
        .context("the server certificate")?;
    let tls = server.current();
    scope.spawn("server certificate", server.renew(scope.lifetime()));
    let connections = server::connections(scope, listener, tls);
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_optional_service(certificates.into().map(IstioCertificateServiceServer::new))
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

pub(crate) fn server_names(config: &Config) -> Vec<String> {
    let given = config.tls_san.iter().cloned();
    SERVER_NAMES
        .into_iter()
        .map(str::to_owned)
        .chain(given)
        .collect()
}

pub(crate) fn settings(config: &Config) -> Settings {
    let aliases = config.trust_domain_alias.iter();
    Settings {
        trust_domain: config.trust_domain.as_str().into(),
        trust_domain_aliases: aliases
            .filter(|one| !one.is_empty())
            .map(|one| one.as_str().into())
            .collect(),
        cluster_id: config.cluster_id.as_str().into(),
        network: config.network.as_str().into(),
        root_namespace: config.root_namespace.as_str().into(),
        cluster_domain: CLUSTER_DOMAIN.into(),
        waypoint_classes: config.waypoint_class.clone(),
        own_accounts: own_accounts(config),
        outbound: config.outbound_traffic_policy.unwrap_or_default(),
        port_rules: config.port_rules,
        entry_visibilities: None,
        lines: WaypointLines::Usual,
        paths: Normalization::default(),
        traces: None,
        allow_waypoints: config.auto_allow_waypoint_policy,
        enrolment: EnrolmentRules::default(),
        mesh_config: config.mesh_config(),
        given: Given {
            outbound: config.outbound_traffic_policy.is_some(),
            selectors: config.selectors().is_some(),
        },
    }
}

/// Accounts of the node proxies, and those that the parts of the mesh have beside this control plane.
fn own_accounts(config: &Config) -> Vec<NamespacedName> {
    let nodes = config.trusted_node_account.iter();
    let nodes = nodes.filter_map(|text| NamespacedName::parse(text));
    let named = OWN_ACCOUNTS.into_iter().map(str::to_owned);
    let named = named.chain([Revision::of(config).suffixed(NAME)]);
    let own = named.map(|name| NamespacedName {
        namespace: config.own_namespace().into(),
        name: name.into(),
    });
    nodes.chain(own).collect()
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

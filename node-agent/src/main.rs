//! `isobar-cni`: the node agent.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use isobar_net::SeqPacketListener;
use isobar_node_agent::agent::{self, Agent};
use isobar_node_agent::backend::{Backend, Canon, Choice};
use isobar_node_agent::board::Board;
use isobar_node_agent::desire::NodeDefaults;
use isobar_node_agent::metrics::Metrics;
use isobar_node_agent::pod::{Services, Timing};
use isobar_node_agent::probes::Probes;
use isobar_node_agent::status;
use isobar_node_agent::zds::Zds;
use isobar_objects::{DirectoryOptions, DirectorySource, ObjectSource, OverlayWriter};
use isobar_runtime::{Lifetime, Scope};
use isobar_telemetry::logging::{self, LogConfig, LogFormat};
use isobar_telemetry::{HttpServer, Ready, Registry};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Between two checks of the node's own rules.
const VERIFY_NODE: Duration = Duration::from_secs(5);

/// Keeps the pods of one node redirected, or not, as their labels say.
///
/// SIGTERM ends the agent and leaves rules in place: enrolled pods stay in the mesh.
#[derive(Debug, Parser)]
#[command(name = "isobar-cni", version)]
struct Arguments {
    /// Folders of objects; may be given several times.
    #[arg(long, required = true, value_name = "DIR")]
    objects: Vec<PathBuf>,
    /// Root of what the mesh writes; annotations go into its folder `node-NODE`.
    #[arg(long, value_name = "DIR")]
    overlay: PathBuf,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: String,
    /// Folder of sandbox records, one per pod.
    #[arg(long, value_name = "DIR")]
    pods_dir: PathBuf,
    /// Socket for node proxies.
    #[arg(
        long,
        env = "ZTUNNEL_UDS_ADDRESS",
        default_value = "/var/run/ztunnel/ztunnel.sock"
    )]
    zds_socket: PathBuf,
    /// Folder of its own for the last good version of every object; the agent falls back on it when
    /// it starts while a file is broken. Default: `isobar-cni` beside the socket.
    #[arg(long, env = "STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Address of /healthz/ready, /metrics and /pods.
    #[arg(long, default_value = "127.0.0.1:15030", value_name = "IP:PORT")]
    status_addr: SocketAddr,
    /// Tool that writes rules.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Choice,
    /// DNS capture of pods that do not say; `ambient.istio.io/dns-capture` on a pod overrides it.
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    dns_capture: bool,
    /// Namespaces whose pods never take part.
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        default_value = "kube-system",
        value_delimiter = ','
    )]
    exclude_namespaces: Vec<String>,
    /// Seconds between two verifications of a pod; changes that the kernel tells are seen at once.
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    verify_every: Duration,
    /// Seconds for callers to learn that a pod no longer takes HBONE.
    #[arg(long, default_value = "2", value_parser = seconds, value_name = "SECONDS")]
    leave_grace: Duration,
    /// Seconds for open connections of a leaving pod; what is open then is cut.
    #[arg(long, default_value = "3600", value_parser = seconds, value_name = "SECONDS")]
    drain_timeout: Duration,
    /// On SIGTERM remove all rules and annotations; this cuts connections.
    #[arg(long)]
    cleanup: bool,
    /// What to log: a level, or TARGET=LEVEL, separated by commas.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log_level: String,
    /// `text` or `json`.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    log_format: String,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isobar-cni: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let log = logging::init(&LogConfig {
        format: LogFormat::parse(&arguments.log_format),
        filter: arguments.log_level.clone(),
    })?;
    let scratch = Canon::scratch().context("making a network namespace to try rules in")?;
    let backend = Backend::choose(arguments.backend, &scratch)?;
    tracing::info!(%backend, node = %arguments.node, "rules are written with");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let result = runtime.block_on(run(arguments, Canon::new(backend, scratch)));
    log.flush();
    result
}

async fn run(arguments: &Arguments, canon: Canon) -> anyhow::Result<()> {
    let scope = Scope::new("isobar-cni");
    let life = scope.lifetime();
    let (zds, board, registry) = (Zds::default(), Arc::new(Board::default()), Registry::new());
    registry.build_info("isobar-cni", env!("CARGO_PKG_VERSION"));
    let ready = Ready::new();
    let (synced, listening) = (ready.gate("pods adopted"), ready.gate("node proxy socket"));
    let routes = status::routes(ready, &registry, Arc::clone(&board), zds.clone());
    let server = HttpServer::bind("status", &[arguments.status_addr], routes)?;
    scope.spawn("status", server.run(life.clone()));

    let services = Arc::new(services(arguments, canon, &zds, board, &registry)?);
    let source =
        DirectorySource::open(reading(arguments)).context("watching the folders of objects")?;
    let objects = source.subscribe();
    scope.spawn("objects", Box::new(source).run(life.clone()));

    let mut node = NodeDefaults {
        dns: arguments.dns_capture,
        ..NodeDefaults::default()
    };
    node.enrolment.excluded_namespaces = arguments.exclude_namespaces.iter().cloned().collect();
    let agent = Agent::start(Arc::clone(&services), node, objects).await;
    synced.pass();
    let listener = SeqPacketListener::bind(&arguments.zds_socket)
        .with_context(|| format!("listening at {}", arguments.zds_socket.display()))?;
    scope.spawn("zds", zds.serve(listener, life.clone()));
    listening.pass();
    scope.spawn("agent", agent.run(life.clone()));
    scope.spawn("node rules", verify_node(services.probes.clone(), life));

    stop_asked().await?;
    tracing::info!("stopping; rules stay unless --cleanup is given");
    scope.shutdown(Duration::from_secs(5)).await;
    if arguments.cleanup {
        agent::clean_up(&services, &arguments.pods_dir).await?;
    }
    Ok(())
}

fn reading(arguments: &Arguments) -> DirectoryOptions {
    let beside = || arguments.zds_socket.with_file_name("isobar-cni");
    let state = arguments.state_dir.clone().unwrap_or_else(beside);
    DirectoryOptions {
        last_good: Some(state.join("last-good-objects.json")),
        ..DirectoryOptions::new(arguments.objects.clone(), Some(arguments.overlay.clone()))
    }
}

fn services(
    arguments: &Arguments,
    canon: Canon,
    zds: &Zds,
    board: Arc<Board>,
    registry: &Registry,
) -> anyhow::Result<Services> {
    std::fs::create_dir_all(&arguments.pods_dir)
        .with_context(|| format!("making {}", arguments.pods_dir.display()))?;
    let folder = arguments.overlay.join(format!("node-{}", arguments.node));
    Ok(Services {
        zds: zds.clone(),
        probes: Probes::new(canon.backend()),
        canon: Arc::new(canon),
        writer: Arc::new(OverlayWriter::new(folder)?),
        metrics: Metrics::register(registry, Arc::clone(&board), zds.clone()),
        board,
        timing: Timing {
            verify: arguments.verify_every,
            grace: arguments.leave_grace,
            drain: arguments.drain_timeout,
        },
        pods_dir: arguments.pods_dir.clone(),
    })
}

async fn verify_node(probes: Probes, life: Lifetime) {
    loop {
        tokio::select! {
            () = life.draining() => return,
            () = tokio::time::sleep(VERIFY_NODE) => {}
        }
        match probes.verify().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("the node's rules about probes were written again"),
            Err(error) => tracing::error!(%error, "the node's rules about probes"),
        }
    }
}

async fn stop_asked() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

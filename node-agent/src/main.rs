//! `isobar-cni`: the node agent.

mod arguments;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use isobar_kubernetes::{
    Cluster, EventWriter, KubernetesSource, KubernetesWriter, Pace, Presence, SourceOptions,
};
use isobar_net::SeqPacketListener;
use isobar_node_agent::agent::{self, Agent};
use isobar_node_agent::backend::{Backend, Canon};
use isobar_node_agent::board::Board;
use isobar_node_agent::cni::SOCKET;
use isobar_node_agent::cni::desk::{self, Desk};
use isobar_node_agent::desire::NodeDefaults;
use isobar_node_agent::discovery::Discovery;
use isobar_node_agent::install::{self, Installer};
use isobar_node_agent::metrics::Metrics;
use isobar_node_agent::pod::{Services, Timing};
use isobar_node_agent::probes::Probes;
use isobar_node_agent::report::Reports;
use isobar_node_agent::zds::Zds;
use isobar_node_agent::{sole, status};
use isobar_objects::{
    DirectoryOptions, DirectorySource, Kind, ObjectSource, ObjectWriter, OverlayWriter,
};
use isobar_runtime::{Lifetime, Scope};
use isobar_telemetry::logging::{self, LogConfig, LogFormat};
use isobar_telemetry::{HttpServer, Ready, Registry};
use tokio::signal::unix::{Signal, SignalKind, signal};

use arguments::Arguments;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Between two checks of the node's own rules.
const VERIFY_NODE: Duration = Duration::from_secs(5);
/// Who we are in an API server.
const MANAGER: &str = "isobar-cni";

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
    own_folders(arguments)?;
    let _sole = match &arguments.run_dir {
        Some(folder) => Some(sole::hold(folder).await.context("being the only agent")?),
        None => None,
    };
    let scope = Scope::new("isobar-cni");
    let life = scope.lifetime();
    let (zds, board, registry) = (Zds::default(), Arc::new(Board::default()), Registry::new());
    registry.build_info("isobar-cni", env!("CARGO_PKG_VERSION"));
    let ready = Ready::new();
    let (synced, listening) = (ready.gate("pods adopted"), ready.gate("node proxy socket"));
    let installed = (arguments.placement()).map(|place| (place, ready.gate("CNI plugin")));
    let tool = canon.backend().to_string();
    let routes = status::routes(ready, &registry, Arc::clone(&board), zds.clone(), tool);
    let server = HttpServer::bind("status", &[arguments.status_addr], routes)?;
    // What goes on until it is stopped is not waited for: the next agent waits for this one.
    let lasting = Scope::new("lasting");
    lasting.spawn("status", server.run(lasting.lifetime()));

    let (source, writer, cluster) = surroundings(arguments).await?;
    let reports = reports(arguments, cluster.as_ref(), &lasting);
    let keeper = Keeper::new(arguments, cluster).await;
    let services = Arc::new(Services {
        reports,
        ..services(arguments, canon, &zds, board, &registry, writer)
    });
    let objects = source.subscribe();
    lasting.spawn("objects", source.run(lasting.lifetime()));

    let node = node_defaults(arguments);
    // Asked while pods are still being adopted, the plugin waits; an unbound socket would fail it.
    if let Some(folder) = &arguments.run_dir {
        let listener = desk::listen(&folder.join(SOCKET))
            .with_context(|| format!("listening in {}", folder.display()))?;
        let desk = Desk::new(Arc::clone(&services), node.clone(), objects.clone());
        scope.spawn("cni", desk.serve(listener, life.clone()));
    }
    let discovery = (arguments.discovers()).then(|| Discovery::new(arguments.host_proc.clone()));
    let agent = Agent::start(Arc::clone(&services), node, objects, discovery).await;
    synced.pass();
    // Before anybody can see that the agent is there, and end it.
    let stop = Stop::new()?;
    let listener = SeqPacketListener::bind(&arguments.zds_socket)
        .with_context(|| format!("listening at {}", arguments.zds_socket.display()))?;
    scope.spawn("zds", zds.serve(listener, life.clone()));
    listening.pass();
    scope.spawn("agent", agent.run(life.clone()));
    scope.spawn(
        "node rules",
        verify_node(services.probes.clone(), life.clone()),
    );
    // Last: from here on pods of the node wait for this agent.
    if let Some((placement, gate)) = installed {
        for folder in [&placement.programs, &placement.configurations] {
            install::sweep(folder);
        }
        let installer = Installer::new(placement);
        scope.spawn(
            "plugin",
            installer.keep(gate, services.metrics.clone(), life),
        );
    }

    stop.asked().await;
    let leaves = arguments.cleanup || keeper.is_over().await;
    tracing::info!(
        leaves,
        "stopping; rules and plugin stay unless the mesh leaves the node"
    );
    scope.shutdown(Duration::from_secs(5)).await;
    lasting.shutdown(Duration::ZERO).await;
    if leaves {
        clean_up(arguments, &services).await?;
    }
    Ok(())
}

/// The plugin first: from then on pods start without asking.
async fn clean_up(arguments: &Arguments, services: &Services) -> anyhow::Result<()> {
    if let Some(placement) = arguments.placement() {
        Installer::new(placement)
            .remove()
            .context("removing the CNI plugin")?;
    }
    Ok(agent::clean_up(services, &arguments.pods_dir()).await?)
}

fn own_folders(arguments: &Arguments) -> anyhow::Result<()> {
    let pods = arguments.pods_dir();
    for folder in arguments.run_dir.iter().chain([&pods]) {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    if let Some(folder) = &arguments.run_dir {
        std::fs::set_permissions(folder, Permissions::from_mode(0o700))
            .with_context(|| format!("closing {} to others", folder.display()))?;
    }
    Ok(())
}

fn node_defaults(arguments: &Arguments) -> NodeDefaults {
    let mut node = NodeDefaults {
        dns: arguments.dns_capture,
        namespaces_exist: arguments.kubernetes,
        ..NodeDefaults::default()
    };
    node.enrolment.excluded_namespaces = arguments.exclude_namespaces.iter().cloned().collect();
    node
}

/// Knows whether another agent will follow this one.
struct Keeper {
    /// Cluster, namespace and name of the DaemonSet, if it could be asked about at the start.
    set: Option<(Cluster, String, String)>,
}

impl Keeper {
    async fn new(arguments: &Arguments, cluster: Option<Cluster>) -> Self {
        let names = arguments
            .pod_namespace
            .clone()
            .zip(arguments.daemon_set.clone());
        let Some((cluster, (namespace, name))) = cluster.zip(names) else {
            return Self { set: None };
        };
        match cluster.daemon_set(&namespace, &name).await {
            Presence::Present | Presence::Unknown(_) => Self {
                set: Some((cluster, namespace, name)),
            },
            answer => {
                // What is refused at the start says nothing when it is refused at the end.
                tracing::warn!(
                    ?answer,
                    namespace,
                    name,
                    "the DaemonSet cannot be asked about: the CNI plugin will stay when it is gone"
                );
                Self { set: None }
            }
        }
    }

    /// True if nothing follows. When the mesh is uninstalled the account and its rights may go
    /// before the pods do.
    async fn is_over(&self) -> bool {
        let Some((cluster, namespace, name)) = &self.set else {
            return false;
        };
        let answer = cluster.daemon_set(namespace, name).await;
        tracing::info!(?answer, namespace, name, "asked whether an agent follows");
        matches!(answer, Presence::Gone | Presence::Refused)
    }
}

/// Where objects come from, and where annotations go.
async fn surroundings(
    arguments: &Arguments,
) -> anyhow::Result<(
    Box<dyn ObjectSource>,
    Arc<dyn ObjectWriter>,
    Option<Cluster>,
)> {
    if arguments.kubernetes {
        let cluster = Cluster::infer().await?;
        let options = SourceOptions {
            kinds: vec![Kind::Namespace, Kind::Pod],
            node: Some(arguments.node.clone()),
            // Probes say which ports the node is let through to.
            slim: false,
        };
        let source = KubernetesSource::new(cluster.clone(), options);
        let writer = KubernetesWriter::new(cluster.clone(), MANAGER);
        return Ok((Box::new(source), Arc::new(writer), Some(cluster)));
    }
    let source =
        DirectorySource::open(reading(arguments)).context("watching the folders of objects")?;
    let overlay = arguments.overlay.as_ref().context("--overlay is needed")?;
    let folder = overlay.join(format!("node-{}", arguments.node));
    let writer = Arc::new(OverlayWriter::new(folder)?);
    Ok((Box::new(source), writer, None))
}

/// What the API server is told besides annotations; folders of objects have no place for it.
fn reports(arguments: &Arguments, cluster: Option<&Cluster>, scope: &Scope) -> Reports {
    let Some(cluster) = cluster else {
        return Reports::default();
    };
    let (events, writer) =
        EventWriter::new(cluster.clone(), MANAGER, &arguments.node, Pace::default());
    scope.spawn("events", writer.run(scope.lifetime()));
    Reports {
        conditions: true,
        events,
    }
}

fn reading(arguments: &Arguments) -> DirectoryOptions {
    let beside = || arguments.zds_socket.with_file_name("isobar-cni");
    let state = arguments.state_dir.clone().unwrap_or_else(beside);
    DirectoryOptions {
        last_good: Some(state.join("last-good-objects.json")),
        ..DirectoryOptions::new(arguments.objects.clone(), arguments.overlay.clone())
    }
}

fn services(
    arguments: &Arguments,
    canon: Canon,
    zds: &Zds,
    board: Arc<Board>,
    registry: &Registry,
    writer: Arc<dyn ObjectWriter>,
) -> Services {
    Services {
        zds: zds.clone(),
        probes: Probes::new(canon.backend()),
        canon: Arc::new(canon),
        writer,
        reports: Reports::default(),
        metrics: Metrics::register(registry, Arc::clone(&board), zds.clone()),
        board,
        timing: Timing {
            verify: arguments.verify_every,
            grace: arguments.leave_grace,
            drain: arguments.drain_timeout,
            blind: arguments.blind_limit,
        },
        pods_dir: arguments.pods_dir(),
        proc: arguments.host_proc.clone(),
    }
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

/// The signals that end the agent.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn asked(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

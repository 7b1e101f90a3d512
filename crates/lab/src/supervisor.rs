//! The supervisor: builds a lab and keeps it.

mod bootstrap;
mod components;
mod settled;

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{select_all, try_join_all};
use isobar_kubernetes::{Cluster, KubernetesSource, SourceOptions};
use isobar_objects::{
    DirectoryOptions, DirectorySource, Kind, ObjectRef, ObjectSource, OverlayWriter, Published,
};
use isobar_runtime::Scope;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::config::LabConfig;
use crate::control::{self, Desk};
use crate::dns::{self, Names};
use crate::error::LabError;
use crate::kubelet::Kubelet;
use crate::paths::LabPaths;
use crate::place::{Place, Sandbox};
use crate::plan::{DNS_ADDRESS, NETWORK_ADDRESS, NodePlan};
use crate::pod::{MeshContext, NodeHandle, PodContext};
use crate::protocol::Progress;
use crate::reconcile::{self, Parts, Reconciler, View};
use crate::stage::{SandboxSpec, with_causes};
use crate::tokens::Tokens;
use crate::wiring;

type Objects = watch::Receiver<Arc<Published>>;

/// How often tokens are issued again; they live for a day.
const REFRESH: Duration = Duration::from_secs(8 * 3600);
/// How often the start is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Lines of a log that are shown when a start fails.
const TAIL: usize = 20;

/// Exit code of a supervisor whose start failed with nobody left to hear of it: who started it has
/// to take away what was begun.
pub(crate) const GIVEN_UP: u8 = 75;

/// Runs until the lab is taken down.
pub(crate) fn main(paths: &LabPaths) -> Result<ExitCode, LabError> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(LabError::io("starting the supervisor's runtime"))?;
    runtime.block_on(async {
        match supervise(paths).await {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => {
                let (why, tail) = match error {
                    LabError::NotReady { why, tail } => (why, tail),
                    other => (with_causes(&other), Vec::new()),
                };
                tracing::error!("{why}");
                if caller_is_gone() {
                    return Ok(ExitCode::from(GIVEN_UP));
                }
                tell(&Progress::Failed { why, tail });
                Ok(ExitCode::FAILURE)
            }
        }
    })
}

/// One line to whoever started the lab; they may be gone.
fn tell(progress: &Progress) {
    let line = serde_json::to_string(progress).expect("progress has string keys only");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// True if nobody reads the progress any more: the start was given up.
fn caller_is_gone() -> bool {
    let out = std::io::stdout();
    let mut seen = [PollFd::new(out.as_fd(), PollFlags::empty())];
    let polled = poll(&mut seen, PollTimeout::ZERO);
    polled.is_ok_and(|count| count > 0)
        && seen[0]
            .revents()
            .is_some_and(|flags| flags.contains(PollFlags::POLLERR))
}

fn step(text: &str) {
    tracing::info!("{text}");
    tell(&Progress::Step {
        text: text.to_owned(),
    });
}

async fn supervise(paths: &LabPaths) -> Result<(), LabError> {
    let config = read_config(paths)?;
    let scope = Arc::new(Scope::new("lab"));
    let path = search_path(paths);
    check_programs(&config)?;
    step("building the network and its nodes");
    let outer = Place::outer(&path)?;
    // Before the nodes: they take over the mounts there are when they start.
    name_server_file(paths)?;
    certificates_in_memory(&config, paths)?;
    let nodes = build_network(&config, paths, &outer, &path).await?;
    let names = Names::default();
    for address in [NETWORK_ADDRESS, DNS_ADDRESS] {
        let at = SocketAddr::from((address, 53));
        dns::serve(&names, at, &scope)
            .await
            .map_err(LabError::io("starting the cluster's name server"))?;
    }
    let handles: Vec<Arc<NodeHandle>> =
        nodes.iter().map(|(handle, _)| Arc::clone(handle)).collect();
    let (cluster, mut components) =
        bootstrap::api_server(&config, paths, &outer, &handles, &scope).await?;
    let mesh = match config.mesh {
        true => {
            step("starting the control plane and the node components");
            let tokens = match &cluster {
                Some(cluster) => Tokens::of_server(cluster.clone()),
                None => Tokens::create(&paths.token_keys())?,
            };
            let started = components::start(&config, paths, &outer, &handles, &tokens, &scope)?;
            components.extend(started);
            let waypoint_env = components::waypoint_env(&config, paths);
            Some(MeshContext {
                tokens,
                waypoint_env,
            })
        }
        false => None,
    };
    let context = Arc::new(PodContext {
        paths: paths.clone(),
        binaries: config.binaries.clone().unwrap_or_default(),
        path: path.clone(),
        mesh,
    });
    let (kubelet, objects) = match cluster {
        Some(cluster) => from_server(cluster, &scope),
        None => from_folders(&config, paths, &scope)?,
    };
    let view =
        start_reconciler(&context, &handles, &outer, names, kubelet, objects, &scope).await?;
    refresh_tokens(&context, &scope);
    let desk = Arc::new(Desk {
        name: config.name.clone(),
        mesh: config.mesh,
        objects: config.objects.clone(),
        paths: paths.clone(),
        path,
        outer,
        nodes: handles,
        components,
        view,
    });
    let listener = control::listen(&paths.socket())?;
    let serving = control::serve(listener, Arc::clone(&desk), Arc::clone(&scope));
    scope.spawn("control socket", serving);
    step("waiting for pods");
    until_ready(&desk, config.ready_timeout).await?;
    tell_ready(&desk)?;
    // Whoever takes the lab down kills the first process of this process namespace, and the kernel
    // everything in it. Until then only a node that dies ends the lab.
    node_ended(nodes).await
}

fn tell_ready(desk: &Desk) -> Result<(), LabError> {
    tell(&Progress::Ready {
        status: desk.status(),
    });
    close_progress()
}

fn read_config(paths: &LabPaths) -> Result<LabConfig, LabError> {
    let doing = "reading the lab's configuration";
    let text = std::fs::read(paths.config()).map_err(LabError::io(doing))?;
    serde_json::from_slice(&text).map_err(|error| LabError::io(doing)(error.into()))
}

/// `PATH` of everything in the lab: our own links first, the places of `ip` and `nft` at last.
fn search_path(paths: &LabPaths) -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    let rest = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let bin = paths.bin();
    [bin.to_string_lossy().as_ref(), &own, rest]
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(":")
}

fn check_programs(config: &LabConfig) -> Result<(), LabError> {
    let missing = |program: &str, hint: String| LabError::MissingProgram {
        program: program.to_owned(),
        hint,
    };
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        if !crate::process::is_installed(program) {
            return Err(missing(program, format!("install the package {package}")));
        }
    }
    let binaries = config.binaries.clone().unwrap_or_default();
    let mut wanted = vec!["isobar-samples"];
    if config.mesh {
        wanted.extend(["isobard", "isobar-cni", "ztunnel", "waypoint"]);
    }
    let tools = config.api_server.as_ref();
    if let Some(kubelet) = tools.map(|tools| tools.with_file_name("kubelet"))
        && !kubelet.is_file()
    {
        let hint = format!("there is no {}; run make setup-kube", kubelet.display());
        return Err(missing("kubelet", hint));
    }
    for program in wanted {
        // Without a mesh the samples are only wanted by pods that use them.
        if !binaries.join(program).is_file() && config.mesh {
            let hint = format!("it is not in {}; build the workspace", binaries.display());
            return Err(missing(program, hint));
        }
    }
    Ok(())
}

type Nodes = Vec<(Arc<NodeHandle>, Sandbox)>;

async fn build_network(
    config: &LabConfig,
    paths: &LabPaths,
    outer: &Place,
    path: &str,
) -> Result<Nodes, LabError> {
    for (name, value) in wiring::sysctls(config.dual_stack) {
        if let Err(error) = std::fs::write(format!("/proc/sys/{name}"), &value) {
            tracing::warn!("setting {name} to {value}: {error}");
        }
    }
    let plans: Vec<NodePlan> = (1..=config.nodes)
        .map(|number| NodePlan::new(number).dual_stack(config.dual_stack))
        .collect();
    let sandboxes = try_join_all(plans.iter().map(|plan| async {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(paths.component_log(&plan.name))
            .map_err(LabError::io("opening a node's log"))?;
        let spec = SandboxSpec {
            hostname: plan.name.clone(),
            mounts: Vec::new(),
            hidden: None,
            sysctls: wiring::sysctls(config.dual_stack),
            processes: false,
        };
        let made = std::fs::create_dir_all(paths.pods(&plan.name));
        made.map_err(LabError::io("making a node's folder"))?;
        Sandbox::start(&spec, path, log).await
    }))
    .await?;
    let holders: Vec<(NodePlan, u32)> = plans
        .iter()
        .cloned()
        .zip(sandboxes.iter().map(Sandbox::holder))
        .collect();
    let batch = ["ip", "-batch", "-"];
    outer.configure(&batch, &wiring::outer(&holders)).await?;
    try_join_all(plans.iter().zip(&sandboxes).map(|(plan, sandbox)| {
        let text = wiring::node(plan, &plans);
        async move { sandbox.place().configure(&batch, &text).await }
    }))
    .await?;
    let handle = |(plan, sandbox): (NodePlan, Sandbox)| {
        let place = sandbox.place().clone();
        (Arc::new(NodeHandle { plan, place }), sandbox)
    };
    Ok(plans.into_iter().zip(sandboxes).map(handle).collect())
}

/// Everything of the lab outside pods asks the cluster's name server too.
fn name_server_file(paths: &LabPaths) -> Result<(), LabError> {
    let own = paths.dir().join("resolv.conf");
    std::fs::write(&own, format!("nameserver {DNS_ADDRESS}\n"))
        .map_err(LabError::io("writing the lab's resolv.conf"))?;
    let host = Path::new("/etc/resolv.conf");
    let over = std::fs::canonicalize(host).unwrap_or_else(|_| host.into());
    let bound = mount(
        Some(&own),
        &over,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    if let Err(errno) = bound {
        let text = format!(
            "{} cannot be replaced inside the lab ({}); names of services may not resolve",
            over.display(),
            errno.desc()
        );
        tell(&Progress::Warning { text });
    }
    Ok(())
}

/// Node proxies keep certificates for their next start in memory only; in a cluster that is what
/// `/run` of the node is made of.
fn certificates_in_memory(config: &LabConfig, paths: &LabPaths) -> Result<(), LabError> {
    for plan in (1..=config.nodes).map(NodePlan::new) {
        let folder = paths.node(&plan.name).join("state/certificates");
        std::fs::create_dir_all(&folder).map_err(LabError::io("making a node's folder"))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let how = Some("mode=700,size=16m");
        mount(Some("tmpfs"), &folder, Some("tmpfs"), flags, how)
            .map_err(LabError::sys("mounting a node's folder in memory"))?;
    }
    Ok(())
}

/// Objects in folders, and overlays onto them.
fn from_folders(
    config: &LabConfig,
    paths: &LabPaths,
    scope: &Scope,
) -> Result<(Kubelet, Objects), LabError> {
    let overlay = paths.overlay();
    let writer = OverlayWriter::new(overlay.join("kubelet")).map_err(unwritten)?;
    let options = DirectoryOptions {
        quiet: Duration::from_millis(20),
        ..DirectoryOptions::new(config.objects.clone(), Some(overlay))
    };
    let source =
        DirectorySource::open(options).map_err(LabError::io("watching the objects' folders"))?;
    let objects = source.subscribe();
    scope.spawn("objects", Box::new(source).run(scope.lifetime()));
    Ok((Kubelet::Folder(writer), objects))
}

/// Objects of an API server, pods with all that it takes to run them.
fn from_server(cluster: Cluster, scope: &Scope) -> (Kubelet, Objects) {
    let options = SourceOptions {
        slim: false,
        ..SourceOptions::default()
    };
    let source = KubernetesSource::new(cluster.clone(), options);
    let objects = source.subscribe();
    scope.spawn("objects", Box::new(source).run(scope.lifetime()));
    (Kubelet::server(cluster), objects)
}

fn unwritten(error: impl std::fmt::Display) -> LabError {
    LabError::NoAnswer {
        why: format!("writing the lab's own objects: {error}"),
    }
}

async fn start_reconciler(
    context: &Arc<PodContext>,
    nodes: &[Arc<NodeHandle>],
    outer: &Place,
    names: Names,
    kubelet: Kubelet,
    objects: Objects,
    scope: &Arc<Scope>,
) -> Result<watch::Receiver<Arc<View>>, LabError> {
    for node in nodes {
        let object = ObjectRef::new(Kind::Node, "", &node.plan.name);
        let value = reconcile::node_value(&node.plan, kubelet.port());
        kubelet.put(&object, &value).await.map_err(unwritten)?;
    }
    let (view, seen) = watch::channel(Arc::new(View::default()));
    let reconciler = Reconciler::new(Parts {
        context: Arc::clone(context),
        nodes: nodes.to_vec(),
        outer: outer.clone(),
        objects,
        names,
        scope: Arc::clone(scope),
        view,
        kubelet,
    });
    scope.spawn("reconciler", reconciler.run(scope.lifetime()));
    Ok(seen)
}

fn refresh_tokens(context: &Arc<PodContext>, scope: &Scope) {
    let context = Arc::clone(context);
    scope.spawn("token refresh", async move {
        if let Some(mesh) = &context.mesh {
            mesh.tokens.keep_fresh(REFRESH).await;
        }
    });
}

async fn node_ended(nodes: Nodes) -> Result<(), LabError> {
    let ends = nodes.into_iter().map(|(handle, sandbox)| {
        Box::pin(async move {
            sandbox.ended().await;
            handle.plan.name.clone()
        })
    });
    let (name, ..) = select_all(ends).await;
    Err(LabError::NoAnswer {
        why: format!("the namespaces of {name} are gone"),
    })
}

/// Waits until everything is ready, or only pods that cannot start are not; reports on the way.
async fn until_ready(desk: &Desk, limit: Duration) -> Result<(), LabError> {
    let begun = Instant::now();
    let mut told = Told::default();
    loop {
        let view = desk.view.borrow().clone();
        told.tell(desk, &view);
        let mut waits = desk.waits_for(&view);
        if waits.is_empty() {
            let Err(unsettled) = settle(desk, &view).await else {
                return Ok(());
            };
            waits.push(unsettled);
        }
        let stuck = view.pods.iter().filter(|pod| pod.stuck).count();
        if view.synced && waits.len() == stuck {
            return Ok(());
        }
        if caller_is_gone() {
            return Err(LabError::NoAnswer {
                why: "whoever started the lab has gone before it was ready".to_owned(),
            });
        }
        if begun.elapsed() > limit {
            waits.truncate(8);
            let tail = tail(desk, &view);
            return Err(LabError::NotReady {
                why: format!("after {limit:?}: {}", waits.join("; ")),
                tail,
            });
        }
        sleep(LOOK).await;
    }
}

async fn settle(desk: &Desk, view: &View) -> Result<(), String> {
    if desk.mesh {
        settled::settled(desk, view).await
    } else {
        Ok(())
    }
}

/// What was reported already.
#[derive(Default)]
struct Told {
    pods: Vec<crate::protocol::PodStatus>,
    components: Vec<crate::protocol::ComponentStatus>,
}

impl Told {
    fn tell(&mut self, desk: &Desk, view: &View) {
        for handle in &view.pods {
            if !self.pods.contains(&handle.status) {
                let pod = handle.status.clone();
                self.pods.retain(|old| old.uid != pod.uid);
                self.pods.push(pod.clone());
                tell(&Progress::Pod { pod });
            }
        }
        for component in desk
            .components
            .iter()
            .map(crate::component::Component::status)
        {
            if !self.components.contains(&component) {
                self.components.retain(|old| old.name != component.name);
                self.components.push(component.clone());
                tell(&Progress::Component { component });
            }
        }
    }
}

/// Last lines of the log of the first thing that is not ready.
fn tail(desk: &Desk, view: &View) -> Vec<String> {
    use crate::protocol::ComponentState;
    let component = desk
        .components
        .iter()
        .map(crate::component::Component::status)
        .find(|component| component.state != ComponentState::Ready)
        .map(|component| desk.paths.component_log(&component.name));
    let pod = || {
        let pod = view.pods.iter().find(|pod| !pod.status.ready)?;
        Some(desk.paths.pod_log(&pod.status.namespace, &pod.status.name))
    };
    let Some(path) = component.or_else(pod) else {
        return Vec::new();
    };
    let text = std::fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL);
    lines[from..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

/// Whoever started the lab reads until the end of the pipe.
fn close_progress() -> Result<(), LabError> {
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .map_err(LabError::io("opening /dev/null"))?;
    nix::unistd::dup2_stdout(&null).map_err(LabError::sys("closing the progress pipe"))
}

//! One pod: its sandbox, its link, its enrolment, its containers.

mod environment;
mod files;
mod plans;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isobar_objects::{ObjectHead, Pod, pods};
use isobar_runtime::Scope;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::container::{self, ContainerPlan, ContainerReport, ContainerState};
use crate::error::LabError;
use crate::images::ImageError;
use crate::paths::LabPaths;
use crate::place::{Place, Sandbox};
use crate::plan::NodePlan;
use crate::protocol::PodPhase;
use crate::stage::{Hidden, SandboxSpec};
use crate::tokens::Tokens;
use crate::wiring;
use plans::Unrunnable;

/// Time between SIGTERM and SIGKILL unless the pod says otherwise.
const GRACE: Duration = Duration::from_secs(30);
/// How often the agent's answer is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// After this long without the agent's answer the pod's status says what it waits for.
const SLOW: Duration = Duration::from_secs(3);
/// How long a container whose program is not built waits before it looks again.
const NOT_BUILT: Duration = Duration::from_secs(5);

/// What every pod of a lab shares.
#[derive(Debug)]
pub(crate) struct PodContext {
    pub(crate) paths: LabPaths,
    pub(crate) binaries: PathBuf,
    /// `PATH` of pods.
    pub(crate) path: String,
    /// None without a mesh.
    pub(crate) mesh: Option<MeshContext>,
}

/// What pods of a lab with a mesh share besides.
#[derive(Debug)]
pub(crate) struct MeshContext {
    pub(crate) tokens: Tokens,
    /// Environment of waypoints, the same for all.
    pub(crate) waypoint_env: Vec<(String, String)>,
}

/// A node as its pods see it.
#[derive(Debug)]
pub(crate) struct NodeHandle {
    pub(crate) plan: NodePlan,
    pub(crate) place: Place,
}

/// A pod to run.
#[derive(Debug, Clone)]
pub(crate) struct PodPlan {
    pub(crate) pod: Arc<Pod>,
    pub(crate) uid: String,
    pub(crate) node: Arc<NodeHandle>,
    pub(crate) ip: Ipv4Addr,
    pub(crate) device: String,
}

impl PodPlan {
    /// All its addresses, that of IPv4 first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.node.plan.pod_addresses(self.ip)
    }
}

/// A pod as its actor sees it.
#[derive(Debug, Clone)]
pub(crate) struct PodReport {
    pub(crate) phase: PodPhase,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
    pub(crate) mesh: String,
    pub(crate) message: String,
    /// True when nothing but a change of the pod can help.
    pub(crate) stuck: bool,
    /// Environment of the first container, for commands run beside it.
    pub(crate) env: Vec<(String, String)>,
    /// There once the sandbox stands.
    pub(crate) place: Option<Place>,
    pub(crate) started: Option<jiff::Timestamp>,
    pub(crate) ready_since: Option<jiff::Timestamp>,
    /// The actor has ended and nothing of the pod is left.
    pub(crate) gone: bool,
}

impl PodReport {
    pub(crate) fn new() -> Self {
        Self {
            phase: PodPhase::Pending,
            ready: false,
            restarts: 0,
            mesh: String::new(),
            message: "starting".to_owned(),
            stuck: false,
            env: Vec::new(),
            place: None,
            started: None,
            ready_since: None,
            gone: false,
        }
    }
}

/// A request to a pod.
#[derive(Debug)]
pub(crate) enum PodOrder {
    /// End it, politely.
    End,
    /// Kill its processes as a crash would.
    Crash,
}

/// Runs a pod until told to end. `changed` is poked whenever the report changes.
pub(crate) async fn run(
    plan: PodPlan,
    context: Arc<PodContext>,
    mut orders: mpsc::Receiver<PodOrder>,
    report: watch::Sender<PodReport>,
) {
    let runner = Runner {
        plan,
        context,
        report,
    };
    match runner.sandbox().await {
        Ok(sandbox) => {
            let place = sandbox.place().clone();
            runner.report.send_modify(|r| r.place = Some(place.clone()));
            runner.live(&place, &mut orders).await;
            runner.tear_down(sandbox).await;
        }
        Err(error) => {
            runner.stick(&crate::stage::with_causes(&error));
            until_end(&mut orders).await;
        }
    }
    runner.report.send_modify(|r| {
        r.place = None;
        r.ready = false;
        r.gone = true;
    });
}

async fn until_end(orders: &mut mpsc::Receiver<PodOrder>) {
    while let Some(order) = orders.recv().await {
        if matches!(order, PodOrder::End) {
            return;
        }
    }
}

struct Runner {
    plan: PodPlan,
    context: Arc<PodContext>,
    report: watch::Sender<PodReport>,
}

impl Runner {
    fn pod(&self) -> &Pod {
        &self.plan.pod
    }

    fn log(&self) -> PathBuf {
        let pod = self.pod();
        self.context.paths.pod_log(pod.namespace(), pod.name())
    }

    fn stick(&self, message: &str) {
        self.report.send_modify(|r| {
            r.stuck = true;
            message.clone_into(&mut r.message);
        });
    }

    /// Namespaces, files, link and the record for the node's agent.
    async fn sandbox(&self) -> Result<Sandbox, LabError> {
        let pod = self.pod();
        let files = self.context.paths.pod_files(&self.plan.uid);
        files::write(&files, pod, self.plan.ip)?;
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.log())
            .map_err(LabError::io("opening a pod's log"))?;
        let file = |name: &str| files.join(name).to_string_lossy().into_owned();
        let spec = SandboxSpec {
            hostname: pod.name().chars().take(63).collect(),
            mounts: vec![
                (file("resolv.conf"), "/etc/resolv.conf".to_owned()),
                (file("hosts"), "/etc/hosts".to_owned()),
                (file("hostname"), "/etc/hostname".to_owned()),
            ],
            hidden: self.hidden(),
            sysctls: wiring::sysctls(self.plan.node.plan.dual_stack),
            processes: true,
        };
        let sandbox = Sandbox::start(&spec, &self.context.path, log).await?;
        let node = &self.plan.node;
        let on_node = wiring::pod_on_node(
            &node.plan,
            &self.plan.device,
            self.plan.ip,
            sandbox.holder(),
        );
        let batch = ["ip", "-batch", "-"];
        node.place.configure(&batch, &on_node).await?;
        let in_pod = wiring::pod(&node.plan, self.plan.ip);
        sandbox.place().configure(&batch, &in_pod).await?;
        if self.context.mesh.is_some() {
            self.write_record(&sandbox)?;
        }
        Ok(sandbox)
    }

    /// The state of all labs holds keys and tokens: in a cluster no pod sees its like. A waypoint's
    /// own are among them, so its pod, which runs a program of ours, sees them.
    fn hidden(&self) -> Option<Hidden> {
        let paths = &self.context.paths;
        (!self.runs_waypoint()).then(|| Hidden {
            folder: paths.root().to_owned(),
            keep: vec![paths.bin()],
        })
    }

    fn record(&self, suffix: &str) -> PathBuf {
        let dir = self.context.paths.pods(&self.plan.node.plan.name);
        dir.join(format!("{}.{suffix}", self.plan.uid))
    }

    fn write_record(&self, sandbox: &Sandbox) -> Result<(), LabError> {
        let pod = self.pod();
        let record = serde_json::json!({
            "uid": self.plan.uid,
            "namespace": pod.namespace(),
            "name": pod.name(),
            "serviceAccount": pods::service_account(pod),
            "netns": sandbox.place().netns_path(),
            "ips": self.plan.addresses(),
        });
        let path = self.record("json");
        let draft = path.with_file_name(format!(".{}.json", self.plan.uid));
        std::fs::write(&draft, record.to_string())
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(LabError::io(format!("writing {}", path.display())))
    }

    /// From the sandbox to the order to end.
    async fn live(&self, place: &Place, orders: &mut mpsc::Receiver<PodOrder>) {
        if self.context.mesh.is_some() {
            tokio::select! {
                () = self.enrolment() => {}
                () = until_end(orders) => return,
            }
        }
        let plans = tokio::select! {
            plans = self.plans(place) => plans,
            () = until_end(orders) => return,
        };
        let Some((init, containers)) = plans else {
            until_end(orders).await;
            return;
        };
        let scope = Scope::new("pod");
        let served = tokio::select! {
            ready = self.init(init, &scope) => ready,
            () = until_end(orders) => false,
        };
        if served {
            self.serve(containers, &scope, orders).await;
        }
        let grace = grace(self.pod());
        scope.shutdown(grace + Duration::from_secs(5)).await;
    }

    /// Waits for the agent: no workload starts before its traffic is protected or known not to be.
    async fn enrolment(&self) {
        let path = self.record("ready");
        let begun = Instant::now();
        let mut told = false;
        loop {
            if let Ok(text) = std::fs::read_to_string(&path)
                && !text.trim().is_empty()
            {
                self.report.send_modify(|r| {
                    text.trim().clone_into(&mut r.mesh);
                    r.message = "starting".to_owned();
                });
                return;
            }
            if !told && begun.elapsed() > SLOW {
                told = true;
                self.report.send_modify(|r| {
                    r.message = format!("waiting for isobar-cni of {}", self.plan.node.plan.name);
                });
            }
            sleep(LOOK).await;
        }
    }

    /// Plans of init containers and containers; `None` if one cannot be run.
    async fn plans(&self, place: &Place) -> Option<(Vec<ContainerPlan>, Vec<ContainerPlan>)> {
        loop {
            match self.try_plans(place) {
                Ok(plans) => return Some(plans),
                Err(error) => {
                    let wait = matches!(error, Unrunnable::Image(ImageError::NotBuilt { .. }));
                    self.stick(&error.to_string());
                    if !wait {
                        return None;
                    }
                    sleep(NOT_BUILT).await;
                }
            }
        }
    }

    /// Runs init containers one after the other; false when the pod ends meanwhile.
    async fn init(&self, plans: Vec<ContainerPlan>, scope: &Scope) -> bool {
        for plan in plans {
            let (reports, mut seen) =
                watch::channel(ContainerReport::waiting("PodInitializing", "starting"));
            let (_kills, inbox) = mpsc::channel(1);
            let name = plan.name.clone();
            self.report
                .send_modify(|r| r.message = format!("init container {name} runs"));
            let life = scope.lifetime();
            scope.spawn("init container", container::run(plan, reports, inbox, life));
            let ended = seen
                .wait_for(|r| matches!(r.state, ContainerState::Terminated { .. }))
                .await;
            if ended.is_err() {
                return false;
            }
        }
        true
    }

    /// Runs the containers until the order to end.
    async fn serve(
        &self,
        plans: Vec<ContainerPlan>,
        scope: &Scope,
        orders: &mut mpsc::Receiver<PodOrder>,
    ) {
        let env = plans.first().map(|plan| plan.env.clone());
        let mut seen = Vec::new();
        let mut kills = Vec::new();
        let (poke, mut changes) = mpsc::channel::<()>(1);
        for plan in plans {
            let starting = ContainerReport::waiting("ContainerCreating", "starting");
            let (reports, mine) = watch::channel(starting);
            let (kill, inbox) = mpsc::channel(1);
            let life = scope.lifetime();
            scope.spawn("container", container::run(plan, reports, inbox, life));
            let mut watched = mine.clone();
            let poke = poke.clone();
            scope.spawn("container watch", async move {
                while watched.changed().await.is_ok() {
                    // One poke that waits is enough.
                    let _ = poke.try_send(());
                }
            });
            seen.push(mine);
            kills.push(kill);
        }
        self.report.send_modify(|r| {
            r.phase = PodPhase::Running;
            r.stuck = false;
            r.env = env.unwrap_or_default();
            r.started = Some(jiff::Timestamp::now());
        });
        loop {
            let states: Vec<ContainerReport> = seen.iter().map(|s| s.borrow().clone()).collect();
            self.summarise(&states);
            tokio::select! {
                _ = changes.recv() => {}
                order = orders.recv() => match order {
                    None | Some(PodOrder::End) => return,
                    Some(PodOrder::Crash) => for kill in &kills {
                        // One that waits already is enough.
                        let _ = kill.try_send(());
                    },
                },
            }
        }
    }

    fn summarise(&self, containers: &[ContainerReport]) {
        let ended = |c: &ContainerReport| matches!(c.state, ContainerState::Terminated { .. });
        let failed = |c: &ContainerReport| matches!(c.state, ContainerState::Terminated { code } if code != 0);
        let phase = match containers.iter().all(ended) {
            true if containers.iter().any(failed) => PodPhase::Failed,
            true => PodPhase::Succeeded,
            false => PodPhase::Running,
        };
        let ready = containers.iter().all(|c| c.ready);
        let message = containers
            .iter()
            .find(|c| !c.ready && !c.message.is_empty())
            .map(|c| c.message.clone())
            .unwrap_or_default();
        let restarts = containers.iter().map(|c| c.restarts).sum();
        self.report.send_if_modified(|r| {
            let same = r.phase == phase
                && r.ready == ready
                && r.message == message
                && r.restarts == restarts;
            if same {
                return false;
            }
            if ready != r.ready {
                r.ready_since = ready.then(jiff::Timestamp::now);
            }
            (r.phase, r.ready, r.restarts) = (phase, ready, restarts);
            r.message = message;
            true
        });
    }

    /// The workload has ended: the record goes first, so that the agent forgets a pod whose
    /// namespaces still exist.
    async fn tear_down(&self, sandbox: Sandbox) {
        for suffix in ["json", "ready"] {
            // Without a mesh there are none.
            let _ = std::fs::remove_file(self.record(suffix));
        }
        sandbox.end().await;
        let removed = self
            .plan
            .node
            .place
            .configure(&["ip", "-batch", "-"], &wiring::remove(&self.plan.device))
            .await;
        if let Err(error) = removed {
            // Gone with its namespace already.
            tracing::debug!(pod = self.pod().name(), "removing the link: {error}");
        }
        if let Some(mesh) = &self.context.mesh {
            let dir = self.context.paths.waypoint(&self.plan.uid);
            mesh.tokens.remove(&dir.join("token"));
            let _ = std::fs::remove_dir_all(dir);
        }
        let _ = std::fs::remove_dir_all(self.context.paths.pod_files(&self.plan.uid));
    }
}

fn grace(pod: &Pod) -> Duration {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(GRACE, Duration::from_secs)
}

//! One container: its process, its probes, its restarts.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use isobar_net::NetNs;
use isobar_runtime::Lifetime;
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::component::ending;
use crate::error::LabError;
use crate::place::{self, Place};
use crate::probe::{self, Plan, Question};

/// First wait before a container that ended is started again; Kubernetes waits longer.
const RESTART_FIRST: Duration = Duration::from_millis(250);
/// Longest wait before a container that ended is started again.
const RESTART_MAX: Duration = Duration::from_secs(10);
/// A container that ran this long starts over with the short wait.
const STEADY: Duration = Duration::from_secs(10);
/// How often a container that was never ready is probed: a lab's user waits for it.
const FIRST_PROBES: Duration = Duration::from_millis(100);
/// How long a container without readiness probe may take to listen on its declared ports.
const LISTEN: Duration = Duration::from_secs(3);
/// How often its ports are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// When an ended container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    pub(crate) fn parse(word: Option<&str>) -> Self {
        match word {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

/// Everything to run one container.
#[derive(Debug, Clone)]
pub(crate) struct ContainerPlan {
    pub(crate) name: String,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
    pub(crate) place: Place,
    /// Where probes come from.
    pub(crate) node: NetNs,
    pub(crate) ip: Ipv4Addr,
    pub(crate) log: PathBuf,
    pub(crate) restart: Restart,
    /// Time between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
    pub(crate) startup: Option<Plan>,
    pub(crate) readiness: Option<Plan>,
    pub(crate) liveness: Option<Plan>,
    /// TCP ports it declares.
    pub(crate) ports: Vec<u16>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// Not running, will be.
    Waiting {
        reason: &'static str,
        message: String,
    },
    Running,
    /// Ended for good.
    Terminated {
        code: i32,
    },
}

/// A container as its pod sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerReport {
    pub(crate) state: ContainerState,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
    /// Why it is not ready.
    pub(crate) message: String,
}

impl ContainerReport {
    pub(crate) fn waiting(reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            state: ContainerState::Waiting {
                reason,
                message: message.clone(),
            },
            ready: false,
            restarts: 0,
            message,
        }
    }
}

/// Runs a container until `life` drains, or it has ended for good. `kills` counts requests to end
/// its process as a crash would.
pub(crate) async fn run(
    plan: ContainerPlan,
    report: watch::Sender<ContainerReport>,
    mut kills: mpsc::Receiver<()>,
    life: Lifetime,
) {
    let mut wait = RESTART_FIRST;
    loop {
        let begun = Instant::now();
        let (code, words) = match spawn(&plan) {
            Ok(child) => match follow(&plan, child, &report, &mut kills, &life).await {
                Some(ended) => ended,
                None => return,
            },
            Err(error) => (126, crate::stage::with_causes(&error)),
        };
        let again = match plan.restart {
            Restart::Always => true,
            Restart::OnFailure => code != 0,
            Restart::Never => false,
        };
        if !again {
            report.send_modify(|r| {
                r.state = ContainerState::Terminated { code };
                r.ready = false;
                r.message.clone_from(&words);
            });
            return;
        }
        if begun.elapsed() > STEADY {
            wait = RESTART_FIRST;
        }
        let message = format!("container {} ended: {words}; starting again", plan.name);
        report.send_modify(|r| {
            r.state = ContainerState::Waiting {
                reason: "CrashLoopBackOff",
                message: message.clone(),
            };
            r.ready = false;
            r.message = message;
        });
        tokio::select! {
            () = sleep(wait) => {}
            () = life.draining() => return,
        }
        wait = (wait * 2).min(RESTART_MAX);
        report.send_modify(|r| r.restarts += 1);
    }
}

fn spawn(plan: &ContainerPlan) -> Result<Child, LabError> {
    let open = || {
        File::options()
            .append(true)
            .create(true)
            .open(&plan.log)
            .map_err(LabError::io(format!("opening {}", plan.log.display())))
    };
    plan.place
        .command(plan.argv.clone(), plan.env.clone(), plan.cwd.clone())
        .stdin(std::process::Stdio::null())
        .stdout(open()?)
        .stderr(open()?)
        .spawn()
        .map_err(LabError::io(format!("starting container {}", plan.name)))
}

/// Exit code and words of one run; `None` if it was ended because the pod ends.
async fn follow(
    plan: &ContainerPlan,
    mut child: Child,
    report: &watch::Sender<ContainerReport>,
    kills: &mut mpsc::Receiver<()>,
    life: &Lifetime,
) -> Option<(i32, String)> {
    report.send_modify(|r| r.state = ContainerState::Running);
    let unhealthy = tokio::select! {
        status = child.wait() => {
            let code = status.as_ref().ok().and_then(std::process::ExitStatus::code);
            return Some((code.unwrap_or(137), ending(status)));
        }
        why = probes(plan, report) => why,
        Some(()) = kills.recv() => {
            place::signal(&child, Signal::SIGUSR1);
            let status = child.wait().await;
            return Some((137, ending(status)));
        }
        () = life.draining() => {
            stop(&mut child, plan.grace).await;
            return None;
        }
    };
    report.send_modify(|r| r.ready = false);
    stop(&mut child, plan.grace).await;
    Some((137, unhealthy))
}

/// SIGTERM, then after `grace` SIGKILL to everything it started.
async fn stop(child: &mut Child, grace: Duration) {
    if !grace.is_zero() {
        place::signal(child, Signal::SIGTERM);
        if timeout(grace, child.wait()).await.is_ok() {
            return;
        }
    }
    place::signal(child, Signal::SIGUSR1);
    // The runner ends when its command has.
    let _ = child.wait().await;
}

/// Probes forever; returns why the container must be restarted.
async fn probes(plan: &ContainerPlan, report: &watch::Sender<ContainerReport>) -> String {
    if let Some(startup) = &plan.startup {
        sleep(startup.delay).await;
        if let Err(why) = until_success(plan, startup).await {
            return format!("startup probe failed: {why}");
        }
    }
    let ready = async {
        match &plan.readiness {
            Some(probe) => readiness(plan, probe, report).await,
            None => {
                listening(plan).await;
                set_ready(report, Ok(()));
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        why = ready => why,
        why = liveness(plan) => why,
    }
}

fn set_ready(report: &watch::Sender<ContainerReport>, answer: Result<(), String>) {
    let ready = answer.is_ok();
    let message = answer.err().unwrap_or_default();
    report.send_if_modified(|r| {
        let changed = r.ready != ready || r.message != message;
        r.ready = ready;
        r.message = message;
        changed
    });
}

async fn until_success(plan: &ContainerPlan, probe: &Plan) -> Result<(), String> {
    let limit = Instant::now() + probe.period * probe.failures;
    loop {
        match ask(plan, probe).await {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() >= limit => return Err(why),
            Err(_) => sleep(FIRST_PROBES).await,
        }
    }
}

async fn readiness(
    plan: &ContainerPlan,
    probe: &Plan,
    report: &watch::Sender<ContainerReport>,
) -> String {
    sleep(probe.delay).await;
    let (mut good, mut bad, mut was_ready) = (0, 0, false);
    loop {
        match ask(plan, probe).await {
            Ok(()) => {
                (good, bad) = (good + 1, 0);
                if good >= probe.successes {
                    was_ready = true;
                    set_ready(report, Ok(()));
                }
            }
            Err(why) => {
                (good, bad) = (0, bad + 1);
                if bad >= probe.failures || !was_ready {
                    set_ready(report, Err(format!("readiness probe: {why}")));
                }
            }
        }
        let wait = if was_ready {
            probe.period
        } else {
            FIRST_PROBES.min(probe.period)
        };
        sleep(wait).await;
    }
}

async fn liveness(plan: &ContainerPlan) -> String {
    let Some(probe) = &plan.liveness else {
        return std::future::pending().await;
    };
    sleep(probe.delay.max(probe.period)).await;
    let mut bad = 0;
    loop {
        match ask(plan, probe).await {
            Ok(()) => bad = 0,
            Err(why) => {
                bad += 1;
                if bad >= probe.failures {
                    return format!("liveness probe failed: {why}");
                }
            }
        }
        sleep(probe.period).await;
    }
}

async fn ask(plan: &ContainerPlan, probe: &Plan) -> Result<(), String> {
    let Question::Exec { argv } = &probe.question else {
        return probe::ask(&probe.question, &plan.node, plan.ip, probe.timeout).await;
    };
    let mut command = plan
        .place
        .command(argv.clone(), plan.env.clone(), plan.cwd.clone());
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    match timeout(probe.timeout, command.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(status) => Err(format!("{}: {}", argv.join(" "), ending(status))),
        Err(_) => Err(format!("no answer within {:?}", probe.timeout)),
    }
}

/// Waits until every declared TCP port is listened on: without a readiness probe a container
/// counts as ready at once, and the first callers would find nobody.
async fn listening(plan: &ContainerPlan) {
    let all_open = async {
        while !is_listening(plan) {
            sleep(LOOK).await;
        }
    };
    // A declaration binds nobody: one that does not listen is ready all the same.
    let _ = timeout(LISTEN, all_open).await;
}

fn is_listening(plan: &ContainerPlan) -> bool {
    let tables = [plan.place.proc_net("tcp"), plan.place.proc_net("tcp6")];
    plan.ports
        .iter()
        .all(|port| tables.iter().any(|table| has_listener(table, *port)))
}

/// Looks for a socket in state LISTEN (0A) in the kernel's table.
fn has_listener(table: &str, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        local.ends_with(&wanted) && fields.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_listeners() {
        let table = "  sl  local_address rem_address   st\n   \
            0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n   \
            1: 0100007F:1F91 0100007F:0050 01 00000000:00000000\n";
        assert!(has_listener(table, 8080));
        assert!(!has_listener(table, 8081));
        assert!(!has_listener(table, 80));
    }
}

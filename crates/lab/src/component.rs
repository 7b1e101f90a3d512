//! The mesh's own processes: started, watched, started again.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use isobar_runtime::{Backoff, Scope};
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use crate::error::LabError;
use crate::place::{self, Place};
use crate::probe::{self, Question};
use crate::protocol::{ComponentState, ComponentStatus};

/// First wait before a component that ended is started again.
const RESTART_FIRST: Duration = Duration::from_millis(200);
/// Longest wait before a component that ended is started again.
const RESTART_MAX: Duration = Duration::from_secs(5);
/// A component that ran this long starts over with the short wait.
const STEADY: Duration = Duration::from_secs(10);
/// How often a starting component is asked whether it is ready.
const ASK: Duration = Duration::from_millis(50);
/// Time between SIGTERM and SIGKILL for a component that is asked to stop.
const GRACE: Duration = Duration::from_secs(15);

/// How a component shows that it is ready.
#[derive(Debug, Clone)]
pub(crate) enum ReadySign {
    /// A path answers with a good status, asked from the component's own namespace.
    Http { at: SocketAddr, path: &'static str },
    /// A file exists and a port accepts.
    FileAndPort { file: PathBuf, at: SocketAddr },
}

/// What to run, and where.
#[derive(Debug, Clone)]
pub(crate) struct ComponentPlan {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) log: PathBuf,
    pub(crate) ready: ReadySign,
}

/// A request to a running component.
enum Order {
    Stop { gentle: bool },
    Start,
}

type Orders = mpsc::Receiver<(Order, oneshot::Sender<Result<(), String>>)>;

/// One component of the lab.
#[derive(Debug)]
pub(crate) struct Component {
    orders: mpsc::Sender<(Order, oneshot::Sender<Result<(), String>>)>,
    status: watch::Receiver<ComponentStatus>,
}

impl Component {
    /// Starts it; it runs until `scope` ends.
    pub(crate) fn start(plan: ComponentPlan, scope: &Scope) -> Self {
        let (orders, inbox) = mpsc::channel(8);
        let (status, seen) = watch::channel(ComponentStatus {
            name: plan.name.clone(),
            state: ComponentState::Starting,
            pid: None,
            restarts: 0,
            note: String::new(),
        });
        scope.spawn("component", async move {
            Runner { plan, status }.run(inbox).await;
        });
        Self {
            orders,
            status: seen,
        }
    }

    pub(crate) fn status(&self) -> ComponentStatus {
        self.status.borrow().clone()
    }

    /// Ends it and keeps it down; returns when it has ended.
    pub(crate) async fn stop(&self, gentle: bool) -> Result<(), String> {
        self.order(Order::Stop { gentle }).await
    }

    /// Starts it after a stop; returns when its process runs.
    pub(crate) async fn restart(&self) -> Result<(), String> {
        self.order(Order::Start).await
    }

    async fn order(&self, order: Order) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        let gone = || "the lab is ending".to_owned();
        self.orders.send((order, done)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Runner {
    plan: ComponentPlan,
    status: watch::Sender<ComponentStatus>,
}

/// Why a component's process is no longer watched.
enum Ended {
    ByItself(String),
    OnRequest,
}

impl Runner {
    async fn run(self, mut inbox: Orders) {
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_MAX);
        let mut starting: Option<oneshot::Sender<Result<(), String>>> = None;
        loop {
            let begun = Instant::now();
            let ended = match self.spawn() {
                Ok(child) => {
                    answer(starting.take(), Ok(()));
                    self.watch(child, &mut inbox).await
                }
                Err(error) => {
                    let words = crate::stage::with_causes(&error);
                    answer(starting.take(), Err(words.clone()));
                    Ended::ByItself(words)
                }
            };
            match ended {
                Ended::OnRequest => {
                    self.note(ComponentState::Stopped, "stopped on request");
                    starting = wait_for_start(&mut inbox).await;
                    if starting.is_none() {
                        return;
                    }
                }
                Ended::ByItself(words) => {
                    tracing::warn!(component = self.plan.name, "ended: {words}");
                    self.note(ComponentState::Crashed, &words);
                    if begun.elapsed() > STEADY {
                        backoff.reset();
                    }
                    let wait = backoff.step(rand::random());
                    match self.rest(wait, &mut inbox).await {
                        Some(by) => starting = by,
                        None => return,
                    }
                    self.status.send_modify(|status| status.restarts += 1);
                }
            }
        }
    }

    fn note(&self, state: ComponentState, note: &str) {
        self.status.send_modify(|status| {
            status.state = state;
            status.pid = None;
            note.clone_into(&mut status.note);
        });
    }

    /// Waits before the next start, or less if asked to start, or until asked to if told to stop.
    /// `None` when the lab ends.
    async fn rest(
        &self,
        wait: Duration,
        inbox: &mut Orders,
    ) -> Option<Option<oneshot::Sender<Result<(), String>>>> {
        tokio::select! {
            () = sleep(wait) => Some(None),
            order = inbox.recv() => match order? {
                (Order::Start, done) => Some(Some(done)),
                (Order::Stop { .. }, done) => {
                    self.note(ComponentState::Stopped, "stopped on request");
                    answer(Some(done), Ok(()));
                    wait_for_start(inbox).await.map(Some)
                }
            },
        }
    }

    fn spawn(&self) -> Result<Child, LabError> {
        let open = || {
            File::options()
                .append(true)
                .create(true)
                .open(&self.plan.log)
                .map_err(LabError::io(format!("opening {}", self.plan.log.display())))
        };
        let child = self
            .plan
            .place
            .command(self.plan.argv.clone(), self.plan.env.clone(), None)
            .stdin(std::process::Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .map_err(LabError::io(format!("starting {}", self.plan.name)))?;
        self.status.send_modify(|status| {
            status.state = ComponentState::Starting;
            status.pid = child.id();
        });
        Ok(child)
    }

    async fn watch(&self, mut child: Child, inbox: &mut Orders) -> Ended {
        let mut ready = Box::pin(self.until_ready());
        let mut is_ready = false;
        loop {
            tokio::select! {
                status = child.wait() => return Ended::ByItself(ending(status)),
                () = &mut ready, if !is_ready => {
                    is_ready = true;
                    self.status.send_modify(|status| status.state = ComponentState::Ready);
                }
                order = inbox.recv() => match order {
                    // The lab ends; the child goes with it.
                    None => return Ended::OnRequest,
                    Some((Order::Start, done)) => answer(Some(done), Ok(())),
                    Some((Order::Stop { gentle }, done)) => {
                        end(&mut child, gentle).await;
                        self.note(ComponentState::Stopped, "stopped on request");
                        answer(Some(done), Ok(()));
                        return Ended::OnRequest;
                    }
                },
            }
        }
    }

    async fn until_ready(&self) {
        while !self.is_ready().await {
            sleep(ASK).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let (question, at) = match &self.plan.ready {
            ReadySign::Http { at, path } => {
                let question = Question::Http {
                    port: at.port(),
                    path: (*path).to_owned(),
                    host: None,
                    headers: Vec::new(),
                };
                (question, at)
            }
            ReadySign::FileAndPort { file, at } => {
                if !file.exists() {
                    return false;
                }
                (Question::Tcp { port: at.port() }, at)
            }
        };
        let std::net::IpAddr::V4(ip) = at.ip() else {
            return false;
        };
        let limit = Duration::from_secs(1);
        probe::ask(&question, self.plan.place.netns(), ip, limit)
            .await
            .is_ok()
    }
}

/// Waits until asked to start; `None` when the lab ends.
async fn wait_for_start(inbox: &mut Orders) -> Option<oneshot::Sender<Result<(), String>>> {
    loop {
        match inbox.recv().await? {
            (Order::Start, done) => return Some(done),
            (Order::Stop { .. }, done) => answer(Some(done), Ok(())),
        }
    }
}

fn answer(to: Option<oneshot::Sender<Result<(), String>>>, answer: Result<(), String>) {
    if let Some(to) = to {
        // Whoever asked may have gone.
        let _ = to.send(answer);
    }
}

async fn end(child: &mut Child, gentle: bool) {
    if gentle {
        place::signal(child, Signal::SIGTERM);
        if tokio::time::timeout(GRACE, child.wait()).await.is_ok() {
            return;
        }
    }
    // It may have ended by itself.
    let _ = child.kill().await;
}

/// How a process ended, in words.
pub(crate) fn ending(status: std::io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown ending".to_owned(),
        },
        Err(error) => error.to_string(),
    }
}

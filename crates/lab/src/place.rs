//! Places of a lab, and running commands in them.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use isobar_net::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::error::LabError;
use crate::stage::{Part, RunSpec, SandboxSpec, again};

/// Longest a configuration command (`ip`, `nft`) may take.
const CONFIGURE: Duration = Duration::from_secs(30);
/// Longest the namespaces of a node or pod may take.
const SANDBOX: Duration = Duration::from_secs(30);

/// Where commands run: a node, a pod or the network between the nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Process that holds the namespaces; none for the lab's own.
    holder: Option<u32>,
    /// True if it has a process namespace.
    processes: bool,
    netns: NetNs,
    path: Arc<str>,
}

impl Place {
    /// The network between the nodes, in which the supervisor itself runs.
    pub(crate) fn outer(path: &str) -> Result<Self, LabError> {
        Ok(Self {
            holder: None,
            processes: false,
            netns: NetNs::current().map_err(LabError::io("opening the lab's network"))?,
            path: path.into(),
        })
    }

    /// Its network namespace.
    pub(crate) fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Path of its network namespace file, as processes of the lab see it.
    pub(crate) fn netns_path(&self) -> String {
        match self.holder {
            Some(pid) => format!("/proc/{pid}/ns/net"),
            None => "/proc/1/ns/net".to_owned(),
        }
    }

    /// What the kernel lists below `/proc/PID/net`, as text; empty if it is gone.
    pub(crate) fn proc_net(&self, file: &str) -> String {
        let pid = self.holder.unwrap_or(1);
        std::fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default()
    }

    /// A command here; `env` is its whole environment but for `PATH`, which it may hold too.
    pub(crate) fn command(
        &self,
        argv: Vec<String>,
        mut env: Vec<(String, String)>,
        cwd: Option<String>,
    ) -> Command {
        if !env.iter().any(|(key, _)| key == "PATH") {
            env.push(("PATH".to_owned(), self.path.to_string()));
        }
        let spec = RunSpec {
            sandbox: self.holder,
            processes: self.processes,
            argv,
            env,
            cwd,
        };
        let mut command = Command::from(again(Part::Run));
        command
            .arg(serde_json::to_string(&spec).expect("specs have string keys only"))
            .kill_on_drop(true);
        command
    }

    /// Runs a configuration command that reads its orders from standard input.
    pub(crate) async fn configure(&self, argv: &[&str], orders: &str) -> Result<(), LabError> {
        let doing = || format!("running {}", argv.join(" "));
        let argv_owned = argv.iter().map(|&word| word.to_owned()).collect();
        let mut child = self
            .command(argv_owned, Vec::new(), None)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(LabError::io(doing()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that ends early says why on standard error.
            let _ = stdin.write_all(orders.as_bytes()).await;
        }
        let output = tokio::time::timeout(CONFIGURE, child.wait_with_output())
            .await
            .map_err(|_| LabError::NoAnswer {
                why: format!("{} took longer than {CONFIGURE:?}", argv.join(" ")),
            })?
            .map_err(LabError::io(doing()))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words: Vec<&str> = words.lines().map(str::trim).take(4).collect();
        Err(LabError::Refused {
            message: format!("{}: {}", argv.join(" "), words.join("; ")),
        })
    }
}

/// The namespaces of a node or pod, alive as long as their first process.
#[derive(Debug)]
pub(crate) struct Sandbox {
    place: Place,
    first: Pid,
    holder: Child,
}

impl Sandbox {
    /// Makes the namespaces.
    pub(crate) async fn start(
        spec: &SandboxSpec,
        path: &str,
        log: std::fs::File,
    ) -> Result<Self, LabError> {
        let text = serde_json::to_string(spec).expect("specs have string keys only");
        let mut holder = Command::from(again(Part::Sandbox))
            .arg(text)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(LabError::io("starting a sandbox"))?;
        let out = holder.stdout.take().expect("a pipe was asked for");
        let mut line = String::new();
        let failed = || LabError::NoAnswer {
            why: format!("the sandbox of {} did not start", spec.hostname),
        };
        tokio::time::timeout(SANDBOX, BufReader::new(out).read_line(&mut line))
            .await
            .map_err(|_| failed())?
            .map_err(LabError::io("waiting for a sandbox"))?;
        let first: i32 = line.trim().parse().map_err(|_| failed())?;
        let pid = holder.id().ok_or_else(failed)?;
        let netns = NetNs::open(format!("/proc/{pid}/ns/net").as_ref())
            .map_err(LabError::io("opening a sandbox's network"))?;
        Ok(Self {
            place: Place {
                holder: Some(pid),
                processes: spec.processes,
                netns,
                path: path.into(),
            },
            first: Pid::from_raw(first),
            holder,
        })
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The process that holds the namespaces.
    pub(crate) fn holder(&self) -> u32 {
        self.place.holder.expect("a sandbox has a holder")
    }

    /// Resolves when it has ended by itself.
    pub(crate) async fn ended(mut self) {
        // An error means that there is nothing to wait for.
        let _ = self.holder.wait().await;
    }

    /// Ends every process in it, and the namespaces with them.
    pub(crate) async fn end(mut self) {
        // It may have ended by itself.
        let _ = kill(self.first, Signal::SIGKILL);
        let _ = self.holder.wait().await;
    }
}

/// Sends a signal to a child that may have ended already.
pub(crate) fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

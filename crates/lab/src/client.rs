use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::LabConfig;
use crate::error::LabError;
use crate::paths::{LabPaths, LabRoot};
use crate::protocol::{Answer, LabStatus, LabSummary, Progress, Request, Target};

/// Plays the supervisor's part if this process was started for it; call it first thing in `main`,
/// before any thread is started. `None`: an ordinary start of the program.
#[must_use]
pub fn supervisor_main() -> Option<ExitCode> {
    None
}

/// Starts a lab and waits until every pod's workload and every component is ready. `progress` is
/// called for everything worth showing on the way.
///
/// # Errors
/// When the lab cannot be started or is not ready in time; nothing of it is left then.
pub async fn up(config: LabConfig, progress: impl FnMut(&Progress)) -> Result<LabStatus, LabError> {
    let _ = (config.normalise()?, progress);
    Err(LabError::NoAnswer {
        why: "not there yet".to_owned(),
    })
}

/// Ends a lab and removes everything of it, also after a crash. False if there was nothing.
///
/// # Errors
/// When something of it could not be removed.
pub fn down(root: &LabRoot, name: &str) -> Result<bool, LabError> {
    crate::config::check_name(name)?;
    let _ = root;
    Ok(false)
}

/// The state of a running lab.
///
/// # Errors
/// When it does not run or does not answer.
pub async fn status(root: &LabRoot, name: &str) -> Result<LabStatus, LabError> {
    Lab::connect(root, name)?.status().await
}

/// All labs of this user, also those of which only the state is left.
///
/// # Errors
/// When the state folder cannot be read; that it is absent is no error.
pub fn list(root: &LabRoot) -> Result<Vec<LabSummary>, LabError> {
    let _ = root;
    Ok(Vec::new())
}

/// A running lab, as its clients see it. Each request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
    paths: LabPaths,
}

/// A command to run in a lab.
#[derive(Debug)]
pub struct Exec {
    /// Where.
    pub target: Target,
    /// Program and arguments; the program is looked up in the pod's `PATH`.
    pub argv: Vec<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
    /// Standard input, output and error.
    pub stdio: [OwnedFd; 3],
}

/// What a command printed, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + N after signal N.
    pub code: i32,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
}

impl Lab {
    /// A handle on the running lab called `name`.
    ///
    /// # Errors
    /// When no such lab runs.
    pub fn connect(root: &LabRoot, name: &str) -> Result<Self, LabError> {
        crate::config::check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            paths: root.lab(name),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The places in its state folder.
    #[must_use]
    pub fn paths(&self) -> &LabPaths {
        &self.paths
    }

    /// Everything about it.
    ///
    /// # Errors
    /// When the supervisor does not answer.
    pub async fn status(&self) -> Result<LabStatus, LabError> {
        match self.ask(&Request::Status, &[]).await? {
            (Answer::Status { status }, _) => Ok(*status),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Runs a command and waits for its exit code (128 + N after signal N). Dropping the future
    /// kills the command.
    ///
    /// # Errors
    /// When the place or the program is not found, or the supervisor does not answer.
    pub async fn exec(&self, exec: Exec) -> Result<i32, LabError> {
        let request = Request::Exec {
            target: exec.target,
            argv: exec.argv,
            env: exec.env,
        };
        match self.ask(&request, &exec.stdio).await? {
            (Answer::Exited { code }, _) => Ok(code),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Runs a command and collects what it prints.
    ///
    /// # Errors
    /// As [`Lab::exec`].
    pub async fn output(&self, target: Target, argv: &[&str]) -> Result<Output, LabError> {
        let _ = (target, argv);
        Err(LabError::NoAnswer {
            why: "not there yet".to_owned(),
        })
    }

    /// Opens a TCP connection from inside the lab.
    ///
    /// # Errors
    /// When the place is not found, the connection fails, or the supervisor does not answer.
    pub async fn dial(
        &self,
        from: Target,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<std::net::TcpStream, LabError> {
        let request = Request::Dial {
            target: from,
            to,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        Ok(self.descriptor(&request).await?.into())
    }

    /// A network namespace of the lab, to enter or to capture in.
    ///
    /// # Errors
    /// When the place is not found or the supervisor does not answer.
    pub async fn netns(&self, of: Target) -> Result<OwnedFd, LabError> {
        self.descriptor(&Request::Netns { target: of }).await
    }

    /// The log file of a pod (by pod or Deployment name) or of a component.
    ///
    /// # Errors
    /// When there is neither, or the supervisor does not answer.
    pub async fn log_path(&self, of: &str) -> Result<PathBuf, LabError> {
        let request = Request::LogPath {
            target: of.to_owned(),
        };
        match self.ask(&request, &[]).await? {
            (Answer::Path { path }, _) => Ok(path),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Kills a component and keeps it down.
    ///
    /// # Errors
    /// When there is no such component or the supervisor does not answer.
    pub async fn kill_component(&self, component: &str) -> Result<(), LabError> {
        self.stop(component, false).await
    }

    /// Stops a component with SIGTERM and keeps it down; returns when it has ended.
    ///
    /// # Errors
    /// When there is no such component or the supervisor does not answer.
    pub async fn stop_component(&self, component: &str) -> Result<(), LabError> {
        self.stop(component, true).await
    }

    /// Starts a component that was stopped; returns when its process runs.
    ///
    /// # Errors
    /// When there is no such component or the supervisor does not answer.
    pub async fn start_component(&self, component: &str) -> Result<(), LabError> {
        let request = Request::Start {
            component: component.to_owned(),
        };
        self.done(&request).await
    }

    /// Kills a pod's processes as a crash would; the pod restarts them.
    ///
    /// # Errors
    /// When there is no such pod or the supervisor does not answer.
    pub async fn kill_pod(&self, pod: &str) -> Result<(), LabError> {
        let request = Request::KillPod {
            pod: pod.to_owned(),
        };
        self.done(&request).await
    }

    async fn stop(&self, component: &str, gentle: bool) -> Result<(), LabError> {
        let request = Request::Stop {
            component: component.to_owned(),
            gentle,
        };
        self.done(&request).await
    }

    async fn done(&self, request: &Request) -> Result<(), LabError> {
        match self.ask(request, &[]).await? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn descriptor(&self, request: &Request) -> Result<OwnedFd, LabError> {
        match self.ask(request, &[]).await? {
            (Answer::Done, Some(fd)) => Ok(fd),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn ask(
        &self,
        request: &Request,
        fds: &[OwnedFd],
    ) -> Result<(Answer, Option<OwnedFd>), LabError> {
        let _ = (request, fds);
        Err(LabError::NotRunning {
            name: self.name.clone(),
        })
    }
}

fn unexpected(answer: &Answer) -> LabError {
    match answer {
        Answer::Refused { message } => LabError::Refused {
            message: message.clone(),
        },
        other => LabError::NoAnswer {
            why: format!("unexpected answer {other:?}"),
        },
    }
}

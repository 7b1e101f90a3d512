use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use isobar_net::SeqPacket;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::control::PACKET;
use crate::error::LabError;
use crate::lifecycle;
use crate::paths::{LabPaths, LabRoot};
use crate::protocol::{Answer, LabStatus, Request, Target};

/// The state of a running lab.
///
/// # Errors
/// When it does not run or does not answer.
pub async fn status(root: &LabRoot, name: &str) -> Result<LabStatus, LabError> {
    Lab::connect(root, name)?.status().await
}

/// A running lab, as its clients see it. Each request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
    root: LabRoot,
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
        let paths = root.lab(name);
        if lifecycle::running(&paths).is_none() {
            return Err(not_running(root, name));
        }
        Ok(Self {
            name: name.to_owned(),
            root: root.clone(),
            paths,
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
        let pipe = || std::io::pipe().map_err(LabError::io("making a pipe"));
        let null = std::fs::File::open("/dev/null").map_err(LabError::io("opening /dev/null"))?;
        let ((out_read, out), (err_read, err)) = (pipe()?, pipe()?);
        let exec = Exec {
            target,
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
            stdio: [null.into(), out.into(), err.into()],
        };
        // The writing ends live in the request and close with it.
        let (code, stdout, stderr) = tokio::join!(
            self.exec(exec),
            read_all(out_read.into()),
            read_all(err_read.into())
        );
        Ok(Output {
            code: code?,
            stdout: stdout?,
            stderr: stderr?,
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
        let no_answer = |error: &dyn std::error::Error| LabError::NoAnswer {
            why: crate::stage::with_causes(error),
        };
        let connection = SeqPacket::connect(&self.paths.socket()).map_err(|error| {
            match lifecycle::running(&self.paths) {
                None => not_running(&self.root, &self.name),
                Some(_) => no_answer(&error),
            }
        })?;
        let text = serde_json::to_vec(request).expect("requests have string keys only");
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        connection
            .send(&text, &fds)
            .await
            .map_err(|error| no_answer(&error))?;
        let mut buffer = vec![0; PACKET];
        let packet = connection
            .recv(&mut buffer)
            .await
            .map_err(|error| no_answer(&error))?
            .ok_or_else(|| LabError::NoAnswer {
                why: "it ended, or the lab was taken down".to_owned(),
            })?;
        let answer =
            serde_json::from_slice(&buffer[..packet.len]).map_err(|error| no_answer(&error))?;
        Ok((answer, packet.fds.into_iter().next()))
    }
}

fn not_running(root: &LabRoot, name: &str) -> LabError {
    let labs = lifecycle::list(root).unwrap_or_default();
    let running = labs.into_iter().filter(|lab| lab.running);
    LabError::NotRunning {
        name: name.to_owned(),
        others: running.map(|lab| lab.name).collect(),
    }
}

async fn read_all(from: OwnedFd) -> Result<String, LabError> {
    let doing = "reading a command's output";
    let mut bytes = Vec::new();
    pipe::Receiver::from_owned_fd(from)
        .map_err(LabError::io(doing))?
        .read_to_end(&mut bytes)
        .await
        .map_err(LabError::io(doing))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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

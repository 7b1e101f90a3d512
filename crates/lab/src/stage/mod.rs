//! The processes a lab is made of before they become something else: each is this program started
//! again with a hidden first argument. Namespaces can only be entered by a process that has one
//! thread, and only a fresh process has that for certain.

mod boot;
mod exec;
mod init;
mod sandbox;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::paths::LabPaths;

pub(crate) use boot::SupervisorRecord;

/// First argument of a process that plays a part of a lab.
pub(crate) const MARK: &str = "__lab-part";

/// What a process started again does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Leaves the caller's session and namespaces, starts [`Part::Init`], ends.
    Boot,
    /// First process of the lab's process namespace; ends when the supervisor ends.
    Init,
    /// The supervisor.
    Supervise,
    /// Holds the namespaces of a node or pod.
    Sandbox,
    /// First process of a pod's process namespace.
    Pause,
    /// Enters a sandbox and runs a command there, forwarding signals.
    Run,
    /// Becomes the command.
    Exec,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Boot,
        Self::Init,
        Self::Supervise,
        Self::Sandbox,
        Self::Pause,
        Self::Run,
        Self::Exec,
    ];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Init => "init",
            Self::Supervise => "supervise",
            Self::Sandbox => "sandbox",
            Self::Pause => "pause",
            Self::Run => "run",
            Self::Exec => "exec",
        }
    }
}

/// Namespaces to make for a node or pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SandboxSpec {
    /// Host name inside.
    pub(crate) hostname: String,
    /// Files to mount over others: (what, where).
    pub(crate) mounts: Vec<(String, String)>,
    /// A folder that is empty inside, but for what is kept of it.
    pub(crate) hidden: Option<Hidden>,
    /// Values below `/proc/sys`.
    pub(crate) sysctls: Vec<(String, String)>,
    /// A process namespace of its own, so that ending it ends everything in it.
    pub(crate) processes: bool,
}

/// A folder that nobody in a sandbox may look into.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Hidden {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// Folders below it that stay visible.
    pub(crate) keep: Vec<PathBuf>,
}

/// A command to run, inside a sandbox or not.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RunSpec {
    /// Process that holds the namespaces to enter; none: the lab's own.
    pub(crate) sandbox: Option<u32>,
    /// True if the sandbox has a process namespace.
    pub(crate) processes: bool,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Working folder.
    pub(crate) cwd: Option<String>,
}

/// Plays the part this process was started for; `None` if it was not started for one.
pub(crate) fn main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != MARK {
        return None;
    }
    let word = args.next().unwrap_or_default();
    let rest: Vec<OsString> = args.collect();
    let Some(part) = Part::ALL.into_iter().find(|p| *p.word() == *word) else {
        eprintln!("isobar: unknown part {}", word.display());
        return Some(ExitCode::from(2));
    };
    Some(play(part, &rest).unwrap_or_else(|error| {
        eprintln!("isobar: {}", with_causes(&error));
        ExitCode::from(2)
    }))
}

fn play(part: Part, rest: &[OsString]) -> Result<ExitCode, LabError> {
    let first = rest.first().map(Path::new).unwrap_or(Path::new(""));
    let text = first.to_string_lossy();
    match part {
        Part::Boot => boot::boot(&LabPaths::new(first.into())),
        Part::Init => init::init(first),
        Part::Supervise => crate::supervisor::main(&LabPaths::new(first.into())),
        Part::Sandbox => sandbox::sandbox(&parse(&text)?),
        Part::Pause => sandbox::pause(),
        Part::Run => exec::run(&parse(&text)?),
        Part::Exec => exec::exec(&parse(&text)?),
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, LabError> {
    serde_json::from_str(text).map_err(|error| LabError::Io {
        doing: "reading what to start".to_owned(),
        source: error.into(),
    })
}

/// An error with its causes, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

/// A command that starts this program again in another part. The link is followed by the new
/// process, in whose `/proc` it is always right, even when the program's file was replaced since.
pub(crate) fn again(part: Part) -> std::process::Command {
    let name = std::env::current_exe().unwrap_or_else(|_| "isobar".into());
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0(name).arg(MARK).arg(part.word());
    command
}

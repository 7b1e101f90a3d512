//! Starting and ending labs, from outside.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::config::{LabConfig, check_name};
use crate::error::LabError;
use crate::paths::{LabPaths, LabRoot};
use crate::process;
use crate::protocol::{LabStatus, LabSummary, Progress};
use crate::stage::{self, MARK, Part, SupervisorRecord};

/// How long a killed lab may take to disappear.
const END: Duration = Duration::from_secs(20);
/// How long a lab that is being started may take to have a process.
const BEGIN: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// Lines of the supervisor's log shown when it ended without a word.
const TAIL: usize = 20;

/// Plays the supervisor's part if this process was started for it; call it first thing in `main`,
/// before any thread is started. `None`: an ordinary start of the program.
#[must_use]
pub fn supervisor_main() -> Option<ExitCode> {
    stage::main()
}

/// Starts a lab and waits until every pod's workload and every component is ready, or only pods
/// are not that cannot start as they are written (an unknown image): the status says which.
/// `progress` is called for everything worth showing on the way.
///
/// # Errors
/// When the lab cannot be started or is not ready in time; nothing of it is left then.
pub async fn up(
    config: LabConfig,
    mut progress: impl FnMut(&Progress),
) -> Result<LabStatus, LabError> {
    let config = config.normalise()?;
    let paths = config.root.lab(&config.name);
    paths.check_length()?;
    // Held until the lab is ready: nobody else starts or removes it meanwhile.
    let _lock = prepare(&config, &paths)?;
    let unfinished = Unfinished(&paths);
    let status = start(&config, &paths, &mut progress).await?;
    std::mem::forget(unfinished);
    Ok(status)
}

/// Takes a lab away whose start failed or was given up.
struct Unfinished<'a>(&'a LabPaths);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove(self.0) {
            let why = stage::with_causes(&error);
            tracing::warn!("a lab that did not start is left: {why}");
        }
    }
}

async fn start(
    config: &LabConfig,
    paths: &LabPaths,
    progress: &mut impl FnMut(&Progress),
) -> Result<LabStatus, LabError> {
    let log = File::options()
        .append(true)
        .create(true)
        .open(paths.component_log("supervisor"))
        .map_err(LabError::io("opening the supervisor's log"))?;
    let mut boot = Command::new(&config.launcher.program)
        .arg(MARK)
        .arg(Part::Boot.word())
        .arg(paths.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(LabError::io(format!(
            "starting {}",
            config.launcher.program.display()
        )))?;
    let out = boot.stdout.take().expect("a pipe was asked for");
    let mut lines = BufReader::new(out).lines();
    let outcome = loop {
        let line = lines
            .next_line()
            .await
            .map_err(LabError::io("reading the supervisor's progress"))?;
        let Some(line) = line else {
            break Err(LabError::NotReady {
                why: "the supervisor ended".to_owned(),
                tail: tail(&paths.component_log("supervisor")),
            });
        };
        // A line of something else, such as a panic's, is in the log as well.
        let Ok(event) = serde_json::from_str::<Progress>(&line) else {
            continue;
        };
        progress(&event);
        match event {
            Progress::Ready { status } => break Ok(status),
            Progress::Failed { why, tail } => break Err(LabError::NotReady { why, tail }),
            _ => {}
        }
    };
    boot.wait()
        .await
        .map_err(LabError::io("waiting for the supervisor's parent"))?;
    outcome
}

/// The lab's folder with everything the supervisor expects in it, locked.
fn prepare(config: &LabConfig, paths: &LabPaths) -> Result<File, LabError> {
    private_folder(config.root.path())?;
    if let Some(pid) = running(paths) {
        return Err(LabError::Running {
            name: config.name.clone(),
            pid,
        });
    }
    let doing = || format!("preparing {}", paths.dir().display());
    let lock = lock(paths)?.ok_or_else(|| LabError::Starting {
        name: config.name.clone(),
    })?;
    // What a lab that crashed left.
    empty(paths.dir()).map_err(LabError::io(doing()))?;
    for dir in [paths.logs(), paths.overlay(), paths.bin()] {
        std::fs::create_dir_all(dir).map_err(LabError::io(doing()))?;
    }
    link_programs(config, paths).map_err(LabError::io(doing()))?;
    let text = serde_json::to_vec_pretty(config).expect("a configuration has string keys only");
    std::fs::write(paths.config(), text).map_err(LabError::io(doing()))?;
    Ok(lock)
}

/// Makes the lab's folder and locks it; `None` if somebody else holds it.
fn lock(paths: &LabPaths) -> Result<Option<File>, LabError> {
    let made = DirBuilder::new().mode(0o700).create(paths.dir());
    match made {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            let doing = format!("making {}", paths.dir().display());
            return Err(LabError::io(doing)(error));
        }
        _ => {}
    }
    let dir = File::open(paths.dir())
        .map_err(LabError::io(format!("opening {}", paths.dir().display())))?;
    Ok(dir.try_lock().is_ok().then_some(dir))
}

/// Makes the folder of all labs; one that belongs to somebody else is not used, because its owner
/// could put anything there.
fn private_folder(root: &Path) -> Result<(), LabError> {
    let doing = || format!("preparing {}", root.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .map_err(LabError::io(doing()))?;
    let owner = std::fs::symlink_metadata(root)
        .map_err(LabError::io(doing()))?
        .uid();
    if owner != nix::unistd::geteuid().as_raw() {
        return Err(LabError::Forbidden {
            why: format!("{} belongs to another user", root.display()),
        });
    }
    Ok(())
}

/// Programs for every pod: our samples, and a `curl` where the host has none.
fn link_programs(config: &LabConfig, paths: &LabPaths) -> std::io::Result<()> {
    let folder = config.binaries.clone().unwrap_or_default();
    let samples = folder.join("isobar-samples");
    let link = |name: &str| std::os::unix::fs::symlink(&samples, paths.bin().join(name));
    link("isobar-samples")?;
    if !process::is_installed("curl") {
        link("curl")?;
    }
    Ok(())
}

fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The lab's first process as the host numbers it, if it runs.
pub(crate) fn running(paths: &LabPaths) -> Option<i32> {
    let text = std::fs::read(paths.supervisor()).ok()?;
    let record: SupervisorRecord = serde_json::from_slice(&text).ok()?;
    (process::start_time(record.pid) == Some(record.started)).then_some(record.pid)
}

/// Ends a lab and removes everything of it, also after a crash. False if there was nothing.
///
/// # Errors
/// When something of it could not be removed.
pub fn down(root: &LabRoot, name: &str) -> Result<bool, LabError> {
    check_name(name)?;
    let paths = root.lab(name);
    let begun = Instant::now();
    // One that is just being started has no process to kill yet.
    while paths.dir().exists() && running(&paths).is_none() && begun.elapsed() < BEGIN {
        if lock(&paths)?.is_some() {
            break;
        }
        std::thread::sleep(LOOK);
    }
    if !paths.dir().exists() {
        return Ok(false);
    }
    remove(&paths)?;
    // The folders of all labs go with the last one; others may still be there.
    let above = root.path().parent();
    for dir in [Some(root.path()), above].into_iter().flatten() {
        let ours = dir
            .file_name()
            .is_some_and(|name| name == "lab" || name.to_string_lossy().starts_with("isobar"));
        if !ours || std::fs::remove_dir(dir).is_err() {
            break;
        }
    }
    Ok(true)
}

/// Kills the first process, which takes everything with it, waits, and removes the folder.
fn remove(paths: &LabPaths) -> Result<(), LabError> {
    let begun = Instant::now();
    while let Some(pid) = running(paths) {
        // It may have ended a moment ago.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        if begun.elapsed() > END {
            return Err(LabError::NoAnswer {
                why: format!("process {pid} does not end"),
            });
        }
        std::thread::sleep(LOOK);
    }
    match std::fs::remove_dir_all(paths.dir()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let doing = format!("removing {}", paths.dir().display());
            Err(LabError::io(doing)(error))
        }
        _ => Ok(()),
    }
}

/// All labs of this user, also those of which only the state is left.
///
/// # Errors
/// When the state folder cannot be read; that it is absent is no error.
pub fn list(root: &LabRoot) -> Result<Vec<LabSummary>, LabError> {
    let doing = || format!("reading {}", root.path().display());
    let entries = match std::fs::read_dir(root.path()) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(LabError::io(doing()))?,
    };
    let mut labs = Vec::new();
    for entry in entries {
        let entry = entry.map_err(LabError::io(doing()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if check_name(&name).is_err() || !entry.path().is_dir() {
            continue;
        }
        let paths = root.lab(&name);
        let pid = running(&paths);
        labs.push(LabSummary {
            name,
            running: pid.is_some(),
            pid,
            state_dir: paths.dir().to_owned(),
        });
    }
    labs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(labs)
}

fn tail(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL);
    lines[from..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

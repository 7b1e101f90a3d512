use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{ExitCode, Stdio};

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::init::{mount_proc, private_mounts};
use super::{Hidden, Part, SandboxSpec, again};
use crate::error::LabError;

/// Makes the namespaces of a node or pod and holds them. Writes one line to standard output: the
/// process whose end ends the sandbox.
pub(super) fn sandbox(spec: &SandboxSpec) -> Result<ExitCode, LabError> {
    let mut flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if spec.processes {
        flags |= CloneFlags::CLONE_NEWPID;
    }
    unshare(flags).map_err(LabError::sys("making a sandbox's namespaces"))?;
    private_mounts()?;
    for (what, over) in &spec.mounts {
        bind(what, over);
    }
    if let Some(hidden) = &spec.hidden {
        hide(hidden).map_err(LabError::io("hiding the labs' state from a pod"))?;
    }
    nix::unistd::sethostname(&spec.hostname).map_err(LabError::sys("naming a sandbox"))?;
    for (name, value) in &spec.sysctls {
        let path = format!("/proc/sys/{name}");
        if let Err(error) = std::fs::write(&path, value) {
            eprintln!("isobar: writing {value:?} to {path}: {error}");
        }
    }
    // Shows this sandbox's devices; not allowed everywhere, and nothing of ours needs it.
    let _ = mount(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    );
    if !spec.processes {
        tell(std::process::id())?;
        return idle();
    }
    let mut pause = again(Part::Pause)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(LabError::io("starting a pod's first process"))?;
    let mut ready = String::new();
    if let Some(out) = pause.stdout.take() {
        io::BufRead::read_line(&mut io::BufReader::new(out), &mut ready)
            .map_err(LabError::io("waiting for a pod's first process"))?;
    }
    if ready.trim() == "0" || ready.trim().is_empty() {
        // It has said why on standard error.
        let _ = pause.wait();
        return Ok(ExitCode::FAILURE);
    }
    tell(pause.id())?;
    pause
        .wait()
        .map_err(LabError::io("waiting for a pod's first process"))?;
    Ok(ExitCode::SUCCESS)
}

/// First process of a pod: mounts its `/proc`, reaps orphans, does nothing else. Its end is the
/// end of every process in the pod.
pub(super) fn pause() -> Result<ExitCode, LabError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(LabError::sys("tying a pod to its sandbox"))?;
    mount_proc()?;
    tell(std::process::id())?;
    idle()
}

/// Says a process id to whoever started this one, and closes the pipe.
fn tell(pid: u32) -> Result<(), LabError> {
    writeln!(io::stdout(), "{pid}").map_err(LabError::io("reporting a sandbox"))?;
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(LabError::io("opening /dev/null"))?;
    nix::unistd::dup2_stdout(&null).map_err(LabError::sys("closing a pipe"))
}

/// Reaps children forever.
fn idle() -> Result<ExitCode, LabError> {
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    wanted
        .thread_block()
        .map_err(LabError::sys("blocking signals"))?;
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        // An interrupted wait is looked at like a signal.
        let _ = wanted.wait();
    }
}

/// Mounts an empty, read-only file system over a folder and brings back what is to be kept.
fn hide(hidden: &Hidden) -> io::Result<()> {
    let mut keep = Vec::new();
    for path in &hidden.keep {
        let folder = File::options()
            .read(true)
            .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
            .open(path)?;
        keep.push((folder, path));
    }
    let none = None::<&str>;
    let tmpfs = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("tmpfs"),
        &hidden.folder,
        Some("tmpfs"),
        tmpfs,
        Some("mode=755,size=64k"),
    )?;
    for (folder, path) in keep {
        std::fs::create_dir_all(path)?;
        let from = format!("/proc/self/fd/{}", folder.as_raw_fd());
        mount(Some(&*from), path, none, MsFlags::MS_BIND, none)?;
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | tmpfs;
    Ok(mount(none, &hidden.folder, none, read_only, none)?)
}

/// Mounts a file over another; one that is not there is left alone (a host without
/// `/etc/resolv.conf`), and said in the log.
fn bind(what: &str, over: &str) {
    let over = std::fs::canonicalize(over).unwrap_or_else(|_| over.into());
    let done = mount(
        Some(what),
        &over,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    if let Err(errno) = done {
        eprintln!(
            "isobar: mounting {what} over {}: {}",
            over.display(),
            errno.desc()
        );
    }
}

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Part, RunSpec, again};
use crate::error::LabError;

/// Exit code of a program that was not found, as shells have it.
const NOT_FOUND: u8 = 127;
/// Exit code of a program that could not be started, as shells have it.
const NOT_STARTED: u8 = 126;

/// Enters a sandbox and runs a command there. SIGTERM, SIGINT and SIGHUP go to the command; SIGUSR1
/// kills it with everything in its process group. Ends with the command's exit code, 128 + N after
/// signal N.
pub(super) fn run(spec: &RunSpec) -> Result<ExitCode, LabError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(LabError::sys("tying a command to the lab"))?;
    if let Some(holder) = spec.sandbox {
        enter(holder, spec.processes)?;
    }
    if !spec.processes {
        return exec(spec);
    }
    let mut wanted = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
    ] {
        wanted.add(signal);
    }
    wanted
        .thread_block()
        .map_err(LabError::sys("blocking signals"))?;
    let text = serde_json::to_string(spec).expect("specs have string keys only");
    let child = again(Part::Exec)
        .arg(text)
        .spawn()
        .map_err(LabError::io("starting a command"))?;
    follow(&child, &wanted)
}

fn follow(child: &Child, wanted: &SigSet) -> Result<ExitCode, LabError> {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive i32"));
    // A session of its own, so its group has its number.
    let group = Pid::from_raw(-pid.as_raw());
    loop {
        let code = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => None,
            Err(errno) => return Err(LabError::sys("waiting for a command")(errno)),
        };
        if let Some(code) = code {
            // What it left behind goes as well, as with a container. There may be nothing.
            let _ = kill(group, Signal::SIGKILL);
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        match wanted.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(Signal::SIGUSR1) => {
                let _ = kill(group, Signal::SIGKILL);
            }
            // It may have ended a moment ago.
            Ok(signal) => {
                let _ = kill(pid, signal);
            }
        }
    }
}

/// Enters the namespaces that `holder` holds.
fn enter(holder: u32, processes: bool) -> Result<(), LabError> {
    let open = |kind: &str| {
        let path = format!("/proc/{holder}/ns/{kind}");
        File::open(&path).map_err(LabError::io(format!("opening {path}")))
    };
    let mut wanted = vec![
        (open("net")?, CloneFlags::CLONE_NEWNET),
        (open("uts")?, CloneFlags::CLONE_NEWUTS),
        (open("ipc")?, CloneFlags::CLONE_NEWIPC),
    ];
    if processes {
        wanted.push((open("pid_for_children")?, CloneFlags::CLONE_NEWPID));
    }
    // Last: the others were opened through the old view of /proc.
    wanted.push((open("mnt")?, CloneFlags::CLONE_NEWNS));
    for (namespace, kind) in wanted {
        setns(namespace, kind).map_err(LabError::sys("entering a sandbox"))?;
    }
    Ok(())
}

/// Becomes the command.
pub(super) fn exec(spec: &RunSpec) -> Result<ExitCode, LabError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(LabError::sys("tying a command to its runner"))?;
    // Fails only for a leader of a group, which is as good.
    let _ = nix::unistd::setsid();
    SigSet::all()
        .thread_unblock()
        .map_err(LabError::sys("unblocking signals"))?;
    if let Some(cwd) = &spec.cwd
        && let Err(error) = std::env::set_current_dir(cwd)
    {
        eprintln!("isobar: entering {cwd}: {error}");
        return Ok(ExitCode::from(NOT_STARTED));
    }
    let Some(name) = spec.argv.first() else {
        eprintln!("isobar: no command to run");
        return Ok(ExitCode::from(NOT_STARTED));
    };
    let Some(program) = find(name, &spec.env) else {
        eprintln!("isobar: {name}: not found in this pod's PATH");
        return Ok(ExitCode::from(NOT_FOUND));
    };
    let text = |s: &str| CString::new(s.replace('\0', "")).expect("zero bytes were removed");
    let argv: Vec<CString> = spec.argv.iter().map(|a| text(a)).collect();
    let env: Vec<CString> = spec
        .env
        .iter()
        .map(|(k, v)| text(&format!("{k}={v}")))
        .collect();
    let path = text(&program.to_string_lossy());
    let Err(errno) = nix::unistd::execve(&path, &argv, &env);
    eprintln!("isobar: {}: {}", program.display(), errno.desc());
    Ok(ExitCode::from(NOT_STARTED))
}

/// Where a program is, by the command's own `PATH`.
fn find(name: &str, env: &[(String, String)]) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(name.into());
    }
    let path = env
        .iter()
        .rev()
        .find(|(key, _)| key == "PATH")
        .map_or("/usr/local/bin:/usr/bin:/bin", |(_, value)| value);
    path.split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

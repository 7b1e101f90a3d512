use std::io::Write;
use std::process::{ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::{Part, again, with_causes};
use crate::error::LabError;
use crate::paths::LabPaths;
use crate::process;
use crate::protocol::Progress;

/// Who a lab's first process is, as the host sees it; the start time tells it from a later process
/// that was given the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SupervisorRecord {
    pub(crate) pid: i32,
    pub(crate) started: u64,
}

/// Leaves the caller's session and namespaces and starts the lab's first process. Standard output
/// is the caller's progress pipe, standard error the supervisor's log.
pub(super) fn boot(paths: &LabPaths) -> Result<ExitCode, LabError> {
    match try_boot(paths) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            let failed = Progress::Failed {
                why: with_causes(&error),
                tail: Vec::new(),
            };
            let line = serde_json::to_string(&failed).expect("progress has string keys only");
            // The caller may be gone; the log has it too.
            let _ = writeln!(std::io::stdout(), "{line}");
            Err(error)
        }
    }
}

fn try_boot(paths: &LabPaths) -> Result<(), LabError> {
    nix::unistd::setsid().map_err(LabError::sys("leaving the terminal's session"))?;
    // Opened before the first process mounts a `/proc` of its own over the one that shows it to us.
    let processes = std::fs::File::open("/proc").map_err(LabError::io("opening /proc"))?;
    leave_namespaces()?;
    let child = again(Part::Init)
        .arg(paths.dir())
        .current_dir("/")
        .stdin(Stdio::null())
        .spawn()
        .map_err(LabError::io("starting the lab's first process"))?;
    let pid = i32::try_from(child.id()).expect("process ids are positive i32");
    let record = SupervisorRecord {
        pid,
        started: process::start_time_in(&processes, pid).ok_or_else(|| LabError::NoAnswer {
            why: "the lab's first process ended at once; its log may tell why".to_owned(),
        })?,
    };
    let text = serde_json::to_vec(&record).expect("a record is plain data");
    let draft = paths.dir().join(".supervisor.json");
    std::fs::write(&draft, text)
        .and_then(|()| std::fs::rename(&draft, paths.supervisor()))
        .map_err(LabError::io("recording the supervisor"))
}

/// New mount, network, process, IPC and host name namespaces; a user namespace first where we are
/// not allowed to make them otherwise.
fn leave_namespaces() -> Result<(), LabError> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let user = nix::unistd::geteuid();
    let group = nix::unistd::getegid();
    if user.is_root() && unshare(flags).is_ok() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| forbidden("a user namespace", errno))?;
    let map = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(LabError::io(format!(
            "writing {file} of the lab's user namespace"
        )))
    };
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {user} 1"))?;
    map("gid_map", format!("0 {group} 1"))?;
    unshare(flags).map_err(|errno| forbidden("network, mount and process namespaces", errno))
}

fn forbidden(what: &str, errno: nix::errno::Errno) -> LabError {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let mut why = format!("the kernel refused {what} ({})", errno.desc());
    if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        why.push_str("; sysctl kernel.unprivileged_userns_clone=1 would allow it");
    } else if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        why.push_str("; sysctl kernel.apparmor_restrict_unprivileged_userns=0 would allow it");
    } else if read("/proc/sys/user/max_user_namespaces") == "0" {
        why.push_str("; sysctl user.max_user_namespaces is 0");
    } else {
        why.push_str(
            "; inside a container it needs --privileged, or --cap-add SYS_ADMIN,NET_ADMIN with \
             seccomp and AppArmor unconfined",
        );
    }
    why.push_str("; running as root works too");
    LabError::Forbidden { why }
}

use std::path::Path;
use std::process::{ExitCode, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Part, again};
use crate::error::LabError;
use crate::supervisor::GIVEN_UP;

/// First process of the lab: reaps orphans, and ends (and the whole lab with it) when the
/// supervisor ends.
pub(super) fn init(dir: &Path) -> Result<ExitCode, LabError> {
    private_mounts()?;
    mount_proc()?;
    // Shows the lab's own network devices; the old view does no harm where this is not allowed.
    let _ = mount(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    );
    let supervisor = again(Part::Supervise)
        .arg(dir)
        .stdin(Stdio::null())
        .spawn()
        .map_err(LabError::io("starting the supervisor"))?;
    // The pipe must end with the supervisor.
    close_stdout()?;
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() as u32 == supervisor.id() => {
                if code == i32::from(GIVEN_UP) {
                    take_away(dir)?;
                }
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() as u32 == supervisor.id() => {
                eprintln!("isobar: the supervisor was ended by {signal}");
                return Ok(ExitCode::FAILURE);
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(LabError::sys("waiting for the supervisor")(errno)),
        }
    }
}

/// Ends everything else in this process namespace, so that nobody writes there any more, and removes
/// the lab's folder.
fn take_away(dir: &Path) -> Result<(), LabError> {
    let doing = "ending a lab that was given up";
    if nix::unistd::getpid() != Pid::from_raw(1) {
        return Err(LabError::sys(doing)(nix::errno::Errno::EPERM));
    }
    // All but the caller; with nobody else there it fails, which is as good.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    loop {
        match waitpid(None, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECHILD) => break,
            Err(errno) => return Err(LabError::sys(doing)(errno)),
        }
    }
    // A folder that something is mounted on cannot be removed in this mount namespace.
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(LabError::io(doing))?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        umount2(point, MntFlags::MNT_DETACH).map_err(LabError::sys(doing))?;
    }
    std::fs::remove_dir_all(dir).map_err(LabError::io(doing))
}

fn close_stdout() -> Result<(), LabError> {
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .map_err(LabError::io("opening /dev/null"))?;
    nix::unistd::dup2_stdout(&null).map_err(LabError::sys("closing the progress pipe"))
}

/// Mounts made here stay here.
pub(super) fn private_mounts() -> Result<(), LabError> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(LabError::sys("making mounts private"))
}

/// A `/proc` of this process namespace.
pub(super) fn mount_proc() -> Result<(), LabError> {
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|errno| LabError::Forbidden {
        why: format!(
            "mounting /proc in a process namespace of its own was refused ({}); inside a \
             container its /proc must not be masked (Docker: --security-opt systempaths=unconfined)",
            errno.desc()
        ),
    })
}

//! Who runs on which processor: a proxy that is measured has one of its own, so that what it does there is
//! what one worker can do, and nobody who calls it takes any of that away.

use std::fs;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// The processor of the proxy that is measured.
const PROXY: usize = 0;

/// How many there are, as it was when it was first asked: afterwards this process may have fewer.
pub(crate) fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Puts all threads of process `id`, and those it starts, on the proxy's processor. Nothing happens where
/// there is only one.
///
/// # Errors
/// When the process is gone, or may not be moved.
pub(crate) fn give_own(id: u32) -> Result<()> {
    let mut own = CpuSet::new();
    own.set(PROXY)?;
    if count() < 2 {
        return Ok(());
    }
    let tasks = format!("/proc/{id}/task");
    let threads = fs::read_dir(&tasks).with_context(|| format!("{tasks}: no such process"))?;
    for thread in threads.flatten() {
        let name = thread.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile needs no processor.
        match sched_setaffinity(Pid::from_raw(thread), &own) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(error) => return Err(error).context("giving the proxy its processor"),
        }
    }
    Ok(())
}

/// Keeps this thread, and those it starts, off the proxy's processor. Nothing happens where there is only one.
///
/// # Errors
/// When it may not be moved.
pub(crate) fn leave() -> Result<()> {
    if count() < 2 {
        return Ok(());
    }
    let mut others = CpuSet::new();
    for at in (0..count()).filter(|at| *at != PROXY) {
        others.set(at)?;
    }
    sched_setaffinity(Pid::from_raw(0), &others).context("leaving the proxy its processor")
}

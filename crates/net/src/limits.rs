use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit on open files to what the system allows; returns it.
///
/// # Errors
/// When the limit cannot be read or set.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// The limit on open files in force.
///
/// # Errors
/// When it cannot be read.
pub fn open_files_limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// The number the next descriptor of this process would get, or an error if there is none left. The
/// system gives the lowest free one, so that many are in use at least.
///
/// # Errors
/// When no descriptor is left.
pub fn next_descriptor() -> io::Result<u64> {
    let probe = std::fs::File::open("/dev/null")?;
    Ok(u64::try_from(probe.as_raw_fd()).unwrap_or(u64::MAX))
}

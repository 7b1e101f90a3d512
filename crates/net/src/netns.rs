use std::cell::{Cell, OnceCell};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;

/// The network namespace a thread of this process stands in.
const OWN: &str = "/proc/thread-self/ns/net";

thread_local! {
    /// Where this thread belongs, if it never leaves by other means than [`NetNs::enter`].
    static HOME: OnceCell<NetNs> = const { OnceCell::new() };
}

/// A network namespace, held open. Cheap to clone.
#[derive(Clone)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    id: NetNsId,
}

/// What tells two network namespaces apart, as long as one of them is held open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetNsId {
    device: u64,
    inode: u64,
}

impl NetNs {
    /// Opens a namespace file, such as `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When the file cannot be opened, or is no network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// Takes a descriptor received from elsewhere.
    ///
    /// # Errors
    /// When it is not a network namespace.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if namespace_kind(fd.as_fd())? != CloneFlags::CLONE_NEWNET.bits() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a network namespace",
            ));
        }
        let stat = fstat(&fd)?;
        let id = NetNsId {
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        Ok(Self {
            fd: Arc::new(fd),
            id,
        })
    }

    /// The namespace the calling thread stands in.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// Promises that the calling thread never changes its namespace but through [`Self::enter`],
    /// which then need not ask the system where it stands each time.
    ///
    /// # Errors
    /// As [`Self::current`].
    pub fn settle() -> io::Result<()> {
        HOME.with(|home| {
            if home.get().is_none() {
                // Cannot be set already: only this thread sets it.
                let _ = home.set(Self::current()?);
            }
            Ok(())
        })
    }

    /// Inode number, as in `net:[4026531840]`.
    #[must_use]
    pub const fn inode(&self) -> u64 {
        self.id.inode
    }

    /// Device and inode: equal for two handles on the same namespace.
    #[must_use]
    pub const fn id(&self) -> NetNsId {
        self.id
    }

    /// The descriptor, for passing on.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs `inside` with the calling thread standing in this namespace, then steps back. `inside`
    /// must not block and cannot await. If the way back fails the process aborts: a thread left in
    /// a foreign namespace would send one pod's traffic through another.
    ///
    /// # Errors
    /// When the thread may not enter. A call from within `inside` is refused.
    pub fn enter<T>(&self, inside: impl FnOnce() -> T) -> io::Result<T> {
        thread_local! {
            static AWAY: Cell<bool> = const { Cell::new(false) };
        }
        if AWAY.get() {
            return Err(io::Error::other(
                "the thread stands in another namespace already",
            ));
        }
        let settled = HOME.with(|home| home.get().cloned());
        let home = settled.map_or_else(Self::current, Ok)?;
        if home.id == self.id {
            return Ok(inside());
        }
        setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
        AWAY.set(true);
        // Returns on a panic in `inside` as well.
        let _back = StepBack {
            home,
            away: |away| AWAY.set(away),
        };
        Ok(inside())
    }
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.id.inode)
    }
}

struct StepBack {
    home: NetNs,
    away: fn(bool),
}

impl Drop for StepBack {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.home.fd, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, home = ?self.home, "cannot return to the own network namespace");
            std::process::abort();
        }
        (self.away)(false);
    }
}

/// The `CLONE_NEW…` flag that makes namespaces of the descriptor's kind (ioctl_ns(2)).
#[allow(unsafe_code)]
fn namespace_kind(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // `_IO(0xb7, 0x3)`; takes no argument, answers in the return value.
    const NS_GET_NSTYPE: u64 = 0xb703;
    // SAFETY: the descriptor is open for the whole call and the request reads and writes no memory
    // of ours; on a descriptor that is no namespace it fails with ENOTTY.
    let kind = unsafe { nix::libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(kind)
    }
}

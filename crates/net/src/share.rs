use std::io;
use std::os::fd::AsFd;

use nix::libc::{BPF_K, BPF_RET, sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt};

/// Who takes new connections of all that listen on a port they share (`SO_REUSEPORT`), in this process
/// and in others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Each takes its part, divided by addresses and ports.
    Each,
    /// One takes all: whoever listens first, or has moved into its place since.
    One,
}

impl Share {
    /// Settles it for the port of `listener`, until it is settled anew. Connections that wait already stay
    /// where they are.
    ///
    /// # Errors
    /// When `listener` does not share its port.
    pub fn set(self, listener: &impl AsFd) -> io::Result<()> {
        // A program that names the same place in the kernel's list for every connection. Where nobody has
        // that place the kernel divides, as it does without a program.
        let place = match self {
            Self::Each => u32::MAX,
            Self::One => 0,
        };
        let code = u16::try_from(BPF_RET | BPF_K).map_err(io::Error::other)?;
        let mut only = sock_filter {
            code,
            jt: 0,
            jf: 0,
            k: place,
        };
        let program = sock_fprog {
            len: 1,
            filter: &raw mut only,
        };
        setsockopt(listener, sockopt::AttachReusePortCbpf, &program)?;
        Ok(())
    }
}

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::ptr::null_mut;
use std::task::{Context, Poll, ready};

use nix::libc;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes on their way from one socket to another, which the kernel moves without copying them to
/// this process and back (`splice(2)`).
#[derive(Debug)]
pub struct Pipe {
    read: PipeReader,
    write: PipeWriter,
    held: usize,
}

impl Pipe {
    /// An empty pipe that has room for `pages` parts of packets, or for the 16 that pipes begin with
    /// where the system allows no more.
    ///
    /// # Errors
    /// When there are no descriptors for it.
    pub fn new(pages: u16) -> io::Result<Self> {
        const PAGE: i32 = 4096;
        let (read, write) = io::pipe()?;
        enlarge(write.as_fd(), i32::from(pages) * PAGE);
        Ok(Self {
            read,
            write,
            held: 0,
        })
    }

    /// Bytes in it.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Takes at most `most` bytes that have arrived at a socket into the pipe, which must be empty.
    /// Returns how many: none at the end of what the peer sends.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.held, 0, "a full pipe looks as an empty socket does");
        loop {
            ready!(from.poll_read_ready(cx))?;
            let moved = from.try_io(Interest::READABLE, || {
                splice(from.as_fd(), self.write.as_fd(), most)
            });
            match moved {
                Ok(bytes) => {
                    self.held = bytes;
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Passes what is in the pipe on to a socket. Returns how many bytes it took.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            let moved = to.try_io(Interest::WRITABLE, || {
                splice(self.read.as_fd(), to.as_fd(), self.held)
            });
            match moved {
                Ok(bytes) => {
                    self.held -= bytes;
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// As far as the system allows.
#[allow(unsafe_code)]
fn enlarge(pipe: BorrowedFd<'_>, bytes: i32) {
    // SAFETY: the descriptor is open while it is borrowed, and the call takes a number.
    let _ = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
}

#[allow(unsafe_code)]
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: both descriptors are open while they are borrowed; sockets and pipes have no offsets,
    // which null says.
    let moved = unsafe {
        libc::splice(
            from.as_raw_fd(),
            null_mut(),
            to.as_raw_fd(),
            null_mut(),
            most,
            flags,
        )
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

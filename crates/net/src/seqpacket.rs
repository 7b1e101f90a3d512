use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, socketpair,
    sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most descriptors taken from one packet.
const FDS_MAX: usize = 8;
/// Most descriptors the kernel puts into one packet (`SCM_MAX_FD`): with room for all of them,
/// control data is cut only when this process has no descriptors left.
const SCM_MAX_FD: usize = 253;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// A listening Unix socket that keeps packet boundaries (`SOCK_SEQPACKET`). The file is removed
/// when it is dropped.
#[derive(Debug)]
pub struct SeqPacketListener {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
}

/// One connection of a `SOCK_SEQPACKET` socket.
#[derive(Debug)]
pub struct SeqPacket {
    fd: AsyncFd<OwnedFd>,
}

/// What one packet brought besides its bytes.
#[derive(Debug)]
pub struct Packet {
    /// Bytes written to the caller's buffer.
    pub len: usize,
    /// Descriptors, close-on-exec, in order.
    pub fds: Vec<OwnedFd>,
}

/// Who is at the other end of a Unix socket, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id at the time of connecting.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Why a packet was not received.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The packet did not fit the buffer; it is lost.
    #[error("a packet of more than {room} bytes was cut")]
    Truncated {
        /// Size of the buffer.
        room: usize,
    },
    /// More descriptors came than fit; those that came are closed.
    #[error("a packet with more than {FDS_MAX} descriptors was cut")]
    TooManyDescriptors,
    /// The system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl SeqPacketListener {
    /// Listens at `path`, replacing a file that is there. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the path is too long (107 bytes) or cannot be bound.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let fd = new_socket()?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Self {
            fd: watch(fd)?,
            path: path.to_owned(),
        })
    }

    /// The next connection.
    ///
    /// # Errors
    /// When the system refuses one, for want of descriptors for example.
    ///
    /// # Cancel safety
    /// No connection is lost when the future is dropped.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        let fd = self
            .fd
            .async_io(Interest::READABLE, |fd| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                Ok(take(accept4(fd.as_raw_fd(), flags)?))
            })
            .await?;
        Ok(SeqPacket { fd: watch(fd)? })
    }
}

impl Drop for SeqPacketListener {
    fn drop(&mut self) {
        // The file may have been replaced or removed by somebody else; nothing depends on it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl SeqPacket {
    /// Connects to the listener at `path`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When nobody listens there, or its backlog is full.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = new_socket()?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { fd: watch(fd)? })
    }

    /// Two connected ends. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self { fd: watch(a)? }, Self { fd: watch(b)? }))
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn peer_credentials(&self) -> io::Result<PeerCredentials> {
        let found = getsockopt(self.fd.get_ref(), sockopt::PeerCredentials)?;
        Ok(PeerCredentials {
            pid: found.pid(),
            uid: found.uid(),
            gid: found.gid(),
        })
    }

    /// Sends one packet with copies of `fds`. A packet goes whole or not at all.
    ///
    /// # Errors
    /// When the peer is gone or the packet is larger than the system allows.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, nothing was sent.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        self.fd
            .async_io(Interest::WRITABLE, |socket| {
                let rights = [ControlMessage::ScmRights(&raw)];
                let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
                sendmsg::<()>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(bytes)],
                    control,
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )?;
                Ok(())
            })
            .await
    }

    /// Receives one packet into `buffer`; `None` when the peer has closed.
    ///
    /// # Errors
    /// When the packet or its descriptors do not fit, or the connection failed.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, no packet is lost.
    pub async fn recv(&self, buffer: &mut [u8]) -> Result<Option<Packet>, PacketError> {
        let room = buffer.len();
        let (packet, flags) = self
            .fd
            .async_io(Interest::READABLE, |socket| {
                receive(socket.as_raw_fd(), buffer)
            })
            .await?;
        // The descriptors are owned by now: an early return closes them.
        if flags.contains(MsgFlags::MSG_CTRUNC) || packet.fds.len() > FDS_MAX {
            return Err(PacketError::TooManyDescriptors);
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(PacketError::Truncated { room });
        }
        // An empty packet looks like the end; neither side of any protocol here sends one.
        let end = packet.len == 0 && packet.fds.is_empty();
        Ok((!end).then_some(packet))
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<(Packet, MsgFlags)> {
    let mut control = cmsg_space!([RawFd; SCM_MAX_FD]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket,
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    match message.cmsgs() {
        Ok(all) => {
            for part in all {
                if let ControlMessageOwned::ScmRights(raw) = part {
                    fds.extend(raw.into_iter().map(take));
                }
            }
        }
        Err(error) => tracing::warn!(%error, "control data of a packet was cut"),
    }
    Ok((
        Packet {
            len: message.bytes,
            fds,
        },
        message.flags,
    ))
}

/// Takes ownership of a descriptor the kernel has just made for us.
#[allow(unsafe_code)]
fn take(fd: RawFd) -> OwnedFd {
    // SAFETY: called only with a descriptor that accept4 or recvmsg returned in the same
    // expression: it is open, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Registers a descriptor with the runtime's poller.
#[allow(unsafe_code)]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, keeps its number and closes it only when dropped; the AsyncFd
    // owns it and hands out shared references only, so it stays the same for the registration's
    // whole life.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

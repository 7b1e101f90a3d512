use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isobar_types::Reason;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::listen::{in_namespace, open};
use crate::tune::transparent;
use crate::{Keepalive, NetNs};

/// How to open a TCP connection.
#[derive(Debug, Clone)]
pub struct DialOptions {
    /// The namespace to dial from; the thread's own if none.
    pub netns: Option<NetNs>,
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// The source address to show; the kernel's choice if none.
    pub source: Option<Source>,
    /// TCP keepalive; none for tunnels, which have HTTP/2 PING.
    pub keepalive: Option<Keepalive>,
    /// Time for the connection to stand.
    pub timeout: Duration,
}

/// A source address that may belong to somebody else (`IP_TRANSPARENT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The address; the port is one above those that kernels give to connections of their own.
    pub ip: IpAddr,
    /// Fail rather than go on with the kernel's choice.
    pub required: bool,
}

impl Default for DialOptions {
    /// Own namespace, no mark, keepalive as usual, 10 s (as Istio's ztunnel does).
    fn default() -> Self {
        Self {
            netns: None,
            mark: None,
            source: None,
            keepalive: Some(Keepalive::default()),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Why a connection does not stand.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The socket could not be made: namespace, mark, source address or limits.
    #[error("no socket to dial {to}: {source}")]
    Socket {
        /// The destination.
        to: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The destination, or something on the way, refused.
    #[error("{to} refused the connection: {source}")]
    Refused {
        /// The destination.
        to: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("{to} did not answer within {after:?}")]
    Timeout {
        /// The destination.
        to: SocketAddr,
        /// The time allowed.
        after: Duration,
    },
}

impl DialError {
    /// The ending this failure means for a connection.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            // No descriptor or no memory for one more socket.
            Self::Socket { source, .. } if is_shortage(source) => Reason::Overload,
            Self::Socket { .. } => Reason::Internal,
            Self::Refused { .. } => Reason::UpstreamRefused,
            Self::Timeout { .. } => Reason::UpstreamConnectTimeout,
        }
    }
}

impl DialError {
    /// True if the reason is on this side: no socket, no free port, a rule of the host's own firewall.
    /// Nothing is then known about the destination.
    #[must_use]
    pub fn is_local(&self) -> bool {
        use io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
        match self {
            Self::Socket { .. } => true,
            Self::Refused { source, .. } => {
                [AddrInUse, AddrNotAvailable, PermissionDenied].contains(&source.kind())
            }
            Self::Timeout { .. } => false,
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    let code = error.raw_os_error();
    shortages.iter().any(|e| code == Some(*e as i32))
}

/// Connects to `to`, with `TCP_NODELAY`.
///
/// # Errors
/// As [`DialError`] says.
///
/// # Cancel safety
/// Dropping the future closes the socket.
pub async fn dial(options: &DialOptions, to: SocketAddr) -> Result<TcpStream, DialError> {
    let connect = async {
        let tries = options.source.map_or(0, |_| SHOWN_PORT_TRIES);
        for _ in 0..tries {
            match connect(options, to, next_shown_port()).await {
                Err(failed) if failed.is_taken() => {}
                other => return other,
            }
        }
        connect(options, to, 0).await
    };
    match tokio::time::timeout(options.timeout, connect).await {
        Ok(Err(Failed::Socket(source))) => Err(DialError::Socket { to, source }),
        Ok(Err(Failed::Connect(source))) if source.kind() == io::ErrorKind::TimedOut => {
            tracing::debug!(%to, error = %source, "the kernel gave up connecting");
            Err(DialError::Timeout {
                to,
                after: options.timeout,
            })
        }
        Ok(Err(Failed::Connect(source))) => Err(DialError::Refused { to, source }),
        Ok(Ok(stream)) => Ok(stream),
        Err(_) => Err(DialError::Timeout {
            to,
            after: options.timeout,
        }),
    }
}

/// Why one try did not work.
enum Failed {
    Socket(io::Error),
    Connect(io::Error),
}

impl Failed {
    /// Somebody has the port, or this very pair of addresses, already.
    fn is_taken(&self) -> bool {
        let (Self::Socket(error) | Self::Connect(error)) = self;
        let kinds = [io::ErrorKind::AddrInUse, io::ErrorKind::AddrNotAvailable];
        kinds.contains(&error.kind())
    }
}

async fn connect(options: &DialOptions, to: SocketAddr, port: u16) -> Result<TcpStream, Failed> {
    let socket = in_namespace(options.netns.as_ref(), || prepare(options, to, port))
        .map_err(Failed::Socket)?;
    let connect = TcpSocket::from_std_stream(StdTcpStream::from(socket)).connect(to);
    connect.await.map_err(Failed::Connect)
}

/// Ports shown together with somebody else's address. They lie above those that a kernel gives to its
/// own connections (32768 to 60999 unless configured): the client's own direct connections to the
/// same server have ports from there, and a second connection with the same addresses and ports
/// would take the answers of the first.
const SHOWN_PORTS: RangeInclusive<u16> = 61_000..=65_535;
/// How many of them are tried before the kernel chooses after all.
const SHOWN_PORT_TRIES: u32 = 2;

/// A port of [`SHOWN_PORTS`]; they come in no order, so that long-lived connections do not stand in a row.
fn next_shown_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (first, last) = (*SHOWN_PORTS.start(), *SHOWN_PORTS.end());
    let offset = (mixed >> 40) % u64::from(last - first + 1);
    first + u16::try_from(offset).unwrap_or(0)
}

fn prepare(options: &DialOptions, to: SocketAddr, port: u16) -> io::Result<Socket> {
    let socket = open(to, Type::STREAM, Protocol::TCP, options.mark)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = options.keepalive {
        keepalive.set(&(&socket).into())?;
    }
    if let Some(source) = options.source
        && let Err(error) = show_source(&socket, SocketAddr::new(source.ip, port), to)
    {
        if source.required || port != 0 && error.kind() == io::ErrorKind::AddrInUse {
            return Err(error);
        }
        tracing::warn!(%error, source = %source.ip, %to, "cannot show the caller's address; using our own");
    }
    Ok(socket)
}

fn show_source(socket: &Socket, source: SocketAddr, to: SocketAddr) -> io::Result<()> {
    if source.is_ipv4() != to.is_ipv4() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "source of another family",
        ));
    }
    // Lets it bind to any address as well: no need of `IP_FREEBIND`.
    transparent(socket)?;
    if source.port() == 0 {
        // The port is chosen at connect, where it need only be free for this one destination: without
        // this a busy client address runs out of ports. Old kernels go without.
        let _ = setsockopt(socket, sockopt::IpBindAddressNoPort, &true);
    } else {
        // As much for a port given: what counts is the pair of addresses.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&source.into())
}

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
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

/// A source address that may belong to somebody else (`IP_TRANSPARENT`, `IP_FREEBIND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The address; the port is the kernel's choice.
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
    let socket = in_namespace(options.netns.as_ref(), || prepare(options, to))
        .map_err(|source| DialError::Socket { to, source })?;
    let connect = TcpSocket::from_std_stream(StdTcpStream::from(socket)).connect(to);
    match tokio::time::timeout(options.timeout, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) if source.kind() == io::ErrorKind::TimedOut => {
            tracing::debug!(%to, error = %source, "the kernel gave up connecting");
            Err(DialError::Timeout {
                to,
                after: options.timeout,
            })
        }
        Ok(Err(source)) => Err(DialError::Refused { to, source }),
        Err(_) => Err(DialError::Timeout {
            to,
            after: options.timeout,
        }),
    }
}

fn prepare(options: &DialOptions, to: SocketAddr) -> io::Result<Socket> {
    let socket = open(to, Type::STREAM, Protocol::TCP, options.mark)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = options.keepalive {
        keepalive.set(&(&socket).into())?;
    }
    if let Some(source) = options.source
        && let Err(error) = show_source(&socket, source.ip, to)
    {
        if source.required {
            return Err(error);
        }
        tracing::warn!(%error, source = %source.ip, %to, "cannot show the caller's address; using our own");
    }
    Ok(socket)
}

fn show_source(socket: &Socket, ip: IpAddr, to: SocketAddr) -> io::Result<()> {
    if ip.is_ipv4() != to.is_ipv4() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "source of another family",
        ));
    }
    transparent(socket)?;
    socket.set_freebind_v4(true)?;
    // The port is chosen at connect, where it need only be free for this one destination: without
    // this a busy client address runs out of ports. Old kernels go without.
    let _ = setsockopt(socket, sockopt::IpBindAddressNoPort, &true);
    socket.bind(&SocketAddr::new(ip, 0).into())
}

use std::io;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use crate::tune::transparent;
use crate::{Keepalive, NetNs, Want};

/// How to listen for TCP.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// Where; `[::]` takes IPv4 as well.
    pub address: SocketAddr,
    /// The namespace to listen in; the thread's own if none.
    pub netns: Option<NetNs>,
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// `SO_REUSEPORT`: several sockets share the port, over processes and threads. A refusal is
    /// only logged.
    pub reuse_port: bool,
    /// `IP_TRANSPARENT`.
    pub transparent: Want,
    /// Connections that may wait to be accepted.
    pub backlog: i32,
    /// `TCP_NODELAY` of accepted connections, which inherit it: no call for each of them.
    pub nodelay: bool,
    /// Keepalive of accepted connections, inherited as well. A refusal is only logged.
    pub keepalive: Option<Keepalive>,
}

impl ListenOptions {
    /// Plain options for `address`: own namespace, no mark, backlog 1024.
    #[must_use]
    pub const fn new(address: SocketAddr) -> Self {
        Self {
            address,
            netns: None,
            mark: None,
            reuse_port: false,
            transparent: Want::Never,
            backlog: 1024,
            nodelay: false,
            keepalive: None,
        }
    }
}

/// How to open a UDP socket.
#[derive(Debug, Clone)]
pub struct UdpOptions {
    /// Where to bind; port 0 for any.
    pub address: SocketAddr,
    /// The namespace; the thread's own if none.
    pub netns: Option<NetNs>,
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// `SO_REUSEPORT`; a refusal is only logged.
    pub reuse_port: bool,
}

/// Starts listening. Call it inside a tokio runtime.
///
/// # Errors
/// When the namespace cannot be entered or the system refuses the socket, a required option or
/// the address.
pub fn listen(options: &ListenOptions) -> io::Result<TcpListener> {
    let socket = in_namespace(options.netns.as_ref(), || {
        let socket = open(options.address, Type::STREAM, Protocol::TCP, options.mark)?;
        socket.set_reuse_address(true)?;
        share_port(&socket, options.reuse_port)?;
        options
            .transparent
            .apply("IP_TRANSPARENT", || transparent(&socket))?;
        if options.nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        if let Some(keepalive) = options.keepalive {
            Want::Try.apply("keepalive", || keepalive.set(&(&socket).into()))?;
        }
        socket.bind(&options.address.into())?;
        socket.listen(options.backlog)?;
        Ok(socket)
    })?;
    TcpListener::from_std(socket.into())
}

/// Opens a bound UDP socket. Call it inside a tokio runtime.
///
/// # Errors
/// As [`listen`].
pub fn udp(options: &UdpOptions) -> io::Result<UdpSocket> {
    let socket = in_namespace(options.netns.as_ref(), || {
        let socket = open(options.address, Type::DGRAM, Protocol::UDP, options.mark)?;
        share_port(&socket, options.reuse_port)?;
        socket.bind(&options.address.into())?;
        Ok(socket)
    })?;
    UdpSocket::from_std(StdUdpSocket::from(socket))
}

pub(crate) fn in_namespace<T>(
    netns: Option<&NetNs>,
    make: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    match netns {
        Some(netns) => netns.enter(make)?,
        None => make(),
    }
}

/// A non-blocking, close-on-exec socket; an IPv6 one takes IPv4 too.
pub(crate) fn open(
    address: SocketAddr,
    kind: Type,
    protocol: Protocol,
    mark: Option<u32>,
) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

fn share_port(socket: &Socket, wanted: bool) -> io::Result<()> {
    let want = if wanted { Want::Try } else { Want::Never };
    want.apply("SO_REUSEPORT", || socket.set_reuse_port(true))
}

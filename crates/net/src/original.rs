use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Where a redirected connection was going. Asks connection tracking for IPv4, then for IPv6; a
/// connection it does not know was meant for the local address. Never IPv4-mapped.
///
/// # Errors
/// When the socket has no local address any more.
pub fn original_dst(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let tracked = socket
        .original_dst_v4()
        .ok()
        .and_then(|address| address.as_socket())
        .or_else(|| {
            socket
                .original_dst_v6()
                .ok()
                .and_then(|address| address.as_socket())
        });
    match tracked {
        Some(address) => Ok(canonical(address)),
        None => local_addr(stream),
    }
}

/// The address of this end. Never IPv4-mapped.
///
/// # Errors
/// When the socket has none.
pub fn local_addr(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.local_addr().map(canonical)
}

/// The address of the other end. Never IPv4-mapped.
///
/// # Errors
/// When the connection has ended.
pub fn peer_addr(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.peer_addr().map(canonical)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

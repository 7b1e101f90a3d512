use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::SockProtocol;

use super::{AF_INET, AF_INET6, DUMP, REQUEST, answers, ask, attribute, open};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const MARK: u16 = 15;
const FIXED: usize = 72;
const TCP: u8 = 6;
/// States in which a connection can still carry data: ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2,
/// CLOSE_WAIT, LAST_ACK and CLOSING.
const LIVE_STATES: u32 =
    (1 << 1) | (1 << 2) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11);

/// A TCP connection of the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Packet mark of the socket; 0 where the kernel does not tell.
    pub mark: u32,
}

/// All live TCP connections of the namespace.
///
/// # Errors
/// When the kernel has no socket diagnosis or refuses it.
pub fn connections() -> io::Result<Vec<Connection>> {
    let socket = open(SockProtocol::NetlinkSockDiag)?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut request = vec![family, TCP, 0, 0];
        request.extend_from_slice(&LIVE_STATES.to_ne_bytes());
        request.resize(56, 0);
        ask(&socket, SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, &request)?;
        answers(&socket, |kind, body| {
            if kind == SOCK_DIAG_BY_FAMILY {
                found.extend(connection(body));
            }
            true
        })?;
    }
    Ok(found)
}

fn connection(body: &[u8]) -> Option<Connection> {
    let fixed = body.get(..FIXED)?;
    let port = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = fixed.get(at..at + 16)?.first_chunk::<16>()?;
        Some(if fixed[0] == AF_INET {
            IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
        } else {
            Ipv6Addr::from(*bytes).to_canonical()
        })
    };
    let mark = attribute(&body[FIXED..], MARK)
        .and_then(|value| value.first_chunk::<4>())
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    Some(Connection {
        local: SocketAddr::new(address(8)?, port(4)),
        remote: SocketAddr::new(address(24)?, port(6)),
        mark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_connection_is_listed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let listed = connections().unwrap();
        assert!(
            listed
                .iter()
                .any(|c| c.local == local && c.remote == remote && c.mark == 0)
        );
    }
}

//! What the mesh does not know goes to the name servers of this process, as the client sent it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar_net::{DialOptions, UdpOptions, dial, udp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::proxy::{Pod, World};

/// For one server to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Rounds over all servers.
const ATTEMPTS: usize = 2;
/// Servers used; resolvers ignore more as well.
const SERVERS: usize = 3;
/// Largest datagram.
const DATAGRAM: usize = 65_535;

/// Name servers and search domains.
#[derive(Debug, Clone, Default)]
pub struct Upstreams {
    servers: Arc<[SocketAddr]>,
    search: Arc<[String]>,
}

/// Why a query got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("this process has no name server: /etc/resolv.conf names none")]
    NoServer,
    #[error("name server {server}: {source}")]
    Server {
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
}

impl Upstreams {
    /// Given servers.
    #[must_use]
    pub fn new(servers: &[SocketAddr], search: &[String]) -> Self {
        Self {
            servers: servers.into(),
            search: search.into(),
        }
    }

    /// Reads a `resolv.conf`; an unreadable one names nobody.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no name servers to forward to");
                Self::default()
            }
        }
    }

    /// Search domains.
    #[must_use]
    pub fn search(&self) -> &[String] {
        &self.search
    }

    fn parse(text: &str) -> Self {
        let mut servers = Vec::new();
        let mut search = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if servers.len() < SERVERS => {
                    let ip = words.next().and_then(|w| w.parse::<IpAddr>().ok());
                    servers.extend(ip.map(|ip| SocketAddr::new(ip, 53)));
                }
                Some("search" | "domain") => {
                    search = words
                        .map(|w| w.trim_end_matches('.').to_ascii_lowercase())
                        .collect();
                }
                _ => {}
            }
        }
        Self::new(&servers, &search)
    }

    /// Sends `query` on and returns the answer; the first two bytes are the client's id.
    pub(super) async fn ask(
        &self,
        world: &World,
        pod: &Pod,
        query: &[u8],
        stream: bool,
    ) -> Result<Vec<u8>, ForwardError> {
        let mut last = ForwardError::NoServer;
        for _ in 0..ATTEMPTS {
            for server in self.servers.iter().copied() {
                let exchange = async {
                    if stream {
                        over_tcp(world, pod, server, query).await
                    } else {
                        over_udp(world, pod, server, query).await
                    }
                };
                let result = tokio::time::timeout(TIMEOUT, exchange)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                match result {
                    Ok(answer) => return Ok(answer),
                    Err(source) => last = ForwardError::Server { server, source },
                }
            }
        }
        Err(last)
    }
}

/// A loopback server is one of this process's namespace, not of the pod's.
fn place(pod: &Pod, server: SocketAddr) -> Option<isobar_net::NetNs> {
    pod.netns.clone().filter(|_| !server.ip().is_loopback())
}

async fn over_udp(
    world: &World,
    pod: &Pod,
    server: SocketAddr,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = udp(&UdpOptions {
        address: SocketAddr::new(any, 0),
        netns: place(pod, server),
        mark: world.config.packet_mark,
        reuse_port: false,
    })?;
    socket.connect(server).await?;
    // An id of our own: the client's may be guessed by others in the pod.
    let id: [u8; 2] = rand::random();
    let mut sent = query.to_vec();
    let (Some(theirs), Some(slot)) = (query.get(..2), sent.get_mut(..2)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    slot.copy_from_slice(&id);
    socket.send(&sent).await?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if buffer.get(..2) == Some(&id[..]) && same_question(&sent, &buffer[..len]) {
            buffer.truncate(len);
            if let Some(slot) = buffer.get_mut(..2) {
                slot.copy_from_slice(theirs);
            }
            return Ok(buffer);
        }
    }
}

async fn over_tcp(
    world: &World,
    pod: &Pod,
    server: SocketAddr,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let options = DialOptions {
        netns: place(pod, server),
        ..pod.dial_options(world)
    };
    let mut tcp = dial(&options, server).await.map_err(io::Error::other)?;
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut sent = len.to_be_bytes().to_vec();
    sent.extend_from_slice(query);
    tcp.write_all(&sent).await?;
    let len = tcp.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    tcp.read_exact(&mut answer).await?;
    if answer.get(..2) != query.get(..2) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(answer)
}

/// True if an answer repeats the question (bytes 12 on: name, type, class), as answers must.
fn same_question(query: &[u8], answer: &[u8]) -> bool {
    let Ok(asked) = hickory_proto::op::Message::from_vec(query) else {
        return false;
    };
    let Ok(answered) = hickory_proto::op::Message::from_vec(answer) else {
        return false;
    };
    answered.queries.is_empty() || asked.queries == answered.queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_servers_and_search_domains() {
        let upstreams = Upstreams::parse(
            "# comment\nnameserver 10.0.0.1\nnameserver fd00::1\nnameserver bad\n\
             search a.svc.cluster.local. B\noptions ndots:5\n",
        );
        let servers: Vec<_> = upstreams.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fd00::1]:53"]);
        assert_eq!(upstreams.search(), ["a.svc.cluster.local", "b"]);
    }
}

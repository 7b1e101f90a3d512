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

/// True if an answer repeats the question, as answers must (RFC 5452 section 9.1). What else it holds is
/// the client's to understand: records that our library cannot read come through.
fn same_question(query: &[u8], answer: &[u8]) -> bool {
    let (Some(asked), Some(answered)) = (question(query), question(answer)) else {
        return false;
    };
    let is_answer = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same = match (asked, answered) {
        (_, None) => true,
        (Some((name, kind)), Some((answered, of))) => {
            name.eq_ignore_ascii_case(answered) && kind == of
        }
        (None, Some(_)) => false,
    };
    is_answer && same
}

/// Name, and type with class, of the one question of a message, `None` within if it has none (RFC 1035
/// section 4.1.2).
fn question(message: &[u8]) -> Option<Option<(&[u8], &[u8])>> {
    match message.get(4..6)? {
        [0, 0] => return Some(None),
        [0, 1] => {}
        _ => return None,
    }
    let mut end = 12;
    loop {
        match message.get(end)? {
            0 => break,
            length @ 1..=63 => end += 1 + usize::from(*length),
            // Nothing to point back to yet.
            _ => return None,
        }
    }
    Some(Some((message.get(12..end)?, message.get(end..end + 5)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_question_whatever_else_it_holds() {
        let query = |name: &[u8], kind: u8| {
            let header = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            [&header[..], name, &[0, 0, kind, 0, 1]].concat()
        };
        let asked = query(b"\x03web\x02ns", 65);
        let answer = |mut question: Vec<u8>| {
            question[2] |= 0x80;
            question[7] = 1;
            // A record of 200 bytes, of which there are two.
            question.extend(b"\xc0\x0c\x00\x41\x00\x01\x00\x00\x00\x05\x00\xc8\x00\x01");
            question
        };
        assert!(same_question(&asked, &answer(asked.clone())));
        assert!(same_question(&asked, &answer(query(b"\x03WeB\x02nS", 65))));
        // 97 is to 65 as `a` is to `A`.
        assert!(!same_question(&asked, &answer(query(b"\x03web\x02ns", 97))));
        assert!(!same_question(&asked, &answer(query(b"\x03wab\x02ns", 65))));
        assert!(!same_question(&asked, &asked), "a query is no answer");
        let mut none = answer(asked.clone())[..12].to_vec();
        none[5] = 0;
        assert!(same_question(&asked, &none), "some servers leave it out");
        for end in 0..asked.len() {
            same_question(&asked, &answer(asked.clone())[..end]);
        }
    }

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

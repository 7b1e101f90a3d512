//! Questions to name servers: over UDP, and over TCP where an answer was cut.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr as _;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// For one server to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds over all servers.
const ROUNDS: usize = 2;
/// Servers used; resolvers ignore more as well.
const SERVERS: usize = 3;
/// Largest datagram.
const DATAGRAM: usize = 65_535;

/// Why a name has no addresses.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error("it is no host name")]
    NoName,
    #[error("this process has no name server: /etc/resolv.conf names none")]
    NoServer,
    #[error("name server {server} says {code}")]
    Refused {
        server: SocketAddr,
        code: ResponseCode,
    },
    #[error("name server {server} knows no address of it")]
    Nothing { server: SocketAddr },
    #[error("name server {server}: {source}")]
    Server {
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// The name servers that a `resolv.conf` names.
pub(super) fn servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    lines
        .map(|ip| SocketAddr::new(ip, 53))
        .take(SERVERS)
        .collect()
}

/// Addresses of a name and how long they count. Of the other family only if there are none.
pub(super) async fn lookup(
    servers: &[SocketAddr],
    name: &str,
    v6: bool,
) -> Result<(Vec<IpAddr>, Duration), LookupError> {
    let first = if v6 { RecordType::AAAA } else { RecordType::A };
    let second = if v6 { RecordType::A } else { RecordType::AAAA };
    match of_kind(servers, name, first).await {
        Err(LookupError::Nothing { .. }) => of_kind(servers, name, second).await,
        other => other,
    }
}

async fn of_kind(
    servers: &[SocketAddr],
    name: &str,
    kind: RecordType,
) -> Result<(Vec<IpAddr>, Duration), LookupError> {
    let mut name = Name::from_str(name).map_err(|_| LookupError::NoName)?;
    name.set_fqdn(true);
    let mut last = LookupError::NoServer;
    for _ in 0..ROUNDS {
        for server in servers.iter().copied() {
            let query = query(&name, kind);
            let asked = tokio::time::timeout(TIMEOUT, exchange(server, &query)).await;
            let answer = match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(answer) => answer,
                Err(source) => {
                    last = LookupError::Server { server, source };
                    continue;
                }
            };
            match answer.metadata.response_code {
                ResponseCode::NoError => {}
                // Another server would say the same.
                code @ ResponseCode::NXDomain => {
                    return Err(LookupError::Refused { server, code });
                }
                code => {
                    last = LookupError::Refused { server, code };
                    continue;
                }
            }
            return addresses(&answer).ok_or(LookupError::Nothing { server });
        }
    }
    Err(last)
}

fn query(name: &Name, kind: RecordType) -> Message {
    // With an id that others cannot know.
    let mut message = Message::query();
    message.metadata.id = rand::random();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    message
}

/// `None` without any. The shortest TTL of all that led to them counts, aliases too.
fn addresses(answer: &Message) -> Option<(Vec<IpAddr>, Duration)> {
    let mut ttl = u32::MAX;
    let mut all = Vec::new();
    for record in &answer.answers {
        let address = match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            RData::CNAME(_) => None,
            _ => continue,
        };
        ttl = ttl.min(record.ttl);
        if let Some(ip) = address.filter(|ip| !all.contains(ip)) {
            all.push(ip);
        }
    }
    // In whatever order servers give them: the same for everybody.
    all.sort_unstable();
    (!all.is_empty()).then(|| (all, Duration::from_secs(ttl.into())))
}

async fn exchange(server: SocketAddr, query: &Message) -> io::Result<Message> {
    let sent = query.to_vec().map_err(io::Error::other)?;
    let answer = over_udp(server, query, &sent).await?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let mut tcp = TcpStream::connect(server).await?;
    let len = u16::try_from(sent.len()).map_err(io::Error::other)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(&sent);
    tcp.write_all(&framed).await?;
    let len = tcp.read_u16().await?;
    let mut bytes = vec![0; usize::from(len)];
    tcp.read_exact(&mut bytes).await?;
    match Message::from_vec(&bytes) {
        Ok(answer) if answers(query, &answer) => Ok(answer),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn over_udp(server: SocketAddr, query: &Message, sent: &[u8]) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(sent).await?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // What is no answer to this question is somebody's guess.
        match Message::from_vec(&buffer[..len]) {
            Ok(answer) if answers(query, &answer) => return Ok(answer),
            _ => {}
        }
    }
}

fn answers(query: &Message, answer: &Message) -> bool {
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == query.metadata.id
        && answer.queries == query.queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read() {
        let text = "# one\nnameserver 10.0.0.1\nsearch a\nnameserver bad\nnameserver fd00::1\n";
        let found: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:53", "[fd00::1]:53"]);
    }
}

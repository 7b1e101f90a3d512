//! SOCKS5 (15080, off by default): CONNECT without authentication, then as captured outbound.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use isobar_telemetry::access::{self, Direction};
use isobar_types::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Refused, outbound, worker::PodWorker};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
/// For the client to say where it wants to go.
const GREETING: Duration = Duration::from_secs(10);

/// Where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Address(SocketAddr),
    Name(String, u16),
}

/// Codes of the reply that are in use.
#[derive(Debug, Clone, Copy)]
enum Code {
    Success = 0,
    General = 1,
    NameNotResolved = 4,
    NotSupported = 7,
}

/// A greeting that goes nowhere.
#[derive(Debug)]
struct Failed {
    code: Code,
    detail: String,
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self {
            code: Code::General,
            detail: error.to_string(),
        }
    }
}

fn unsupported(detail: impl Into<String>) -> Failed {
    Failed {
        code: Code::NotSupported,
        detail: detail.into(),
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(worker: Rc<PodWorker>, mut tcp: TcpStream, client: SocketAddr) {
    let since = Instant::now();
    let greeted = tokio::time::timeout(GREETING, Box::pin(greet(&worker, &mut tcp, client))).await;
    let failed = match greeted {
        Ok(Ok(destination)) => {
            // Told before the way is tried (as Istio's ztunnel does).
            if reply(&mut tcp, Code::Success).await.is_ok() {
                outbound::carry(&worker, tcp, client, destination, since).await;
            }
            return;
        }
        Ok(Err(failed)) => failed,
        Err(_) => Failed {
            code: Code::General,
            detail: format!("no request within {GREETING:?}"),
        },
    };
    // The client may be gone.
    let _ = reply(&mut tcp, failed.code).await;
    let refused = Refused::new(Reason::BadRequest, format!("SOCKS5: {}", failed.detail));
    let metrics = &worker.world.metrics;
    metrics.refused_early(Direction::Outbound, refused.reason);
    let (reason, unknown) = (refused.reason, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    access::refused_early(
        Direction::Outbound,
        client,
        unknown,
        reason,
        &refused.detail,
    );
}

async fn greet(
    worker: &PodWorker,
    tcp: &mut TcpStream,
    client: SocketAddr,
) -> Result<SocketAddr, Failed> {
    match request(tcp).await? {
        Wanted::Address(to) => Ok(to),
        Wanted::Name(name, port) => {
            let Some(dns) = &worker.world.dns else {
                return Err(Failed {
                    code: Code::NameNotResolved,
                    detail: format!("{name}: the DNS proxy is off"),
                });
            };
            let found = dns
                .resolve(&worker.world, &worker.pod, &name, client.is_ipv6())
                .await;
            found
                .map(|ip| SocketAddr::new(ip, port))
                .map_err(|detail| Failed {
                    code: Code::NameNotResolved,
                    detail,
                })
        }
    }
}

/// Reads the choice of methods, answers it, and reads the request.
async fn request(tcp: &mut TcpStream) -> Result<Wanted, Failed> {
    let [version, count] = bytes(tcp).await?;
    if version != VERSION {
        return Err(unsupported(format!("version {version} is not 5")));
    }
    let mut methods = vec![0; usize::from(count)];
    tcp.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        tcp.write_all(&[VERSION, NO_ACCEPTABLE_METHOD]).await?;
        return Err(unsupported("the client insists on authentication"));
    }
    tcp.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let [version, command, _reserved, kind] = bytes(tcp).await?;
    if version != VERSION || command != CONNECT {
        return Err(unsupported(format!("command {command} is not CONNECT")));
    }
    let wanted = match kind {
        1 => Wanted::Address((Ipv4Addr::from(bytes::<4>(tcp).await?), 0).into()),
        3 => {
            let [length] = bytes(tcp).await?;
            let mut name = vec![0; usize::from(length)];
            tcp.read_exact(&mut name).await?;
            let name = String::from_utf8(name).map_err(|_| unsupported("the name is not text"))?;
            Wanted::Name(name, 0)
        }
        4 => Wanted::Address((Ipv6Addr::from(bytes::<16>(tcp).await?), 0).into()),
        other => return Err(unsupported(format!("address type {other}"))),
    };
    let port = u16::from_be_bytes(bytes(tcp).await?);
    if port == 0 {
        return Err(unsupported("port 0"));
    }
    Ok(match wanted {
        Wanted::Address(to) => Wanted::Address(SocketAddr::new(to.ip().to_canonical(), port)),
        // An address written as a name is an address.
        Wanted::Name(name, _) => match name.parse::<IpAddr>() {
            Ok(ip) => Wanted::Address(SocketAddr::new(ip.to_canonical(), port)),
            Err(_) => Wanted::Name(name, port),
        },
    })
}

async fn bytes<const N: usize>(tcp: &mut TcpStream) -> Result<[u8; N], Failed> {
    let mut bytes = [0; N];
    tcp.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The bound address is always 0.0.0.0:0.
async fn reply(tcp: &mut TcpStream, code: Code) -> std::io::Result<()> {
    let reply = [VERSION, code as u8, 0, 1, 0, 0, 0, 0, 0, 0];
    tcp.write_all(&reply).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn read(sent: &[u8]) -> (Result<Wanted, Failed>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let wanted = request(&mut server).await;
        drop(server);
        let mut answered = Vec::new();
        // Unread input makes the close a reset.
        let _ = client.read_to_end(&mut answered).await;
        (wanted, answered)
    }

    #[tokio::test]
    async fn reads_addresses_and_names() {
        let (wanted, answered) =
            read(b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x03\x1f\x90").await;
        assert_eq!(
            wanted.unwrap(),
            Wanted::Address("10.0.0.3:8080".parse().unwrap())
        );
        assert_eq!(answered, [5, 0]);
        let (wanted, _) = read(b"\x05\x02\x02\x00\x05\x01\x00\x03\x03web\x00\x50").await;
        assert_eq!(wanted.unwrap(), Wanted::Name("web".into(), 80));
        let mut six = b"\x05\x01\x00\x05\x01\x00\x04".to_vec();
        six.extend(Ipv6Addr::LOCALHOST.octets());
        six.extend([0, 80]);
        let (wanted, _) = read(&six).await;
        assert_eq!(
            wanted.unwrap(),
            Wanted::Address("[::1]:80".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn what_is_not_supported_is_refused() {
        for sent in [
            &b"\x04\x01\x00\x50\x0a\x00\x00\x03\x00"[..],
            b"\x05\x01\x02",
            b"\x05\x01\x00\x05\x02\x00\x01\x0a\x00\x00\x03\x1f\x90",
            b"\x05\x01\x00\x05\x01\x00\x09\x0a\x00\x00\x03\x1f\x90",
            b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x03\x00\x00",
        ] {
            let (wanted, _) = read(sent).await;
            assert!(
                matches!(
                    wanted,
                    Err(Failed {
                        code: Code::NotSupported,
                        ..
                    })
                ),
                "{sent:?}"
            );
        }
        let (cut, _) = read(b"\x05\x01\x00\x05\x01").await;
        assert!(matches!(
            cut,
            Err(Failed {
                code: Code::General,
                ..
            })
        ));
    }
}

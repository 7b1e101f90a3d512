use std::fmt;
use std::net::{IpAddr, SocketAddr};

use isobar_types::AddressText;

/// Where a tunnel leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `IP:port`.
    Address(SocketAddr),
    /// `hostname:port`.
    Host {
        /// Host name, lower case.
        host: String,
        /// Service port.
        port: u16,
    },
}

impl Authority {
    /// Reads `IP:port`, `[v6]:port` or `hostname:port`; both halves are required, IPv4-mapped
    /// addresses become IPv4.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        // Stricter than `u16::from_str`, which takes a leading plus.
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let port: u16 = port.parse().ok()?;
        if let Some(v6) = host.strip_prefix('[') {
            let ip: std::net::Ipv6Addr = v6.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Address(SocketAddr::new(
                IpAddr::V6(ip).to_canonical(),
                port,
            )));
        }
        if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
            return Some(Self::Address(SocketAddr::new(ip.into(), port)));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        let fits = !host.is_empty() && host.len() <= 253 && host.bytes().all(plain);
        fits.then(|| Self::Host {
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => f.write_str(AddressText::from(*address).as_str()),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::Str;

/// An IPv4-mapped IPv6 address is the IPv4 address it maps; everything else stays.
#[must_use]
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// A host name as seen from its namespace; written `namespace/hostname`, the key of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// Kubernetes namespace of the object that owns the host name.
    pub namespace: Str,
    /// Fully qualified host name, lower case, no trailing dot.
    pub hostname: Str,
}

impl NamespacedHostname {
    /// Splits at the first `/`; `None` without one or with an empty half.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        let (namespace, hostname) = split_key(key)?;
        Some(Self {
            namespace,
            hostname,
        })
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// Name of an object in its namespace; written `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// Kubernetes namespace.
    pub namespace: Str,
    /// Object name.
    pub name: Str,
}

impl NamespacedName {
    /// Splits at the first `/`; `None` without one or with an empty half.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        let (namespace, name) = split_key(key)?;
        Some(Self { namespace, name })
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn split_key(key: &str) -> Option<(Str, Str)> {
    let (left, right) = key.split_once('/')?;
    (!left.is_empty() && !right.is_empty()).then(|| (left.into(), right.into()))
}

/// An address in a named network; the empty network is a cluster's only one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Network name, as in `topology.istio.io/network`.
    pub network: Str,
    /// Canonical address (never IPv4-mapped).
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// The address with IPv4-mapped forms removed.
    #[must_use]
    pub fn new(network: Str, ip: IpAddr) -> Self {
        Self {
            network,
            ip: canonical_ip(ip),
        }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// An address and a port as text. Each connection is told of in several, and the general way to write
/// numbers costs ten times as much.
#[derive(Clone, Copy)]
pub struct AddressText {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl AddressText {
    /// Of IPv6 with a mapped address and a scope: `[`, 45, `%` and 10, `]:` and 5.
    const LONGEST: usize = 64;

    /// As `IP:port` or `[v6]:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        // Nothing but ASCII was put in.
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    fn push(&mut self, text: &str) {
        let end = self.length + text.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(text.as_bytes());
            self.length = end;
        }
    }
}

impl From<SocketAddr> for AddressText {
    fn from(address: SocketAddr) -> Self {
        let mut text = Self {
            bytes: [0; Self::LONGEST],
            length: 0,
        };
        match address {
            SocketAddr::V4(v4) => {
                let mut digits = itoa::Buffer::new();
                for (octet, after) in v4.ip().octets().into_iter().zip([".", ".", ".", ":"]) {
                    text.push(digits.format(octet));
                    text.push(after);
                }
                text.push(digits.format(v4.port()));
            }
            SocketAddr::V6(v6) => text.push(&v6.to_string()),
        }
        text
    }
}

impl fmt::Display for AddressText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for AddressText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_at_the_first_slash() {
        let key = NamespacedHostname::parse("ns/a.b/c").unwrap();
        assert_eq!((&*key.namespace, &*key.hostname), ("ns", "a.b/c"));
        assert_eq!(key.to_string(), "ns/a.b/c");
        for bad in ["", "ns", "/host", "ns/"] {
            assert!(NamespacedHostname::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_written_as_the_library_does() {
        let all = [
            "0.0.0.0:0",
            "10.244.2.3:8080",
            "255.255.255.255:65535",
            "[::]:0",
            "[2001:db8::1]:15008",
            "[::ffff:255.255.255.255%4294967295]:65535",
            "[1111:2222:3333:4444:5555:6666:7777:8888%4294967295]:65535",
        ];
        for text in all {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(AddressText::from(address).as_str(), address.to_string());
        }
    }

    #[test]
    fn mapped_addresses_are_canonical() {
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(
            NetworkAddress::new("".into(), mapped).ip,
            "10.0.0.1".parse::<IpAddr>().unwrap()
        );
    }
}

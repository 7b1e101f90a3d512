use std::fmt;
use std::net::IpAddr;

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
    fn mapped_addresses_are_canonical() {
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(
            NetworkAddress::new("".into(), mapped).ip,
            "10.0.0.1".parse::<IpAddr>().unwrap()
        );
    }
}

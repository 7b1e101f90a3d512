use std::net::IpAddr;

use ipnet::IpNet;
use isobar_proto::istio::workload as wire;
use isobar_types::{NamespacedHostname, NetworkAddress, Str, canonical_ip};

use super::{ConvertError, Interner};
use crate::workload::{GatewayAddress, GatewayDestination};

pub(super) fn required(
    field: &str,
    text: &str,
    interner: &mut Interner,
) -> Result<Str, ConvertError> {
    if text.is_empty() {
        return Err(ConvertError::Missing {
            field: field.to_owned(),
        });
    }
    Ok(interner.intern(text))
}

/// The namespace of an object whose name is `NAMESPACE/…`: with a slash it could never be removed.
pub(super) fn namespace(text: &str, interner: &mut Interner) -> Result<Str, ConvertError> {
    if text.contains('/') {
        return Err(ConvertError::Namespace(text.to_owned()));
    }
    required("namespace", text, interner)
}

/// A text that must be set and that no other object shares.
pub(super) fn own(field: &str, text: &str) -> Result<Str, ConvertError> {
    if text.is_empty() {
        return Err(ConvertError::Missing {
            field: field.to_owned(),
        });
    }
    Ok(text.into())
}

pub(super) fn or_default(text: &str, default: &str, interner: &mut Interner) -> Str {
    interner.intern(if text.is_empty() { default } else { text })
}

/// The address as it is on the wire: an IPv4-mapped one stays, so that a prefix keeps its meaning.
fn raw_ip(field: &str, bytes: &[u8]) -> Result<IpAddr, ConvertError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes)
        .map(IpAddr::from)
        .map_err(|_| ConvertError::Address {
            field: field.to_owned(),
            len: bytes.len(),
        })
}

pub(super) fn ip(field: &str, bytes: &[u8]) -> Result<IpAddr, ConvertError> {
    raw_ip(field, bytes).map(canonical_ip)
}

/// An address with a prefix length in bits, host bits cleared. A range inside the IPv4-mapped part
/// of IPv6 becomes the IPv4 range it stands for, because addresses are compared in that form.
pub(super) fn net(field: &str, bytes: &[u8], length: u32) -> Result<IpNet, ConvertError> {
    let wrong = || ConvertError::Prefix {
        field: field.to_owned(),
        length,
    };
    let raw = raw_ip(field, bytes)?;
    let canonical = canonical_ip(raw);
    let length = if raw.is_ipv6() && canonical.is_ipv4() {
        match length.checked_sub(96) {
            Some(rest) => (canonical, rest),
            None => (raw, length),
        }
    } else {
        (raw, length)
    };
    let (ip, bits) = length;
    let bits = u8::try_from(bits).map_err(|_| wrong())?;
    IpNet::new(ip, bits)
        .map(|net| net.trunc())
        .map_err(|_| wrong())
}

pub(super) fn port(field: &str, value: u32) -> Result<u16, ConvertError> {
    u16::try_from(value).map_err(|_| ConvertError::Port {
        field: field.to_owned(),
        value,
    })
}

/// A known number of an enum.
pub(super) fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, ConvertError> {
    T::try_from(value).map_err(|_| ConvertError::UnknownValue {
        field: field.to_owned(),
        value,
    })
}

pub(super) fn hostname_key(
    field: &str,
    key: &str,
    interner: &mut Interner,
) -> Result<NamespacedHostname, ConvertError> {
    let parsed = NamespacedHostname::parse(key).ok_or_else(|| ConvertError::Key {
        field: field.to_owned(),
        key: key.to_owned(),
    })?;
    Ok(NamespacedHostname {
        namespace: interner.intern(&parsed.namespace),
        hostname: interner.intern(&parsed.hostname),
    })
}

pub(super) fn gateway(
    field: &str,
    gateway: &wire::GatewayAddress,
    interner: &mut Interner,
) -> Result<GatewayAddress, ConvertError> {
    use wire::gateway_address::Destination;
    let destination = match &gateway.destination {
        Some(Destination::Hostname(host)) => {
            let namespace = format!("{field}.hostname.namespace");
            let hostname = format!("{field}.hostname.hostname");
            GatewayDestination::Hostname(NamespacedHostname {
                namespace: required(&namespace, &host.namespace, interner)?,
                hostname: required(&hostname, &host.hostname, interner)?,
            })
        }
        Some(Destination::Address(address)) => GatewayDestination::Address(NetworkAddress::new(
            interner.intern(&address.network),
            ip(&format!("{field}.address"), &address.address)?,
        )),
        None => {
            return Err(ConvertError::Missing {
                field: format!("{field}.destination"),
            });
        }
    };
    Ok(GatewayAddress {
        destination,
        hbone_port: port(&format!("{field}.hbone_mtls_port"), gateway.hbone_mtls_port)?,
    })
}

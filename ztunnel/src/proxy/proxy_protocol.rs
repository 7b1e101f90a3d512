//! PROXY protocol version 2 towards an application that asks for it.

use std::net::{IpAddr, SocketAddr};

use isobar_types::Identity;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Type of the TLV with the caller's SPIFFE identity (Istio's choice).
const IDENTITY: u8 = 0xd0;

/// The header for a connection from `source` to `destination`. Of two families, IPv4 is written as
/// mapped IPv6. An identity too long for the format is left out.
pub(super) fn header(
    source: SocketAddr,
    destination: SocketAddr,
    identity: Option<&Identity>,
) -> Vec<u8> {
    let mut content = Vec::with_capacity(128);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            content.extend(from.octets());
            content.extend(to.octets());
            TCP_OVER_IPV4
        }
        (from, to) => {
            content.extend(six(from));
            content.extend(six(to));
            TCP_OVER_IPV6
        }
    };
    content.extend(source.port().to_be_bytes());
    content.extend(destination.port().to_be_bytes());
    let identity = identity.map(ToString::to_string).unwrap_or_default();
    if let Ok(length @ 1..=4096) = u16::try_from(identity.len()) {
        content.push(IDENTITY);
        content.extend(length.to_be_bytes());
        content.extend(identity.bytes());
    }
    // Addresses and one bounded text.
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_COMMAND, family]);
    header.extend(length.to_be_bytes());
    header.extend(content);
    header
}

fn six(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_41_bytes_of_the_header() {
        let identity = Identity::new("cluster.local", "web", "front");
        let (from, to) = ("10.1.2.9:41822", "10.96.4.4:80");
        let bytes = header(from.parse().unwrap(), to.parse().unwrap(), Some(&identity));
        let mut expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11".to_vec();
        let spiffe = b"spiffe://cluster.local/ns/web/sa/front";
        let tlv = u8::try_from(spiffe.len()).unwrap();
        expected.extend([0, 12 + 3 + tlv]);
        expected.extend([10, 1, 2, 9, 10, 96, 4, 4, 0xa3, 0x5e, 0, 80, 0xd0, 0, tlv]);
        expected.extend(spiffe);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn check_41_families_and_no_identity() {
        let bytes = header(
            "[fd00::9]:1".parse().unwrap(),
            "10.0.0.1:2".parse().unwrap(),
            None,
        );
        assert_eq!(bytes[13..16], [0x21, 0, 36]);
        assert_eq!(bytes.len(), 16 + 36);
        assert_eq!(bytes[16 + 16..16 + 32][10..], [0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(bytes[48..], [0, 1, 0, 2]);
    }
}

//! PROXY protocol, for applications behind a tunnel that want to know who called.
//!
//! Layout after HAProxy's specification of the protocol (`proxy-protocol.txt`, §2.2): signature, version
//! and command, family, length, addresses, then type-length-value records.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// TCP over IPv4 and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// The record that holds the caller's identity (as Istio's ztunnel does).
const IDENTITY: u8 = 0xd0;

/// Who called, and what was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The caller's address.
    pub source: SocketAddr,
    /// The address called.
    pub destination: SocketAddr,
    /// The caller's verified identity as a SPIFFE URI.
    pub identity: Option<String>,
}

/// Why a header cannot be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The identity does not fit into the header's 16-bit length.
    #[error("an identity of {0} bytes does not fit into a PROXY header")]
    TooLong(usize),
    /// Not a version 2 header of TCP, or cut short.
    #[error("not a PROXY protocol v2 header of a TCP connection")]
    Malformed,
}

impl ProxyHeader {
    /// The bytes to send before any other. If one address is IPv4 and the other IPv6, both are
    /// written as IPv6, the former mapped.
    ///
    /// # Errors
    /// When the identity is too long; nothing is ever cut off.
    pub fn encode(&self) -> Result<Vec<u8>, ProxyHeaderError> {
        let mut body = Vec::with_capacity(64);
        let (from, to) = (self.source, self.destination);
        let family = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                body.extend(from.octets());
                body.extend(to.octets());
                TCP4
            }
            (from, to) => {
                body.extend(mapped(from).octets());
                body.extend(mapped(to).octets());
                TCP6
            }
        };
        body.extend(from.port().to_be_bytes());
        body.extend(to.port().to_be_bytes());
        if let Some(identity) = &self.identity {
            let too_long = || ProxyHeaderError::TooLong(identity.len());
            let length = u16::try_from(identity.len()).map_err(|_| too_long())?;
            body.push(IDENTITY);
            body.extend(length.to_be_bytes());
            body.extend(identity.as_bytes());
            u16::try_from(body.len()).map_err(|_| too_long())?;
        }
        let length = u16::try_from(body.len()).map_err(|_| ProxyHeaderError::Malformed)?;
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([PROXY, family]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(body);
        Ok(bytes)
    }

    /// The same as a line of text (version 1), which has no place for the identity. If one address is
    /// IPv4 and the other IPv6, both are written as IPv6.
    #[must_use]
    pub fn line(&self) -> String {
        let (from, to) = (self.source, self.destination);
        let ports = format!("{} {}", from.port(), to.port());
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => format!("PROXY TCP4 {from} {to} {ports}\r\n"),
            (from, to) => {
                let (from, to) = (mapped(from), mapped(to));
                format!("PROXY TCP6 {from} {to} {ports}\r\n")
            }
        }
    }

    /// Reads a header and says how many bytes it has. Records of other types are skipped.
    ///
    /// # Errors
    /// When `bytes` do not start with a whole v2 header of a proxied TCP connection.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), ProxyHeaderError> {
        Self::read(bytes).ok_or(ProxyHeaderError::Malformed)
    }

    fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut input = Input(bytes.strip_prefix(&SIGNATURE)?);
        let [command, family] = input.array()?;
        let length = usize::from(u16::from_be_bytes(input.array()?));
        let mut body = Input(input.0.get(..length)?);
        if command != PROXY {
            return None;
        }
        let (source, destination) = match family {
            TCP4 => (
                IpAddr::from(Ipv4Addr::from(body.array::<4>()?)),
                IpAddr::from(Ipv4Addr::from(body.array::<4>()?)),
            ),
            TCP6 => (
                Ipv6Addr::from(body.array::<16>()?).to_canonical(),
                Ipv6Addr::from(body.array::<16>()?).to_canonical(),
            ),
            _ => return None,
        };
        let source = SocketAddr::new(source, u16::from_be_bytes(body.array()?));
        let destination = SocketAddr::new(destination, u16::from_be_bytes(body.array()?));
        let mut identity = None;
        while !body.0.is_empty() {
            let [kind] = body.array()?;
            let length = usize::from(u16::from_be_bytes(body.array()?));
            let value = body.0.get(..length)?;
            body.0 = body.0.get(length..)?;
            if kind == IDENTITY && identity.is_none() {
                identity = Some(std::str::from_utf8(value).ok()?.to_owned());
            }
        }
        let header = Self {
            source,
            destination,
            identity,
        };
        Some((header, SIGNATURE.len() + 4 + length))
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Bytes still to be read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str, destination: &str, identity: Option<&str>) -> ProxyHeader {
        ProxyHeader {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            identity: identity.map(str::to_owned),
        }
    }

    #[test]
    fn check_41_proxy_header_bytes() {
        let sent = header(
            "10.1.2.9:41822",
            "10.96.4.4:80",
            Some("spiffe://td/ns/a/sa/b"),
        );
        let bytes = sent.encode().unwrap();
        assert_eq!(bytes[..12], [13, 10, 13, 10, 0, 13, 10, 81, 85, 73, 84, 10]);
        // Version 2, PROXY; IPv4, STREAM; 12 bytes of addresses and 24 of a record.
        assert_eq!(bytes[12..16], [0x21, 0x11, 0, 36]);
        assert_eq!(bytes[16..24], [10, 1, 2, 9, 10, 96, 4, 4]);
        assert_eq!(bytes[24..28], [0xa3, 0x5e, 0, 80]);
        assert_eq!(bytes[28..31], [0xd0, 0, 21]);
        assert_eq!(&bytes[31..], b"spiffe://td/ns/a/sa/b");
    }

    #[test]
    fn check_41_both_families_and_no_identity() {
        for (sent, family, length) in [
            (header("[fd00::9]:1", "[fd00::4]:2", None), 0x21, 36),
            // Mixed: the IPv4 half is mapped.
            (header("10.1.2.9:1", "[fd00::4]:2", None), 0x21, 36),
            (header("10.1.2.9:1", "10.96.4.4:2", None), 0x11, 12),
        ] {
            let bytes = sent.encode().unwrap();
            assert_eq!(bytes[13..16], [family, 0, length]);
            assert_eq!(bytes.len(), 16 + usize::from(length));
            assert_eq!(ProxyHeader::parse(&bytes), Ok((sent, bytes.len())));
        }
    }

    #[test]
    fn as_text_it_is_one_line() {
        for (sent, line) in [
            (
                header("10.1.2.9:1", "10.96.4.4:80", Some("spiffe://td/ns/a/sa/b")),
                "PROXY TCP4 10.1.2.9 10.96.4.4 1 80\r\n",
            ),
            (
                header("[fd00::9]:1", "10.96.4.4:2", None),
                "PROXY TCP6 fd00::9 ::ffff:10.96.4.4 1 2\r\n",
            ),
        ] {
            assert_eq!(sent.line(), line);
        }
    }

    #[test]
    fn lengths_are_checked_and_nothing_is_cut() {
        for (identity, fits) in [
            (65_535 - 12 - 3, true),
            (65_535 - 12 - 2, false),
            (70_000, false),
        ] {
            let name = "x".repeat(identity);
            let sent = header("10.1.2.9:1", "10.96.4.4:2", Some(&name));
            match sent.encode() {
                Ok(bytes) => {
                    assert!(fits, "{identity}");
                    assert_eq!(ProxyHeader::parse(&bytes), Ok((sent, bytes.len())));
                }
                Err(error) => assert!(!fits, "{error}"),
            }
        }
        let whole = header("10.1.2.9:1", "10.96.4.4:2", Some("a"))
            .encode()
            .unwrap();
        for end in 0..whole.len() {
            assert!(ProxyHeader::parse(&whole[..end]).is_err(), "{end}");
        }
        assert!(ProxyHeader::parse(b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n").is_err());
    }
}

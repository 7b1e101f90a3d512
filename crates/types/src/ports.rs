//! Port numbers of the mesh; the same as Istio's, so that parts can be swapped.

/// Captured outbound TCP, inside each enrolled pod.
pub const OUTBOUND: u16 = 15001;
/// Captured plaintext inbound TCP, inside each enrolled pod.
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// HBONE: HTTP/2 CONNECT over mutual TLS.
pub const HBONE: u16 = 15008;
/// Captured DNS, inside each enrolled pod.
pub const DNS: u16 = 15053;
/// SOCKS5, off by default.
pub const SOCKS5: u16 = 15080;
/// Admin, loopback only.
pub const ADMIN: u16 = 15000;
/// Metrics.
pub const METRICS: u16 = 15020;
/// Readiness.
pub const READINESS: u16 = 15021;
/// Discovery and certificates over TLS, on the control plane.
pub const XDS: u16 = 15012;
/// Health, metrics and debug of the control plane.
pub const CONTROL_PLANE_MONITORING: u16 = 15014;

/// `SO_MARK` on every socket the node proxy creates inside a pod.
pub const PACKET_MARK: u32 = 0x539;
/// Bits of the mark that count.
pub const MARK_MASK: u32 = 0xfff;
/// Connection mark of the node proxy's connections to the application.
pub const CONNECTION_MARK: u32 = 0x111;
/// Source address given to probes from the node (IPv4).
pub const PROBE_SOURCE_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 7, 127);
/// Source address given to probes from the node (IPv6).
pub const PROBE_SOURCE_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(
    0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff,
);

/// Ports a tunnel or a captured connection may never be sent to: they belong to the proxy itself.
#[must_use]
pub const fn is_reserved(port: u16) -> bool {
    matches!(port, OUTBOUND | INBOUND_PLAINTEXT | HBONE)
}

//! The access line of an L4 connection, with Istio's keys; `reason` is ours.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use isobar_types::{AddressText, Identity, Reason};

/// Target of access lines; `access=off` in the log level silences them.
pub const TARGET: &str = "access";

/// The side of the proxy a connection came in on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To a workload of this proxy.
    Inbound,
    /// From a workload of this proxy.
    Outbound,
}

impl Direction {
    /// `inbound` or `outbound`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What is known of one end of a connection; unknown parts are left out of the line.
#[derive(Debug, Clone, Default)]
pub struct Party<'a> {
    /// Name of the pod, or of the canonical service.
    pub workload: Option<&'a str>,
    /// Kubernetes namespace.
    pub namespace: Option<&'a str>,
    /// Identity shown in mutual TLS; none for plaintext.
    pub identity: Option<&'a Identity>,
    /// Cluster id.
    pub cluster: Option<&'a str>,
}

/// One connection, at its end.
#[derive(Debug, Clone)]
pub struct Connection<'a> {
    /// Side of the proxy.
    pub direction: Direction,
    /// Address of the client.
    pub source_address: SocketAddr,
    /// The client's workload.
    pub source: Party<'a>,
    /// Where the proxy connected to, or would have.
    pub destination_address: Option<SocketAddr>,
    /// Authority of the tunnel, for HBONE.
    pub hbone_address: Option<&'a str>,
    /// Host name of the service.
    pub service: Option<&'a str>,
    /// The destination's workload.
    pub destination: Party<'a>,
    /// Bytes towards the destination.
    pub bytes_sent: u64,
    /// Bytes from the destination.
    pub bytes_received: u64,
    /// From accept to close.
    pub duration: Duration,
    /// Why it ended.
    pub reason: Reason,
    /// Text of the error, for an ending that is one.
    pub error: Option<&'a str>,
}

impl Connection<'_> {
    /// Writes the line `connection complete`: level info, or error if the connection failed.
    pub fn log(&self) {
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    {
                    src.addr = %AddressText::from(self.source_address),
                    src.workload = self.source.workload,
                    src.namespace = self.source.namespace,
                    src.identity = self.source.identity.map(Identity::uri).as_deref(),
                    src.cluster = self.source.cluster,
                    dst.addr = self.destination_address.map(AddressText::from).map(tracing::field::display),
                    dst.hbone_addr = self.hbone_address.map(tracing::field::display),
                    dst.service = self.service,
                    dst.workload = self.destination.workload,
                    dst.namespace = self.destination.namespace,
                    dst.identity = self.destination.identity.map(Identity::uri).as_deref(),
                    dst.cluster = self.destination.cluster,
                    direction = self.direction.as_str(),
                    bytes_sent = self.bytes_sent,
                    bytes_recv = self.bytes_received,
                    duration = whole_millis(self.duration).as_str(),
                    reason = self.reason.as_str(),
                    error = self.error,
                    },
                    "connection complete"
                )
            };
        }
        if self.error.is_some() {
            line!(error);
        } else {
            line!(info);
        }
    }
}

/// Writes the line `connection failed` for a connection that ended before anything was known of it.
pub fn refused_early(
    direction: Direction,
    source: SocketAddr,
    destination: SocketAddr,
    reason: Reason,
    error: &dyn Display,
) {
    tracing::warn!(
        target: "access",
        {
        src.addr = %source,
        dst.addr = %destination,
        direction = direction.as_str(),
        reason = reason.as_str(),
        error = error.to_string().as_str(),
        },
        "connection failed"
    );
}

fn whole_millis(duration: Duration) -> String {
    [itoa::Buffer::new().format(duration.as_millis()), "ms"].concat()
}

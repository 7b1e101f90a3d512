//! The access line of an L4 connection, with Istio's keys; `reason` is ours.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use isobar_types::{Identity, Reason};

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
pub struct Party {
    /// Name of the pod, or of the canonical service.
    pub workload: Option<String>,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Identity shown in mutual TLS; none for plaintext.
    pub identity: Option<Identity>,
    /// Cluster id.
    pub cluster: Option<String>,
}

/// One connection, at its end.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Side of the proxy.
    pub direction: Direction,
    /// Address of the client.
    pub source_address: SocketAddr,
    /// The client's workload.
    pub source: Party,
    /// Where the proxy connected to, or would have.
    pub destination_address: Option<SocketAddr>,
    /// Authority of the tunnel, for HBONE.
    pub hbone_address: Option<String>,
    /// Host name of the service.
    pub service: Option<String>,
    /// The destination's workload.
    pub destination: Party,
    /// Bytes towards the destination.
    pub bytes_sent: u64,
    /// Bytes from the destination.
    pub bytes_received: u64,
    /// From accept to close.
    pub duration: Duration,
    /// Why it ended.
    pub reason: Reason,
    /// Text of the error, for an ending that is one.
    pub error: Option<String>,
}

impl Connection {
    /// Writes the line `connection complete`: level info, or error if the connection failed.
    pub fn log(&self) {
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    {
                    src.addr = %self.source_address,
                    src.workload = self.source.workload.as_deref(),
                    src.namespace = self.source.namespace.as_deref(),
                    src.identity = text(self.source.identity.as_ref()).as_deref(),
                    src.cluster = self.source.cluster.as_deref(),
                    dst.addr = self.destination_address.map(tracing::field::display),
                    dst.hbone_addr = self.hbone_address.as_ref().map(tracing::field::display),
                    dst.service = self.service.as_deref(),
                    dst.workload = self.destination.workload.as_deref(),
                    dst.namespace = self.destination.namespace.as_deref(),
                    dst.identity = text(self.destination.identity.as_ref()).as_deref(),
                    dst.cluster = self.destination.cluster.as_deref(),
                    direction = self.direction.as_str(),
                    bytes_sent = self.bytes_sent,
                    bytes_recv = self.bytes_received,
                    duration = whole_millis(self.duration).as_str(),
                    reason = self.reason.as_str(),
                    error = self.error.as_deref(),
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

fn text(identity: Option<&Identity>) -> Option<String> {
    identity.map(ToString::to_string)
}

fn whole_millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

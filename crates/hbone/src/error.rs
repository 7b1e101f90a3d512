use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isobar_net::DialError;
use isobar_tls::HandshakeError;
use isobar_types::{Identity, Reason};

use crate::{HeaderError, Turned};

/// What a peer did not do in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The TLS handshake.
    Tls,
    /// HTTP/2 preface and SETTINGS.
    Settings,
    /// The answer to CONNECT.
    Connect,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "the TLS handshake",
            Self::Settings => "HTTP/2 settings",
            Self::Connect => "the answer to CONNECT",
        })
    }
}

/// Why there is no tunnel. One failed dial is told to all who wait for it, hence `Clone`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TunnelError {
    /// No certificate for the source.
    #[error("no certificate for {identity}: {detail}")]
    Certificate {
        /// Who wants to open the tunnel.
        identity: Identity,
        /// What the certificate source said.
        detail: String,
    },
    /// The TCP connection does not stand.
    #[error(transparent)]
    Dial(Arc<DialError>),
    /// The TLS handshake failed, on our side or the peer's.
    #[error("{to}: {source}")]
    Tls {
        /// The peer proxy.
        to: SocketAddr,
        /// What went wrong.
        #[source]
        source: Arc<HandshakeError>,
    },
    /// The peer was silent.
    #[error("{to} did not complete {stage} within {after:?}")]
    Timeout {
        /// The peer proxy.
        to: SocketAddr,
        /// What it did not do.
        stage: Stage,
        /// The time allowed.
        after: Duration,
    },
    /// The peer answered CONNECT with something else than 200.
    #[error("{to} refused the tunnel with status {status}")]
    Refused {
        /// The peer proxy.
        to: SocketAddr,
        /// HTTP status.
        status: u16,
    },
    /// The tunnel ended before the answer to CONNECT.
    #[error("the tunnel to {to} ended: {detail}")]
    Lost {
        /// The peer proxy.
        to: SocketAddr,
        /// What ended it.
        detail: String,
    },
    /// The headers cannot be sent.
    #[error(transparent)]
    Headers(#[from] HeaderError),
    /// The pool is draining or gone.
    #[error("the proxy is shutting down")]
    Drained,
}

impl TunnelError {
    /// The ending this failure means for the connection that wanted the tunnel.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Certificate { .. } => Reason::NoCertificate,
            Self::Dial(error) => error.reason(),
            Self::Tls { source, .. } if matches!(**source, HandshakeError::Revoked) => {
                Reason::CertificateRevoked
            }
            Self::Tls { .. }
            | Self::Timeout {
                stage: Stage::Tls, ..
            } => Reason::UpstreamTls,
            Self::Timeout { .. } => Reason::UpstreamTimeout,
            Self::Refused { .. } => Reason::UpstreamTunnelRefused,
            Self::Lost { .. } => Reason::UpstreamReset,
            Self::Headers(_) => Reason::Internal,
            Self::Drained => Reason::Drained,
        }
    }

    /// True if the far end did not take the connection and that is all there is to it: not policy, not
    /// who we are, not a shortage here.
    #[must_use]
    pub fn is_far_ends(&self) -> bool {
        match self {
            Self::Dial(error) => !error.is_local(),
            Self::Tls { source, .. } => matches!(
                **source,
                HandshakeError::Protocol(_) | HandshakeError::NotHttp2 | HandshakeError::Io(_)
            ),
            Self::Timeout { .. } | Self::Lost { .. } => true,
            // What is asked for cannot be had there; the others say that we may not have it.
            Self::Refused { status, .. } => (500..600).contains(status),
            Self::Certificate { .. } | Self::Headers(_) | Self::Drained => false,
        }
    }

    /// The HTTP status of the refusal, if that is what it is.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// How a server-side HBONE connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The handshake failed.
    #[error(transparent)]
    Tls(#[from] HandshakeError),
    /// A limit on callers is reached, or the caller has misbehaved before.
    #[error(transparent)]
    Turned(#[from] Turned),
    /// The client was silent.
    #[error("the client did not complete {stage} within {after:?}")]
    Timeout {
        /// What it did not do.
        stage: Stage,
        /// The time allowed.
        after: Duration,
    },
    /// The client did not answer a PING.
    #[error("the client did not answer a PING within {after:?}")]
    Silent {
        /// The time allowed.
        after: Duration,
    },
    /// The client misused the protocol: resets, floods.
    #[error("the client abused the connection: {0}")]
    Abuse(&'static str),
    /// The caller's certificate has ended too long ago.
    #[error("the client's certificate has expired, longer ago than tunnels may outlive it")]
    Expired,
    /// The caller's certificate was revoked while the connection was open.
    #[error("the client's certificate is revoked")]
    Revoked,
    /// The HTTP/2 connection failed.
    #[error("HTTP/2: {0}")]
    Http2(#[source] h2::Error),
    /// The proxy stopped while the connection was open.
    #[error("the proxy stopped")]
    Stopped,
}

impl ServeError {
    /// The ending this failure means.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Revoked | Self::Tls(HandshakeError::Revoked) => Reason::CertificateRevoked,
            Self::Tls(_)
            | Self::Timeout {
                stage: Stage::Tls, ..
            } => Reason::DownstreamTls,
            Self::Timeout { .. } | Self::Silent { .. } | Self::Http2(_) => Reason::DownstreamReset,
            Self::Expired => Reason::IdentityExpired,
            Self::Abuse(_) => Reason::PeerAbuse,
            Self::Turned(turned) => turned.reason(),
            Self::Stopped => Reason::Drained,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_may_not_have_or_lack_is_not_the_far_ends_failure() {
        let to: SocketAddr = "10.0.0.1:15008".parse().unwrap();
        let tls = |source| TunnelError::Tls {
            to,
            source: Arc::new(source),
        };
        let dial = |kind: std::io::ErrorKind| {
            TunnelError::Dial(Arc::new(DialError::Refused {
                to,
                source: kind.into(),
            }))
        };
        let refused = |status| TunnelError::Refused { to, status };
        let after = Duration::from_secs(1);
        for (error, expect) in [
            (refused(503), true),
            (refused(504), true),
            (refused(401), false),
            (refused(403), false),
            (refused(400), false),
            (refused(429), false),
            (dial(std::io::ErrorKind::ConnectionRefused), true),
            (dial(std::io::ErrorKind::HostUnreachable), true),
            (dial(std::io::ErrorKind::AddrNotAvailable), false),
            (dial(std::io::ErrorKind::PermissionDenied), false),
            (
                TunnelError::Dial(Arc::new(DialError::Timeout { to, after })),
                true,
            ),
            (tls(HandshakeError::NotHttp2), true),
            (tls(HandshakeError::Alert("bad certificate".into())), false),
            (tls(HandshakeError::Certificate("expired".into())), false),
            (tls(HandshakeError::Revoked), false),
            (TunnelError::Drained, false),
        ] {
            assert_eq!(error.is_far_ends(), expect, "{error}");
        }
    }
}

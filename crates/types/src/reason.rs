use std::fmt;

/// Which side of a proxy an ending is blamed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Whoever opened the connection or sent the request.
    Downstream,
    /// Whoever it was meant for.
    Upstream,
    /// This proxy, its configuration or its control plane.
    Local,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $text:literal, $flag:literal, $side:ident;)+) => {
        /// Why a connection or request ended. The one vocabulary of metric labels, logs and replies.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Lower-case words joined by `_`; stable, for labels and logs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// Envoy's short response flag; `-` where there is none.
            #[must_use]
            pub const fn flag(self) -> &'static str {
                match self { $(Self::$name => $flag,)+ }
            }

            /// Who has to act.
            #[must_use]
            pub const fn blame(self) -> Side {
                match self { $(Self::$name => Side::$side,)+ }
            }
        }
    };
}

reasons! {
    /// Ended as it should.
    Complete => "complete", "-", Local;
    /// A policy forbids it: look at the AuthorizationPolicy named in the log.
    PolicyDenied => "policy_denied", "RBAC", Downstream;
    /// A policy written later forbids a connection that was open.
    PolicyWithdrawn => "policy_withdrawn", "RBAC", Downstream;
    /// Plaintext where mutual TLS is required: enrol the caller, or allow PERMISSIVE.
    PlaintextRefused => "plaintext_refused", "RBAC", Downstream;
    /// The object names a waypoint that does not exist: deploy it or remove the label.
    WaypointMissing => "waypoint_missing", "UH", Local;
    /// The named waypoint has no ready endpoint.
    WaypointNotReady => "waypoint_not_ready", "UH", Local;
    /// The named waypoint does not take this object or kind of traffic.
    WaypointNotAllowed => "waypoint_not_allowed", "UH", Local;
    /// The target is bound to a waypoint and the caller did not come through it.
    WaypointBypassed => "waypoint_bypassed", "RBAC", Downstream;
    /// No endpoint of the service is healthy.
    NoHealthyUpstream => "no_healthy_upstream", "UH", Upstream;
    /// The service has no such port.
    NoSuchPort => "no_such_port", "UH", Downstream;
    /// No route matches the request.
    NoRoute => "no_route", "NR", Downstream;
    /// The route names a service or subset that does not exist.
    NoCluster => "no_cluster", "NC", Local;
    /// The destination is not known to the mesh.
    UnknownDestination => "unknown_destination", "NR", Downstream;
    /// The workload on this node is not known yet: is the control plane reachable?
    UnknownWorkload => "unknown_workload", "UH", Local;
    /// The port belongs to the proxy itself.
    ReservedPort => "reserved_port", "NR", Downstream;
    /// The request could not be understood.
    BadRequest => "bad_request", "DPE", Downstream;
    /// The upstream refused the connection.
    UpstreamRefused => "upstream_refused", "UF", Upstream;
    /// The upstream did not answer a connect in time: may a NetworkPolicy block port 15008?
    UpstreamConnectTimeout => "upstream_connect_timeout", "UF", Upstream;
    /// The TLS handshake with the upstream failed, or it showed an unexpected identity.
    UpstreamTls => "upstream_tls", "UF", Upstream;
    /// The peer proxy refused the tunnel.
    UpstreamTunnelRefused => "upstream_tunnel_refused", "UF", Upstream;
    /// The upstream closed or reset before it was done.
    UpstreamReset => "upstream_reset", "UC", Upstream;
    /// The upstream did not answer within the route's timeout.
    UpstreamTimeout => "upstream_timeout", "UT", Upstream;
    /// The upstream broke the protocol.
    UpstreamProtocol => "upstream_protocol", "UPE", Upstream;
    /// The caller went away first.
    DownstreamReset => "downstream_reset", "DC", Downstream;
    /// The TLS handshake with the caller failed, or its identity is not acceptable.
    DownstreamTls => "downstream_tls", "-", Downstream;
    /// The authoriser of a route refuses the request: ask whoever runs it.
    ExternallyRefused => "externally_refused", "UAEX", Downstream;
    /// The authoriser of a route did not say: is it there, and does its Service have ready endpoints?
    AuthoriserFailed => "authoriser_failed", "UAEX", Upstream;
    /// The body is longer than what the authoriser of the route may be shown.
    BodyTooLong => "body_too_long", "-", Downstream;
    /// A RateLimitPolicy has no room for the request.
    RateLimited => "rate_limited", "RL", Downstream;
    /// A limit of the proxy is reached.
    Overload => "overload", "UO", Local;
    /// The caller's identity has as many connections or streams open as one may.
    PeerLimit => "peer_limit", "UO", Downstream;
    /// The caller broke or flooded the protocol: its connection is closed, and for a while new ones too.
    PeerAbuse => "peer_abuse", "DPE", Downstream;
    /// A fault the user asked for.
    FaultInjected => "fault_injected", "FI", Local;
    /// A delay the user asked for.
    DelayInjected => "delay_injected", "DI", Local;
    /// No certificate for the workload: is the certificate authority reachable?
    NoCertificate => "no_certificate", "UF", Local;
    /// The peer's certificate has ended and its tunnel has outlived it for as long as it may.
    IdentityExpired => "identity_expired", "-", Downstream;
    /// The peer's certificate is on a revocation list.
    CertificateRevoked => "certificate_revoked", "-", Downstream;
    /// The proxy is shutting down and the time to drain is over.
    Drained => "drained", "-", Local;
    /// The workload was removed while connections were open.
    WorkloadRemoved => "workload_removed", "-", Local;
    /// A fault of this proxy.
    Internal => "internal", "-", Local;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn texts_are_distinct_and_label_safe() {
        let texts: BTreeSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(texts.len(), Reason::ALL.len());
        assert!(
            texts
                .iter()
                .all(|t| t.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        );
    }
}

use isobar_proto::type_url;

/// A type of resource served over discovery, in the order in which additions are sent: what is
/// referred to comes before what refers to it. Removals go the other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// What a gateway shows to callers from outside, for that gateway alone.
    Credential,
    /// The waypoint's own description.
    Waypoint,
    /// L4 policies, for node proxies.
    Authorization,
    /// Where workloads may go, for our own node proxies.
    OutboundPolicy,
    /// L7 policies, for one waypoint.
    WaypointAuthorization,
    /// Rate limits, for one waypoint.
    RateLimitPolicy,
    /// Workloads and services.
    Address,
    /// Label values that rules and subsets of one waypoint name.
    WorkloadLabels,
    /// Subsets and traffic policies, for one waypoint.
    DestinationRule,
    /// Routes, for one waypoint.
    VirtualService,
}

impl Kind {
    /// Every kind, in sending order.
    pub(crate) const ALL: [Self; 10] = [
        Self::Credential,
        Self::Waypoint,
        Self::Authorization,
        Self::OutboundPolicy,
        Self::WaypointAuthorization,
        Self::RateLimitPolicy,
        Self::Address,
        Self::WorkloadLabels,
        Self::DestinationRule,
        Self::VirtualService,
    ];

    /// What every node proxy is expected to subscribe to; Istio's knows no other kind.
    pub(crate) const NODE: &[Self] = &[Self::Authorization, Self::Address];

    /// What a waypoint is expected to subscribe to.
    pub(crate) const WAYPOINT: &[Self] = &[
        Self::Credential,
        Self::Waypoint,
        Self::Authorization,
        Self::WaypointAuthorization,
        Self::RateLimitPolicy,
        Self::Address,
        Self::WorkloadLabels,
        Self::DestinationRule,
        Self::VirtualService,
    ];

    /// Position in [`Kind::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The type URL on the wire.
    pub(crate) const fn url(self) -> &'static str {
        match self {
            Self::Credential => type_url::CREDENTIAL,
            Self::Waypoint => type_url::WAYPOINT,
            Self::Authorization => type_url::AUTHORIZATION,
            Self::OutboundPolicy => type_url::OUTBOUND_POLICY,
            Self::WaypointAuthorization => type_url::WAYPOINT_AUTHORIZATION,
            Self::RateLimitPolicy => type_url::RATE_LIMIT_POLICY,
            Self::Address => type_url::ADDRESS,
            Self::WorkloadLabels => type_url::WORKLOAD_LABELS,
            Self::DestinationRule => type_url::DESTINATION_RULE,
            Self::VirtualService => type_url::VIRTUAL_SERVICE,
        }
    }

    /// The kind with that type URL.
    pub(crate) fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// A short name for tables and metrics.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Credential => "Credential",
            Self::Waypoint => "Waypoint",
            Self::Authorization => "Authorization",
            Self::OutboundPolicy => "OutboundPolicy",
            Self::WaypointAuthorization => "WaypointAuthorization",
            Self::RateLimitPolicy => "RateLimitPolicy",
            Self::Address => "Address",
            Self::WorkloadLabels => "WorkloadLabels",
            Self::DestinationRule => "DestinationRule",
            Self::VirtualService => "VirtualService",
        }
    }
}

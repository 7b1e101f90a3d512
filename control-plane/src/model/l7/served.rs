use isobar_proto::isobar::v1::ServiceRef;
use isobar_proto::istio::workload;
use isobar_types::NamespacedName;

/// Something a waypoint may stand in front of: a Service, or a host of a ServiceEntry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served<'a> {
    /// As it is published.
    pub(crate) wire: &'a workload::Service,
    /// The object it comes from.
    pub(crate) owner: Owner<'a>,
    /// Waypoints that serve it.
    pub(crate) waypoints: &'a [NamespacedName],
    /// That of these which takes a share of the calls at most.
    pub(crate) second: Option<&'a NamespacedName>,
    /// Asks for traffic to pass while its waypoint is away.
    pub(crate) fail_open: bool,
}

/// The object that something served comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    /// A Service.
    Service(&'a NamespacedName),
    /// A ServiceEntry, which may have several hosts.
    Entry(&'a NamespacedName),
}

impl<'a> Served<'a> {
    /// Its full host name.
    pub(crate) fn hostname(&self) -> &'a str {
        &self.wire.hostname
    }

    /// Its namespace.
    pub(crate) fn namespace(&self) -> &'a str {
        &self.wire.namespace
    }

    /// True unless this is its second waypoint, with no share of the calls now.
    pub(super) fn takes_calls(&self, waypoint: &NamespacedName) -> bool {
        self.second != Some(waypoint) || self.share_of_second() > 0
    }

    /// Percentage of the calls that its second waypoint takes.
    pub(super) fn share_of_second(&self) -> u32 {
        let shares = &self.wire.weighted_waypoints;
        let last = shares.last().filter(|_| self.second.is_some());
        last.map_or(0, |one| one.weight)
    }

    /// How messages refer to it.
    pub(crate) fn reference(&self) -> ServiceRef {
        ServiceRef {
            namespace: self.wire.namespace.clone(),
            hostname: self.wire.hostname.clone(),
        }
    }
}

impl std::fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(key) => write!(f, "Service {key}"),
            Self::Entry(key) => write!(f, "ServiceEntry {key}"),
        }
    }
}

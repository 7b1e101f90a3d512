//! Where a routed connection leads, as telemetry tells it.

use std::net::SocketAddr;
use std::sync::Arc;

use isobar_state::outbound::NextHop;
use isobar_state::{Service, Workload};
use isobar_telemetry::access::Direction;
use isobar_types::Identity;

use super::ledger::{End, Route};

/// The ends of a route, for telemetry.
pub(super) struct Way {
    pub(super) to: SocketAddr,
    pub(super) authority: Option<String>,
    workload: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    expect: Option<Identity>,
    /// Certificates prove who both ends are.
    proven: bool,
}

impl Way {
    pub(super) fn route(self, client: SocketAddr, source: &Arc<Workload>) -> Route {
        Route {
            direction: Direction::Outbound,
            source_address: client,
            source: End {
                identity: self.proven.then(|| source.identity()),
                workload: Some(source.clone()),
                baggage: None,
            },
            destination_address: self.to,
            mutual_tls: self.authority.is_some(),
            hbone_address: self.authority,
            destination: End {
                workload: self.workload,
                identity: self.expect,
                baggage: None,
            },
            service: self.service,
            proven: self.proven,
        }
    }
}

/// Where `hop` leads; `next_door` without a tunnel.
pub(super) fn way(hop: &NextHop, destination: SocketAddr, next_door: bool) -> Way {
    match hop {
        NextHop::Passthrough(to) => Way {
            to: *to,
            authority: None,
            workload: None,
            service: None,
            expect: None,
            proven: false,
        },
        NextHop::Direct {
            to,
            workload,
            service,
        } => Way {
            to: *to,
            authority: None,
            workload: Some(workload.clone()),
            service: service.clone(),
            expect: None,
            proven: false,
        },
        NextHop::Resolve {
            workload, service, ..
        } => Way {
            to: destination,
            authority: None,
            workload: Some(workload.clone()),
            service: service.clone(),
            expect: None,
            proven: false,
        },
        NextHop::DoubleTunnel {
            to,
            authority,
            gateway,
            service,
            ..
        } => Way {
            to: *to,
            authority: Some(authority.clone()),
            workload: Some(gateway.clone()),
            service: Some(service.clone()),
            expect: Some(gateway.identity()),
            proven: true,
        },
        NextHop::Tunnel {
            to,
            authority,
            workload,
            service,
            ..
        } => Way {
            // A tunnel ends at its own port, what takes none at the application's.
            to: authority.parse().ok().filter(|_| next_door).unwrap_or(*to),
            authority: (!next_door).then(|| authority.clone()),
            workload: Some(workload.clone()),
            service: service.clone(),
            expect: Some(workload.identity()),
            proven: true,
        },
    }
}

//! The snapshot of the mesh and every L4 decision made on it.
//!
//! Pure: no clock, no dice, no sockets. A [`Snapshot`] is immutable and cheap to clone; a [`Draft`]
//! makes the next one from wire resources. Decisions are functions over one snapshot:
//!
//! - [`outbound::route`]: where does a connection of a local workload go?
//! - [`inbound::resolve`]: what does a tunnel's authority mean here?
//! - [`authorize()`]: may this peer reach that workload?
//! - [`balance`]: which endpoint of a service?
//! - [`names::find`]: which service does a host name mean?

#![forbid(unsafe_code)]

mod authorize;
pub mod balance;
pub mod convert;
mod draft;
mod egress;
mod gateway;
pub mod inbound;
pub mod names;
pub mod outbound;
mod outlier;
mod policy;
mod policy_group;
mod ranges;
mod service;
mod sharded;
mod slots;
mod snapshot;
#[cfg(test)]
mod testing;
mod trust;
pub mod unknown;
pub mod wire;
mod workload;

pub use authorize::{Denied, DryRun, Peer, Permit, authorize, authorize_through};
pub use convert::{ConvertError, Interner};
pub use draft::Draft;
pub use egress::{ConnectionLimits, OutboundPolicy, pass_again};
pub use gateway::{Resolved, Waypoint, resolve_waypoint};
pub use outbound::Refusal;
pub use outlier::{Ejected, Ejections, Failure, OutlierRule, Outliers, Place};
pub use policy::{
    Action, Authorization, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, TextMatch,
};
pub use service::{
    AppProtocol, BalanceMode, Endpoint, HealthPolicy, IpFamilies, LoadBalancing, RoutingScope,
    Service, Visibility, WeightedWaypoint,
};
pub use snapshot::{AddressObject, Snapshot, Traversal};
pub use trust::TrustNames;
pub use workload::{
    ApplicationTunnel, Ending, Few, GatewayAddress, GatewayDestination, Locality, NetworkMode,
    PortMap, Profile, ServicePorts, TunnelProtocol, Workload, WorkloadType,
};

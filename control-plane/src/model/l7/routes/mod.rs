//! HTTPRoute, GRPCRoute, TCPRoute and TLSRoute attached to Services and ServiceEntries. A waypoint gets them
//! as the rules of a VirtualService: one for each host, since the order of rules goes across routes.

mod attach;
mod convert;
mod crowd;
mod edge;
mod filters;
mod references;

pub(super) use attach::{Overridden, ServiceRoutes, service_routes};
pub(crate) use attach::{ParentStatus, RouteStatus};
pub(crate) use edge::ListenersTold;

#[cfg(test)]
mod tests;

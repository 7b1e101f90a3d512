//! HTTPRoute and GRPCRoute attached to Services. A waypoint gets them as the rules of a
//! VirtualService: one for each Service, since the order of rules goes across routes.

mod attach;
mod convert;
mod filters;
mod references;

pub(crate) use attach::{ParentStatus, RouteStatus};
pub(super) use attach::{ServiceRoutes, service_routes};

#[cfg(test)]
mod tests;

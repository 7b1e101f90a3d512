//! What waypoints are told: routes, rules and policies of the services they serve, nothing else.

mod around;
mod authorization;
mod credentials;
mod delegate;
mod destination_rule;
mod hosts;
mod ingress;
mod rate_limit;
mod routes;
mod scope;
mod served;
mod string_match;
mod target_refs;
mod traffic_policy;
mod unserved;
mod virtual_service;
mod visibility;

pub(crate) use around::around;
pub(crate) use authorization::{Targets, targets};
pub(crate) use hosts::{Hosts, exactness};
pub(crate) use routes::{ListenersTold, ParentStatus, RouteStatus};
pub(crate) use scope::{EndpointLabels, KeptKeys, Scoping, plan_waypoint};
pub(crate) use served::{Owner, Served};
pub(crate) use target_refs::Places;
pub(crate) use unserved::unserved;
pub(crate) use visibility::is_exported;

//! Objects to what proxies are told: pure functions over one set of objects.

mod authorization;
mod auto_allow;
mod bindings;
mod canary;
mod foreign;
mod gateways;
mod handover;
mod ingress;
pub(crate) mod invalid;
mod l7;
mod labels;
pub(crate) mod mesh_config;
mod network_policy;
mod outbound;
mod passage;
mod patch;
mod peer_authentication;
mod plan;
mod pods;
mod presence;
mod room;
mod selection;
mod service_entries;
mod services;
mod settings;
mod slices;
mod traversal;
mod trust;
mod verdict;
mod workloads;

pub(crate) use bindings::BOUND;
pub(crate) use gateways::{
    CANONICAL_NAME, MANAGED, MANAGER, account_of, is_made_for, is_managed, name_of, service_of,
};
pub(crate) use handover::{Front, Fronts, Handover, Handovers, Host, Step, service_name};
pub(crate) use l7::{KeptKeys, ParentStatus};
pub use network_policy::{Dropped, End, Missing, Remedy, ShutDoor, dropped};
pub(crate) use patch::{Kept, Outcome, Patch, relations};
pub(crate) use plan::{GatewayFacts, ListenerFacts, Plan, WaypointPlan, plan, plan_during};
pub(crate) use pods::PodFacts;
pub(crate) use service_entries::refused_hosts;
pub(crate) use services::BOUND_ACCOUNT;
#[cfg(test)]
pub(crate) use services::ServicePlan;
pub(crate) use settings::{Given, Settings};
pub use settings::{OutboundTraffic, PortRules};
pub use verdict::{Severity, Verdict};
pub(crate) use workloads::WorkloadPlan;

#[cfg(test)]
mod canary_tests;
#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
pub(crate) mod golden_tests;
#[cfg(test)]
mod ingress_tests;
#[cfg(test)]
mod l7_tests;
#[cfg(test)]
mod outbound_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod rename_tests;
#[cfg(test)]
mod traversal_tests;

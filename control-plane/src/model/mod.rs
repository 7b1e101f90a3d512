//! Objects to what proxies are told: pure functions over one set of objects.

mod authorization;
mod bindings;
mod gateways;
mod ingress;
pub(crate) mod invalid;
mod l7;
mod labels;
mod network_policy;
mod outbound;
mod passage;
mod patch;
mod peer_authentication;
mod plan;
mod pods;
mod selection;
mod service_entries;
mod services;
mod settings;
mod slices;
mod traversal;
mod verdict;
mod workloads;

pub(crate) use gateways::{MANAGED, MANAGER, account_of, is_managed};
pub(crate) use l7::{KeptKeys, ParentStatus};
pub use network_policy::{Dropped, End, Missing, Remedy, ShutDoor, dropped};
pub(crate) use patch::{Kept, Outcome, Patch};
pub(crate) use plan::{GatewayFacts, ListenerFacts, Plan, WaypointPlan, plan};
pub(crate) use services::BOUND_ACCOUNT;
pub(crate) use settings::Settings;
pub use settings::{OutboundTraffic, PortRules};
pub use verdict::{Severity, Verdict};
pub(crate) use workloads::WorkloadPlan;

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
mod traversal_tests;

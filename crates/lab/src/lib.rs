//! A whole mesh on one machine: nodes and pods as network namespaces, workloads as processes,
//! ordinary Kubernetes YAML as input.
//!
//! [`up`] starts a supervisor with namespaces of its own; everything of the lab dies with it.
//! [`Lab`] talks to a running one. A program that starts labs calls [`supervisor_main`] first
//! thing in `main`, because the supervisor is that same program started again.

#![forbid(unsafe_code)]

mod api_server;
mod client;
mod cluster;
mod component;
mod config;
mod container;
mod control;
mod dns;
mod error;
mod images;
mod kubelet;
mod lifecycle;
mod nft;
mod paths;
mod place;
mod plan;
mod pod;
mod policy;
mod probe;
mod process;
mod protocol;
mod reconcile;
mod stage;
mod supervisor;
mod tokens;
mod wiring;

pub use api_server::ApiServerPlan;
pub use client::{Exec, Lab, Output, status};
pub use config::{LabConfig, Launcher};
pub use error::LabError;
pub use lifecycle::{down, list, supervisor_main, up};
pub use paths::{LabPaths, LabRoot};
pub use protocol::{
    ComponentState, ComponentStatus, LabStatus, LabSummary, NodeStatus, PodPhase, PodStatus,
    Progress, ServiceStatus, Target,
};

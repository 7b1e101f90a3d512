//! A whole mesh on one machine: nodes and pods as network namespaces, workloads as processes,
//! ordinary Kubernetes YAML as input.
//!
//! [`up`] starts a supervisor with namespaces of its own; everything of the lab dies with it.
//! [`Lab`] talks to a running one. A program that starts labs calls [`supervisor_main`] first
//! thing in `main`, because the supervisor is that same program started again.

#![forbid(unsafe_code)]

mod client;
mod config;
mod error;
mod paths;
mod protocol;

pub use client::{Exec, Lab, Output, down, list, status, supervisor_main, up};
pub use config::{LabConfig, Launcher};
pub use error::LabError;
pub use paths::{LabPaths, LabRoot};
pub use protocol::{
    ComponentState, ComponentStatus, LabStatus, LabSummary, NodeStatus, PodPhase, PodStatus,
    Progress, ServiceStatus, Target,
};

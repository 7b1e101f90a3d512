//! The node agent: which pods of a node are redirected, how, and whether that is still true.
//!
//! - [`desire`]: from objects to what is wished of a pod, a pure function.
//! - [`plan`]: the rules of a pod, a pure function.
//! - [`pod`]: the order of enrolling and leaving, a pure function, and the task that follows it.
//! - [`agent`], [`sandbox`]: one task per pod that the container runtime made a namespace for.
//! - [`cni`], [`install`]: the CNI plugin, the answers to it, and its place on the node.
//! - [`discovery`]: pods whose namespaces nobody wrote down, found by their processes.
//! - [`zds`]: announcing pods to node proxies.
//! - [`backend`], [`netlink`], [`probes`]: writing and reading rules, routes and sockets.
//! - [`board`], [`metrics`], [`status`]: what is observed.
//! - [`report`]: what the API server is told of it.

#![forbid(unsafe_code)]

pub mod agent;
pub mod backend;
pub mod board;
pub mod cni;
pub mod desire;
pub mod discovery;
pub mod faults;
pub mod install;
pub mod metrics;
pub mod netlink;
pub mod plan;
pub mod pod;
pub mod probes;
pub mod report;
pub mod sandbox;
pub mod sole;
pub mod status;
pub mod zds;

//! The node agent: which pods of a node are redirected, how, and whether that is still true.
//!
//! - [`plan`]: the rules of a pod, a pure function.
//! - [`pod`]: the order of enrolling and leaving, a pure function, and the task that follows it.
//! - [`zds`]: announcing pods to node proxies.
//! - [`backend`], [`netlink`]: writing and reading rules, routes and sockets of a namespace.

#![forbid(unsafe_code)]

pub mod backend;
pub mod netlink;
pub mod plan;
pub mod pod;
pub mod zds;

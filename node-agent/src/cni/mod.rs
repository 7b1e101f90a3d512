//! The CNI plugin, and the agent's answers to it.
//!
//! The container runtime runs the plugin for every pod, after the plugin that made the pod's
//! interface and before anything of the pod runs. The plugin writes down that the pod is there
//! (`sandbox`), asks the agent over a Unix socket, and lets the pod start only once the agent says
//! that it is in the mesh, seen at that moment, or that it does not belong to it. No answer is a
//! failure that the kubelet tries again: nothing starts unprotected because something is away.
//!
//! - [`plugin`]: the verbs. Blocks, and needs no runtime: the plugin lives for one question.
//! - [`config`], [`environment`]: what the runtime says.
//! - [`question`]: one JSON line to the agent, one back.
//! - [`desk`]: the agent's side.

pub mod config;
pub mod desk;
pub mod environment;
mod error;
pub mod plugin;
pub mod question;

pub use error::{CniError, Code};

/// Name of the plugin's program, and its `type` in a network's configuration.
pub const PLUGIN: &str = "isobar-cni";
/// Folder that agent and plugin share, unless told otherwise.
pub const RUN_DIR: &str = "/var/run/isobar-cni";
/// Socket in that folder.
pub const SOCKET: &str = "agent.sock";
/// Folder of records in that folder.
pub const PODS: &str = "pods";
/// Versions of the specification that the plugin speaks.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

//! The CNI plugin's program and the agent's, as a container runtime and a node run them.

pub(crate) mod blind;
pub(crate) mod crashes;
mod driver;
pub(crate) mod found;
mod node;
pub(crate) mod verbs;

pub(crate) use driver::{Attachment, Said};
pub(crate) use node::Node;

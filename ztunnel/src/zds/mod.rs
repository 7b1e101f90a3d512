//! The node agent's announcements: which pods to serve, each with its network namespace.
//!
//! One protobuf message a packet over a SEQPACKET socket; the agent listens. After our hello it
//! sends a snapshot, then changes; it waits for our answer to each before the next. An answer means
//! "listeners exist", and must come within 5 s, so nothing here waits for the control plane.

mod client;
mod message;
mod session;

pub use client::{Client, Fatality};
pub use message::{PodInfo, ProtocolError, Request};
pub use session::{Answer, Fatal, PodHost, Session};

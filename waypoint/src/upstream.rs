//! Connections to endpoints: how one is made, and which are kept for the next request.

mod dial;
mod pool;

pub use dial::{Dial, DialFailure, HboneDialer, PlainDialer};
pub(crate) use pool::{LocalExecutor, chain};
pub use pool::{Pool, SendError, Sent, Version};

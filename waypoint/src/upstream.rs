//! Connections to endpoints: how one is made, and which are kept for the next request.

mod dial;
mod pool;

pub use dial::{Dial, DialFailure, HboneDialer, PlainDialer};
pub use pool::{How, InUse, Pool, SendError, Sent, Version};
pub(crate) use pool::{LocalExecutor, chain};

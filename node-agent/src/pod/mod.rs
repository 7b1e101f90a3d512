//! One pod: what is wished, what is so, and the steps between.

mod driver;
mod events;
pub mod machine;
mod observe;

use std::sync::Arc;

use isobar_net::NetNs;

use crate::backend::{BackendError, Canon};
use crate::plan::Wishes;

pub use driver::{Driver, Order, Services, Timing};

/// What the rules in a namespace are at this moment, nothing remembered. Blocks.
///
/// # Errors
/// When the namespace cannot be looked into.
pub fn look_afresh(
    netns: &NetNs,
    canon: &Arc<Canon>,
    wishes: &Wishes,
) -> Result<machine::Rules, BackendError> {
    let mut observer = observe::Observer::new(netns.clone(), Arc::clone(canon));
    Ok(observer.look(wishes)?.rules)
}

//! One pod: what is wished, what is so, and the steps between.

mod driver;
mod events;
pub mod machine;
mod observe;

pub use driver::{Driver, Order, Services, Timing};

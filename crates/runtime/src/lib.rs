//! Owned tasks, drain and per-core workers.
//!
//! Every task belongs to a [`Scope`] that can stop and join it; every stop has one cause, carried
//! by the scope's [`Lifetime`]. Data-path threads are [`Workers`]: one current-thread runtime per
//! core, on which `!Send` futures run through [`LocalScope`].

#![forbid(unsafe_code)]

mod backoff;
mod lifetime;
mod scope;
mod workers;

pub use backoff::Backoff;
pub use lifetime::{Lifetime, LifetimeOwner, Phase};
pub use scope::{LocalScope, Scope, panics, polls};
pub use workers::{Worker, Workers, worker_threads};

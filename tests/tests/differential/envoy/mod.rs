//! The other side: the real Envoy, configured from the same messages.

mod authorization;
mod cluster;
mod listener;
mod matching;
mod process;
mod route;

pub(crate) use listener::{Export, listener_name};
pub(crate) use process::Envoy;

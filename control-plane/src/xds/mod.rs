//! Delta discovery: what is served, to whom, and in which order.
//!
//! [`catalog`] holds what there is; [`session`] decides, without any input or output, what one
//! client still has to be told; [`stream`] drives a session over one gRPC stream.

pub(crate) mod allowance;
pub(crate) mod catalog;
pub(crate) mod clients;
mod codec;
mod held;
pub(crate) mod kind;
mod names;
mod portion;
pub(crate) mod resources;
pub(crate) mod service;
pub(crate) mod session;
mod stream;
pub(crate) mod subscription;

#[cfg(test)]
mod on_demand_tests;
#[cfg(test)]
mod session_tests;

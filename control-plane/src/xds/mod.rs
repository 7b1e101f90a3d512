//! Delta discovery: what is served, to whom, and in which order.
//!
//! [`catalog`] holds what there is; [`session`] decides, without any input or output, what one
//! client still has to be told; [`stream`] drives a session over one gRPC stream.

pub(crate) mod catalog;
pub(crate) mod clients;
mod codec;
pub(crate) mod kind;
mod names;
pub(crate) mod service;
pub(crate) mod session;
mod stream;

#[cfg(test)]
mod on_demand_tests;
#[cfg(test)]
mod session_tests;

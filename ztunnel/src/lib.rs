//! The L4 node proxy: carries the TCP of the pods of one node through HBONE.
//!
//! A connection's way is told in order by [`proxy`]; who announces pods in [`zds`]; the start and
//! the end of the process in [`app`].

#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod config;
pub mod dns;
pub mod local;
pub mod metrics;
pub mod pods;
pub mod proxy;
mod recheck;
pub mod zds;

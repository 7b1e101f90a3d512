//! The waypoint: ends HBONE, looks at requests, applies routes and policies, and goes on over HBONE.
//!
//! One request takes this way: [`target`] (what was dialled, and is it ours?) → [`protocol`] (HTTP or
//! opaque) → [`http`] (normalise, who calls, route, authorise, choose an endpoint, send) or [`tcp`].
//! Each worker thread has its own listener, its own upstream connections and its own turns; what they
//! share is the snapshot and the tables in [`world`].

#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod attribution;
pub mod cluster;
pub mod config;
mod credentials;
pub mod edge;
pub mod endpoint;
pub mod feed;
mod frames;
mod gather;
pub mod http;
mod kept;
pub mod listener;
mod message;
pub mod metrics;
pub mod names;
mod observation;
pub mod outlier;
pub mod plaintext;
pub mod protocol;
pub mod rates;
mod resolved;
pub mod run;
pub mod session;
pub mod stream;
pub mod target;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod traces;
pub mod upstream;
pub mod world;

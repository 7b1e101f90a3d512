//! A waypoint in this process, reached over real HBONE on loopback, with real HTTP back ends.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bed;
mod callers;
mod destinations;
mod http;
mod rates;
mod retries;
mod tcp;
mod translation;
mod withdrawn;

//! What a product of the mesh tells the outside: logs, metrics, readiness, admin pages.
//!
//! - [`logging`]: lines in Istio's ztunnel format (text or JSON), level changed at run time.
//! - [`Registry`]: metrics, encoded as OpenMetrics text.
//! - [`Ready`]: named gates that must all be passed before the process calls itself ready.
//! - [`HttpServer`] and [`Routes`]: the small HTTP/1.1 servers for readiness, metrics and admin.
//! - [`standard`]: the routes every product has (`/healthz/ready`, `/metrics`, `/logging`, …).
//! - [`access`]: the access line of an L4 connection.

#![forbid(unsafe_code)]

pub mod access;
mod http_server;
pub mod logging;
mod metrics;
mod process;
mod ready;
mod runtimes;
pub mod standard;

pub use http_server::{Call, HttpServer, Reply, Routes};
pub use metrics::Registry;
pub use ready::{Gate, Ready};
pub use runtimes::Runtimes;

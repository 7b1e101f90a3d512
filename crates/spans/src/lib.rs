//! Traces of requests: where one stands in its trace, what is told of it, and the way of that to a collector.
//!
//! [`begin`] reads a request's headers (W3C Trace Context, B3) and writes what goes on; [`span`] makes one span of
//! OpenTelemetry out of a request that is over; [`Spans`] holds those that wait, and [`Exporter`] sends them over OTLP.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod context;
mod export;
mod queue;
mod request;

pub use context::{Context, begin};
pub use export::{Collector, Exporter, Resolve};
pub use opentelemetry_proto::tonic::trace::v1::Span;
pub use queue::Spans;
pub use request::{Party, Request, span};

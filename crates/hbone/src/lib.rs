//! HBONE: CONNECT over HTTP/2 over mutual TLS, both ends, pool and relay.
//!
//! Everything here lives on one thread (`!Send`): a pool, its tunnels, their streams and the
//! relays over them belong to one worker. The wire format is that of Istio's ztunnel

#![forbid(unsafe_code)]

mod ahead;
mod cork;
mod error;
mod guard;
mod headers;
mod liveness;
mod pool;
mod proxy_protocol;
mod relay;
pub mod server;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod unsent;

pub use error::{ServeError, Stage, TunnelError};
pub use guard::{Admission, FrameHead, FrameHeads, Limits, Turned, taken_of_opening};
pub use headers::{
    Authority, Baggage, BaggageValue, ConnectHeaders, FORWARDED_NETWORK, Forwarded, HeaderError,
    TraceParent, WorkloadType,
};
pub use liveness::past;
pub use pool::{Certificates, Pool, PoolOptions, TunnelKey};
pub use proxy_protocol::{ProxyHeader, ProxyHeaderError};
pub use relay::{
    Batch, Endpoint, Plain, Progress, RelayError, RelaySide, Relayed, relay, relay_counted,
};
pub use server::{Connect, ServerOptions, serve};
pub use settings::{Http2, Timeouts};
pub use stream::TunnelStream;

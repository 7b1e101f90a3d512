//! What the end-to-end suites and the demo share: a mesh in a lab of its own, callers inside its
//! pods, steady load that counts every failure, captures between the nodes, and what all of it
//! would leave on the machine; and an Envoy that does what a waypoint of ours should.

#![forbid(unsafe_code)]

mod api_server;
mod app;
mod caller;
mod capture;
pub mod envoy;
pub mod interop;
mod load;
mod mesh;
pub mod page;
pub mod tour;
mod traces;
mod wait;
pub mod yaml;

pub use api_server::{ApiServer, Program, kube_tools};
pub use app::{Answer, App, Arrived};
pub use caller::{Caller, Connection, Reply};
pub use capture::{Capture, Recorded};
pub use load::{Load, LoadKind, Tally};
pub use mesh::{Mesh, MeshOptions, binaries, over_api_server, samples};
pub use traces::{Traces, prefix, scratch};
pub use wait::{eventually, eventually_within};

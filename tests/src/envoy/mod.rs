//! A real Envoy, configured from the messages that a waypoint of ours gets: for tests that compare what
//! both do, and benchmarks that compare what it costs.

mod authorization;
mod cluster;
mod external_auth;
mod gateway;
mod listener;
mod matching;
mod process;
mod route;
mod tunnels;

pub use gateway::OfMesh;
pub use listener::{Call, Export};
pub use process::Envoy;

//! A waypoint in this process, reached over real HBONE on loopback, with real HTTP back ends.

#![allow(clippy::unwrap_used, reason = "tests")]

mod aborted;
mod authorisers;
mod bed;
mod callers;
mod destinations;
mod edge;
mod edge_mesh;
mod edge_trust;
mod floods;
mod hostile;
mod http;
mod keepalive;
mod kept;
mod limits;
mod lines;
mod outside;
mod plaintext;
mod rates;
mod retries;
mod revoked;
mod scale_in;
mod sessions;
mod steady;
mod tcp;
mod towards;
mod traces;
mod translation;
mod trickle;
mod withdrawn;

//! The mesh, end to end: real programs, real redirection, real TLS, in network namespaces.
//!
//! Each test starts a lab of its own, one at a time, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod authorisers;
mod binding;
mod canary;
mod command_line;
mod deletion;
mod dual_stack;
mod egress;
mod egress_gateway;
mod enrolment;
mod explained;
mod explained_generated;
mod fixture;
mod gateway_routes;
mod identity;
mod input;
mod lessons;
mod live_policy;
mod mesh_config;
mod netpol;
mod on_demand;
mod outage;
mod policy;
mod port_rules;
mod readme;
mod report;
mod routing;
mod sandwich;
mod unread;
mod waypoints;
mod wire;

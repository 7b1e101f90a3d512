//! The control plane: objects to model to discovery; certificates; waypoints; statuses.
//!
//! One direction: an [`isobar_objects::ObjectSource`] publishes sets of objects; [`model`] turns a set
//! into a plan, purely; [`engine`] publishes what differs to [`xds`] sessions and to the certificate
//! authority in [`ca`]; [`controller`] writes back what has to exist and what there is to say.
//! [`run`] puts the parts together, [`validate`] checks objects offline.

#![forbid(unsafe_code)]

mod admission;
mod auth;
mod authority;
mod ca;
mod classes;
mod config;
mod controller;
mod engine;
mod imagined;
mod last_valid;
mod metrics;
mod model;
mod monitoring;
mod process;
mod profiling;
mod reach;
mod revision;
mod rivals;
mod server;
#[cfg(test)]
mod server_tests;
mod started;
mod surroundings;
mod told;
mod validation;
mod webhook;
mod xds;

pub use config::Config;
pub use imagined::imagined;
pub use model::{
    Dropped, End, Missing, OutboundTraffic, PortRules, Remedy, Severity, ShutDoor, Verdict, dropped,
};
pub use process::run;
pub use started::Started;
pub use told::{
    ForeignAddress, Told, ToldWaypoint, guards, passed_by, shut_doors_by, told, told_by,
    verdicts_by,
};
pub use validation::validate;
pub use webhook::answer_reviews;

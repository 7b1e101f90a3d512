//! The control plane as seen from a proxy: delta discovery into a [`Store`], and certificates.
//!
//! [`AdsClient`] keeps the newest [`isobar_state::Snapshot`] in the [`Store`] and hands other
//! resource types to [`ResourceHandler`]s. [`CertManager`] keeps workload certificates. Both live
//! through any outage of the control plane with what they have: the data path is not disturbed.

#![forbid(unsafe_code)]

mod ads;
mod certificates;
mod channel;
mod config;
mod handler;
mod mesh;
mod status;
mod store;
#[cfg(test)]
mod testing;

pub use ads::AdsClient;
pub use certificates::{
    CaClient, CertError, CertManager, CertReport, CertSource, CertState, Clock, Requester,
};
pub use channel::ConnectError;
pub use config::{AdsConfig, CaConfig, Roots, Token};
pub use handler::{Rejected, ResourceHandler, decode};
pub use status::{SyncReport, SyncStatus, Termination, TypeReport};
pub use mesh::OutboundPolicyHandler;
pub use store::Store;

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
#[cfg(test)]
mod hostile_tests;
mod mesh;
mod on_demand;
mod saved;
#[cfg(test)]
mod scale_tests;
mod status;
mod store;
#[cfg(test)]
mod testing;

pub use ads::AdsClient;
pub use certificates::{
    CaClient, CertError, CertManager, CertReport, CertSource, CertState, Clock, Requester,
    RevocationFile,
};
pub use channel::ConnectError;
pub use config::{AdsConfig, CaConfig, Roots, Token};
pub use handler::{Rejected, ResourceHandler, decode};
pub use mesh::OutboundPolicyHandler;
pub use on_demand::{OnDemand, TooManyAsked};
pub use saved::{SavedCertificates, SavedError, SavedMesh};
pub use status::{SyncReport, SyncStatus, Termination, TypeReport};
pub use store::Store;

//! The certificate authority: who may get which certificate, and the service that hands them out.

mod impersonation;
mod roster;
mod service;

pub(crate) use impersonation::{Refusal, Rules};
pub(crate) use roster::{PodRecord, Roster};
pub(crate) use service::CertificateService;

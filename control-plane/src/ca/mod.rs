//! The certificate authority: who may get which certificate, and the service that hands them out.

mod impersonation;
mod pace;
mod roster;
mod service;

pub(crate) use impersonation::{Refusal, Rules};
pub(crate) use pace::Pace;
pub(crate) use roster::{PodRecord, Roster};
pub(crate) use service::CertificateService;

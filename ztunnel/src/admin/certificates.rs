//! Certificates in the shape of Istio's dump.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isobar_tls::CertificateInfo;
use isobar_xds::{CertManager, CertState};
use serde_json::{Value, json};

/// All certificates, by identity.
pub(super) fn certificates(manager: &CertManager) -> Vec<Value> {
    let reports = manager.report().into_iter();
    reports
        .map(|report| {
            let identity = report.identity.to_string();
            match report.state {
                CertState::Initializing => empty(&identity, "Initializing"),
                CertState::Unavailable(error) => empty(&identity, &format!("Unavailable: {error}")),
                CertState::Available(certificate) => json!({
                    "identity": identity,
                    "state": "Available",
                    "certChain": chain(certificate.chain()),
                    "rootCerts": chain(certificate.roots()),
                }),
            }
        })
        .collect()
}

fn empty(identity: &str, state: &str) -> Value {
    json!({ "identity": identity, "state": state, "certChain": [], "rootCerts": [] })
}

fn chain(certificates: &[CertificateInfo]) -> Vec<Value> {
    let all = certificates.iter();
    all.map(|c| {
        json!({
            "pem": STANDARD.encode(&c.pem),
            "serialNumber": c.serial,
            "validFrom": time(c.not_before),
            "expirationTime": time(c.not_after),
        })
    })
    .collect()
}

/// RFC 3339, whole seconds.
fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|e| e.to_string(), |t| format!("{t:.0}"))
}

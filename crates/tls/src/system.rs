use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::CryptoFailure;

/// The roots that the operating system trusts, as PEM: `SSL_CERT_FILE` and `SSL_CERT_DIR`, else the
/// distribution's bundle. Reads files: call it where that may block.
///
/// # Errors
/// When there are none.
pub fn system_roots() -> Result<String, CryptoFailure> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a root of the system cannot be read");
    }
    let pem: String = found.certs.iter().map(|root| block(root)).collect();
    if pem.is_empty() {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let text = format!("none found: {}", errors.join("; "));
        return Err(CryptoFailure::new("read the system's roots", text));
    }
    Ok(pem)
}

fn block(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

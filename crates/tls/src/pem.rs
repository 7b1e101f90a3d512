use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// All certificates of a PEM text, in order. Text around the blocks is ignored, as everywhere.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = found.map_err(|error| format!("not PEM: {error}"))?;
    if found.is_empty() {
        return Err("no certificate in the PEM text".to_owned());
    }
    Ok(found)
}

/// One certificate as a PEM block with a final newline.
pub(crate) fn block(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
